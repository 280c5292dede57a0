"""The cost of one link in one direction.

cost = α·latency + jitter weight·jitter + δ·loss + administrative cost + ε per hop, in microsecond-equivalents, as a
whole number: sums of integers compare exactly, so every computation over the same database finds the same paths.
Leaves out bandwidth, utilisation and weights per traffic class. Source: architecture §6.
"""

from __future__ import annotations

from mesh_routing.core.config import CostWeights
from mesh_routing.core.lsa import LsaLink


def link_delay_us(latency_us: int, jitter_us: int, weights: CostWeights) -> float:
    """The part of the cost that measurements move, in microsecond-equivalents."""
    return weights.latency * latency_us + weights.jitter * jitter_us


def link_cost(link: LsaLink, weights: CostWeights) -> int:
    """Cost of `link` in microsecond-equivalents, at least 1 so that a longer path never ties with its own prefix."""
    delay = link_delay_us(link.latency_us, link.jitter_us, weights)
    return max(1, round(delay + weights.loss_us_per_ppm * link.loss_ppm) + link.admin_cost + weights.hop_us)
