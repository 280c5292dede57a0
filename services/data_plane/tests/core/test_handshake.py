"""The lane handshake: who is let in, and what everybody else is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from data_plane_testing.handshakes import (
    MESH,
    OTHER_MESH,
    SEEDS,
    VIEW,
    changed_hello,
    code,
    delegated,
    joiner,
    local,
    pair,
    parsed,
    public,
    refused,
    run,
    terms,
    view,
)
from data_plane_testing.identities import delegations
from mesh_data.core.handshake import (
    VERSION_MAX,
    Handshake,
    Role,
    Terms,
    encode_reject,
    rejection,
)
from meshapi.overlay.v1 import lane_pb2
from meshcommon.delegation import LIFE_MAX_S, VALID_AFTER_S, VALID_BEFORE_S, DelegatedSigner, Use
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NO_NODE, NodeId
from meshcommon.key_signer import KeySigner
from meshcommon.signed_parts import join_parts
from meshtest.delegated import NOW_S
from meshwire.errors import WireError
from meshwire.frame import FRAME_HANDSHAKE, MAX_HANDSHAKE_BYTES, decode_handshake, encode_handshake


def test_members_agree_and_learn_who_is_there() -> None:
    dialler, listener = pair(local(1), local(2))
    run(dialler, listener)
    assert dialler.peer is not None
    assert listener.peer is not None
    assert (dialler.peer.node_id, dialler.peer.name, dialler.peer.version) == (2, "n2", VERSION_MAX)
    assert listener.peer.node_id == 1


def test_another_mesh_is_refused_and_told_so() -> None:
    dialler, listener = pair(local(1, OTHER_MESH), local(2))
    run(dialler, listener)
    assert code(listener) is ErrorCode.MESH_ID_MISMATCH
    assert code(dialler) is ErrorCode.MESH_ID_MISMATCH
    assert dialler.peer is None


def test_node_that_the_view_does_not_know_may_try_again() -> None:
    dialler, listener = pair(local(3), local(2), dial=terms(view(1, 2, 3)))
    run(dialler, listener)
    assert code(listener) is ErrorCode.HANDSHAKE_FAILED
    assert dialler.failure is not None
    assert dialler.failure.retryable
    assert dialler.is_rejected_by_peer


def test_wrong_key_is_refused() -> None:
    impostor = replace(local(1), signer=delegated(SEEDS[3], MESH, 1))
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
    again = Handshake(Role.LISTENER, local(2), terms(VIEW), b"fresh" + b"." * 27, b"F" * 32, 2.0)
    for frame in recorded:
        again.receive(frame)
    assert code(again) is ErrorCode.KEY_MISMATCH


@pytest.mark.parametrize(
    "signer",
    [
        delegated(SEEDS[3], MESH, 1),
        delegated(SEEDS[1], MESH, 1, Use.LINK_STATES),
        delegated(SEEDS[1], MESH, 2),
        delegated(SEEDS[1], OTHER_MESH, 1),
        delegated(SEEDS[1], MESH, 1, mesh_epoch=1),
        delegated(SEEDS[1]),
        replace(delegated(SEEDS[1], MESH, 1), signer=KeySigner(SEEDS[3])),
        replace(delegated(SEEDS[1], MESH, 1), signer=KeySigner(SEEDS[1])),
    ],
    ids=[
        "other-identity",
        "other-use",
        "other-node",
        "other-mesh",
        "other-epoch",
        "of-a-joiner",
        "other-key",
        "identity-key",
    ],
)
def test_proof_of_a_key_that_was_not_delegated_for_this_is_refused(signer: DelegatedSigner) -> None:
    """ID1, ID3, ID4: the identity key of the view, its delegation for lanes of this node, and the delegated key's proof."""
    claimed = replace(signer, identity_key=public(SEEDS[1]))
    dialler, listener = pair(replace(local(1), signer=claimed), local(2))
    run(dialler, listener)
    assert code(listener) is ErrorCode.KEY_MISMATCH
    assert dialler.peer is None


