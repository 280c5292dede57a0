"""The driver of overlay requests: one that is not ready yet, one that fails, and one that asks too much."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import pytest

from meshcommon.barrier import UNEXPECTED_ERRORS
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NO_NODE, NodeId
from meshcommon.overlay_calls import REQUESTS_MALFORMED, Caller, OverlayCalls
from meshcommon.requests import Incoming, Outgoing, RequestLimits, Requests
from meshtest.waiting import eventually
from meshwire.packet import TrafficClass
from meshwire.request import ErrorResponse, OkResponse, Request, Response, encode_error

LANE: Final = 7
MEMBER: Final = NodeId(1)
JOIN, PROPOSE = 1, 2
LIMITS = RequestLimits(
    requests_max=256,
    bytes_max=2_100_000,
    peer_requests_max=32,
    peer_bytes_max=2_000_000,
    joiners_max=16,
    lane_max=2,
    joiner_body_bytes_max=16 * 1024,
)


def calls_over(send: Callable[[TrafficClass, Outgoing], object], first_id: int = 1) -> OverlayCalls:
    return OverlayCalls(
        "test_request", send, time.monotonic, first_id, request_class=TrafficClass.CONTROL, limits=LIMITS
    )


class Wire:
    """One end of a lane between a newcomer and a member; a packet arrives at once."""

    def __init__(self, source: NodeId) -> None:
        self._source = source
        self.other: OverlayCalls | None = None
        self.sent = 0
        self.has_sent = asyncio.Event()

    def send(self, _class: TrafficClass, outgoing: Outgoing) -> None:
        """Delivers it to the other end."""
        assert self.other is not None
        self.sent += 1
        self.has_sent.set()
        self.other.receive(self._source, outgoing.payload, outgoing.lane_id)


async def test_request_that_came_before_the_other_side_was_ready_is_answered_when_repeated() -> None:
    """It was once noted as under way, executed by nobody, and every repeat of it passed for a duplicate."""
    to_member, to_newcomer = Wire(NO_NODE), Wire(MEMBER)
    newcomer, member = calls_over(to_member.send, 1), calls_over(to_newcomer.send, 2)
    to_member.other, to_newcomer.other = member, newcomer
    executed: list[bytes] = []

    async def admit(_caller: Caller, body: bytes, _timeout_s: float) -> bytes:
        executed.append(body)
        return b"welcome"

    member.serve(JOIN, admit)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(newcomer.run())]
        with newcomer.join_lane(LANE):
            answer = group.create_task(newcomer.call(JOIN, b"please", 5.0, lane_id=LANE))
            await to_member.has_sent.wait()
            tasks.append(group.create_task(member.run()))
            assert await answer == b"welcome"
        for task in tasks:
            task.cancel()
    assert (executed, to_member.sent) == ([b"please"], 2)


class Member:
    """A member that is asked by peers of the test's making, in raw payloads."""

    def __init__(self) -> None:
        self.calls = calls_over(self.send)
        self.fail_sending: Callable[[], None] = lambda: None
        self.classes: list[TrafficClass] = []
        self.answers: list[tuple[NodeId, int, bytes]] = []
        self.executed: list[tuple[NodeId, bytes]] = []
        self.may_go = asyncio.Event()
        self._peers: dict[tuple[int, int], Requests] = {}

    def send(self, traffic_class: TrafficClass, outgoing: Outgoing) -> None:
        self.fail_sending()
        self.classes.append(traffic_class)
        self.answers.append((NodeId(outgoing.peer), outgoing.lane_id, outgoing.payload))

    async def wait(self, caller: Caller, body: bytes, _timeout_s: float) -> bytes:
        """A handler that takes as long as the test likes."""
        self.executed.append((caller.node, body))
        await self.may_go.wait()
        return body

    def ask(self, source: int, body: bytes, method: int = PROPOSE, lane_id: int = 0) -> None:
        peer = self._peers.setdefault((source, lane_id), Requests(first_id=1))
        # A peer of 0 is a join lane: both ends see the other as 0.
        _, outgoing = peer.start(0, Request(method, 60_000, body), 60.0, 0.0, lane_id=lane_id)
        self.receive(source, outgoing.payload, lane_id)

    def receive(self, source: int, payload: bytes, lane_id: int = 0) -> None:
        self.calls.receive(NodeId(source), payload, lane_id)

    def read(self, source: int, lane_id: int = 0) -> list[Response]:
        """What the peer has been answered."""
        peer = self._peers[source, lane_id]
        taken = [
            peer.receive(0, lane_id, payload)
            for destination, lane, payload in self.answers
            if (destination, lane) == (source, lane_id)
        ]
        return [item[1] for item in taken if isinstance(item, tuple)]

    async def eventually_answered(self, count: int) -> None:
        async def are_there() -> bool:
            return len(self.answers) >= count

        await eventually(f"{count} answers", are_there)


