"""Two sides of a lane handshake without a wire, for tests: members 1 and 2 of a mesh, a newcomer, and hellos that somebody changes."""

from __future__ import annotations

from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from data_plane_testing.identities import delegations
from mesh_data.core.handshake import Handshake, LocalNode, Role, Terms
from mesh_data.core.view import Node, NodeState, View
from meshapi.overlay.v1 import lane_pb2
from meshcommon.delegation import DelegatedSigner, Grantor, Use
from meshcommon.errors import ErrorCode
from meshcommon.ids import NO_NODE, NodeId
from meshcommon.key_signer import KeySigner
from meshtest.delegated import NOW_S
from meshwire.frame import decode_handshake, encode_handshake

MESH = "0b8e1f0a-5c1d-4e0f-9a53-2f6f0e6d9c01"
OTHER_MESH = "0b8e1f0a-5c1d-4e0f-9a53-2f6f0e6d9c02"
SEEDS = {1: b"\x01" * 32, 2: b"\x02" * 32, 3: b"\x03" * 32}


def public(seed: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def view(*ids: int) -> View:
    nodes = {NodeId(i): Node(NodeId(i), f"n{i}", public(SEEDS[i]), "", NodeState.ACTIVE) for i in ids}
    return View(1, MESH, 0, nodes, {})


VIEW = view(1, 2)


DELEGATED = KeySigner(b"\x08" * 32)


def delegated(
    seed: bytes, mesh_id: str = "", node_id: int = 0, use: Use = Use.LANES, now_s: float = NOW_S, mesh_epoch: int = 0
) -> DelegatedSigner:
    identity = KeySigner(seed)
    grantor = Grantor(identity.public_key, mesh_id, mesh_epoch, NodeId(node_id))
    return DelegatedSigner.signed(identity, grantor, use, DELEGATED, now_s)


def terms(view: View | None = None, *, now_s: float = NOW_S, **others: Any) -> Terms:
    return Terms(delegations(now_s), view, **others)


def local(node_id: int, mesh_id: str = MESH) -> LocalNode:
    return LocalNode(NodeId(node_id), f"n{node_id}", delegated(SEEDS[node_id], mesh_id, node_id), mesh_id)


def joiner() -> LocalNode:
    return LocalNode(NO_NODE, "new", delegated(b"\x09" * 32))


def pair(
    dialler: LocalNode, listener: LocalNode, *, dial: Terms | None = None, listen: Terms | None = None
) -> tuple[Handshake, Handshake]:
    return (
        Handshake(Role.DIALLER, dialler, dial or terms(VIEW), b"d" * 32, b"D" * 32, 2.0),
        Handshake(Role.LISTENER, listener, listen or terms(VIEW), b"l" * 32, b"L" * 32, 2.0),
    )


def run(dialler: Handshake, listener: Handshake) -> None:
    """Passes frames back and forth until nobody has any."""
    while True:
        there, back = dialler.take_outgoing(), listener.take_outgoing()
        if not there and not back:
            return
        for frame in there:
            listener.receive(frame)
        for frame in back:
            dialler.receive(frame)


def code(handshake: Handshake) -> ErrorCode:
    assert handshake.failure is not None
    return handshake.failure.code


def parsed(frame: bytes) -> lane_pb2.LaneHandshake:
    return lane_pb2.LaneHandshake.FromString(bytes(decode_handshake(frame)))


def changed_hello(frame: bytes, **fields: object) -> bytes:
    message = parsed(frame)
    for name, value in fields.items():
        setattr(message.hello, name, value)
    return encode_handshake(message.SerializeToString())


def refused(**fields: object) -> Handshake:
    """A listener that got a dialler's hello with other fields."""
    dialler, listener = pair(local(1), local(2))
    listener.take_outgoing()
    listener.receive(changed_hello(dialler.take_outgoing()[0], **fields))
    return listener
