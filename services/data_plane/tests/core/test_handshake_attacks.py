"""The lane handshake under attack: the rows of the table in docs/design/overlay.md "Attacks on the handshake" that need no wire.

Whatever happens to the messages, no side comes up unless both saw the same ones, and nothing raises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from data_plane_testing.handshakes import (
    MESH,
    OTHER_MESH,
    SEEDS,
    VIEW,
    changed_hello,
    code,
    delegated,
    local,
    pair,
    parsed,
    run,
    terms,
    view,
)
from mesh_data.core.handshake import Handshake, Role, Terms
from meshapi.overlay.v1 import lane_pb2
from meshcommon.delegation import Use
from meshcommon.errors import ErrorCode
from meshwire.frame import decode_handshake, encode_handshake

STEPS = (0, 1, 2)
NAMES = ["hello", "proof", "finished"]


def record() -> tuple[list[bytes], list[bytes]]:
    """All messages of one good handshake: those of the dialler and those of the listener."""
    dialler, listener = pair(local(1), local(2))
    there, back = [], []
    for _ in STEPS:
        there += dialler.take_outgoing()
        back += listener.take_outgoing()
        listener.receive(there[-1])
        dialler.receive(back[-1])
    assert dialler.peer is not None
    assert listener.peer is not None
    return there, back


def listener_at(step: int, nonce: bytes = b"l" * 32) -> tuple[Handshake, Handshake]:
    """Two sides that have exchanged the messages before `step`; what is next of each waits in it."""
    dialler = Handshake(Role.DIALLER, local(1), terms(VIEW), b"d" * 32, b"D" * 32, 2.0)
    listener = Handshake(Role.LISTENER, local(2), terms(VIEW), nonce, nonce, 2.0)
    for _ in range(step):
        there, back = dialler.take_outgoing(), listener.take_outgoing()
        listener.receive(there[-1])
        dialler.receive(back[-1])
    return dialler, listener


@pytest.mark.parametrize("step", STEPS, ids=NAMES)
def test_each_message_of_a_recorded_handshake_is_refused_in_another_one(step: int) -> None:
    recorded, _ = record()
    _, listener = listener_at(step, nonce=b"x" * 32)
    for message in recorded[step:]:
        listener.receive(message)
    assert listener.peer is None
    assert code(listener) is ErrorCode.KEY_MISMATCH


@pytest.mark.parametrize("step", STEPS, ids=NAMES)
def test_each_message_that_comes_twice_ends_the_handshake_or_changes_nothing(step: int) -> None:
    dialler, listener = listener_at(step)
    message = dialler.take_outgoing()[-1]
    listener.receive(message)
    was_up = listener.peer is not None
    listener.receive(message)
    assert was_up is (step == 2)
    if not was_up:
        assert code(listener) is ErrorCode.WRONG_PROTOCOL


@pytest.mark.parametrize("step", STEPS, ids=NAMES)
def test_each_own_message_that_is_sent_back_is_refused(step: int) -> None:
    """Reflection: whoever has no key answers with what it hears."""
    dialler, listener = listener_at(step)
    for handshake in (dialler, listener):
        handshake.receive(handshake.take_outgoing()[-1])
        assert handshake.peer is None
        assert handshake.failure is not None


def boundaries(message: bytes) -> list[int]:
    """Where a message may be cut: in its head, and around each field of the outer and the inner message."""
    inner = bytes(decode_handshake(message))
    found = {0, 1, 2, 3, len(message) - 1}
    at = 2 if inner[1] < 0x80 else 3
    while at < len(inner):
        start, key = at, inner[at]
        at += 1
        if key & 7 == 0:
            while inner[at] & 0x80:
                at += 1
            at += 1
        else:
            size, shift = 0, 0
            while True:
                byte = inner[at]
                size |= (byte & 0x7F) << shift
                at, shift = at + 1, shift + 7
                if not byte & 0x80:
                    break
            found |= {at + 1, at + size + 1, at + size}
            at += size
        found |= {start + 1, start + 2}
    return sorted(cut for cut in found if 0 <= cut < len(message))


@pytest.mark.parametrize("step", STEPS, ids=NAMES)
def test_message_that_is_truncated_at_any_boundary_is_refused(step: int) -> None:
    cuts = boundaries(listener_at(step)[0].take_outgoing()[-1])
    assert len(cuts) >= 6
    for cut in cuts:
        dialler, listener = listener_at(step)
        whole = dialler.take_outgoing()[-1]
        listener.receive(whole[:cut])
        assert listener.failure is not None, f"cut after {cut} of {len(whole)} bytes"
        assert listener.peer is None


@pytest.mark.parametrize("step", STEPS, ids=NAMES)
def test_handshake_that_is_cut_off_at_any_step_ends_with_its_time(step: int) -> None:
    dialler, listener = listener_at(step)
    for handshake in (dialler, listener):
        assert not handshake.is_done
        handshake.tick(handshake.next_deadline())
        assert code(handshake) is ErrorCode.HANDSHAKE_FAILED
        assert handshake.peer is None


@pytest.mark.parametrize("step", STEPS[1:], ids=NAMES[1:])
def test_step_that_is_left_out_is_out_of_turn(step: int) -> None:
    recorded, _ = record()
    _, listener = listener_at(step - 1)
    listener.receive(recorded[step])
    assert code(listener) is ErrorCode.WRONG_PROTOCOL


def test_middle_that_swaps_the_certificates_that_two_lanes_name_is_refused_by_all() -> None:
    """Two lanes at once: their hellos are exchanged, so that each names certificates of the other connection."""
    first = terms(VIEW, certificate_seen=b"\x01" * 32), terms(VIEW, certificate_shown=b"\x01" * 32)
    second = terms(VIEW, certificate_seen=b"\x02" * 32), terms(VIEW, certificate_shown=b"\x02" * 32)
    one = Handshake(Role.DIALLER, local(1), first[0], b"d" * 32, b"D" * 32, 2.0)
    other = Handshake(Role.LISTENER, local(2), second[1], b"m" * 32, b"M" * 32, 2.0)
    run(one, other)
    assert {code(one), code(other)} == {ErrorCode.TLS_TERMINATED}


@pytest.mark.parametrize(
    "fields",
    [
        {"version_max": 4, "version_min": 1},
        {"version_max": 6, "version_min": 5},
        {"version_max": 5, "version_min": 1},
        {"version_max": 0, "version_min": 0},
    ],
    ids=["older", "newer", "wider", "none"],
)
def test_middle_that_changes_the_version_range_brings_no_lane_up(fields: dict[str, object]) -> None:
    dialler, listener = pair(local(1), local(2))
    listener.receive(changed_hello(dialler.take_outgoing()[0], **fields))
    run(dialler, listener)
    assert listener.peer is None
    assert dialler.peer is None
    assert code(listener) in {ErrorCode.VERSION_MISMATCH, ErrorCode.KEY_MISMATCH}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"mesh_id": OTHER_MESH}, ErrorCode.MESH_ID_MISMATCH),
        ({"mesh_epoch": 1}, ErrorCode.HANDSHAKE_FAILED),
        ({"node_id": 3}, ErrorCode.HANDSHAKE_FAILED),
        ({"node_id": 2}, ErrorCode.HANDSHAKE_FAILED),
        ({"node_id": 0}, ErrorCode.WRONG_PROTOCOL),
        ({"node_id": 0, "mesh_id": ""}, ErrorCode.KEY_MISMATCH),
        ({"name": "n3"}, ErrorCode.KEY_MISMATCH),
    ],
    ids=["mesh", "epoch", "stranger", "own-id", "no-id", "as-newcomer", "name"],
)
def test_middle_that_changes_who_is_there_is_told_apart(fields: dict[str, object], expected: ErrorCode) -> None:
    dialler, listener = pair(local(1), local(2))
    listener.receive(changed_hello(dialler.take_outgoing()[0], **fields))
    run(dialler, listener)
    assert code(listener) is expected
    assert dialler.peer is None


def test_middle_that_puts_its_own_delegation_into_a_hello_gains_nothing() -> None:
    dialler, listener = pair(local(1), local(2))
    hello = parsed(dialler.take_outgoing()[0])
    hello.hello.delegation.CopyFrom(delegated(SEEDS[3], MESH, 1, Use.LANES).delegation.to_proto())
    listener.receive(encode_handshake(hello.SerializeToString()))
    run(dialler, listener)
    assert code(listener) is ErrorCode.KEY_MISMATCH
    assert dialler.peer is None


def relayed(change: Callable[[bytes], bytes]) -> tuple[Handshake, Handshake]:
    """A man in the middle relays every message, and changes those of the dialler."""
    dialler, listener = pair(local(1), local(2))
    while True:
        there, back = dialler.take_outgoing(), listener.take_outgoing()
        if not there and not back:
            return dialler, listener
        for message in there:
            listener.receive(change(message))
        for message in back:
            dialler.receive(message)


def add_unknown_field(message: bytes) -> bytes:
    """A field that no version has: it is read over, but it is in the transcript."""
    found = parsed(message)
    return encode_handshake(found.SerializeToString() + b"\xfa\x3f\x01x") if found.HasField("hello") else message


def test_middle_that_relays_all_of_it_unchanged_is_no_more_than_a_wire() -> None:
    dialler, listener = relayed(lambda message: message)
    assert dialler.peer is not None
    assert listener.peer is not None


@pytest.mark.parametrize(
    "change",
    [
        add_unknown_field,
        lambda message: message + b"\x00",
        lambda message: encode_handshake(parsed(message).SerializeToString() * 2),
    ],
    ids=["unknown-field", "longer", "doubled"],
)
def test_middle_that_adds_anything_to_what_it_relays_breaks_the_handshake(change: Callable[[bytes], bytes]) -> None:
    dialler, listener = relayed(change)
    assert listener.peer is None
    assert dialler.peer is None


def test_middle_that_lets_one_side_come_up_cannot_use_the_keys_of_it() -> None:
    """The last message may be held back: one side is up, the other is not, and the middle has no key of either."""
    dialler, listener = pair(
        local(1), local(2), dial=terms(VIEW, seals_frames=True), listen=terms(VIEW, seals_frames=True)
    )
    for _ in STEPS:
        there, back = dialler.take_outgoing(), listener.take_outgoing()
        for message in back:
            dialler.receive(message)
        for message in there:
            if not parsed(message).HasField("finished"):
                listener.receive(message)
    assert dialler.peer is not None
    assert listener.peer is None
    assert listener.seal is None
    listener.tick(2.0)
    assert code(listener) is ErrorCode.HANDSHAKE_FAILED


def test_reject_of_a_middle_ends_one_handshake_and_gives_nothing() -> None:
    """Nobody can keep a middle from refusing: it could cut the wire as well."""
    dialler, _ = pair(local(1), local(2))
    dialler.receive(encode_handshake(lane_pb2.LaneHandshake(reject=lane_pb2.LaneReject()).SerializeToString()))
    assert dialler.is_rejected_by_peer
    assert dialler.peer is None


def test_member_of_another_epoch_with_the_right_keys_is_refused() -> None:
    """After an attested recovery the epoch is another one: what was delegated before opens nothing."""
    old = replace(local(1), signer=delegated(SEEDS[1], MESH, 1, mesh_epoch=0))
    new = replace(local(2), mesh_epoch=1, signer=delegated(SEEDS[2], MESH, 2, mesh_epoch=1))
    known: Terms = terms(replace(view(1, 2), mesh_epoch=1))
    dialler, listener = pair(old, new, listen=known)
    run(dialler, listener)
    assert code(listener) is ErrorCode.HANDSHAKE_FAILED
    assert dialler.peer is None
