"""Who the members of a mesh are, in a form that can be compared, vouched for and shown to somebody who missed a change.

Purpose: the digest that lanes compare, the vouch that a control plane signs, and the strict reading of both. The *membership* is
what decides who is who: ids, names, identity keys and votes, of one mesh and epoch. Leaves out: addresses, states and streams,
which change often and come by the log, and when a vouch is believed (`mesh_data.core.membership_desk`).
Source: docs/design/overlay.md "Membership".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from google.protobuf.message import DecodeError

from meshapi.common.v1 import members_pb2, view_pb2
from meshcommon.errors import MeshError
from meshcommon.ids import NodeId, check_node_name
from meshcommon.signed_parts import join_parts, number
from meshcommon.signer import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Signer

MEMBERSHIP_BYTES_MAX: Final = 256 * 1024
"""Largest encoded membership: 1,000 members take at most 120 KiB."""
MEMBERS_MAX: Final = 1_000
DIGEST_BYTES: Final = 32
_NUMBER_MAX: Final = 2**63 - 1
_CONTEXT: Final = b"mesh.v1 membership"
_VOUCH_CONTEXT: Final = b"mesh.v1 membership vouch"


@dataclass(frozen=True, slots=True)
class Member:
    """One member. `public_key` is its identity key, 32 bytes; `is_voter`: in the MCG."""

    node_id: NodeId
    name: str
    public_key: bytes
    is_voter: bool


@dataclass(frozen=True, slots=True)
class Membership:
    """The members of a mesh at some moment, by rising id."""

    mesh_id: str
    mesh_epoch: int
    members: tuple[Member, ...]
    digest: bytes = field(init=False, compare=False)
    """SHA-256 of it all. Equal digests: equal memberships."""

    def __post_init__(self) -> None:
        parts = [_CONTEXT, self.mesh_id.encode(), number(self.mesh_epoch)]
        for member in self.members:
            parts += (number(member.node_id), member.name.encode(), member.public_key, bytes((member.is_voter,)))
        object.__setattr__(self, "digest", hashlib.sha256(join_parts(*parts)).digest())

    @classmethod
    def of(cls, mesh_id: str, mesh_epoch: int, members: Iterable[Member]) -> Membership:
        """The membership of these members, in any order."""
        return cls(mesh_id, mesh_epoch, tuple(sorted(members, key=lambda member: member.node_id)))

    @classmethod
    def of_view(cls, view: view_pb2.MeshView) -> Membership:
        """The membership in a MeshView. Cost: about 2 µs a member."""
        members = (Member(NodeId(item.node_id), item.name, item.public_key, item.is_voter) for item in view.nodes)
        return cls.of(view.mesh_id, view.mesh_epoch, members)

    def encode(self, vouch: Vouch) -> bytes:
        """As it is shown to another node."""
        entries = [
            members_pb2.MemberEntry(
                node_id=item.node_id, name=item.name, public_key=item.public_key, is_voter=item.is_voter
            )
            for item in self.members
        ]
        message = members_pb2.Membership(
            mesh_id=self.mesh_id, mesh_epoch=self.mesh_epoch, members=entries, vouch=vouch.to_proto()
        )
        return message.SerializeToString()


@dataclass(frozen=True, slots=True)
class Vouch:
    """A node's word that the membership had this digest at this MCG revision."""

    node_id: NodeId
    revision: int
    digest: bytes
    signature: bytes

    @classmethod
    def signed(cls, identity: Signer, node_id: NodeId, revision: int, membership: Membership) -> Vouch:
        """The word of the node whose identity key is `identity`. Cost: about 60 µs."""
        statement = _statement(membership.mesh_id, membership.mesh_epoch, node_id, revision, membership.digest)
        return cls(node_id, revision, membership.digest, identity.sign(statement))

    @classmethod
    def from_proto(cls, message: members_pb2.MembershipVouch) -> Vouch | None:
        """The vouch in a message, None when it is not well formed."""
        if (
            not 0 < message.node_id <= _NUMBER_MAX
            or not 0 < message.revision <= _NUMBER_MAX
            or len(message.digest) != DIGEST_BYTES
            or len(message.signature) != SIGNATURE_BYTES
        ):
            return None
        return cls(NodeId(message.node_id), message.revision, message.digest, message.signature)

    def to_proto(self) -> members_pb2.MembershipVouch:
        """As a field of other messages."""
        return members_pb2.MembershipVouch(
            node_id=self.node_id, revision=self.revision, digest=self.digest, signature=self.signature
        )

    @classmethod
    def decode(cls, data: bytes) -> Vouch | None:
        """The vouch that another node sent, None when it is not well formed."""
        try:
            return cls.from_proto(members_pb2.MembershipVouch.FromString(data))
        except DecodeError:
            return None

    def is_signed_by(self, public_key: bytes, mesh_id: str, mesh_epoch: int) -> bool:
        """Whether the holder of that identity key has given it, in that mesh and epoch. Cost: about 120 µs."""
        statement = _statement(mesh_id, mesh_epoch, self.node_id, self.revision, self.digest)
        try:
            Ed25519PublicKey.from_public_bytes(public_key).verify(self.signature, statement)
        except (InvalidSignature, ValueError):
            return False
        return True


def decode_membership(data: bytes) -> tuple[Membership, Vouch] | None:
    """What another node shows, None when no node of this version would send it. Nothing in it is believed yet."""
    if len(data) > MEMBERSHIP_BYTES_MAX:
        return None
    try:
        message = members_pb2.Membership.FromString(data)
    except DecodeError:
        return None
    vouch = Vouch.from_proto(message.vouch)
    if vouch is None or message.mesh_epoch > _NUMBER_MAX or not 0 < len(message.members) <= MEMBERS_MAX:
        return None
    members: list[Member] = []
    before = 0
    for entry in message.members:
        if not before < entry.node_id <= _NUMBER_MAX or not _is_member(entry):
            return None
        before = entry.node_id
        members.append(Member(NodeId(entry.node_id), entry.name, entry.public_key, entry.is_voter))
    return Membership(message.mesh_id, message.mesh_epoch, tuple(members)), vouch


def _is_member(entry: members_pb2.MemberEntry) -> bool:
    try:
        check_node_name(entry.name)
    except MeshError:
        return False
    return len(entry.public_key) == PUBLIC_KEY_BYTES


def _statement(mesh_id: str, mesh_epoch: int, node_id: int, revision: int, digest: bytes) -> bytes:
    return join_parts(_VOUCH_CONTEXT, mesh_id.encode(), number(mesh_epoch), number(node_id), number(revision), digest)