@pytest.mark.parametrize(
    ("clock_s", "refused"),
    [
        (NOW_S - VALID_BEFORE_S - 1, True),
        (NOW_S - VALID_BEFORE_S, False),
        (NOW_S + VALID_AFTER_S - 1, False),
        (NOW_S + VALID_AFTER_S, True),
    ],
)
def test_delegation_counts_from_two_hours_before_to_a_day_after_by_the_clock_of_the_checker(
    clock_s: int, refused: bool
) -> None:
    dialler, listener = pair(local(1), local(2), listen=terms(VIEW, now_s=clock_s))
    run(dialler, listener)
    assert (listener.peer is None) is refused
    if refused:
        assert code(listener) is ErrorCode.CLOCK_SKEW
        assert dialler.failure is not None
        assert dialler.failure.retryable
        # The one that is refused is told both clocks.
        assert dialler.failure.message.count(" UTC") == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"public_key": b"short"},
        {"use": 0},
        {"use": 9},
        {"signature": b"x" * 63},
        {"not_after_s": 0},
        {"not_after_s": NOW_S - VALID_BEFORE_S + LIFE_MAX_S + 1},
        {"not_before_s": 2**64 - 2, "not_after_s": 2**64 - 1},
    ],
)
def test_delegation_that_no_node_sends_is_refused(fields: dict[str, object]) -> None:
    dialler, listener = pair(local(1), local(2))
    message = parsed(dialler.take_outgoing()[0])
    for name, value in fields.items():
        setattr(message.hello.delegation, name, value)
    listener.receive(encode_handshake(message.SerializeToString()))
    assert code(listener) is ErrorCode.WRONG_PROTOCOL


def test_hello_without_a_delegation_is_refused() -> None:
    dialler, listener = pair(local(1), local(2))
    message = parsed(dialler.take_outgoing()[0])
    message.hello.ClearField("delegation")
    listener.receive(encode_handshake(message.SerializeToString()))
    assert code(listener) is ErrorCode.WRONG_PROTOCOL


def test_version_without_delegations_is_told_so() -> None:
    dialler, listener = pair(local(1), local(2))
    message = parsed(dialler.take_outgoing()[0])
    message.hello.version_min = message.hello.version_max = 3
    message.hello.ClearField("delegation")
    listener.receive(encode_handshake(message.SerializeToString()))
    assert code(listener) is ErrorCode.VERSION_MISMATCH


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
    dialler, listener = pair(local(1), local(2), dial=terms(view(1, 2, 3), expected_peer=NodeId(3)))
    run(dialler, listener)
    assert code(dialler) is ErrorCode.HANDSHAKE_FAILED


def test_joiner_is_let_in_by_a_member() -> None:
    dialler, listener = pair(joiner(), local(2), dial=terms())
    run(dialler, listener)
    assert dialler.peer is not None
    assert (dialler.peer.node_id, dialler.peer.mesh_id) == (2, MESH)
    assert listener.peer is not None
    assert listener.peer.node_id == NO_NODE


def test_joiner_is_refused_beyond_the_cap() -> None:
    full = MeshError(ErrorCode.HANDSHAKE_FAILED, "full", retryable=True)
    dialler, listener = pair(joiner(), local(2), dial=terms(), listen=terms(VIEW, join_refusal=full))
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
    dialler, listener = pair(local(1), local(2), listen=terms(VIEW, refusal=stopped))
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


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "UPPER"},
        {"name": "a\x01b"},
        {"name": "n" * 64},
        {"mesh_id": "../../etc/passwd"},
        {"mesh_id": MESH.upper()},
        {"mesh_id": ""},
        {"node_id": 0},
        {"node_id": 2**63},
        {"mesh_epoch": 2**63},
        {"nonce": b"short"},
        {"public_key": b""},
        {"ephemeral_key": b"x" * 31},
    ],
)
def test_field_that_no_node_sends_is_refused(fields: dict[str, object]) -> None:
    assert code(refused(**fields)) is ErrorCode.WRONG_PROTOCOL


@pytest.mark.parametrize(
    "fields",
    [
        {"version_min": 9, "version_max": 9, "name": "\x01" * 20_000},
        {"name": "\x01" * 20_000},
        {"name": "\U0001f600" * 15_000},
        {"mesh_id": "m" * 66_000},
    ],
)
def test_refusal_of_a_huge_hello_fits_its_frame(fields: dict[str, object]) -> None:
    """The refusal quotes what it refuses; unbounded, it outgrew the frame and ended the process."""
    try:
        listener = refused(**fields)
    except WireError:
        # Too large for a handshake frame: no such hello can be received either.
        return
    assert listener.failure is not None
    (reject,) = listener.take_outgoing()
    assert len(reject) < 1024
    assert all(character.isprintable() for character in parsed(reject).reject.error.message)


