"""Overlay requests over a channel that loses, doubles and reorders: answered once, executed once, or expired.

Two nodes, virtual time, every choice of the channel from one seed. The channel tests state what architecture §5 promises
for "Overlay request"; the others pin single rules.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshcommon import requests
from meshcommon.requests import Incoming, Outgoing, RequestLimits, Requests
from meshwire.errors import WireError
from meshwire.request import ErrorResponse, OkResponse, Request, Response, decode_request

A, B = 1, 2
START = 1000.0


@dataclass(frozen=True, slots=True)
class Channel:
    """How bad the way between the two nodes is; delays are drawn up to `delay_max_s`, so that packets overtake."""

    loss: float
    doubling: float
    delay_max_s: float


@dataclass(frozen=True, slots=True)
class Call:
    """One call to make: by whom, when, how long it waits, and how long the other side takes to execute it."""

    caller: int
    start: float
    timeout_s: float
    execution_s: float


@dataclass
class Simulation:
    """Runs calls to their end and writes down what happened."""

    channel: Channel
    rng: random.Random
    answers: dict[tuple[int, int], list[tuple[float, bytes]]] = field(default_factory=dict)
    expiries: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    executions: Counter[tuple[int, int]] = field(default_factory=Counter)
    deadlines: dict[tuple[int, int], float] = field(default_factory=dict)
    bodies: dict[tuple[int, int], bytes] = field(default_factory=dict)

    def run(self, calls: list[Call]) -> None:
        """Until no packet is on its way and nobody waits."""
        self._nodes = {A: Requests(first_id=self.rng.getrandbits(63)), B: Requests(first_id=self.rng.getrandbits(63))}
        self._queue: list[tuple[float, int, str, int, object]] = []
        self._order = itertools.count()
        self._ticks: set[tuple[int, float]] = set()
        for call in calls:
            self._at(call.start, "start", call.caller, call)
        while self._queue:
            now, _, what, node, value = heapq.heappop(self._queue)
            if isinstance(value, Call):
                self._start(now, value)
            elif isinstance(value, bytes):
                self._receive(now, node, value)
            elif isinstance(value, Incoming):
                self._send(now, node, self._nodes[node].answer(value.key, OkResponse(bytes(value.request.body)[::-1])))
            elif what == "tick":
                self._tick(now, node)

    def _at(self, when: float, what: str, node: int, value: object = None) -> None:
        heapq.heappush(self._queue, (when, next(self._order), what, node, value))

    def _start(self, now: float, call: Call) -> None:
        body = f"{call.execution_s:.3f} {self.rng.getrandbits(32)}".encode()
        deadline = now + call.timeout_s
        peer = B if call.caller == A else A
        request = Request(1, int(call.timeout_s * 1000), body)
        request_id, outgoing = self._nodes[call.caller].start(peer, request, deadline, now)
        key = (call.caller, request_id)
        self.deadlines[key], self.bodies[key] = deadline, body
        self._send(now, call.caller, outgoing)
        self._schedule_tick(call.caller)

    def _send(self, now: float, sender: int, outgoing: Outgoing) -> None:
        for _ in range(2 if self.rng.random() < self.channel.doubling else 1):
            if self.rng.random() >= self.channel.loss:
                delay = self.rng.uniform(0, self.channel.delay_max_s)
                self._at(now + delay, "arrive", A if sender == B else B, outgoing.payload)

    def _receive(self, now: float, node: int, payload: bytes) -> None:
        peer = A if node == B else B
        outcome = self._nodes[node].receive(peer, 0, payload)
        if isinstance(outcome, Incoming):
            self.executions[peer, outcome.key[2]] += 1
            self._at(now + float(bytes(outcome.request.body).split()[0]), "answer", node, outcome)
        elif isinstance(outcome, Outgoing):
            self._send(now, node, outcome)
        elif outcome is not None:
            request_id, response = outcome
            assert isinstance(response, OkResponse)
            self.answers.setdefault((node, request_id), []).append((now, bytes(response.body)))

    def _tick(self, now: float, node: int) -> None:
        again, expired = self._nodes[node].tick(now)
        for outgoing in again:
            self._send(now, node, outgoing)
        for request_id in expired:
            self.expiries.setdefault((node, request_id), []).append(now)
        self._schedule_tick(node)

    def _schedule_tick(self, node: int) -> None:
        due = self._nodes[node].next_deadline()
        if due is not None and (node, due) not in self._ticks:
            self._ticks.add((node, due))
            self._at(due, "tick", node)


CALLS = st.lists(
    st.builds(
        Call,
        caller=st.sampled_from([A, B]),
        start=st.floats(START, START + 3),
        timeout_s=st.floats(0.01, 8),
        execution_s=st.sampled_from([0.0, 0.001, 0.3, 2.0]),
    ),
    max_size=8,
)
CHANNELS = st.builds(
    Channel, loss=st.floats(0, 0.9), doubling=st.floats(0, 1), delay_max_s=st.sampled_from([0.0, 0.05, 0.6, 3.0])
)


@given(CALLS, CHANNELS, st.integers(0, 2**32))
def test_each_call_ends_exactly_once_in_time_and_is_executed_at_most_once(
    calls: list[Call], channel: Channel, seed: int
) -> None:
    run = Simulation(channel, random.Random(seed))
    run.run(calls)
    assert len(run.deadlines) == len(calls)
    for key, deadline in run.deadlines.items():
        answers, expiries = run.answers.get(key, []), run.expiries.get(key, [])
        assert len(answers) + len(expiries) == 1
        assert run.executions[key] <= 1
        for when, body in answers:
            assert when <= deadline
            assert body == run.bodies[key][::-1]
            assert run.executions[key] == 1
        for when in expiries:
            assert when == deadline
    assert run.executions.keys() <= run.deadlines.keys()


@given(st.lists(st.floats(0, 0.5), min_size=1, max_size=8), st.floats(0, 1), st.integers(0, 2**32))
def test_every_call_is_answered_when_enough_packets_arrive(starts: list[float], doubling: float, seed: int) -> None:
    calls = [Call(A, START + start, 120.0, 0.001) for start in starts]
    run = Simulation(Channel(0.5, doubling, 0.05), random.Random(seed))
    run.run(calls)
    assert run.answers.keys() == run.deadlines.keys()
    assert not run.expiries


def test_the_simulation_notices_a_call_that_is_executed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checker itself: with nothing remembered, doubled requests must show as second executions."""
    monkeypatch.setattr(requests, "REMEMBERED_ANSWERS_MAX", 0)
    run = Simulation(Channel(0.0, 1.0, 0.05), random.Random(1))
    run.run([Call(A, START + number, 5.0, 0.0) for number in range(20)])
    assert max(run.executions.values()) > 1


