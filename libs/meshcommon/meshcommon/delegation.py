"""Delegations: the identity key, which stays in the control plane, lets a key of another service speak for the node.

Purpose: make a delegation, and check a statement by identity key → delegation → delegated key. Checked delegations are
remembered, so that a statement costs one signature check as long as its delegation is the same. Pure: the wall clock is
passed in. Leaves out where identity keys come from (the MeshView) and how often anybody may make this node check (each
caller has a budget, and asks `checks_needed`). Source: docs/design/identity.md "Delegations", ID1–ID4; ADR 0018.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import IntEnum
from struct import Struct
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from meshapi.common.v1 import delegation_pb2, view_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NO_NODE, NodeId
from meshcommon.signed_parts import join_parts, number
from meshcommon.signer import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Signer

VALID_BEFORE_S: Final = 48 * 3600
"""A delegation counts from so long before its key was made: a clock that is behind costs nobody anything."""
VALID_AFTER_S: Final = 24 * 3600
"""And so long after. Cost: a stolen delegated key serves its thief for as long."""
RENEW_AFTER_S: Final = VALID_AFTER_S // 2
"""A key that was made so long ago is replaced."""
LIFE_MAX_S: Final = VALID_BEFORE_S + VALID_AFTER_S
"""One that counts for longer is refused, whoever signed it."""
NODES_REMEMBERED_MAX: Final = 1024
PER_NODE_REMEMBERED_MAX: Final = 4
"""Checked delegations that are remembered: 4,096 in all, about 1 KiB each. So few of one node, so that a member that
signs one delegation after the other makes only its own forgotten."""
_SECONDS_MAX: Final = 2**63 - 1
_CONTEXT: Final = b"mesh.v1 delegation"
_LAYOUT: Final = Struct(f"!BQQ{PUBLIC_KEY_BYTES}s{SIGNATURE_BYTES}s")
DELEGATION_BYTES: Final = _LAYOUT.size


class Use(IntEnum):
    """What a delegated key may sign; the numbers of the proto."""

    LANES = 1
    LINK_STATES = 2


@dataclass(frozen=True, slots=True)
class Grantor:
    """The node that delegates: its identity key, and its place. A node that is no member yet has an empty mesh id and id 0."""

    public_key: bytes
    mesh_id: str = ""
    mesh_epoch: int = 0
    node_id: NodeId = NO_NODE


@dataclass(frozen=True, slots=True)
class Delegation:
    """A grantor's word that a key may sign for it.

    Attributes:
        public_key: the delegated Ed25519 key, 32 bytes.
        use: what it may sign.
        not_before_s: first second at which it counts, wall clock, since 1970.
        not_after_s: second from which on it counts no more.
        signature: of the grantor's identity key, 64 bytes.
    """

    public_key: bytes
    use: Use
    not_before_s: int
    not_after_s: int
    signature: bytes

    @classmethod
    def signed(cls, identity: Signer, grantor: Grantor, use: Use, public_key: bytes, made_at_s: float) -> Delegation:
        """A delegation that `identity`, the grantor's key, signs for a key that was made at `made_at_s`."""
        begin_s = int(made_at_s)
        # A machine that lost its clock begins in 1970.
        unsigned = cls(public_key, use, max(0, begin_s - VALID_BEFORE_S), begin_s + VALID_AFTER_S, b"")
        return replace(unsigned, signature=identity.sign(unsigned.statement(grantor)))

    @classmethod
    def from_proto(cls, message: delegation_pb2.Delegation) -> Delegation | None:
        """The delegation in a message, None when it is not well formed."""
        return _checked(message.use, message.not_before_s, message.not_after_s, message.public_key, message.signature)

    def to_proto(self) -> delegation_pb2.Delegation:
        """As a field of other messages."""
        return delegation_pb2.Delegation(
            public_key=self.public_key,
            use=delegation_pb2.DelegationUse.ValueType(self.use),
            not_before_s=self.not_before_s,
            not_after_s=self.not_after_s,
            signature=self.signature,
        )

    @classmethod
    def unpack(cls, data: bytes) -> Delegation | None:
        """The delegation in DELEGATION_BYTES bytes, None when it is not well formed."""
        return _checked(*_LAYOUT.unpack(data)) if len(data) == DELEGATION_BYTES else None

    def pack(self) -> bytes:
        """As it stands in packets: use u8, not before u64, not after u64, public key, signature; network byte order."""
        return _LAYOUT.pack(self.use, self.not_before_s, self.not_after_s, self.public_key, self.signature)

    def statement(self, grantor: Grantor) -> bytes:
        """What the grantor signs."""
        return join_parts(
            _CONTEXT,
            grantor.mesh_id.encode(),
            number(grantor.mesh_epoch),
            number(grantor.node_id),
            number(self.use),
            number(self.not_before_s),
            number(self.not_after_s),
            self.public_key,
        )

    def counts_at(self, now_s: float) -> bool:
        """Whether it has begun and is not over."""
        return self.not_before_s <= now_s < self.not_after_s

    def clock_skew(self, name: str, now_s: float) -> MeshError:
        """The error for one of node `name` that does not count at `now_s`; it names both clocks."""
        # Both clocks first: a peer that is refused gets 200 characters.
        return MeshError(
            ErrorCode.CLOCK_SKEW,
            f"Here it is {_date(now_s)}, and the delegation of node {name!r} is of "
            f"{_date(self.not_before_s + VALID_BEFORE_S)}: it counts for a day. Correct the clock that is wrong; if both "
            "are right, that node's control plane has been away: start it.",
        )


