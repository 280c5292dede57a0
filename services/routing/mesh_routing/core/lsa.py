"""Link state advertisements as values. Leaves out bytes (`lsa_codec`) and ageing (`lsdb`). Source: RFC 2328 §12."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from meshcommon.delegation import Delegation
from meshcommon.ids import NodeId

SEQUENCE_MAX: Final = 2**63 - 1
"""Largest sequence number: fits a signed 64-bit column. One incarnation of a process uses far fewer than 2**31."""
NODE_ID_MAX: Final = 2**63 - 1
"""Largest node id: it goes into a signed 64-bit column too."""
LINKS_MAX: Final = 1_000
"""Most links in one advertisement: a mesh has at most so many nodes."""
UNKNOWN: Final = 2**32 - 1
"""Stands for what is not measured, where a number has to stand."""
LOSS_PPM_MAX: Final = 1_000_000
UTILISATION_PERMILLE_MAX: Final = 1_000
SIGNATURE_BYTES: Final = 64
"""Length of an Ed25519 signature."""


@dataclass(frozen=True, slots=True)
class LsaLink:
    """One link as its origin sees it.

    Attributes:
        peer: Neighbour.
        latency_us: Smoothed one-way latency (half a round trip), microseconds.
        jitter_us: Its variation, microseconds.
        admin_cost: Administrative cost, microsecond-equivalents.
        loss_ppm: Lost packets in a million; None: not measured.
        bandwidth_kbit: What it can carry, kbit/s, at least 1; None: not measured.
        utilisation_permille: How much of that is in use, thousandths; None: not measured.
    """

    peer: NodeId
    latency_us: int
    jitter_us: int = 0
    admin_cost: int = 0
    loss_ppm: int | None = None
    bandwidth_kbit: int | None = None
    utilisation_permille: int | None = None

    def words(self) -> tuple[int, int, int, int, int, int, int]:
        """All of it as numbers, for signing and comparing."""
        measured = (self.loss_ppm, self.bandwidth_kbit, self.utilisation_permille)
        loss, bandwidth, utilisation = (UNKNOWN if value is None else value for value in measured)
        return self.peer, self.latency_us, self.jitter_us, self.admin_cost, loss, bandwidth, utilisation


class LsaKey(NamedTuple):
    """Names one version of one advertisement."""

    origin: NodeId
    sequence: int


@dataclass(frozen=True, slots=True)
class Lsa:
    """One version of one node's advertisement.

    Attributes:
        origin: Node that made it.
        sequence: 1 to SEQUENCE_MAX; a higher one replaces a lower one.
        links: Links that are up, strictly rising by peer.
        age_s: Seconds since the origin made it, at the moment at which it was received or made; as its sender says.
        signature: The origin's delegated key's, over all of the above but the age (`core.lsa_signature`).
        delegation: The origin's, for that key; None only before it is signed.
    """

    origin: NodeId
    sequence: int
    links: tuple[LsaLink, ...]
    age_s: float = 0.0
    signature: bytes = b""
    delegation: Delegation | None = None

    @property
    def key(self) -> LsaKey:
        """Origin and sequence."""
        return LsaKey(self.origin, self.sequence)

    @property
    def peers(self) -> frozenset[NodeId]:
        """Neighbours that it names."""
        return frozenset(link.peer for link in self.links)

    def is_newer_than(self, other: Lsa) -> bool:
        """Whether it replaces `other`, which has the same origin.

        Two contents under one sequence number exist only when an origin lost its boot number (RFC 2328 §13.1 then
        compares checksums). Any rule serves as long as every node uses the same one: the greater content wins until the
        origin meets it and jumps past both.
        """
        if self.sequence != other.sequence or self.links == other.links:
            return self.sequence > other.sequence
        return [link.words() for link in self.links] > [link.words() for link in other.links]


@dataclass(frozen=True, slots=True)
class LsaMessage:
    """What one neighbour tells another in one packet.

    Attributes:
        lsas: Advertisements flooded.
        acks: Versions that the sender holds now.
        database: Every version that the sender holds; None when the message carries no digest.
    """

    lsas: tuple[Lsa, ...] = ()
    acks: tuple[LsaKey, ...] = ()
    database: tuple[LsaKey, ...] | None = None