def started(deadline: float = START + 60) -> tuple[Requests, int, Outgoing]:
    """A node that waits for an answer from B."""
    node = Requests(first_id=7)
    request_id, outgoing = node.start(B, Request(3, 500, b"body"), deadline, START)
    return node, request_id, outgoing


def executed(node: Requests, payload: bytes, response: Response, peer: int = A, lane_id: int = 0) -> Outgoing:
    """What `node` sends after it has executed a request that is new to it."""
    incoming = node.receive(peer, lane_id, payload)
    assert isinstance(incoming, Incoming)
    return node.answer(incoming.key, response)


def test_frame_is_kind_then_id_then_request() -> None:
    _, request_id, outgoing = started()
    assert outgoing.peer == B
    assert outgoing.payload[:9] == b"\x00" + request_id.to_bytes(8, "big")
    assert decode_request(outgoing.payload[9:]) == Request(3, 500, b"body")


def test_resends_with_growing_pauses_up_to_the_longest() -> None:
    node, _, first = started()
    sent: list[float] = []
    while (due := node.next_deadline()) is not None and due < START + 5:
        again, expired = node.tick(due)
        assert (again, expired) == ([first], [])
        sent.append(due - START)
    assert sent == [0.25, 0.75, 1.75, 2.75, 3.75, 4.75]


def test_tick_before_it_is_due_does_nothing() -> None:
    node, _, _ = started()
    assert node.tick(START + 0.2) == ([], [])


def test_expired_call_is_forgotten_and_a_late_answer_is_ignored() -> None:
    node, request_id, outgoing = started(deadline=START + 0.1)
    late = executed(Requests(first_id=0), outgoing.payload, OkResponse(b"late"))
    assert node.next_deadline() == START + 0.1
    assert node.tick(START + 0.1) == ([], [request_id])
    assert node.next_deadline() is None
    assert node.receive(B, 0, late.payload) is None


def test_cancelled_call_is_neither_resent_nor_answered() -> None:
    node, request_id, outgoing = started()
    answer = executed(Requests(first_id=0), outgoing.payload, OkResponse(b""))
    node.cancel(request_id)
    assert node.tick(START + 100) == ([], [])
    assert node.receive(B, 0, answer.payload) is None