class Delegations:
    """Checks statements of delegated keys, and remembers the delegations that it has checked."""

    def __init__(self, wall_s: Callable[[], float]) -> None:
        """`wall_s` tells the wall clock, in seconds since 1970."""
        self._wall_s = wall_s
        self._known: OrderedDict[NodeId, OrderedDict[tuple[Grantor, Delegation], Ed25519PublicKey]] = OrderedDict()

    @property
    def now_s(self) -> float:
        """The wall clock."""
        return self._wall_s()

    def checks_needed(self, grantor: Grantor, delegation: Delegation) -> int:
        """How many signatures `is_signed` has to check at most, about 120 µs each: 1 or 2."""
        return 1 if (grantor, delegation) in self._known.get(grantor.node_id, ()) else 2

    def is_signed(self, grantor: Grantor, delegation: Delegation, use: Use, statement: bytes, signature: bytes) -> bool:
        """Whether the grantor delegated a key for `use`, that counts now, and the key has signed the statement.

        The delegation of a node that is no member is checked and not remembered: strangers are without number.
        """
        if delegation.use is not use or not delegation.counts_at(self._wall_s()):
            return False
        key = self._key(grantor, delegation)
        return key is not None and _is_signed(key, statement, signature)

    def _key(self, grantor: Grantor, delegation: Delegation) -> Ed25519PublicKey | None:
        """The delegated key, None when the grantor did not delegate it."""
        item = (grantor, delegation)
        of_node = self._known.get(grantor.node_id)
        known = of_node.get(item) if of_node is not None else None
        if known is not None:
            return known
        try:
            identity = Ed25519PublicKey.from_public_bytes(grantor.public_key)
            key = Ed25519PublicKey.from_public_bytes(delegation.public_key)
        except ValueError:
            return None
        if not _is_signed(identity, delegation.statement(grantor), delegation.signature):
            return None
        if grantor.node_id != NO_NODE:
            self._remember(item, key)
        return key

    def _remember(self, item: tuple[Grantor, Delegation], key: Ed25519PublicKey) -> None:
        node = item[0].node_id
        of_node = self._known.setdefault(node, OrderedDict())
        of_node[item] = key
        if len(of_node) > PER_NODE_REMEMBERED_MAX:
            of_node.popitem(last=False)
        self._known.move_to_end(node)
        if len(self._known) > NODES_REMEMBERED_MAX:
            self._known.popitem(last=False)


@dataclass(frozen=True, slots=True)
class DelegatedSigner:
    """What speaks for a node in one of its services: the service's key, and the delegation that goes with what it signs.

    Attributes:
        signer: has the delegated key.
        delegation: names that key.
        identity_key: the node's, by which others know it; 32 bytes.
    """

    signer: Signer
    delegation: Delegation
    identity_key: bytes

    def sign(self, statement: bytes) -> bytes:
        """The delegated key's signature, 64 bytes."""
        return self.signer.sign(statement)

    @classmethod
    def signed(cls, identity: Signer, grantor: Grantor, use: Use, signer: Signer, made_at_s: float) -> DelegatedSigner:
        """The key of `signer`, made at `made_at_s`, that `identity` delegates."""
        delegation = Delegation.signed(identity, grantor, use, signer.public_key, made_at_s)
        return cls(signer, delegation, grantor.public_key)

    @classmethod
    def from_proto(
        cls,
        message: view_pb2.LocalIdentity,
        find: Callable[[bytes], Signer | None],
        use: Use,
        mesh_id: str = "",
        mesh_epoch: int = 0,
    ) -> DelegatedSigner:
        """What a control plane told a service, which finds its signers by public key. One that is over is taken all the same.

        Raises:
            MeshError: INVALID_ARGUMENT when the delegation is for another key, use, node or mesh, or not signed.
        """
        delegation = Delegation.from_proto(message.delegation)
        if delegation is None or len(message.public_key) != PUBLIC_KEY_BYTES:
            raise _refused("the identity needs a public key of 32 bytes and a delegation")
        signer = find(delegation.public_key)
        if signer is None:
            raise _refused("the delegation is for another key than the one of this service: ask for it again")
        grantor = Grantor(message.public_key, mesh_id, mesh_epoch, NodeId(message.node_id))
        identity = Ed25519PublicKey.from_public_bytes(message.public_key)
        if delegation.use is not use or not _is_signed(identity, delegation.statement(grantor), delegation.signature):
            raise _refused("the identity key did not sign it for this use, node, mesh and epoch")
        return cls(signer, delegation, message.public_key)


def is_young(made_at_s: int, now_s: float) -> bool:
    """Whether a key that was made then need not be replaced yet. One that comes from the future does: the clock was set back."""
    return made_at_s - VALID_BEFORE_S <= now_s < made_at_s + RENEW_AFTER_S


def _refused(reason: str) -> MeshError:
    return MeshError(ErrorCode.INVALID_ARGUMENT, f"The delegation cannot be used: {reason}.")


def _checked(use: int, not_before_s: int, not_after_s: int, public_key: bytes, signature: bytes) -> Delegation | None:
    if (
        use not in {Use.LANES, Use.LINK_STATES}
        or not not_before_s < not_after_s <= _SECONDS_MAX
        or not_after_s - not_before_s > LIFE_MAX_S
        or len(public_key) != PUBLIC_KEY_BYTES
        or len(signature) != SIGNATURE_BYTES
    ):
        return None
    return Delegation(public_key, Use(use), not_before_s, not_after_s, signature)


def _is_signed(key: Ed25519PublicKey, statement: bytes, signature: bytes) -> bool:
    try:
        key.verify(signature, statement)
    except InvalidSignature:
        return False
    return True


def _date(seconds: float) -> str:
    """A moment for people. One that no calendar has, which any stranger can claim, is told as a number."""
    try:
        return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"second {int(seconds)}"