def test_any_error_fits_the_reject_frame_and_is_made_safe_by_both_sides() -> None:
    error = MeshError(
        ErrorCode.MESH_ID_MISMATCH, "\U0001f600\n" * 100_000, {f"{i}" * 70_000: "\x00" * 70_000 for i in range(40)}
    )
    frame = encode_reject(error)
    assert len(frame) < MAX_HANDSHAKE_BYTES
    raw = lane_pb2.LaneReject()
    raw.error.code, raw.error.message = "MADE_UP", "forged\nlog line" * 1000
    heard = rejection(raw)
    assert (heard.code, len(heard.message)) == (ErrorCode.INTERNAL, 200)
    assert "\n" not in heard.message


def test_version_1_is_told_in_clear_and_its_refusal_is_read() -> None:
    dialler, listener = pair(local(1), local(2))
    # What a node of version 1 sends: the same hello without the key that came with version 2.
    old = changed_hello(dialler.take_outgoing()[0], version_min=1, version_max=1, ephemeral_key=b"")
    listener.take_outgoing()
    listener.receive(old)
    (reject,) = listener.take_outgoing()
    assert parsed(reject).reject.error.code == ErrorCode.VERSION_MISMATCH
    dialler.receive(reject)
    assert code(dialler) is ErrorCode.VERSION_MISMATCH
    assert dialler.is_rejected_by_peer


LOW_ORDER_POINTS = [
    bytes(32),
    (1).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
]


@pytest.mark.parametrize("point", LOW_ORDER_POINTS)
def test_ephemeral_key_of_low_order_is_refused(point: bytes) -> None:
    """RFC 7748 §6.1: whoever sends such a point would choose the secret."""
    assert code(refused(ephemeral_key=point)) is ErrorCode.WRONG_PROTOCOL


def test_lane_is_up_only_when_the_others_finished_is_verified() -> None:
    dialler, listener = pair(local(1), local(2))
    listener.receive(dialler.take_outgoing()[0])
    hello, proof = listener.take_outgoing()
    dialler.receive(hello)
    dialler.receive(proof)
    assert not dialler.is_done
    dialler_proof, dialler_finished = dialler.take_outgoing()
    listener.receive(dialler_proof)
    assert not listener.is_done
    listener.receive(dialler_finished)
    assert listener.peer is not None
    assert not dialler.is_done


def test_reflected_finished_is_refused() -> None:
    dialler, listener = pair(local(1), local(2))
    listener.receive(dialler.take_outgoing()[0])
    hello, proof = listener.take_outgoing()
    dialler.receive(hello)
    dialler.receive(proof)
    dialler.receive(dialler.take_outgoing()[-1])
    assert code(dialler) is ErrorCode.KEY_MISMATCH
    assert dialler.peer is None


def test_swapped_roles_agree_on_nothing() -> None:
    """Two diallers that somebody joins: each proves the dialler's role, and expects the listener's."""
    one = Handshake(Role.DIALLER, local(1), terms(VIEW), b"1" * 32, b"A" * 32, 2.0)
    two = Handshake(Role.DIALLER, local(2), terms(VIEW), b"2" * 32, b"B" * 32, 2.0)
    run(one, two)
    assert one.peer is None
    assert two.peer is None


def test_man_in_the_middle_with_his_own_ephemeral_key_is_refused() -> None:
    dialler, listener = pair(local(1), local(2))
    mallory = X25519PrivateKey.generate().public_key().public_bytes_raw()
    listener.receive(changed_hello(dialler.take_outgoing()[0], ephemeral_key=mallory))
    hello, proof = listener.take_outgoing()
    dialler.receive(changed_hello(hello, ephemeral_key=mallory))
    dialler.receive(proof)
    listener.receive(dialler.take_outgoing()[0])
    assert code(dialler) is ErrorCode.KEY_MISMATCH
    assert code(listener) is ErrorCode.KEY_MISMATCH


@given(st.integers(0, 5), st.data())
def test_changed_bytes_at_any_step_never_let_both_up(step: int, data: st.DataObject) -> None:
    """Frames 0 to 5: both hellos, both proofs, both Finished. One is cut short or has one byte changed."""
    dialler, listener = pair(local(1), local(2))
    sides, number = (dialler, listener), 0
    frames = [(0, frame) for frame in dialler.take_outgoing()] + [(1, frame) for frame in listener.take_outgoing()]
    while frames:
        sender, frame = frames.pop(0)
        if number == step:
            at = data.draw(st.integers(0, len(frame) - 1))
            cut = data.draw(st.booleans())
            frame = (
                frame[:at]
                if cut
                else frame[:at] + bytes((frame[at] ^ data.draw(st.integers(1, 255)),)) + frame[at + 1 :]
            )
        number += 1
        sides[1 - sender].receive(frame)
        frames += [(1 - sender, answer) for answer in sides[1 - sender].take_outgoing()]
    assert dialler.peer is None or listener.peer is None


