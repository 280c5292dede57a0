"""One Publish call: batches in, answers out in the same order, whoever leads the stream and whatever breaks meanwhile.

Batches are sent as they come, without waiting for earlier answers. Answers are awaited from the front; when the front
batch fails in a way that another try can mend, it is sent again and with it every later one that failed (go-back-N), so the
order of the call is kept. With a producer a repetition is recognised and so always safe. Without one, a batch is sent again
only if it certainly was not appended, and only one at a time goes to another node, because nothing there restores the
order. Leaves out: gRPC. Source: architecture §5, §8; Kafka's idempotent producer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeAlias

from mesh_data.core.publish_window import Credit
from mesh_data.core.stream_requests import Method, Published, decode_published, encode_stream_body
from mesh_data.core.stream_state import Appended, Refused
from mesh_data.core.view import Stream
from mesh_data.shell.proposals import Answer, decided
from mesh_data.shell.replica import Replica
from mesh_data.shell.run_attempt import RunAttempt
from mesh_data.shell.streams_asking import ELSEWHERE, PAUSE_S, UNKNOWN, no_quorum, pause
from mesh_data.shell.streams_catalogue import StreamsCatalogue
from mesh_data.shell.streams_metrics import (
    PUBLISH_DUPLICATES,
    PUBLISH_ERRORS,
    PUBLISH_RETRIES,
    PUBLISH_SECONDS,
    PUBLISHED_BYTES,
    PUBLISHED_RECORDS,
)
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NO_NODE, NodeId, StreamId
from meshraft import PublishRun
from meshwire.batch import BatchHeader, decode_header
from meshwire.errors import WireError

CREDIT_BYTES: Final = 4 * 1024 * 1024
BATCHES_MAX: Final = 1024
"""Unanswered batches of one call."""

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

    @property
    def is_split(self) -> bool:
        """Whether its batches have to stand in the queue by themselves."""
        return self.attempt.is_split


class PublishCall:
    """The unanswered batches of one call."""

    def __init__(self, catalogue: StreamsCatalogue) -> None:
        self._catalogue = catalogue
        self._timing = catalogue.groups.timing
        self._queue: deque[Batch | Run] = deque()
        self._batches = 0
        self._credit = Credit(CREDIT_BYTES, catalogue.publish_credit)
        self._came = asyncio.Event()
        self._went = asyncio.Event()
        self._is_complete = False

    async def add(self, batch: Batch) -> None:
        """Takes the next batch of the call; waits while too much is unanswered."""
        while not self.add_now(batch, asyncio.get_running_loop().time()):
            self._went.clear()
            await self._went.wait()

    def add_now(self, batch: Batch, now: float) -> bool:
        """Takes the next batch of the call unless too much is unanswered; then nothing has changed. `now`: loop seconds."""
        size_bytes = len(batch.data)
        if self._batches >= BATCHES_MAX or not self._credit.has_room(size_bytes):
            return False
        self._credit.take(size_bytes)
        self._batches += 1
        batch.arrived = now
        self._append(batch)
        self._came.set()
        return True

    async def add_run(self, stream_id: StreamId, stream_name: str, run: PublishRun) -> None:
        """Takes the next batches of the call; waits while too much is unanswered."""
        while not self.add_run_now(stream_id, stream_name, run, asyncio.get_running_loop().time()):
            self._went.clear()
            await self._went.wait()

    def add_run_now(self, stream_id: StreamId, stream_name: str, run: PublishRun, now: float) -> bool:
        """Takes the next batches of the call unless too much is unanswered; then nothing has changed. `now`: loop seconds."""
        size_bytes, count = run.size_bytes, len(run)
        if self._batches + count > BATCHES_MAX or not self._credit.has_room(size_bytes):
            return False
        self._credit.take(size_bytes)
        self._batches += count
        proposed = None
        replica = self._catalogue.local_leader(stream_id)
        if replica is not None and self._is_flowing():
            proposed = replica.publish_run(run)
        if replica is not None and proposed is not None:
            attempt, taken = proposed
            item = Run(stream_id, stream_name, run, size_bytes, now, replica, attempt, len(self._queue) > 0)
            if taken == count:
                self._queue.append(item)
            else:
                self._queue.extend(_singles(item, self._catalogue.overlay.node_id, taken))
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
        if not self._queue:
            return True
        if isinstance(self._queue[-1], Run) and self._queue[-1].is_split:
            self._split_runs()
        last = self._queue[-1]
        return isinstance(last, Run) or not _needs_sending(last)

    def _append(self, batch: Batch) -> None:
        is_flowing = self._is_flowing()
        self._queue.append(batch)
        if is_flowing and self._may_send(batch):
            self._start(batch)

    def _split_runs(self) -> list[Batch]:
        """Puts the batches of runs by themselves; returns the queue as it then is."""
        own = self._catalogue.overlay.node_id
        split: list[Batch] = []
        for item in self._queue:
            split += _singles(item, own, len(item.batches)) if isinstance(item, Run) else (item,)
        self._queue = deque[Batch | Run](split)
        return split

    def complete(self) -> None:
        """No more batches will come."""
        self._is_complete = True
        self._came.set()

    async def answer(self) -> tuple[Batch, Outcome] | None:
        """The next answer in order; None after the last one. One for each batch, also of a run."""
        while not self._queue:
            if self._is_complete:
                return None
            self._came.clear()
            await self._came.wait()
        front = self._queue[0]
        if isinstance(front, Run):
            front = self._split_runs()[0]
        outcome = front.refusal or await self._settle(front)
        self._queue.popleft()
        self._batches -= 1
        self._credit.give_back(len(front.data))
        self._went.set()
        return front, outcome

    async def answer_run(self) -> Run | None:
        """The run at the front of the call once all of it is committed; None when `answer` has to give what is next."""
        while not self._queue and not self._is_complete:
            self._came.clear()
            await self._came.wait()
        front = self._queue[0] if self._queue else None
        if not isinstance(front, Run):
            return None
        if not front.attempt.future.done():
            with suppress(TimeoutError):
                async with asyncio.timeout_at(front.arrived + self._timing.publish_deadline_s):
                    await front.attempt.future
        return self.take_run()

    def take_run(self) -> Run | None:
        """The run at the front of the call if all of it is committed now, so that one frame can answer many."""
        front = self._queue[0] if self._queue else None
        if not isinstance(front, Run) or not front.attempt.is_whole:
            return None
        self._queue.popleft()
        self._batches -= len(front.batches)
        self._credit.give_back(front.size_bytes)
        self._went.set()
        return front

    def take_committed(self) -> list[tuple[Batch, Published]]:
        """Further answers in order, as far as they are there and need nothing more; `answer` gives the others.

        One call for all batches that were committed together: a task switch for each would cost more than the batch.
        """
        queue = self._queue
        taken: list[tuple[Batch, Published]] = []
        while queue:
            front = queue[0]
            if isinstance(front, Run):
                break
            attempt = front.attempt
            if attempt is None or front.refusal is not None or not attempt.done() or attempt.cancelled():
                break
            answer = attempt.result()
            if not isinstance(answer, Appended):
                break
            queue.popleft()
            self._batches -= 1
            self._credit.give_back(len(front.data))
            taken.append((front, Published(answer.offset, answer.count, is_duplicate=False)))
        if taken:
            self._went.set()
        return taken

    async def abandon(self) -> None:
        """The caller went away: requests to other nodes end; what was proposed here takes its course."""
        self._credit.close()
        tasks = [batch.attempt for batch in self._queue if isinstance(batch.attempt, asyncio.Task)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _settle(self, front: Batch) -> Outcome:
        """Sends the front batch as often as it takes and is safe."""
        loop = asyncio.get_running_loop()
        deadline = front.arrived + self._timing.publish_deadline_s
        while True:
            if front.attempt is None:
                self._send_from_front()
            if front.attempt is not None and not front.attempt.done():
                await _wait_for(front.attempt, deadline)
            outcome = await _outcome(front)
            if isinstance(outcome, Published):
                return outcome
            if loop.time() >= deadline or not self._may_repeat(front, outcome):
                return self._final(front, outcome)
            PUBLISH_RETRIES.labels(str(outcome.code)).inc()
            front.attempt = None
            if outcome.code == ErrorCode.SEQUENCE_GAP:
                continue  # the batch before it has been answered meanwhile
            try:
                stream = self._catalogue.stream(front.stream_id)
            except MeshError as error:
                return error
            if not self._catalogue.learn(stream, front.asked, outcome):
                await pause(self._catalogue, front.stream_id, min(PAUSE_S, max(0.0, deadline - loop.time())))
                if loop.time() > deadline - PAUSE_S:
                    # A further try would be cut off on its way, and a known refusal become an unknown outcome.
                    return self._final(front, outcome)

    def _may_repeat(self, batch: Batch, error: MeshError) -> bool:
        if error.code == ErrorCode.SEQUENCE_GAP:
            return batch.is_sent_behind
        if error.code in UNKNOWN:
            return batch.has_producer
        return error.code in ELSEWHERE and (batch.has_producer or not batch.is_uncertain)

    def _final(self, batch: Batch, error: MeshError) -> MeshError:
        """The error for the caller once no further try is made."""
        if error.code == ErrorCode.STORAGE_FAILED:
            return error
        if batch.is_uncertain and (error.code in UNKNOWN or error.code in ELSEWHERE):
            return _unknown(batch)
        if error.code in ELSEWHERE and error.code not in (ErrorCode.BACKPRESSURE, ErrorCode.DISK_PRESSURE):
            try:
                return no_quorum(self._catalogue.stream(batch.stream_id), self._timing.publish_deadline_s)
            except MeshError as gone:
                return gone
        return error

    def _send_from_front(self) -> None:
        """Sends every batch that has to be sent (again), in order, as far as that keeps the order and doubles nothing."""
        for batch in self._split_runs():
            if not _needs_sending(batch):
                continue
            if not self._may_send(batch):
                return
            self._start(batch)
            if _needs_sending(batch):
                return

    def _may_send(self, batch: Batch) -> bool:
        if batch.has_producer or batch is self._queue[0]:
            return True
        if batch.is_uncertain or _has_unknown_outcome(batch):
            return False
        replica = self._catalogue.groups.replica(batch.stream_id)
        return replica is not None and replica.is_leading

    def _start(self, batch: Batch) -> None:
        """Sends the batch to the leader as far as it is known; without one the attempt stays None."""
        if batch.refusal is not None or batch.header is None:
            return
        batch.is_sent_behind = batch is not self._queue[0]
        batch.attempt = batch.replica = None
        local = self._catalogue.local_leader(batch.stream_id)
        if local is not None:
            batch.asked, batch.replica = self._catalogue.overlay.node_id, local
            batch.attempt = local.publish(batch.data, batch.header)
            return
        try:
            stream = self._catalogue.stream(batch.stream_id)
        except MeshError as error:
            batch.refusal = error
            batch.attempt = decided(error)
            return
        node = self._catalogue.leader(stream)
        batch.asked = node
        if node == self._catalogue.overlay.node_id:
            batch.replica = self._catalogue.groups.replica(batch.stream_id)
            if batch.replica is not None:
                batch.attempt = batch.replica.publish(batch.data, batch.header)
        elif self._catalogue.is_congested(node):
            batch.attempt = decided(
                MeshError(ErrorCode.BACKPRESSURE, f"The way to node {node} is full: wait a moment.")
            )
        elif node != NO_NODE:
            batch.attempt = asyncio.create_task(self._ask(batch, stream, node), name=f"publish to node {node}")

    async def _ask(self, batch: Batch, stream: Stream, node: NodeId) -> Outcome:
        loop = asyncio.get_running_loop()
        remaining_s = batch.arrived + self._timing.publish_deadline_s - loop.time()
        timeout_s = min(self._timing.attempt_s, remaining_s) if batch.has_producer else remaining_s
        body = encode_stream_body(batch.stream_id, batch.data)
        try:
            published = decode_published(
                await self._catalogue.overlay.call(node, Method.PUBLISH, body, max(timeout_s, 0.001))
            )
        except MeshError as error:
            return error
        except WireError as error:
            return MeshError(ErrorCode.OUTCOME_UNKNOWN, f"Node {node} answered nonsense: {error.reason}.")
        self._catalogue.learn(stream, node, None)
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
        batch.is_uncertain = True
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
    if isinstance(outcome, MeshError) and outcome.code in UNKNOWN:
        batch.is_uncertain = True
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


def _needs_sending(batch: Batch) -> bool:
    """Whether the batch was not sent, or failed in a way that another try can mend."""
    if batch.refusal is not None:
        return False
    if batch.attempt is None:
        return True
    if not batch.attempt.done():
        return False
    answer = batch.attempt.result()
    if isinstance(answer, MeshError | Refused):
        return answer.code in ELSEWHERE or answer.code in UNKNOWN or answer.code == ErrorCode.SEQUENCE_GAP
    return False


def _has_unknown_outcome(batch: Batch) -> bool:
    if batch.attempt is None or not batch.attempt.done():
        return False
    answer = batch.attempt.result()
    return isinstance(answer, MeshError) and answer.code in UNKNOWN


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
