"""Memberships as values: what their digest covers, who has vouched, and what is refused when another node shows one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshapi.common.v1 import members_pb2, view_pb2
from meshcommon.ids import NodeId
from meshcommon.key_signer import KeySigner
from meshcommon.membership import (
    MEMBERS_MAX,
    MEMBERSHIP_BYTES_MAX,
    Member,
    Membership,
    Vouch,
    decode_membership,
)

MESH = "0b8e1f0a-5c1d-4e0f-9a53-2f6f0e6d9c01"
KEY = KeySigner(b"\x01" * 32)
MEMBERS = (
    Member(NodeId(1), "n1", KEY.public_key, is_voter=True),
    Member(NodeId(2), "n2", b"\x02" * 32, is_voter=False),
)
MEMBERSHIP = Membership.of(MESH, 7, MEMBERS)


def vouch(revision: int = 5, membership: Membership = MEMBERSHIP) -> Vouch:
    return Vouch.signed(KEY, NodeId(1), revision, membership)


@pytest.mark.parametrize(
    "other",
    [
        Membership.of(MESH[:-1] + "2", 7, MEMBERS),
        Membership.of(MESH, 8, MEMBERS),
        Membership.of(MESH, 7, MEMBERS[:1]),
        Membership.of(MESH, 7, [replace(MEMBERS[0], name="n3"), MEMBERS[1]]),
        Membership.of(MESH, 7, [replace(MEMBERS[0], public_key=b"\x03" * 32), MEMBERS[1]]),
        Membership.of(MESH, 7, [replace(MEMBERS[0], is_voter=False), MEMBERS[1]]),
        Membership.of(MESH, 7, [replace(MEMBERS[0], node_id=NodeId(3)), MEMBERS[1]]),
    ],
    ids=["mesh", "epoch", "member", "name", "key", "vote", "id"],
)
def test_every_part_of_the_membership_changes_its_digest(other: Membership) -> None:
    assert other.digest != MEMBERSHIP.digest


def test_order_of_the_members_and_the_rest_of_the_view_do_not_change_the_digest() -> None:
    nodes = [
        view_pb2.NodeView(node_id=2, name="n2", public_key=b"\x02" * 32, peer_address="wss://a:1", is_reachable=True),
        view_pb2.NodeView(node_id=1, name="n1", public_key=KEY.public_key, is_voter=True),
    ]
    view = view_pb2.MeshView(revision=99, mesh_id=MESH, mesh_epoch=7, nodes=nodes)
    assert Membership.of_view(view) == MEMBERSHIP
    assert Membership.of_view(view).digest == MEMBERSHIP.digest


def test_membership_and_vouch_survive_the_way_to_another_node() -> None:
    assert decode_membership(MEMBERSHIP.encode(vouch())) == (MEMBERSHIP, vouch())


@pytest.mark.parametrize(
    "changed",
    [
        {"revision": 6},
        {"node_id": NodeId(2)},
        {"digest": b"\x00" * 32},
        {"signature": b"\x00" * 64},
    ],
)
def test_vouch_that_was_changed_is_not_signed(changed: dict[str, object]) -> None:
    assert vouch().is_signed_by(KEY.public_key, MESH, 7)
    assert not replace(vouch(), **changed).is_signed_by(KEY.public_key, MESH, 7)  # type: ignore[arg-type]


def test_vouch_counts_for_its_mesh_epoch_and_signer_only() -> None:
    assert not vouch().is_signed_by(KEY.public_key, MESH, 8)
    assert not vouch().is_signed_by(KEY.public_key, MESH[:-1] + "2", 7)
    assert not vouch().is_signed_by(KeySigner(b"\x02" * 32).public_key, MESH, 7)
    assert not vouch().is_signed_by(b"short", MESH, 7)


def entry(node_id: int = 1, name: str = "n1", public_key: bytes = b"\x01" * 32) -> members_pb2.MemberEntry:
    return members_pb2.MemberEntry(node_id=node_id, name=name, public_key=public_key)


@pytest.mark.parametrize(
    "members",
    [
        [],
        [entry(), entry()],
        [entry(2), entry(1)],
        [entry(0)],
        [entry(2**63)],
        [entry(name="No Name")],
        [entry(name="")],
        [entry(public_key=b"\x01" * 31)],
        [entry(number) for number in range(1, MEMBERS_MAX + 2)],
    ],
    ids=["none", "twice", "order", "id-0", "id-large", "name", "no-name", "key", "too-many"],
)
def test_members_that_no_node_shows_are_refused(members: list[members_pb2.MemberEntry]) -> None:
    message = members_pb2.Membership(mesh_id=MESH, mesh_epoch=7, members=members, vouch=vouch().to_proto())
    assert decode_membership(message.SerializeToString()) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"node_id": 0},
        {"revision": 0},
        {"revision": 2**63},
        {"digest": b"\x01" * 31},
        {"signature": b""},
    ],
)
def test_vouch_that_no_node_gives_is_refused(fields: dict[str, object]) -> None:
    message = vouch().to_proto()
    for name, value in fields.items():
        setattr(message, name, value)
    assert Vouch.from_proto(message) is None
    assert Vouch.decode(message.SerializeToString()) is None


def test_largest_mesh_fits_and_anything_larger_than_the_bound_is_not_parsed() -> None:
    names = (f"n{number:062d}" for number in range(1, MEMBERS_MAX + 1))
    members = [Member(NodeId(2**62 + at), name, b"\x01" * 32, is_voter=True) for at, name in enumerate(names)]
    largest = Membership.of(MESH, 7, members)
    encoded = largest.encode(vouch(membership=largest))
    assert len(encoded) <= MEMBERSHIP_BYTES_MAX // 2
    assert decode_membership(encoded) is not None
    assert decode_membership(encoded + bytes(MEMBERSHIP_BYTES_MAX)) is None
