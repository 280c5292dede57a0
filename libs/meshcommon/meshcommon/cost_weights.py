"""Weights of the link cost by traffic class: defaults, bounds, and how a change is read.

The control plane keeps them in the replicated state, routing computes with them; both read them here, so that what one
accepts the other understands. Whole numbers, so that every node computes the same costs. Leaves out the cost itself
(`mesh_routing.core.cost`). Source: architecture §6, proto/meshapi/common/v1/weights.proto.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Final

from meshapi.common.v1 import weights_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshwire.packet import TrafficClass

PERMILLE_MAX: Final = 100_000
"""Largest weight of a microsecond: a hundred of them."""
COST_US_MAX: Final = 1_000_000_000
"""Largest cost of one term: about a quarter of an hour."""
_CLASSES: Final = {TrafficClass(number): number + 1 for number in TrafficClass}


@dataclass(frozen=True, slots=True)
class CostWeights:
    """Weights of one class; the cost of a link is the sum of its terms, in microsecond-equivalents.

    Attributes:
        latency_permille: Thousandths of a microsecond of latency (α).
        jitter_permille: Thousandths of a microsecond of jitter: half a microsecond, so that noise on a quiet link does not
            outweigh its latency.
        bandwidth_us: Cost of a link of 1 Mbit/s, divided by the Mbit/s that the link has (β): the time that a burst of
            so many bits takes.
        utilisation_us: Cost of a link that is fully used, in proportion below (γ): queueing.
        loss_us_per_percent: 1 % loss weighs 20 ms, about one retransmission in a hundred packets over a 2 s timeout (δ).
        hop_us: Each hop (ε): the relay's queueing and one more thing to fail. It also keeps a direct link preferred to a
            relay when both are equally fast within the noise of the measurement.
    """

    latency_permille: int = 1_000
    jitter_permille: int = 500
    bandwidth_us: int = 0
    utilisation_us: int = 2_000
    loss_us_per_percent: int = 20_000
    hop_us: int = 2_000


WeightsByClass = Mapping[TrafficClass, CostWeights]
DEFAULTS: Final[WeightsByClass] = {
    TrafficClass.CONTROL: CostWeights(),
    TrafficClass.PRIORITY: CostWeights(bandwidth_us=100_000, utilisation_us=10_000),
    TrafficClass.BULK: CostWeights(bandwidth_us=1_000_000, utilisation_us=50_000),
}
"""Control packets are small and go first, so bandwidth and use cost them little; bulk waits for both."""
_BOUNDS: Final = {
    field.name: (1 if field.name == "hop_us" else 0, PERMILLE_MAX if field.name.endswith("permille") else COST_US_MAX)
    for field in fields(CostWeights)
}


def read_class(number: int) -> TrafficClass:
    """The traffic class of a message. Raises MeshError: INVALID_ARGUMENT."""
    for traffic_class, value in _CLASSES.items():
        if value == number:
            return traffic_class
    raise MeshError(ErrorCode.INVALID_ARGUMENT, "A traffic class is CONTROL, PRIORITY or BULK: name one of the three.")


def class_value(traffic_class: TrafficClass) -> weights_pb2.TrafficClass.ValueType:
    """For a message."""
    return weights_pb2.TrafficClass.ValueType(_CLASSES[traffic_class])


def changed_weights(before: CostWeights, change: weights_pb2.CostWeights) -> CostWeights:
    """`before` with what `change` names.

    Raises:
        MeshError: INVALID_ARGUMENT, a weight is out of its bounds.
    """
    values = asdict(before)
    for name, (least, most) in _BOUNDS.items():
        if not change.HasField(name):  # type: ignore[arg-type]
            continue
        values[name] = getattr(change, name)
        if not least <= values[name] <= most:
            raise MeshError(
                ErrorCode.INVALID_ARGUMENT,
                f"The weight {name} goes from {least} to {most}, and {values[name]} is beyond: choose another.",
                {"weight": name, "least": str(least), "most": str(most)},
            )
    return CostWeights(**values)


def changed_classes(
    before: WeightsByClass, change: weights_pb2.ClassWeights, *, is_reset: bool
) -> dict[TrafficClass, CostWeights]:
    """The weights after a change of one class; what the change leaves absent stays, or is the default with `is_reset`.

    Raises:
        MeshError: INVALID_ARGUMENT.
    """
    traffic_class = read_class(change.traffic_class)
    start = DEFAULTS[traffic_class] if is_reset else before.get(traffic_class, DEFAULTS[traffic_class])
    after = {**before, traffic_class: changed_weights(start, change.weights)}
    return {item: weights for item, weights in after.items() if weights != DEFAULTS[item]}


def write_weights(weights: WeightsByClass) -> list[weights_pb2.ClassWeights]:
    """For a message, by class, each complete."""
    return [
        weights_pb2.ClassWeights(traffic_class=class_value(item), weights=weights_message(weights[item]))
        for item in sorted(weights)
    ]


def weights_message(weights: CostWeights) -> weights_pb2.CostWeights:
    """For a message, complete."""
    return weights_pb2.CostWeights(**asdict(weights))


def read_weights(messages: Iterable[weights_pb2.ClassWeights]) -> dict[TrafficClass, CostWeights]:
    """Weights of the classes that a view or a snapshot names.

    Raises:
        MeshError: INVALID_ARGUMENT, for a class or weight that this software does not know as good.
    """
    found: dict[TrafficClass, CostWeights] = {}
    for item in messages:
        traffic_class = read_class(item.traffic_class)
        found[traffic_class] = changed_weights(DEFAULTS[traffic_class], item.weights)
    return found