@asynccontextmanager
async def running(member: Member) -> AsyncIterator[None]:
    task = asyncio.create_task(member.calls.run(), name="peer calls")
    await asyncio.sleep(0)
    yield
    assert not task.done(), "the service has ended"
    member.may_go.set()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_handler_that_fails_unexpectedly_ends_only_its_request() -> None:
    member = Member()

    async def fail(_caller: Caller, _body: bytes, _timeout_s: float) -> bytes:
        raise ZeroDivisionError

    member.calls.serve(JOIN, fail)
    member.calls.serve(PROPOSE, member.wait)
    member.may_go.set()
    failures = UNEXPECTED_ERRORS.labels("test_request")._value.get()
    async with running(member):
        member.ask(2, b"", JOIN)
        member.ask(2, b"honest")
        await member.eventually_answered(2)
        # A repeat is answered from memory, and does not fail again.
        member.receive(2, bytes((0,)) + (1).to_bytes(8, "big") + bytes((JOIN, 0, 0, 1, 0)))
        await member.eventually_answered(3)
    failed, answered = member.read(2)
    assert isinstance(failed, ErrorResponse)
    assert failed.code == ErrorCode.INTERNAL
    assert answered == OkResponse(b"honest")
    assert UNEXPECTED_ERRORS.labels("test_request")._value.get() == failures + 1


async def test_refusal_that_outgrows_its_frame_is_contained() -> None:
    """A JoinRequest with a mesh id of 66,000 characters once made an error text that no frame could carry."""
    member = Member()

    async def refuse(_caller: Caller, body: bytes, _timeout_s: float) -> bytes:
        raise MeshError(ErrorCode.MESH_ID_MISMATCH, f"Not in {body.decode()}.", {"expected": body.decode()})

    member.calls.serve(PROPOSE, refuse)
    async with running(member):
        member.ask(2, b"x" * 66_000)
        member.ask(2, b"short")
        await member.eventually_answered(2)
    answers = member.read(2)
    assert len(answers) == 2
    assert all(isinstance(answer, ErrorResponse) for answer in answers)


async def test_long_request_of_a_stranger_is_refused_before_it_is_read() -> None:
    member = Member()
    member.calls.serve(JOIN, member.wait)
    async with running(member):
        member.ask(0, bytes(LIMITS.joiner_body_bytes_max + 1), JOIN, LANE)
        await member.eventually_answered(1)
    [answer] = member.read(0, LANE)
    assert isinstance(answer, ErrorResponse)
    assert answer.code == ErrorCode.INVALID_ARGUMENT
    assert member.executed == []


async def test_one_member_takes_only_its_share_and_strangers_only_theirs() -> None:
    member = Member()
    member.calls.serve(PROPOSE, member.wait)
    async with running(member):
        # Without a pause, as the packets of one batch are taken.
        for number in range(10 * LIMITS.requests_max):
            member.ask(2, b"greedy %d" % number)
        for number in range(10):
            member.ask(0, b"stranger %d" % number, lane_id=100 + number % 3)
        for number in range(20):
            member.ask(0, b"more %d" % number, lane_id=200 + number)
        member.ask(3, b"honest")
        await asyncio.sleep(0.05)
        # The member is told; strangers are not answered, and send theirs again.
        refused = 10 * LIMITS.requests_max - LIMITS.peer_requests_max
        assert [answer[:2] for answer in member.answers] == [(2, 0)] * refused
        assert {getattr(answer, "code", "") for answer in member.read(2)} == {ErrorCode.BACKPRESSURE}
        by_member = [peer for peer, _ in member.executed]
        assert by_member.count(NodeId(2)) == LIMITS.peer_requests_max
        assert by_member.count(NO_NODE) == LIMITS.joiners_max
        lanes = [body for _, body in member.executed if body.startswith(b"stranger")]
        assert len(lanes) == 3 * LIMITS.lane_max
        assert by_member[-1] == 3
        member.may_go.set()
        done = refused + LIMITS.peer_requests_max + LIMITS.joiners_max + 1
        await member.eventually_answered(done)
        # The share is free again.
        member.ask(2, b"again")
        await member.eventually_answered(done + 1)


