"""One Publish call: batches in, answers out in the same order, whoever leads the stream and whatever breaks meanwhile.

Batches are sent as they come, without waiting for earlier answers. Answers are awaited from the front; when the front
batch fails in a way that another try can mend, it is sent again and with it every later one that failed. What may be sent,
and what a failure means, is decided by `core/publish_flow`; here it is proposed or asked, and awaited. Leaves out: gRPC.
Source: architecture §5, §8; ADR 0011 for runs.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeAlias

from mesh_data.core.publish_flow import PAUSE_S, PublishFlow, Step, Way, way_to
from mesh_data.core.publish_window import MESSAGE_COST_BYTES, Budget, Credit
from mesh_data.core.stream_requests import Method, Published, decode_published, encode_stream_body
from mesh_data.core.stream_state import Appended, Refused
from mesh_data.core.view import Stream
from mesh_data.shell.groups.proposals import Answer, decided
from mesh_data.shell.groups.replica import Replica
from mesh_data.shell.groups.run_attempt import RunAttempt
from mesh_data.shell.stream_errors import malformed
from mesh_data.shell.streams.streams_asking import no_quorum, pause
from mesh_data.shell.streams.streams_catalogue import StreamsCatalogue
from mesh_data.shell.streams_metrics import (
    PUBLISH_DUPLICATES,
    PUBLISH_ERRORS,
    PUBLISH_RETRIES,
    PUBLISH_SECONDS,
    PUBLISHED_BYTES,
    PUBLISHED_RECORDS,
)
from meshcommon.errors import MAPPINGS, ErrorCode, MeshError
from meshcommon.go_back_n import AWAITED, DUE, Place
from meshcommon.ids import NO_NODE, NodeId, StreamId
from meshraft import PublishRun
from meshwire.batch import BatchHeader, decode_header
from meshwire.errors import WireError

CREDIT_BYTES: Final = 4 * 1024 * 1024
BATCHES_MAX: Final = 1024
"""Unanswered batches of one call; what one costs besides its bytes is not taken from `CREDIT_BYTES`."""

Outcome: TypeAlias = Published | MeshError


@dataclass(slots=True, eq=False)
class Batch:
    """A batch of the call, or an error that stands in its place (`refusal`); `arrived` in loop seconds."""

    stream_id: StreamId
    stream_name: str
    data: bytes | memoryview
    header: BatchHeader | None
    arrived: float = 0.0
    refusal: MeshError | None = None
    attempt: asyncio.Future[Answer] | asyncio.Task[Outcome] | None = None
    replica: Replica | None = None
    asked: NodeId = NO_NODE
    is_sent_behind: bool = False
    is_uncertain: bool = False
    place: Place = DUE

    @property
    def has_producer(self) -> bool:
        """Whether a repetition would be recognised."""
        return self.header is not None and self.header.producer_id != 0


@dataclass(slots=True, eq=False)
class Run:
    """Batches of one producer that were proposed here in one call, while nothing is known against any of them."""

    stream_id: StreamId
    stream_name: str
    batches: PublishRun
    size_bytes: int
    arrived: float
    replica: Replica
    attempt: RunAttempt
    is_sent_behind: bool
    is_uncertain: bool = False
    place: Place = DUE

    @property
    def has_producer(self) -> bool:
        """Whether a repetition would be recognised: only batches of producers come in runs."""
        return True

    @property
    def is_split(self) -> bool:
        """Whether its batches have to stand in the queue by themselves."""
        return self.attempt.is_split


class PublishCall:
    """The unanswered batches of one call."""

    def __init__(self, catalogue: StreamsCatalogue, budget: Budget[asyncio.Event]) -> None:
        self._catalogue = catalogue
        self._timing = catalogue.groups.timing
        self._flow: PublishFlow[Batch | Run] = PublishFlow(self._timing)
        self._window = self._flow.window
        self._batches = 0
        self._came = asyncio.Event()
        self._went = asyncio.Event()
        self._budget = budget
        self._credit = Credit(CREDIT_BYTES + BATCHES_MAX * MESSAGE_COST_BYTES, self._budget, self._went)
        self._is_complete = False

    async def add(self, batch: Batch) -> None:
        """Takes the next batch of the call; waits while too much is unanswered."""
        while not self.add_now(batch, asyncio.get_running_loop().time()):
            await self._room()

    def add_now(self, batch: Batch, now: float) -> bool:
        """Takes the next batch of the call unless too much is unanswered; then nothing has changed. `now`: loop seconds."""
        cost_bytes = len(batch.data) + MESSAGE_COST_BYTES
        if self._batches >= BATCHES_MAX or not self._credit.has_room(cost_bytes):
            return False
        self._take(cost_bytes)
        self._batches += 1
        batch.arrived = now
        self._append(batch)
        self._came.set()
        return True

    async def add_run(self, stream_id: StreamId, stream_name: str, run: PublishRun) -> None:
        """Takes the next batches of the call; waits while too much is unanswered."""
        while not self.add_run_now(stream_id, stream_name, run, asyncio.get_running_loop().time()):
            await self._room()

    def add_run_now(self, stream_id: StreamId, stream_name: str, run: PublishRun, now: float) -> bool:
        """Takes the next batches of the call unless too much is unanswered; then nothing has changed. `now`: loop seconds."""
        size_bytes, count = run.size_bytes, len(run)
        cost_bytes = size_bytes + count * MESSAGE_COST_BYTES
        if self._batches + count > BATCHES_MAX or not self._credit.has_room(cost_bytes):
            return False
        self._take(cost_bytes)
        self._batches += count
        proposed = None
        replica = self._catalogue.local_leader(stream_id)
        if replica is not None and self._is_flowing():
            proposed = replica.publish_run(run)
        if replica is not None and proposed is not None:
            attempt, taken = proposed
            item = Run(stream_id, stream_name, run, size_bytes, now, replica, attempt, bool(self._window.items))
            if taken == count:
                self._window.add_sent(item)
            else:
                for batch in _singles(item, self._catalogue.overlay.node_id, taken):
                    self._window.add_sent(batch)
            first_left = taken
        else:
            first_left = 0
        for number in range(first_left, count):
            data = run.batch(number)
            self._append(Batch(stream_id, stream_name, data, decode_header(data), now))
        self._came.set()
        return True

    def _is_flowing(self) -> bool:
        """Whether everything before has been sent and nothing of it has to be sent again, as far as is known."""
        items = self._window.items
        if not items:
            return True
        if isinstance(items[-1], Run):
            if not items[-1].is_split:
                return self._window.is_flowing
            self._split_runs()
        last = self._window.items[-1]
        if isinstance(last, Batch):
            self._look_at(last)
        return self._window.is_flowing

    def _append(self, batch: Batch) -> None:
        if batch.header is None:
            self._window.add_settled(batch)  # a refusal stands in its place
            return
        if self._is_flowing() and self._flow.may_send(batch, self._leads):
            self._start(batch)
            if batch.refusal is not None:
                self._window.add_settled(batch)
                return
            if batch.attempt is not None:
                self._flow.add_sent(batch, is_here=batch.replica is not None)
                return
        self._window.add(batch)

    def _split_runs(self) -> None:
        """Puts the batches of runs by themselves."""
        own = self._catalogue.overlay.node_id
        self._window.split(lambda item: _singles(item, own, len(item.batches)) if isinstance(item, Run) else None)

    def complete(self) -> None:
        """No more batches will come."""
        self._is_complete = True
        self._came.set()

    async def answer(self) -> tuple[Batch, Outcome] | None:
        """The next answer in order; None after the last one. One for each batch, also of a run."""
        while (front := self._window.front) is None:
            if self._is_complete:
                return None
            self._came.clear()
            await self._came.wait()
        if isinstance(front, Run):
            self._split_runs()
            front = self._window.front
        if not isinstance(front, Batch):
            raise TypeError("a run that was split has no batches")
        outcome = await self._settle(front)
        self._flow.answered(front)
        self._batches -= 1
        self._give_back(len(front.data) + MESSAGE_COST_BYTES)
        return front, outcome

    async def answer_run(self) -> Run | None:
        """The run at the front of the call once all of it is committed; None when `answer` has to give what is next."""
        while not self._window.items and not self._is_complete:
            self._came.clear()
            await self._came.wait()
        front = self._window.front
        if not isinstance(front, Run):
            return None
        if not front.attempt.future.done():
            with suppress(TimeoutError):
                async with asyncio.timeout_at(front.arrived + self._timing.publish_deadline_s):
                    await front.attempt.future
        return self.take_run()

    def take_run(self) -> Run | None:
        """The run at the front of the call if all of it is committed now, so that one frame can answer many."""
        items = self._window.items
        front = items[0] if items else None
        if not isinstance(front, Run) or not front.attempt.is_whole:
            return None
        self._window.answered_first(1)
        self._batches -= len(front.batches)
        self._give_back(front.size_bytes + len(front.batches) * MESSAGE_COST_BYTES)
        return front

    def take_committed(self) -> list[tuple[Batch, Published]]:
        """Further answers in order, as far as they are there and need nothing more; `answer` gives the others.

        One call for all batches that were committed together: a task switch for each would cost more than the batch.
        """
        cost_bytes = 0
        taken: list[tuple[Batch, Published]] = []
        for item in self._window.items:
            if isinstance(item, Run) or item.place is not AWAITED:
                break
            attempt = item.attempt
            if attempt is None or not attempt.done() or attempt.cancelled():
                break
            answer = attempt.result()
            if not isinstance(answer, Appended):
                break
            cost_bytes += len(item.data) + MESSAGE_COST_BYTES
            taken.append((item, Published(answer.offset, answer.count, is_duplicate=False)))
        if taken:
            self._window.answered_first(len(taken))
            self._batches -= len(taken)
            self._give_back(cost_bytes)
        return taken

    async def abandon(self) -> None:
        """The caller went away: requests to other nodes end; what was proposed here takes its course."""
        self.close()
        # Not left to the cycle collector, which comes rarely: a call may hold megabytes.
        items = self._window.take_all()
        self._batches = 0
        tasks = [item.attempt for item in items if isinstance(item.attempt, asyncio.Task)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        """Nothing more comes, and nothing is unanswered, or nobody wants the answers."""
        self._credit.close()
        self._wake_next()

    async def _room(self) -> None:
        """Waits until it is worth looking for room again."""
        self._credit.line_up()
        self._went.clear()
        await self._went.wait()

    def _take(self, cost_bytes: int) -> None:
        if self._credit.take(cost_bytes):
            self._wake_next()

    def _give_back(self, cost_bytes: int) -> None:
        self._credit.give_back(cost_bytes)
        self._went.set()
        self._wake_next()

    def _wake_next(self) -> None:
        """Others may have room now: the one in front tells the next when it has taken its part."""
        waiting = self._budget.next_in_line()
        if waiting is not None:
            waiting.set()

    async def _settle(self, front: Batch) -> Outcome:
        """Sends the front batch as often as it takes and is safe."""
        loop = asyncio.get_running_loop()
        deadline = front.arrived + self._timing.publish_deadline_s
        has_followed = False
        while True:
            self._send_due()
            if front.refusal is not None:
                return front.refusal
            if front.attempt is not None and not front.attempt.done():
                await _wait_for(front.attempt, deadline)
            outcome = await _outcome(front)
            if isinstance(outcome, Published):
                return outcome
            self._flow.failed(front, outcome.code, outcome.elsewhere)
            step = self._flow.step(front, outcome, loop.time())
            if step not in (Step.SEND_AGAIN, Step.LOOK_AGAIN):
                return self._told(front, outcome, step)
            PUBLISH_RETRIES.labels(str(outcome.code)).inc()
            if step is Step.LOOK_AGAIN:
                try:
                    stream = self._catalogue.stream(front.stream_id, front.stream_name)
                except MeshError as error:
                    return error
                # A second hint in a row waits: two nodes that name each other must not be asked in a tight loop.
                has_followed = self._catalogue.hints.learn(stream, front.asked, outcome) and not has_followed
                if not has_followed:
                    await pause(self._catalogue, front.stream_id, min(PAUSE_S, max(0.0, deadline - loop.time())))
                    if not self._flow.is_worth_a_try(front, loop.time()):
                        return self._told(front, outcome, self._flow.verdict(front, outcome))
            self._split_runs()
            self._look_at_all()
            self._window.resume()

    def _told(self, batch: Batch, error: MeshError, step: Step) -> MeshError:
        """The error for the caller once no further try is made."""
        if step is Step.TELL_UNKNOWN:
            return _unknown(batch)
        if step is Step.TELL_NO_QUORUM:
            try:
                stream = self._catalogue.stream(batch.stream_id, batch.stream_name)
                return no_quorum(stream, self._timing.publish_deadline_s)
            except MeshError as gone:
                return gone
        return error

    def _look_at(self, batch: Batch) -> None:
        """Notes the failure of an attempt that is over, before it comes to the front."""
        attempt = batch.attempt
        if batch.place is AWAITED and attempt is not None and attempt.done() and not attempt.cancelled():
            answer = attempt.result()
            if isinstance(answer, MeshError | Refused):
                self._flow.failed(batch, answer.code, MAPPINGS[answer.code].elsewhere)

    def _look_at_all(self) -> None:
        for item in self._window.items:
            if isinstance(item, Batch):
                self._look_at(item)

    def _send_due(self) -> None:
        """Sends what is due, in order, as far as that keeps the order and doubles nothing, and nothing before it failed."""
        if self._window.next_due() is None:
            return
        self._split_runs()
        self._look_at_all()
        while (batch := self._next_to_send()) is not None:
            self._start(batch)
            if batch.refusal is not None:
                self._window.settled(batch)
                continue
            if batch.attempt is None:
                return  # nobody can be asked now
            self._flow.sent(batch, is_here=batch.replica is not None)
            self._look_at(batch)

    def _next_to_send(self) -> Batch | None:
        item = self._flow.next_to_send(self._leads)
        return item if isinstance(item, Batch) else None

    def _leads(self, batch: Batch | Run) -> bool:
        replica = self._catalogue.groups.replica(batch.stream_id)
        return replica is not None and replica.is_leading

    def _start(self, batch: Batch) -> None:
        """Sends the batch to the leader as far as it is known; without one the attempt stays None."""
        if batch.header is None:
            return
        batch.attempt = batch.replica = None
        own = self._catalogue.overlay.node_id
        local = self._catalogue.local_leader(batch.stream_id)
        if local is not None:
            batch.asked, batch.replica = own, local
            batch.attempt = local.publish(batch.data, batch.header)
            return
        try:
            stream = self._catalogue.stream(batch.stream_id, batch.stream_name)
        except MeshError as error:
            batch.refusal = error
            batch.attempt = decided(error)
            return
        node = batch.asked = self._catalogue.leader(stream)
        match way_to(node, own, self._catalogue.queued_bytes(node)):
            case Way.HERE:
                batch.replica = self._catalogue.groups.replica(batch.stream_id)
                if batch.replica is not None:
                    batch.attempt = batch.replica.publish(batch.data, batch.header)
            case Way.CONGESTED:
                batch.attempt = decided(
                    MeshError(ErrorCode.BACKPRESSURE, f"The way to node {node} is full: wait a moment.")
                )
            case Way.THERE:
                batch.attempt = asyncio.create_task(self._ask(batch, stream, node), name=f"publish to node {node}")
            case Way.NOWHERE:
                pass

    async def _ask(self, batch: Batch, stream: Stream, node: NodeId) -> Outcome:
        timeout_s = self._flow.attempt_s(batch, asyncio.get_running_loop().time())
        body = encode_stream_body(batch.stream_id, batch.data)
        try:
            published = decode_published(await self._catalogue.overlay.call(node, Method.PUBLISH, body, timeout_s))
        except MeshError as error:
            return error
        except WireError as error:
            return MeshError(ErrorCode.OUTCOME_UNKNOWN, malformed(node, error.reason).message)
        if batch.header is None or published.count != batch.header.record_count:
            return MeshError(ErrorCode.OUTCOME_UNKNOWN, malformed(node, f"{published.count} records").message)
        self._catalogue.hints.learn(stream, node, None)
        return published


def _singles(run: Run, own_node: NodeId, count: int) -> list[Batch]:
    """The first `count` batches of a run by themselves, as if each had been proposed alone."""
    singles = []
    for number, attempt in enumerate(run.attempt.split()[:count]):
        data = run.batches.batch(number)
        batch = Batch(run.stream_id, run.stream_name, data, decode_header(data), run.arrived)
        batch.attempt, batch.replica, batch.asked = attempt, run.replica, own_node
        batch.is_sent_behind = run.is_sent_behind or number > 0
        singles.append(batch)
    return singles


async def _wait_for(attempt: asyncio.Future[Answer] | asyncio.Task[Outcome], deadline: float) -> None:
    """Waits until the attempt is decided or its time is up; then a request to another node is ended.

    A proposal made here cannot be taken back: only its future is cancelled. It is awaited by itself, because
    `asyncio.wait` costs another turn of the loop and several objects, for each batch of a caller that sends one at a time.
    """
    if isinstance(attempt, asyncio.Task):
        await asyncio.wait((attempt,), timeout=max(0.0, deadline - asyncio.get_running_loop().time()))
        if not attempt.done():
            attempt.cancel()
            await asyncio.wait((attempt,))
        return
    with suppress(TimeoutError):
        async with asyncio.timeout_at(deadline):
            await attempt


async def _outcome(batch: Batch) -> Outcome:
    """What the batch's attempt came to; OUTCOME_UNKNOWN for one that is still under way at the deadline."""
    attempt = batch.attempt
    if attempt is None:
        return no_leader_now(batch.stream_name)
    if not attempt.done() or attempt.cancelled():
        return _unknown(batch)
    answer = attempt.result()
    if isinstance(answer, Published | MeshError):
        outcome: Outcome = answer
    elif batch.replica is not None and batch.header is not None:
        try:
            outcome = await batch.replica.published(answer, batch.header)
        except MeshError as error:
            outcome = error
    else:
        raise AssertionError(f"a batch came to {answer}")
    return outcome


