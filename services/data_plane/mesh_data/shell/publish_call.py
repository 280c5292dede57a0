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
from dataclasses import dataclass
from typing import Final, TypeAlias

from mesh_data.core.publish_window import Credit
from mesh_data.core.stream_requests import Method, Published, decode_published, encode_stream_body
from mesh_data.core.stream_state import Refused
from mesh_data.core.view import Stream
from mesh_data.shell.replica import Answer, Replica
from mesh_data.shell.streams_asking import ELSEWHERE, PAUSE_S, UNKNOWN, no_quorum, pause
from mesh_data.shell.streams_catalogue import StreamsCatalogue
from mesh_data.shell.streams_metrics import PUBLISH_RETRIES
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NO_NODE, NodeId, StreamId
from meshwire.batch import BatchHeader
from meshwire.errors import WireError

CREDIT_BYTES: Final = 4 * 1024 * 1024
BATCHES_MAX: Final = 1024
"""Unanswered batches of one call."""

Outcome: TypeAlias = Published | MeshError


@dataclass(slots=True, eq=False)
class Batch:
    """A batch of the call, or an error that stands in its place (`refusal`)."""

    stream_id: StreamId
    stream_name: str
    data: bytes
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


class PublishCall:
    """The unanswered batches of one call."""

    def __init__(self, catalogue: StreamsCatalogue) -> None:
        self._catalogue = catalogue
        self._timing = catalogue.groups.timing
        self._queue: deque[Batch] = deque()
        self._credit = Credit(CREDIT_BYTES)
        self._came = asyncio.Event()
        self._went = asyncio.Event()
        self._is_complete = False

    async def add(self, batch: Batch) -> None:
        """Takes the next batch of the call; waits while too much is unanswered."""
        size_bytes = len(batch.data)
        while len(self._queue) >= BATCHES_MAX or not self._credit.has_room(size_bytes):
            self._went.clear()
            await self._went.wait()
        self._credit.take(size_bytes)
        batch.arrived = asyncio.get_running_loop().time()
        is_flowing = not self._queue or not _needs_sending(self._queue[-1])
        self._queue.append(batch)
        if is_flowing and self._may_send(batch):
            self._start(batch)
        self._came.set()

    def complete(self) -> None:
        """No more batches will come."""
        self._is_complete = True
        self._came.set()

    async def answer(self) -> tuple[Batch, Outcome] | None:
        """The next answer in order; None after the last one."""
        while not self._queue:
            if self._is_complete:
                return None
            self._came.clear()
            await self._came.wait()
        front = self._queue[0]
        outcome = front.refusal or await self._settle(front)
        self._queue.popleft()
        self._credit.give_back(len(front.data))
        self._went.set()
        return front, outcome

    async def abandon(self) -> None:
        """The caller went away: requests to other nodes end; what was proposed here takes its course."""
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
                await asyncio.wait((front.attempt,), timeout=max(0.0, deadline - loop.time()))
                await _end(front.attempt)
            outcome = _outcome(front)
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
        if error.code in ELSEWHERE and error.code != ErrorCode.BACKPRESSURE:
            try:
                return no_quorum(self._catalogue.stream(batch.stream_id), self._timing.publish_deadline_s)
            except MeshError as gone:
                return gone
        return error

    def _send_from_front(self) -> None:
        """Sends every batch that has to be sent (again), in order, as far as that keeps the order and doubles nothing."""
        for batch in self._queue:
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
        try:
            stream = self._catalogue.stream(batch.stream_id)
        except MeshError as error:
            batch.refusal = error
            batch.attempt = _finished(error)
            return
        node = self._catalogue.leader(stream)
        batch.asked = node
        if node == self._catalogue.overlay.node_id:
            batch.replica = self._catalogue.groups.replica(batch.stream_id)
            if batch.replica is not None:
                batch.attempt = batch.replica.publish(batch.data, batch.header)
        elif self._catalogue.is_congested(node):
            batch.attempt = _finished(
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


async def _end(attempt: asyncio.Future[Answer] | asyncio.Task[Outcome]) -> None:
    """Ends a request to another node whose time is up. A proposal made here cannot be taken back: it stays."""
    if isinstance(attempt, asyncio.Task) and not attempt.done():
        attempt.cancel()
        await asyncio.wait((attempt,))


def _outcome(batch: Batch) -> Outcome:
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
            outcome = batch.replica.published(answer, batch.header)
        except MeshError as error:
            outcome = error
    else:
        raise AssertionError(f"a batch came to {answer}")
    if isinstance(outcome, MeshError) and outcome.code in UNKNOWN:
        batch.is_uncertain = True
    return outcome


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


def _finished(error: MeshError) -> asyncio.Future[Answer]:
    future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    future.set_result(error)
    return future
