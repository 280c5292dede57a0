"""Frames from peers: what is malformed, misdirected or forbidden is refused, and nothing that bytes can say crashes."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.meshraft.tests.cluster import CONFIG, GROUP, Cluster, Envelope
from libs.meshraft.tests.messages import Kind, LogEntry, Message, encode, frame, part
from meshraft import InvalidFrame, RaftHost, SimDisk


def host() -> RaftHost:
    made = RaftHost.simulated(SimDisk(), seed=1)
    made.create_group(GROUP, 11, {11: 1, 12: 2, 13: 3}, voters=[11, 12, 13], config=CONFIG)
    made.pump()
    return made


BEAT = Message(Kind.HEARTBEAT, 11, 12, 2)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02",
        b"\x00" + frame(GROUP, BEAT)[1:],
        frame(GROUP, BEAT)[:-1],
        frame(GROUP, BEAT)[:7],
        frame(GROUP, BEAT) + b"\x00",
        b"\x01" + part(GROUP, b"\xff\xff\xff"),
        b"\x01" + part(GROUP, encode(BEAT))[:-4] + b"\xff" * 4,
        b"\x01" + (7).to_bytes(8, "big") + b"\xff\xff\xff\xff",
    ],
)
def test_a_malformed_frame_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidFrame) as caught:
        host().step(2, data)
    assert caught.value.code == "INVALID_FRAME"


@pytest.mark.parametrize(
    "message",
    [
        Message(Kind.HEARTBEAT, 12, 13, 2),
        Message(Kind.HEARTBEAT, 11, 13, 2),
        Message(Kind.HEARTBEAT, 11, 11, 2),
        Message(Kind.HEARTBEAT, 11, 0, 2),
        Message(Kind.HEARTBEAT, 11, 12, 0),
        Message(Kind.HEARTBEAT, 11, 12, 2**63),
        Message(Kind.HEARTBEAT, 11, 12, 2**32 + 100),
        Message(Kind.HEARTBEAT, 11, 12, 2, commit=2**63),
        Message(Kind.APPEND, 11, 12, 0, 1, 1),
        Message(Kind.APPEND, 11, 12, 2, 1, 1, [LogEntry(3, 2)]),
        Message(Kind.APPEND, 11, 12, 2, 1, 1, [LogEntry(2, 3)]),
        Message(Kind.APPEND, 11, 12, 2, 2, 1, [LogEntry(2, 1)]),
        Message(Kind.APPEND, 11, 12, 2, 1, 2**64 - 1),
        Message(Kind.SNAPSHOT, 11, 12, 2),
        Message(Kind.READ_INDEX, 11, 12),
        Message(Kind.READ_INDEX, 11, 12, 2, entries=[LogEntry(1, 1)]),
        Message(Kind.READ_INDEX_RESPONSE, 11, 12, 2),
        Message(Kind.HEARTBEAT, 11, 12, 2, entries=[LogEntry(1, 1)]),
        Message(Kind.PROPOSE, 11, 12, 0, entries=[LogEntry(0, 0, b"x")]),
        Message(Kind.PROPOSE, 11, 12, 2, entries=[LogEntry(0, 0, b"x")]),
        Message(Kind.HUP, 11, 12, 2),
        Message(Kind.BEAT, 11, 12, 2),
        Message(Kind.UNREACHABLE, 11, 12, 2),
        Message(Kind.SNAP_STATUS, 11, 12, 2),
        Message(Kind.CHECK_QUORUM, 11, 12, 2),
        Message(Kind.TRANSFER_LEADER, 11, 12, 2),
    ],
    ids=lambda message: f"{message.kind.name}-{message.sender}-{message.to}-{message.term}",
)
def test_a_message_that_must_not_be_is_refused_and_changes_nothing(message: Message) -> None:
    target = host()
    before = target.status(GROUP)
    with pytest.raises(InvalidFrame):
        target.step(2, frame(GROUP, message))
    after = target.status(GROUP)
    assert (after.term, after.leader, after.last_index, after.commit) == (
        before.term,
        before.leader,
        before.last_index,
        before.commit,
    )
    assert target.pump().closed == []


def test_good_messages_beside_a_bad_one_are_taken() -> None:
    target = host()
    with pytest.raises(InvalidFrame):
        target.step(2, frame(GROUP, Message(Kind.HUP, 11, 12, 2), BEAT))
    assert target.status(GROUP).leader == 12


def test_a_member_is_heard_only_from_its_own_node() -> None:
    target = host()
    with pytest.raises(InvalidFrame, match="does not live on node 3"):
        target.step(3, frame(GROUP, BEAT))
    assert target.status(GROUP).leader == 0


def test_a_forged_leader_transfer_does_nothing() -> None:
    target = host()
    target.step(2, frame(GROUP, BEAT))
    target.step(3, frame(GROUP, Message(Kind.TIMEOUT_NOW, 11, 13, 2)))
    assert target.status(GROUP).role == "follower"
    target.step(2, frame(GROUP, Message(Kind.TIMEOUT_NOW, 11, 12, 2)))
    assert target.status(GROUP).role == "candidate"


@given(st.binary(max_size=300))
def test_random_bytes_never_crash(data: bytes) -> None:
    target = host()
    for candidate in (data, b"\x01" + data, b"\x01" + part(GROUP, data)):
        with suppress(InvalidFrame):  # the only error that bytes may cause
            target.step(2, candidate)
    target.pump()


NUMBER = st.integers(0, 3) | st.integers(0, 2**64 - 1)


@given(
    st.builds(
        Message,
        st.sampled_from(Kind),
        st.just(11),
        st.sampled_from([11, 12, 13, 14]),
        NUMBER,
        NUMBER,
        NUMBER,
        st.lists(st.builds(LogEntry, NUMBER, NUMBER, st.binary(max_size=4)), max_size=3),
        NUMBER,
        st.booleans(),
        NUMBER,
        st.binary(max_size=30),
    )
)
def test_random_messages_cost_at_most_their_own_group(message: Message) -> None:
    target = host()
    target.create_group(8, 11, {11: 1, 12: 2}, voters=[11, 12], config=CONFIG)
    for peer in (2, 3):
        with suppress(InvalidFrame):
            target.step(peer, frame(GROUP, message))
    target.tick()
    assert all(group == GROUP for group, _, _ in target.pump().closed)
    assert target.status(8).member == 11


def test_flipped_bits_in_real_frames_never_crash_the_host() -> None:
    rng = random.Random(1)
    cluster = Cluster(3)
    cluster.elect(1)
    seen: list[bytes] = []

    def records(envelope: Envelope) -> bool:
        seen.append(envelope.data)
        return False

    cluster.loses = records
    cluster.commit(*[f"p{n}" for n in range(20)])
    cluster.tick(5)
    assert len(seen) > 10
    for _ in range(2000):
        data = bytearray(rng.choice(seen))
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        target = host()
        for member in (2, 3):
            with suppress(InvalidFrame):
                target.step(member, bytes(data))
        target.pump()
        assert target.stored_groups() == [GROUP]
