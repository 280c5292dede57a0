"""The cost of one link in one direction, term by term.

cost = α·latency + jitter weight·jitter + β/bandwidth + γ·utilisation + δ·loss + ε per hop + administrative cost, in
microsecond-equivalents. Each term is a whole number: sums of integers compare exactly, so every computation over the
same database finds the same paths, and the terms that are shown add up. What nobody has measured costs nothing.
Leaves out the weights (`meshcommon.cost_weights`). Source: architecture §6.
"""

from __future__ import annotations

from typing import NamedTuple

from mesh_routing.core.lsa import LsaLink
from meshcommon.cost_weights import CostWeights


class CostTerms(NamedTuple):
    """What a link or a path costs, by reason; microsecond-equivalents."""

    latency: int = 0
    jitter: int = 0
    bandwidth: int = 0
    utilisation: int = 0
    loss: int = 0
    hops: int = 0
    admin: int = 0

    @property
    def measured(self) -> int:
        """The part that measurements move."""
        return self.latency + self.jitter + self.bandwidth + self.utilisation + self.loss

    @property
    def total(self) -> int:
        """The cost; at least 1, because each hop costs at least 1, so that no path ties with its own beginning."""
        return self.measured + self.hops + self.admin

    def plus(self, other: CostTerms) -> CostTerms:
        """The terms of two links one after the other."""
        return CostTerms(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def cost_terms(link: LsaLink, weights: CostWeights) -> CostTerms:
    """What `link` costs by `weights`, each term rounded down."""
    kbit, used, lost = link.bandwidth_kbit, link.utilisation_permille, link.loss_ppm
    return CostTerms(
        latency=weights.latency_permille * link.latency_us // 1_000,
        jitter=weights.jitter_permille * link.jitter_us // 1_000,
        bandwidth=0 if kbit is None else weights.bandwidth_us * 1_000 // kbit,
        utilisation=0 if used is None else weights.utilisation_us * used // 1_000,
        loss=0 if lost is None else weights.loss_us_per_percent * lost // 10_000,
        hops=weights.hop_us,
        admin=link.admin_cost,
    )


def link_cost(link: LsaLink, weights: CostWeights) -> int:
    """Cost of `link` in microsecond-equivalents."""
    return cost_terms(link, weights).total
