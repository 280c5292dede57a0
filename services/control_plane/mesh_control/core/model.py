"""What the MCG agrees on, as immutable values: nodes, streams, their states and the mesh's health.

Leaves out: how they change (`mcg_state`) and how they travel (`encoding`). Source: architecture §7 "MCG", §10.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from meshcommon.ids import MemberId, NodeId, StreamId

PUBLIC_KEY_BYTES: Final = 32
WRAP_KEY_BYTES: Final = 32
STREAM_MEMBERS_MIN: Final = 2
STREAM_MEMBERS_MAX: Final = 10
STREAM_VOTERS_MAX: Final = 5
"""The first members of a stream vote, up to this many; the others learn."""
RETAINED_BYTES_DEFAULT: Final = 8 * 1024**3
RETAINED_BYTES_MIN: Final = 64 * 1024**2


class MeshStatus(IntEnum):
    """Health of the mesh; the numbers are those of `meshapi.common.v1.MeshStatus`."""

    UNSPECIFIED = 0
    HEALTHY = 1
    DEGRADED = 2
    CRITICAL = 3


class NodeState(IntEnum):
    """Life of a node; the numbers are those of `meshapi.common.v1.NodeState`."""

    ACTIVE = 1
    STOPPED = 2
    JOINING = 3


class JoinPolicy(IntEnum):
    """Who may become a member; the numbers are those of `meshapi.common.v1.JoinPolicy`."""

    UNSPECIFIED = 0
    """Of a mesh that is older than policies: it is OPEN."""
    OPEN = 1
    KEY_REQUIRED = 2
    CLOSED = 3


class StreamPhase(IntEnum):
    """Life of a stream; the numbers are those of `meshapi.common.v1.StreamPhase`."""

    FORMING = 1
    ACTIVE = 2
    DELETING = 3


@dataclass(frozen=True, slots=True)
class Node:
    """One member of the mesh.

    Attributes:
        node_id: never used again.
        name: unique.
        public_key: Ed25519, 32 bytes, unique.
        peer_address: where peers may dial it, empty when it only dials.
        mcg_member: Raft member id in the MCG, never used again.
        state: running, stopped on purpose, or admitted and not heard yet.
        is_reachable: whether the MCG's leader hears it.
        is_voter: whether it votes in the MCG; follows the Raft configuration.
        mesh_version: highest mesh version that its software supports.
        admitted_at_ms: state time at its admission, 0 if unknown.
        wrap_key: X25519, 32 bytes: secrets of the mesh are sealed to it; empty until it is known.
    """

    node_id: NodeId
    name: str
    public_key: bytes
    peer_address: str
    mcg_member: MemberId
    state: NodeState = NodeState.ACTIVE
    is_reachable: bool = True
    is_voter: bool = False
    mesh_version: int = 1
    admitted_at_ms: int = 0
    wrap_key: bytes = b""


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A join token as the mesh knows it.

    Attributes:
        token_id: 16 hexadecimal digits, follows from the verifier.
        verifier: derived from the secret, which the mesh does not know.
        uses_left: nodes that it can still admit; 0 keeps it until it expires, so that refusals say why.
        expires_at_ms: state time from which on it admits nobody.
        name: node that it is for, empty for any.
    """

    token_id: str
    verifier: bytes = field(repr=False)
    uses_left: int
    expires_at_ms: int
    name: str


@dataclass(frozen=True, slots=True)
class Member:
    """One replica of a stream; `member_id` is never used again."""

    node_id: NodeId
    member_id: MemberId
    is_voter: bool


@dataclass(frozen=True, slots=True)
class Retiring:
    """A membership that ends.

    Attributes:
        node_id: where its replica is.
        member_id: never used again.
        revision: catalogue revision that retired it.
        is_out: the group has committed its removal; what is left is its data.
    """

    node_id: NodeId
    member_id: MemberId
    revision: int
    is_out: bool = False


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream; the first of `members` is the preferred leader.

    Attributes:
        members: who the group should have; the group's own configuration follows.
        revision: catalogue revision of its last change.
        retained_bytes_max: bytes that each member keeps.
        created_at_ms: leader's stamp, milliseconds since 1970.
        destroyed: members that confirmed the end of their replica, while DELETING.
        retiring: former members whose removal or whose data are not gone yet.
        is_sealed: while DELETING: the group takes nothing more, its replicas may be destroyed.
    """

    stream_id: StreamId
    name: str
    members: tuple[Member, ...]
    state: StreamPhase
    revision: int
    retained_bytes_max: int
    created_at_ms: int
    destroyed: frozenset[NodeId] = frozenset()
    retiring: tuple[Retiring, ...] = ()
    is_sealed: bool = False

    @property
    def holders(self) -> frozenset[NodeId]:
        """Nodes where there may be data of the stream."""
        return frozenset(item.node_id for item in self.members) | {item.node_id for item in self.retiring}

    def has_member(self, node_id: NodeId) -> bool:
        """Whether the node holds a replica."""
        return any(member.node_id == node_id for member in self.members)


@dataclass(frozen=True, slots=True)
class Place:
    """A node's place in a mesh, as allocated by the MCG."""

    mesh_id: str
    node_id: NodeId
    mcg_member: MemberId


@dataclass(slots=True)
class Counters:
    """Next ids. They only grow, also when what they named is gone."""

    node_id: int = 1
    mcg_member: int = 1
    stream_id: int = 1
    member_id: int = 1
