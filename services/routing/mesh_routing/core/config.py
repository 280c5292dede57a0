"""Timing of the routing core, with the presets `lan`, `wan` and `test`.

Leaves out how settings are read (the shell's business) and the weights of the cost, which are replicated (`view`). Times are seconds unless the name says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, Literal


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
        metric_hold_down_s: Least time between an origination and the next one that only moves metrics. It doubles with each
            of those that follows soon, so that a link that wavers is told of ever more seldom.
        metric_hold_down_max_s: Cap of the doubling: as old may a metric be that others compute with.
        origination_interval_s: Least time between two originations on the average (RFC 2328 MinLSInterval); others take no
            more than one in 0.2 s (`flood_limits`).
        origination_burst: So many may come at once, so that one failure is told of at once whatever it moves.
        significant_ratio: A delay must change by more than this share …
        significant_us: … and by more than this to be advertised.
        start_grace_s: After a start the data plane keeps its stored routes until every neighbour has been heard in
            full, at most so long.
        hysteresis_ratio: A path in use gives way to one that is cheaper by more than this share of its cost …
        hysteresis_us: … and by more than this, or that has fewer hops.
        recheck_pause_s: Time between two steps that only look for better backups (`route_work`): a step of 20 ms in a mesh
            of 1,000 nodes, so that they take a tenth of a core at most.
        route_nodes_max: Longest path that a packet can carry (meshwire.packet.MAX_ROUTE_NODES).
    """

    retransmit_first_s: float = 0.1
    retransmit_max_s: float = 2.0
    refresh_s: float = 300.0
    max_age_s: float = 1_200.0
    metric_hold_down_s: float = 2.0
    metric_hold_down_max_s: float = 32.0
    origination_interval_s: float = 0.25
    origination_burst: int = 10
    significant_ratio: float = 0.2
    significant_us: int = 500
    start_grace_s: float = 1.0
    hysteresis_ratio: float = 0.1
    hysteresis_us: int = 500
    recheck_pause_s: float = 0.2
    route_nodes_max: int = 16
    throttle: ThrottleTiming = field(default_factory=ThrottleTiming)


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