def count_answer(batch: Batch, outcome: Outcome) -> None:
    """Counts an answer that is given to a caller."""
    if isinstance(outcome, MeshError):
        PUBLISH_ERRORS.labels(str(outcome.code)).inc()
        return
    PUBLISH_SECONDS.observe(asyncio.get_running_loop().time() - batch.arrived)
    PUBLISHED_RECORDS.labels(batch.stream_name).inc(outcome.count)
    PUBLISHED_BYTES.labels(batch.stream_name).inc(len(batch.data))
    if outcome.is_duplicate:
        PUBLISH_DUPLICATES.labels(batch.stream_name).inc()


def count_committed(stream_name: str, committed: list[tuple[Batch, Published]]) -> None:
    """Counts what `take_committed` gave, all of it of one stream."""
    now = asyncio.get_running_loop().time()
    records = size_bytes = 0
    for batch, published in committed:
        records += published.count
        size_bytes += len(batch.data)
        PUBLISH_SECONDS.observe(now - batch.arrived)
    PUBLISHED_RECORDS.labels(stream_name).inc(records)
    PUBLISHED_BYTES.labels(stream_name).inc(size_bytes)


def count_run(run: Run) -> None:
    """Counts a run that `answer_run` gave."""
    PUBLISH_SECONDS.observe(asyncio.get_running_loop().time() - run.arrived, len(run.batches))
    PUBLISHED_RECORDS.labels(run.stream_name).inc(run.batches.records)
    PUBLISHED_BYTES.labels(run.stream_name).inc(run.size_bytes)


def no_leader_now(stream_name: str) -> MeshError:
    """Nobody could be asked; nothing was sent."""
    return MeshError(ErrorCode.STREAM_UNAVAILABLE, f"No member of {stream_name} can be reached now: try again.")


def _unknown(batch: Batch) -> MeshError:
    advice = (
        "send it again unchanged, a repetition is recognised"
        if batch.has_producer
        else "read the stream's end before sending it again, or publish with a producer"
    )
    return MeshError(
        ErrorCode.OUTCOME_UNKNOWN,
        f"Whether the batch was committed to {batch.stream_name} is not known: {advice}.",
        retryable=batch.has_producer,
    )
