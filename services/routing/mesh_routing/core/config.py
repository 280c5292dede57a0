"""Timing and weights of the routing core, with the presets `lan`, `wan` and `test`.

Leaves out how settings are read (the shell's business). Times are seconds unless the name says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class CostWeights:
    """Weights of `core.cost.link_cost`; the result is in microsecond-equivalents.

    Attributes:
        latency: Per microsecond of one-way latency (α).
        jitter: Per microsecond of its variation: half, so that noise on a quiet link does not outweigh its latency.
        loss_us_per_ppm: Per lost packet in a million: 1 % loss weighs 20 ms, about one retransmission in a hundred
            packets over a 2 s timeout.
        hop_us: Per hop (ε): the relay's queueing and one more thing to fail. Also what keeps a direct link preferred
            over a relay when both are equally fast within the noise of the measurement.
    """

    latency: float = 1.0
    jitter: float = 0.5
    loss_us_per_ppm: float = 2.0
    hop_us: int = 2_000


@dataclass(frozen=True, slots=True)
class ThrottleTiming:
    """Delays of RFC 8405 §3, all in seconds.

    Attributes:
        initial_s: INITIAL_SPF_DELAY. 0: the first change after quiet is computed at once.
        short_s: SHORT_SPF_DELAY, while the changes that belong to one failure come in.
        long_s: LONG_SPF_DELAY, while the network is churning; also the delay of changes that only move metrics.
        time_to_learn_s: TIME_TO_LEARN_INTERVAL, how long the changes of one failure take to arrive.
        hold_down_s: HOLDDOWN_INTERVAL without changes makes the network quiet again.
    """

    initial_s: float = 0.0
    short_s: float = 0.020
    long_s: float = 0.200
    time_to_learn_s: float = 0.500
    hold_down_s: float = 2.0


@dataclass(frozen=True, slots=True)
class RoutingConfig:
    """Everything that the routing core can be told.

    Attributes:
        retransmit_first_s: First repetition of an unacknowledged advertisement or digest; more than a round trip.
        retransmit_max_s: Cap of the doubling intervals after it. Bounds the convergence time after loss.
        refresh_s: The own advertisement is repeated with a new sequence number at this interval.
        max_age_s: An advertisement not refreshed for so long is purged; four refreshes may be lost.
        metric_hold_down_s: Least time between an origination and the next one that only moves metrics.
        significant_ratio: A delay must change by more than this share …
        significant_us: … and by more than this to be advertised.
        start_grace_s: After a start the data plane keeps its stored routes until every neighbour has been heard in
            full, at most so long.
        route_nodes_max: Longest path that a packet can carry (meshwire.packet.MAX_ROUTE_NODES).
    """

    retransmit_first_s: float = 0.1
    retransmit_max_s: float = 2.0
    refresh_s: float = 300.0
    max_age_s: float = 1_200.0
    metric_hold_down_s: float = 2.0
    significant_ratio: float = 0.2
    significant_us: int = 500
    start_grace_s: float = 1.0
    route_nodes_max: int = 16
    throttle: ThrottleTiming = field(default_factory=ThrottleTiming)
    weights: CostWeights = field(default_factory=CostWeights)


_LAN: Final = RoutingConfig()
PRESETS: Final[dict[str, RoutingConfig]] = {
    "lan": _LAN,
    "test": _LAN,
    "wan": replace(
        _LAN,
        retransmit_first_s=0.5,
        retransmit_max_s=5.0,
        metric_hold_down_s=5.0,
        start_grace_s=5.0,
        throttle=ThrottleTiming(short_s=0.050, long_s=1.0, time_to_learn_s=1.0, hold_down_s=5.0),
    ),
}


def preset(name: Literal["lan", "wan", "test"]) -> RoutingConfig:
    """The configuration of a preset."""
    return PRESETS[name]