def test_fields_that_later_versions_add_to_a_hello_are_accepted_and_signed() -> None:
    """Certificate hashes or a view's revision come later without another version of the wire."""
    dialler, listener = pair(local(1), local(2))
    (hello,) = dialler.take_outgoing()
    # Field 15 of the hello, which this version does not know; the dialler, who did not send it, must not agree.
    body = parsed(hello).hello.SerializeToString() + b"\x7a\x04more"
    later = b"\x0a" + _varint(len(body)) + body
    listener.receive(encode_handshake(later))
    assert listener.failure is None
    hello_back, proof = listener.take_outgoing()
    dialler.receive(hello_back)
    dialler.receive(proof)
    assert code(dialler) is ErrorCode.KEY_MISMATCH


def _varint(value: int) -> bytes:
    return bytes((value,)) if value < 128 else bytes((value & 127 | 128, value >> 7))


@given(st.lists(st.binary(max_size=8), max_size=5), st.lists(st.binary(max_size=8), max_size=5))
def test_two_different_transcripts_never_sign_alike(one: list[bytes], other: list[bytes]) -> None:
    """Version 1 signed the hellos one behind the other, so a byte could move from one to the next."""
    assert (join_parts(*one) == join_parts(*other)) == (one == other)
    assert join_parts(b"ab", b"c") != join_parts(b"a", b"bc")


@given(st.binary(max_size=300), st.booleans())
def test_garbage_ends_the_handshake_and_never_raises(garbage: bytes, is_handshake: bool) -> None:
    _, listener = pair(local(1), local(2))
    listener.take_outgoing()
    listener.receive(bytes((FRAME_HANDSHAKE,)) + garbage if is_handshake else garbage)
    assert listener.peer is None
    assert listener.failure is not None
    reject = lane_pb2.LaneHandshake.FromString(bytes(decode_handshake(listener.take_outgoing()[-1])))
    assert reject.reject.error.code


SHOWN = b"c" * 32


@pytest.mark.parametrize(
    ("dial_seen", "listen_shown"),
    [(b"m" * 32, SHOWN), (b"", SHOWN), (SHOWN, b"")],
    ids=["another certificate", "clear for the dialler", "clear for the listener"],
)
def test_tls_that_does_not_run_from_end_to_end_is_refused_by_both(dial_seen: bytes, listen_shown: bytes) -> None:
    dialler, listener = pair(
        local(1),
        local(2),
        dial=Terms(delegations(), VIEW, certificate_seen=dial_seen),
        listen=Terms(delegations(), VIEW, certificate_shown=listen_shown),
    )
    hellos = dialler.take_outgoing(), listener.take_outgoing()
    for frame in hellos[0]:
        listener.receive(frame)
    for frame in hellos[1]:
        dialler.receive(frame)
    assert code(dialler) is code(listener) is ErrorCode.TLS_TERMINATED


def test_certificates_that_both_saw_are_agreed_on_also_when_both_show_one() -> None:
    dialler, listener = pair(
        local(1),
        local(2),
        dial=Terms(delegations(), VIEW, certificate_shown=b"d" * 32, certificate_seen=SHOWN),
        listen=Terms(delegations(), VIEW, certificate_shown=SHOWN, certificate_seen=b"d" * 32),
    )
    run(dialler, listener)
    assert dialler.peer is not None
    assert listener.peer is not None


def test_middle_that_rewrites_the_certificates_in_the_hellos_breaks_the_proofs() -> None:
    """Who ends TLS can make each side read what it wants to read; what was signed is then something else."""
    dialler, listener = pair(
        local(1),
        local(2),
        dial=Terms(delegations(), VIEW, certificate_seen=b"m" * 32),
        listen=Terms(delegations(), VIEW, certificate_shown=SHOWN),
    )
    (to_listener,), (to_dialler,) = dialler.take_outgoing(), listener.take_outgoing()
    listener.receive(to_listener.replace(b"m" * 32, SHOWN))
    dialler.receive(to_dialler.replace(SHOWN, b"m" * 32))
    run(dialler, listener)
    assert dialler.peer is listener.peer is None
    assert {code(dialler), code(listener)} == {ErrorCode.KEY_MISMATCH}


@pytest.mark.parametrize("size", [1, 31, 33])
def test_certificate_digest_of_another_length_is_refused(size: int) -> None:
    dialler, listener = pair(local(1), local(2), dial=Terms(delegations(), VIEW, certificate_seen=b"c" * size))
    run(dialler, listener)
    assert code(listener) is ErrorCode.WRONG_PROTOCOL
