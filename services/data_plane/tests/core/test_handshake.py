"""The lane handshake: who is let in, and what everybody else is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from mesh_data.core.handshake import Handshake, LocalNode, Role, Terms
from mesh_data.core.view import Node, NodeState, View
from meshapi.overlay.v1 import lane_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NO_NODE, NodeId
from meshwire.frame import FRAME_HANDSHAKE, decode_handshake, encode_handshake

SEEDS = {1: b"\x01" * 32, 2: b"\x02" * 32, 3: b"\x03" * 32}


def public(seed: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def view(*ids: int) -> View:
    nodes = {NodeId(i): Node(NodeId(i), f"n{i}", public(SEEDS[i]), "", NodeState.ACTIVE) for i in ids}
    return View(1, "mesh-1", 0, nodes, {})


VIEW = view(1, 2)


def local(node_id: int, mesh_id: str = "mesh-1") -> LocalNode:
    return LocalNode(NodeId(node_id), f"n{node_id}", SEEDS[node_id], mesh_id)


def joiner() -> LocalNode:
    return LocalNode(NO_NODE, "new", b"\x09" * 32)


def pair(
    dialler: LocalNode, listener: LocalNode, *, dial: Terms | None = None, listen: Terms | None = None
) -> tuple[Handshake, Handshake]:
    return (
        Handshake(Role.DIALLER, dialler, dial or Terms(VIEW), b"d" * 32, 2.0),
        Handshake(Role.LISTENER, listener, listen or Terms(VIEW), b"l" * 32, 2.0),
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


def test_members_agree_and_learn_who_is_there() -> None:
    dialler, listener = pair(local(1), local(2))
    run(dialler, listener)
    assert dialler.peer is not None
    assert listener.peer is not None
    assert (dialler.peer.node_id, dialler.peer.name, dialler.peer.version) == (2, "n2", 1)
    assert listener.peer.node_id == 1


def test_another_mesh_is_refused_and_told_so() -> None:
    dialler, listener = pair(local(1, "mesh-2"), local(2))
    run(dialler, listener)
    assert code(listener) is ErrorCode.MESH_ID_MISMATCH
    assert code(dialler) is ErrorCode.MESH_ID_MISMATCH
    assert dialler.peer is None


def test_node_that_the_view_does_not_know_may_try_again() -> None:
    dialler, listener = pair(local(3), local(2), dial=Terms(view(1, 2, 3)))
    run(dialler, listener)
    assert code(listener) is ErrorCode.HANDSHAKE_FAILED
    assert dialler.failure is not None
    assert dialler.failure.retryable
    assert dialler.is_rejected_by_peer


def test_wrong_key_is_refused() -> None:
    impostor = replace(local(1), private_key=SEEDS[3])
    dialler, listener = pair(impostor, local(2))
    run(dialler, listener)
    assert code(listener) is ErrorCode.KEY_MISMATCH


def test_claiming_a_key_without_holding_it_is_refused() -> None:
    dialler, listener = pair(local(1), local(2))
    hello = lane_pb2.LaneHandshake.FromString(bytes(decode_handshake(dialler.take_outgoing()[0])))
    listener.receive(encode_handshake(hello.SerializeToString()))
    forged = lane_pb2.LaneHandshake(proof=lane_pb2.LaneProof(signature=b"\x00" * 64))
    listener.receive(encode_handshake(forged.SerializeToString()))
    assert code(listener) is ErrorCode.KEY_MISMATCH


def test_replayed_hello_and_proof_fit_no_other_handshake() -> None:
    dialler, listener = pair(local(1), local(2))
    recorded = dialler.take_outgoing()
    dialler.receive(listener.take_outgoing()[0])
    recorded += dialler.take_outgoing()
    again = Handshake(Role.LISTENER, local(2), Terms(VIEW), b"fresh" + b"." * 27, 2.0)
    for frame in recorded:
        again.receive(frame)
    assert code(again) is ErrorCode.KEY_MISMATCH


def test_own_hello_returned_is_an_echo() -> None:
    dialler, _ = pair(local(1), local(2))
    dialler.receive(dialler.take_outgoing()[0])
    assert code(dialler) is ErrorCode.HANDSHAKE_FAILED


def test_proof_of_the_other_role_is_refused() -> None:
    """A listener's proof cannot be reflected as a dialler's: the role is signed."""
    dialler, listener = pair(local(1), local(2))
    hello = dialler.take_outgoing()[0]
    listener.receive(hello)
    proof = listener.take_outgoing()[1]
    listener.receive(proof)
    assert code(listener) is ErrorCode.KEY_MISMATCH


def test_versions_that_do_not_meet_are_named() -> None:
    dialler, listener = pair(local(1), local(2))
    message = lane_pb2.LaneHandshake.FromString(bytes(decode_handshake(dialler.take_outgoing()[0])))
    message.hello.version_min = message.hello.version_max = 7
    listener.receive(encode_handshake(message.SerializeToString()))
    assert code(listener) is ErrorCode.VERSION_MISMATCH
    assert listener.failure is not None
    assert "7 to 7" in listener.failure.message


def test_dialling_the_wrong_member_is_refused() -> None:
    dialler, listener = pair(local(1), local(2), dial=Terms(view(1, 2, 3), expected_peer=NodeId(3)))
    run(dialler, listener)
    assert code(dialler) is ErrorCode.HANDSHAKE_FAILED


def test_joiner_is_let_in_by_a_member() -> None:
    dialler, listener = pair(joiner(), local(2), dial=Terms())
    run(dialler, listener)
    assert dialler.peer is not None
    assert (dialler.peer.node_id, dialler.peer.mesh_id) == (2, "mesh-1")
    assert listener.peer is not None
    assert listener.peer.node_id == NO_NODE


def test_joiner_is_refused_beyond_the_cap() -> None:
    full = MeshError(ErrorCode.HANDSHAKE_FAILED, "full", retryable=True)
    dialler, listener = pair(joiner(), local(2), dial=Terms(), listen=Terms(VIEW, join_refusal=full))
    run(dialler, listener)
    assert dialler.failure is not None
    assert (dialler.failure.message, dialler.failure.retryable) == ("full", True)


@pytest.mark.parametrize("dialler_is_member", [True, False])
def test_listener_that_is_no_member_lets_nobody_in(dialler_is_member: bool) -> None:
    dialler, listener = pair(local(1) if dialler_is_member else joiner(), replace(joiner(), name="empty"))
    run(dialler, listener)
    assert dialler.peer is None
    assert listener.peer is None
    assert code(dialler) is ErrorCode.HANDSHAKE_FAILED


def test_stopped_node_refuses_everybody() -> None:
    stopped = MeshError(ErrorCode.NODE_STOPPED, "stopped")
    dialler, listener = pair(local(1), local(2), listen=Terms(VIEW, refusal=stopped))
    run(dialler, listener)
    assert code(dialler) is ErrorCode.NODE_STOPPED


def test_late_handshake_fails_by_the_clock() -> None:
    dialler, _ = pair(local(1), local(2))
    dialler.tick(1.99)
    assert not dialler.is_done
    dialler.tick(dialler.next_deadline())
    assert code(dialler) is ErrorCode.HANDSHAKE_FAILED


def test_second_hello_is_out_of_turn() -> None:
    dialler, listener = pair(local(1), local(2))
    hello = dialler.take_outgoing()[0]
    listener.receive(hello)
    listener.receive(hello)
    assert code(listener) is ErrorCode.WRONG_PROTOCOL


@given(st.binary(max_size=300), st.booleans())
def test_garbage_ends_the_handshake_and_never_raises(garbage: bytes, is_handshake: bool) -> None:
    _, listener = pair(local(1), local(2))
    listener.take_outgoing()
    listener.receive(bytes((FRAME_HANDSHAKE,)) + garbage if is_handshake else garbage)
    assert listener.peer is None
    assert listener.failure is not None
    reject = lane_pb2.LaneHandshake.FromString(bytes(decode_handshake(listener.take_outgoing()[-1])))
    assert reject.reject.error.code
