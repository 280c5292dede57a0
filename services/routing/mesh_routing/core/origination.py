"""When this node advertises itself anew, and under which sequence number.

At once when a link came up or went down, but no faster than others carry on (RFC 2328 §12.4, MinLSInterval, here with a
burst). When what measurements cost on a link moved by more than max(20 %, 0.5 ms) for any traffic class since the last
time, after a hold-down that doubles while this goes on. At the refresh interval (§12.4 (1)). At once when an own
advertisement of an earlier incarnation turns up, beyond its sequence number (§13.4). The rule of significance is
architecture §6.

Sequence numbers are `boot << 32` plus a counter that starts at a random point below 2**31. The boot number is raised
durably at each start of the service, so a new incarnation begins beyond the last one without a clock. When the
directory was lost the boot number starts again: then the random start makes it all but certain that no number is used
twice for different content, and jumping past what the neighbours still hold does the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Final

from mesh_routing.core.config import RoutingConfig
from mesh_routing.core.cost import cost_terms
from mesh_routing.core.lsa import SEQUENCE_MAX, Lsa, LsaLink
from meshcommon.cost_weights import DEFAULTS, WeightsByClass
from meshcommon.ids import NodeId

_COUNTER_BITS: Final = 32


def first_sequence(boot: int, rng: Random) -> int:
    """Where an incarnation with this boot number starts to count."""
    return ((boot % 2**30) << _COUNTER_BITS) + 1 + rng.randrange(2 ** (_COUNTER_BITS - 1))


@dataclass(frozen=True, slots=True)
class LocalLink:
    """The virtual link to one neighbour, as the data plane reports it.

    Attributes:
        peer: Neighbour.
        rtt_us: Smoothed round trip, microseconds.
        rtt_var_us: Its variation, microseconds.
        loss_ppm: Lost packets in a million; None: not measured, also below.
        bandwidth_kbit: What it can carry, kbit/s.
        utilisation_permille: How much of that is in use, thousandths.
    """

    peer: NodeId
    rtt_us: int
    rtt_var_us: int
    loss_ppm: int | None = None
    bandwidth_kbit: int | None = None
    utilisation_permille: int | None = None


class Origination:
    """Makes the own advertisements. `now` is monotonic seconds."""

    def __init__(self, config: RoutingConfig, node_id: NodeId, sequence: int) -> None:
        self._config = config
        self._node_id = node_id
        self._sequence = sequence
        self._links: dict[NodeId, LsaLink] = {}
        self._advertised: Lsa | None = None
        self._advertised_at = 0.0
        self._is_forced = False
        self._weights = DEFAULTS
        self._metric_hold_s = config.metric_hold_down_s
        # When the next one would be due if they came evenly: ahead of the clock by what a burst has used up.
        self._even_at = float("-inf")
        # Worked out when something has changed, not at every tick.
        self._due_at = float("-inf")

    def set_links(self, links: Iterable[LocalLink]) -> None:
        """Takes the links that are up now."""
        self._links = {
            link.peer: LsaLink(
                link.peer,
                latency_us=link.rtt_us // 2,
                jitter_us=link.rtt_var_us // 2,
                loss_ppm=link.loss_ppm,
                bandwidth_kbit=link.bandwidth_kbit,
                utilisation_permille=link.utilisation_permille,
            )
            for link in links
            if link.peer != self._node_id
        }
        self._due_at = self._next_origination()

    def set_weights(self, weights: WeightsByClass) -> None:
        """Takes the weights of the mesh: they say which change of a measurement matters."""
        self._weights = weights
        self._due_at = self._next_origination()

    def jump_past(self, sequence: int) -> None:
        """An own advertisement of an earlier incarnation is about: outbid it.

        Only one with our own signature gets here, so the number is one that an incarnation of ours has reached. At
        SEQUENCE_MAX there is nothing beyond; the old one then has to age out. Honest origins never come near.
        """
        if sequence >= self._sequence:
            self._sequence = min(sequence, SEQUENCE_MAX - 1)
            self._is_forced = True
            self._due_at = self._next_origination()

    def repeat(self) -> None:
        """What was advertised counts no more: the next one is due at once."""
        self._is_forced = True
        self._due_at = self._next_origination()

    def take_due(self, now: float) -> Lsa | None:
        """The next advertisement, when it is due."""
        if self._due_at > now:
            return None
        self._slow_down(now)
        self._sequence = min(self._sequence + 1, SEQUENCE_MAX)
        links = tuple(self._links[peer] for peer in sorted(self._links))
        self._advertised = Lsa(self._node_id, self._sequence, links)
        self._advertised_at = now
        self._is_forced = False
        self._due_at = self._next_origination()
        return self._advertised

    def next_deadline(self) -> float:
        """When `take_due` has something; minus infinity: now."""
        return self._due_at

    def _slow_down(self, now: float) -> None:
        """Counts one more origination against the burst, and one of mere metrics against the hold-down."""
        self._even_at = max(self._even_at, now) + self._config.origination_interval_s
        quiet_s = now - self._advertised_at
        if self._is_urgent() or quiet_s >= self._config.refresh_s:
            return
        is_quiet = quiet_s >= 4 * self._metric_hold_s
        longer_s = min(2 * self._metric_hold_s, self._config.metric_hold_down_max_s)
        self._metric_hold_s = self._config.metric_hold_down_s if is_quiet else longer_s

    def _is_urgent(self) -> bool:
        advertised = self._advertised
        return advertised is None or self._is_forced or advertised.peers != self._links.keys()

    def _next_origination(self) -> float:
        advertised, config = self._advertised, self._config
        if advertised is None or self._is_urgent():
            return self._even_at - config.origination_burst * config.origination_interval_s
        if any(self._is_significant(link, self._links[link.peer]) for link in advertised.links):
            return self._advertised_at + self._metric_hold_s
        return self._advertised_at + config.refresh_s

    def _is_significant(self, before: LsaLink, after: LsaLink) -> bool:
        if before == after:
            return False
        for weights in self._weights.values():
            old, new = cost_terms(before, weights).measured, cost_terms(after, weights).measured
            if abs(new - old) > max(self._config.significant_ratio * old, self._config.significant_us):
                return True
        return False