async def test_stranger_that_found_no_room_is_answered_when_it_asks_again() -> None:
    member = Member()
    member.calls.serve(JOIN, member.wait)
    async with running(member):
        for number in range(LIMITS.lane_max + 1):
            member.ask(0, b"%d" % number, JOIN, LANE)
        member.may_go.set()
        await member.eventually_answered(LIMITS.lane_max)
        # The same request, as its sender repeats it.
        repeat = Requests(first_id=1)
        for _ in range(LIMITS.lane_max):
            repeat.start(0, Request(JOIN, 60_000, b""), 60.0, 0.0, lane_id=LANE)
        _, outgoing = repeat.start(0, Request(JOIN, 60_000, b"2"), 60.0, 0.0, lane_id=LANE)
        member.receive(0, outgoing.payload, LANE)
        await member.eventually_answered(LIMITS.lane_max + 1)
    assert member.read(0, LANE)[-1] == OkResponse(b"2")


async def test_bodies_that_execute_are_bounded_of_one_node_and_of_all() -> None:
    member = Member()
    member.calls.serve(PROPOSE, member.wait)
    async with running(member):
        for source, size_bytes in ((2, 1_500_000), (2, 600_000), (3, 700_000), (3, 500_000)):
            member.ask(source, bytes(size_bytes))
        await asyncio.sleep(0.02)
        assert [answer[0] for answer in member.answers] == [2, 3]
        assert [(peer, len(body)) for peer, body in member.executed] == [(2, 1_500_000), (3, 500_000)]
        member.may_go.set()
        await member.eventually_answered(4)
        member.ask(2, bytes(600_000))
        await member.eventually_answered(5)
        # What would hold up votes and heartbeats goes in the bulk class.
        assert member.classes == [TrafficClass.CONTROL] * 2 + [TrafficClass.BULK] * 3