def test_answer_counts_only_from_the_peer_that_was_asked() -> None:
    node, request_id, outgoing = started()
    answer = executed(Requests(first_id=0), outgoing.payload, OkResponse(b"yes"))
    assert node.receive(3, 0, answer.payload) is None
    assert node.receive(B, 5, answer.payload) == (request_id, OkResponse(b"yes"))
    assert node.receive(B, 5, answer.payload) is None


def test_before_membership_the_lane_stands_for_the_peer() -> None:
    """A joiner has id 0: two of them on two lanes must not see each other's answers."""
    joiner, member = Requests(first_id=1), Requests(first_id=1)
    request_id, outgoing = joiner.start(0, Request(1, 1, b"join"), START + 5, START, lane_id=4)
    assert (outgoing.peer, outgoing.lane_id) == (0, 4)
    first = executed(member, outgoing.payload, OkResponse(b"one"), peer=0, lane_id=8)
    second = executed(member, outgoing.payload, OkResponse(b"two"), peer=0, lane_id=9)
    assert [(answer.peer, answer.lane_id) for answer in (first, second)] == [(0, 8), (0, 9)]
    assert joiner.receive(0, 3, second.payload) is None
    assert joiner.receive(0, 4, first.payload) == (request_id, OkResponse(b"one"))


def test_repeat_is_held_back_while_executing_and_answered_from_memory_afterwards() -> None:
    _, _, outgoing = started()
    server = Requests(first_id=0)
    incoming = server.receive(A, 0, outgoing.payload)
    assert isinstance(incoming, Incoming)
    assert server.receive(A, 0, outgoing.payload) is None
    answer = server.answer(incoming.key, OkResponse(b"done"))
    assert server.receive(A, 0, memoryview(outgoing.payload)) == answer


def test_same_id_from_another_node_is_another_request() -> None:
    _, _, outgoing = started()
    server = Requests(first_id=0)
    executed(server, outgoing.payload, OkResponse(b""))
    assert isinstance(server.receive(3, 0, outgoing.payload), Incoming)


def test_error_travels_with_code_text_and_details() -> None:
    node, request_id, outgoing = started()
    error = ErrorResponse("NOT_LEADER", "Ask 3.", True, {"leader": "3"})
    answer = executed(Requests(first_id=0), outgoing.payload, error)
    assert node.receive(B, 0, answer.payload) == (request_id, error)