async def test_answers_are_heard_while_peers_ask_too_much() -> None:
    member = Member()
    member.calls.serve(PROPOSE, member.wait)
    async with running(member):
        for source in range(2, 2 + LIMITS.requests_max // LIMITS.peer_requests_max + 1):
            for _ in range(LIMITS.peer_requests_max):
                member.ask(source, b"")
        call = asyncio.create_task(member.calls.call(PROPOSE, b"mine", 5.0, peer=NodeId(9)))
        await member.eventually_answered(LIMITS.peer_requests_max + 1)
        [(_, _, request)] = [item for item in member.answers if item[0] == 9]
        member.receive(9, bytes((1,)) + request[1:9] + b"\x00done")
        assert await call == b"done"


@pytest.mark.parametrize(
    ("message", "details"),
    [("a" * 60_000, {}), ("line\n\x1b[31mfake", {"\x00key": "v" * 60_000}), ("", {str(n): "" for n in range(255)})],
)
async def test_error_of_a_peer_is_quoted_short_and_printable(message: str, details: dict[str, str]) -> None:
    member = Member()
    async with running(member):
        call = asyncio.create_task(member.calls.call(PROPOSE, b"", 5.0, peer=NodeId(9)))
        await member.eventually_answered(1)
        body = encode_error("NO_SUCH_CODE", message, True, details)
        member.receive(9, bytes((1,)) + member.answers[0][2][1:9] + body)
        with pytest.raises(MeshError) as caught:
            await call
    error = caught.value
    assert error.code is ErrorCode.INTERNAL
    assert len(error.message) <= 200
    assert error.message.isprintable()
    assert len(error.details) <= 16
    assert all((key + value).isprintable() and len(value) <= 200 for key, value in error.details.items())


@pytest.mark.parametrize(
    "error",
    [
        MeshError(ErrorCode.INVALID_ARGUMENT, "m" * 66_000),
        MeshError(ErrorCode.INVALID_ARGUMENT, "\ud800", {"k" * 300: "v" * 66_000}),
        MeshError(ErrorCode.INVALID_ARGUMENT, "…", {str(number): "v" for number in range(300)}),
        MeshError(ErrorCode.INVALID_ARGUMENT, "…", {"number": 7, None: object()}),  # type: ignore[dict-item]
    ],
    ids=["long message", "long details", "many details", "no text"],
)
async def test_every_refusal_of_a_handler_reaches_its_caller(error: MeshError) -> None:
    member = Member()

    async def refuse(_caller: Caller, _body: bytes, _timeout_s: float) -> bytes:
        raise error

    member.calls.serve(PROPOSE, refuse)
    async with running(member):
        member.ask(2, b"")
        await member.eventually_answered(1)
    assert [getattr(answer, "code", "") for answer in member.read(2)] == [ErrorCode.INVALID_ARGUMENT]


@pytest.mark.parametrize("returned", [None, "text", 7])
async def test_what_cannot_be_sent_is_answered_as_a_fault(returned: object) -> None:
    member = Member()

    async def careless(_caller: Caller, _body: bytes, _timeout_s: float) -> bytes:
        return returned  # type: ignore[return-value]

    member.calls.serve(PROPOSE, careless)
    async with running(member):
        member.ask(2, b"")
        await member.eventually_answered(1)
    assert [getattr(answer, "code", "") for answer in member.read(2)] == [ErrorCode.INTERNAL]


async def test_failure_while_sending_ends_nothing() -> None:
    member = Member()
    member.calls.serve(PROPOSE, member.wait)
    member.may_go.set()

    def fail() -> None:
        raise ZeroDivisionError

    async with running(member):
        member.fail_sending = fail
        member.ask(2, b"")
        member.ask(2, b"", method=99)
        with pytest.raises(ZeroDivisionError):
            await member.calls.call(PROPOSE, b"", 5.0, peer=NodeId(9))
        await asyncio.sleep(0.02)
        member.fail_sending = lambda: None
        member.ask(2, b"abc")
        await member.eventually_answered(1)
    assert member.read(2) == [OkResponse(b"abc")]


async def test_unanswered_call_is_sent_again_until_it_is_answered() -> None:
    member, other = Member(), Requests(first_id=1)
    async with running(member):
        call = asyncio.create_task(member.calls.call(PROPOSE, b"question", 10.0, peer=NodeId(9)), name="call")
        await member.eventually_answered(2)
        first, second = (payload for _, _, payload in member.answers)
        assert first == second
        taken = other.receive(1, 0, second)
        assert isinstance(taken, Incoming)
        member.receive(9, other.answer(taken.key, OkResponse(b"answer")).payload)
        assert await call == b"answer"


async def test_call_that_nobody_answers_ends_at_its_deadline() -> None:
    member = Member()
    async with running(member):
        with pytest.raises(MeshError) as late:
            await member.calls.call(PROPOSE, b"", 0.02, peer=NodeId(9))
    assert late.value.code is ErrorCode.DEADLINE_EXCEEDED


async def test_call_to_the_node_itself_needs_no_packet() -> None:
    member = Member()
    member.calls.serve(PROPOSE, member.wait)
    with pytest.raises(MeshError) as late:
        await member.calls.call_local(MEMBER, PROPOSE, b"", 0.01)
    assert late.value.code is ErrorCode.DEADLINE_EXCEEDED
    member.may_go.set()
    assert await member.calls.call_local(MEMBER, PROPOSE, b"abc", 1.0) == b"abc"
    assert member.answers == []


@pytest.mark.parametrize("payload", [b"", b"\x00", b"\x07" * 40, b"\x01" + bytes(8) + b"\x01\xff"])
async def test_malformed_packet_is_dropped(payload: bytes) -> None:
    member = Member()
    member.calls.serve(PROPOSE, member.wait)
    member.may_go.set()
    before = REQUESTS_MALFORMED.labels("test_request")._value.get()
    async with running(member):
        for source in (0, 2):
            member.receive(source, payload)
        assert REQUESTS_MALFORMED.labels("test_request")._value.get() == before + 2
        member.ask(3, b"honest")
        await member.eventually_answered(1)
        await asyncio.sleep(0.02)
    assert member.read(3) == [OkResponse(b"honest")]