@pytest.mark.parametrize(("answers_max", "bytes_max"), [(3, 10_000), (100, 330)])
def test_memory_of_answers_is_bounded_and_keeps_the_newest(
    answers_max: int, bytes_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I6. An answer of 100 bytes takes 110 in memory: its header is 9, its status 1."""
    monkeypatch.setattr(requests, "REMEMBERED_ANSWERS_MAX", answers_max)
    monkeypatch.setattr(requests, "REMEMBERED_ANSWER_BYTES_MAX", bytes_max)
    client, server = Requests(first_id=0), Requests(first_id=0)
    payloads = [client.start(B, Request(1, 1, b""), START + 9, START)[1].payload for _ in range(5)]
    for payload in payloads:
        executed(server, payload, OkResponse(bytes(100)))
    kinds = [type(server.receive(A, 0, payload)) for payload in payloads]
    assert kinds == [Incoming, Incoming, Outgoing, Outgoing, Outgoing]


def test_ids_stay_in_64_bits() -> None:
    node = Requests(first_id=2**64 - 1)
    request_id, outgoing = node.start(B, Request(1, 1, b""), START + 1, START)
    assert outgoing.payload[1:9] == request_id.to_bytes(8, "big")


@given(st.binary(max_size=60), st.integers(0, 3))
def test_garbage_is_refused_with_wire_error_only(payload: bytes, peer: int) -> None:
    node, _, _ = started()
    try:
        outcome = node.receive(peer, 0, payload)
    except WireError:
        return
    # What is left is a well-formed request, or an answer that nobody awaits.
    assert outcome is None or isinstance(outcome, Incoming)


@given(st.data())
def test_damaged_answer_is_refused_or_understood_but_never_crashes(data: st.DataObject) -> None:
    node, request_id, outgoing = started()
    answer = executed(Requests(first_id=0), outgoing.payload, ErrorResponse("A", "b", False, {"c": "d"}))
    damaged = bytearray(answer.payload)
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))]
    try:
        outcome = node.receive(B, 0, bytes(damaged))
    except WireError:
        # Nothing was taken for an answer: the good one still counts.
        assert node.receive(B, 0, answer.payload) is not None
        return
    assert outcome is None or isinstance(outcome, Incoming) or outcome[0] == request_id  # type: ignore[index]


@pytest.mark.parametrize("payload", [b"", b"\x00" * 8, b"\x02" + bytes(20), b"\x00" * 9, b"\x01" * 9, b"\xff" * 14])
def test_malformed_payloads(payload: bytes) -> None:
    with pytest.raises(WireError):
        Requests(first_id=0).receive(A, 0, payload)


def test_answer_that_cannot_be_sent_leaves_the_request_open_for_a_repeat() -> None:
    _, _, outgoing = started()
    server = Requests(first_id=0)
    with pytest.raises(TypeError):
        executed(server, outgoing.payload, OkResponse("text"))  # type: ignore[arg-type]
    assert isinstance(server.receive(A, 0, outgoing.payload), Incoming)


def test_an_error_of_any_size_is_answered() -> None:
    """The texts may quote what the caller sent: what does not fit is cut, the answer goes out."""
    node, request_id, outgoing = started()
    error = ErrorResponse("C" * 300, "m" * 66_000, True, {str(number): "v" * 66_000 for number in range(300)})
    answer = executed(Requests(first_id=0), outgoing.payload, error)
    assert len(answer.payload) < 200_000
    taken = node.receive(B, 0, answer.payload)
    assert isinstance(taken, tuple)
    assert taken[0] == request_id
    assert isinstance(taken[1], ErrorResponse)
    assert taken[1].code == "C" * 255


def test_one_peer_that_asks_much_does_not_make_the_node_forget_what_others_were_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(requests, "REMEMBERED_ANSWERS_PER_PEER_MAX", 3)
    monkeypatch.setattr(requests, "REMEMBERED_ANSWER_BYTES_PER_PEER_MAX", 450)
    client, server = Requests(first_id=0), Requests(first_id=0)
    payloads = [client.start(B, Request(1, 1, b""), START + 9, START)[1].payload for _ in range(20)]
    quiet = executed(server, payloads[0], OkResponse(bytes(100)), peer=3)
    for payload in payloads:
        executed(server, payload, OkResponse(b""))
    assert [type(server.receive(A, 0, payload)) for payload in payloads[-4:]] == [Incoming] + [Outgoing] * 3
    for payload in payloads[:6]:
        executed(server, payload, OkResponse(bytes(190)), peer=4)
    assert [type(server.receive(4, 0, payload)) for payload in payloads[3:6]] == [Incoming] + [Outgoing] * 2
    assert server.receive(3, 0, payloads[0]) == quiet


LIMITS = RequestLimits(
    requests_max=6,
    bytes_max=60,
    peer_requests_max=3,
    peer_bytes_max=30,
    joiners_max=2,
    lane_max=1,
    joiner_body_bytes_max=20,
)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("ask"), st.integers(0, 3), st.integers(0, 25)),
            st.tuples(st.sampled_from(["answer", "forget"]), st.integers(0, 20), st.just(0)),
        ),
        max_size=80,
    )
)
def test_what_executes_stays_within_every_limit_and_what_ended_takes_no_room(
    steps: list[tuple[str, int, int]],
) -> None:
    member = Requests(first_id=1, limits=LIMITS)
    asker = Requests(first_id=1)
    executing: dict[tuple[int, int, int], int] = {}
    for step, number, size_bytes in steps:
        if step == "ask":
            # A number of 0 or 1 is a lane of a node that is no member.
            peer, lane = (number, 0) if number > 1 else (0, number + 1)
            _, outgoing = asker.start(9, Request(1, 1000, bytes(size_bytes)), 1.0, 0.0)
            of_peer = [size for (other, on, _), size in executing.items() if (other, on) == (peer, lane)]
            joiners = [key for key in executing if not key[0]]
            fits = len(executing) < 6 and sum(executing.values()) + size_bytes <= 60
            if peer:
                fits = fits and len(of_peer) < 3 and sum(of_peer) + size_bytes <= 30
            else:
                fits = fits and len(joiners) < 2 and not of_peer and size_bytes <= 20
            taken = member.receive(peer, lane, outgoing.payload)
            assert isinstance(taken, Incoming) == fits
            if isinstance(taken, Incoming):
                executing[taken.key] = size_bytes
            else:
                assert (taken is None) == (not peer and size_bytes <= 20), "a member is told, a stranger asks again"
        elif executing:
            key = sorted(executing)[number % len(executing)]
            del executing[key]
            if step == "answer":
                member.answer(key, OkResponse(b""))
            member.forget(key)
        assert member.executing == len(executing)
