"""One local replica of a stream: its Raft group, its state, and who waits for either.

It applies what Raft commits, proposes for publishers where it leads, compacts where the floor moved, and tells readers of
new records. Leaves out: Raft itself, opening and destroying (`groups`), retries (`publish_call`). Everything runs on
the event loop; nothing waits for the disk. Source: architecture §7, §8.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import TypeAlias

from mesh_data.core.offset_index import Position
from mesh_data.core.producers import IsRefused, IsRepeated
from mesh_data.core.publish_window import Outcome, ProposalWindow
from mesh_data.core.stream_requests import Published, StoredBatch
from mesh_data.core.stream_snapshot import StreamConfig
from mesh_data.core.stream_state import (
    FIRST_INDEX,
    Appended,
    FloorMoved,
    ProducerReady,
    Refused,
    Repeated,
    Result,
    StreamState,
)
from mesh_data.core.view import Stream
from mesh_data.shell.replica_log import ReplicaLog
from mesh_data.shell.streams_metrics import (
    APPLIED_INDEX,
    COMMIT_LAG,
    IS_LEADER,
    LEADER_CHANGES,
    PROPOSED_BYTES,
    RETAINED_BYTES,
)
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NO_NODE, MemberId, NodeId
from meshcommon.logging import get_logger
from meshraft import (
    KIND_NORMAL,
    Backpressure,
    Committed,
    GroupStatus,
    LogCompacted,
    NotLeader,
    RaftError,
    RaftHost,
    Role,
)
from meshwire.batch import BatchHeader
from meshwire.entry import BatchEntry, InitProducerEntry, MoveFloorEntry, encode_entry

Answer: TypeAlias = Result | MeshError
"""What a proposal comes to. Errors are values, so that a publisher that went away leaves no unread exception."""

_log = get_logger(__name__)


class Replica:
    """An open group of this node. `stream` and `member` are those of the catalogue."""

    def __init__(
        self,
        host: RaftHost,
        stream: Stream,
        member_id: MemberId,
        wake: Callable[[], None],
        wall_clock_ms: Callable[[], int],
    ) -> None:
        """`wake` asks for a pump after something was given to the host."""
        self.stream = stream
        self.member_id = member_id
        self.group = int(stream.stream_id)
        self.state = StreamState(StreamConfig.of(stream.stream_id, stream.retained_bytes_max))
        self.is_blank = True
        """No state has come yet: neither the first snapshot nor one from the leader."""
        self.is_formed = False
        """At least one entry has been applied after the snapshot the replica began with."""
        self.role = "follower"
        self.leader_node = NO_NODE
        self.failure: MeshError | None = None
        self._host = host
        self._wake = wake
        self._wall_clock_ms = wall_clock_ms
        self._nodes = {int(member.member_id): member.node_id for member in stream.members}
        self._window: ProposalWindow[asyncio.Future[Answer]] = ProposalWindow()
        self._reads: dict[int, asyncio.Future[int]] = {}
        self._read_tokens = itertools.count(1)
        self._changed = asyncio.Event()
        self._compacted_index = 0
        self._floor_proposed = 0
        self._log = ReplicaLog(host, self.group, Position(0, 0, 0))

    # State in and out

    def restore(self, snapshot: bytes, index: int) -> None:
        """Starts from a snapshot: the initial one, the stored one, or one that the leader sent.

        Raises:
            WireError: the snapshot is damaged.
        """
        self.state = StreamState.restore(snapshot)
        self.is_blank = False
        self.is_formed = self.is_formed or index > FIRST_INDEX
        self._compacted_index = index
        self._log = ReplicaLog(self._host, self.group, Position(self.state.next_offset, index + 1, self.state.time_ms))
        self._fail_pending(_outcome_unknown("This node fell behind and was sent a snapshot."))
        self.notify()

    def apply(self, entry: Committed) -> None:
        """Applies one committed entry and answers who proposed it."""
        self.is_formed = True
        index = entry.index
        if entry.kind != KIND_NORMAL or not entry.data:
            self.state.skip(index)
            if self._window:
                self._decide(index, entry.term, None)
            return
        time_before_ms = self.state.time_ms
        result = self.state.apply(index, entry.data)
        match result:
            case Appended(offset):
                self._log.index.append(Position(offset, index, time_before_ms), len(entry.data))
            case Repeated() | Refused():
                self._log.index.refuse(index)
            case FloorMoved(floor_index):
                self._compact(floor_index)
            case _:
                pass
        if self._window:
            self._decide(index, entry.term, result)

    def applied(self) -> None:
        """After the last entry of a turn: wakes readers, and moves the floor when it is time."""
        self.notify()
        if self.is_leading:
            self._propose_floor()

    def role_changed(self, role: Role) -> None:
        """Raft says who leads."""
        leader_node = self._nodes.get(role.leader, NO_NODE)
        if leader_node not in (NO_NODE, self.leader_node):
            LEADER_CHANGES.labels(self.stream.name).inc()
            _log.info("stream_leader", stream=self.stream.name, leader_node=leader_node, term=role.term)
        self.role = role.role
        self.leader_node = leader_node
        self._floor_proposed = 0
        IS_LEADER.labels(self.stream.name).set(self.is_leading)
        self.notify()

    def fail(self, error: MeshError) -> None:
        """The group closed: everybody who waits is told."""
        self.failure = error
        self.role = "follower"
        self.leader_node = NO_NODE
        IS_LEADER.labels(self.stream.name).set(0)
        # A refusal before anything was appended would be a lie about proposals, and would have them sent a second time.
        is_refusal = error.code is ErrorCode.NODE_STOPPED
        self._fail_pending(_outcome_unknown(error.message) if is_refusal else error)
        for future in self._reads.values():
            future.cancel()
        self._reads.clear()
        self.notify()

    # Waiting

    @property
    def changed(self) -> asyncio.Event:
        """Set at the next change (records, role, failure), then replaced: take it before looking at the state."""
        return self._changed

    def notify(self) -> None:
        """Wakes everybody who waits for a change."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    @property
    def is_open(self) -> bool:
        """Whether the group works here; `failure` says why not."""
        return self.failure is None

    # Leading

    @property
    def is_leading(self) -> bool:
        """Whether this member leads its group, as far as it knows."""
        return self.role == "leader" and self.failure is None

    def not_leader(self) -> MeshError:
        """The refusal of a member that does not lead; nothing was appended."""
        known = self.leader_node != NO_NODE
        return MeshError(
            ErrorCode.NOT_LEADER,
            f"This node does not lead {self.stream.name}: "
            + (f"ask node {self.leader_node}." if known else "no leader is known here, try again."),
            {"leader": str(self.leader_node)} if known else {},
        )

    def publish(self, batch: bytes, header: BatchHeader) -> asyncio.Future[Answer]:
        """Proposes a batch (checked by the caller). What is already certain from the state is answered at once."""
        if header.producer_id and not self.is_blank:
            known = self._known_answer(header)
            if known is not None:
                return _done(known)
        return self._propose(encode_entry(BatchEntry(self._stamp_ms(), batch)))

    def init_producer(self, name: str) -> asyncio.Future[Answer]:
        """Proposes an InitProducer."""
        return self._propose(encode_entry(InitProducerEntry(self._stamp_ms(), name)))

    def published(self, answer: Answer, header: BatchHeader) -> Published:
        """The answer to a batch as a publisher wants it.

        Raises:
            MeshError: the batch was refused, or its outcome is not known.
        """
        match answer:
            case Appended(offset, count):
                return Published(offset, count, is_duplicate=False)
            case Repeated(offset, count):
                return Published(self._original(header) if offset is None else offset, count, is_duplicate=True)
            case Refused(code, message, details):
                raise MeshError(code, message, details)
            case MeshError() as error:
                raise error
            case other:
                raise AssertionError(f"a batch came to {other}")

    @property
    def has_pending(self) -> bool:
        """Whether something that was proposed here is not decided yet."""
        return len(self._window) > 0

    def hand_over(self, is_reachable: Callable[[NodeId], bool]) -> bool:
        """Asks the voter that holds the most of the log to lead in this one's place; False when none can, or none need.

        Raises:
            RaftError: the group cannot be asked.
        """
        if not self.is_leading:
            return False
        heirs = [
            item
            for item in self.status().progress
            if item.voter and item.member != self.member_id and is_reachable(NodeId(item.peer))
        ]
        if not heirs:
            return False
        heir = max(heirs, key=lambda item: (item.matched, -item.quiet_ticks))
        self._host.transfer_leader(self.group, heir.member)
        self._wake()
        return True

    def export_metrics(self, status: GroupStatus) -> None:
        """Sets the gauges of this stream."""
        name = self.stream.name
        APPLIED_INDEX.labels(name).set(self.state.applied_index)
        COMMIT_LAG.labels(name).set(status.last_index - self.state.applied_index)
        RETAINED_BYTES.labels(name).set(self.state.retained_bytes)
        PROPOSED_BYTES.labels(name).set(self._window.size_bytes)

    def maybe_lead_at_birth(self, status: GroupStatus) -> None:
        """Gives the leadership of a new group to the first member, as soon as that one holds the log.

        Only while the catalogue says FORMING: later a leader stays until it fails, because a change costs an election.
        """
        first = int(self.stream.members[0].member_id)
        if first == self.member_id:
            if not status.leader:
                self._host.campaign(self.group)
                self._wake()
            return
        progress = next((item for item in status.progress if item.member == first), None)
        if self.is_leading and progress is not None and progress.matched == status.last_index:
            self._host.transfer_leader(self.group, first)
            self._wake()

    # Reading

    @property
    def next_offset(self) -> int:
        """Offset that the next record will get, as applied here."""
        return self.state.next_offset

    @property
    def floor_offset(self) -> int:
        """First offset that can be read here."""
        return max(self.state.floor.offset, self._log.first_offset)

    def read(self, offset: int, bytes_max: int) -> list[StoredBatch]:
        """Batches from the one that holds `offset` on; may be empty although there are more (read again then).

        Raises:
            MeshError: OFFSET_BELOW_FLOOR or STORAGE_FAILED.
        """
        if self.failure is not None:
            raise self.failure
        if offset < self.floor_offset:
            raise below_floor(self.stream.name, offset, self.floor_offset)
        try:
            return self._log.read(offset, self.state.applied_index, bytes_max)
        except LogCompacted:
            raise below_floor(self.stream.name, offset, self.floor_offset) from None
        except RaftError as error:
            raise storage_failed(self.stream.name, str(error)) from error

    def ask_read_index(self) -> tuple[int, asyncio.Future[int]]:
        """Asks the leader for a read point; the future may never be done. Give the token to `forget_read`."""
        token = next(self._read_tokens)
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._reads[token] = future
        self._host.read_index(self.group, token)
        self._wake()
        return token, future

    def read_index_answer(self, token: int, index: int) -> None:
        """Raft answers `ask_read_index`."""
        future = self._reads.pop(token, None)
        if future is not None and not future.done():
            future.set_result(index)

    def forget_read(self, token: int) -> None:
        """Nobody waits for that read point any more."""
        self._reads.pop(token, None)

    def status(self) -> GroupStatus:
        """Raft's own view. Raises RaftError."""
        return self._host.status(self.group)

    # Inside

    def _stamp_ms(self) -> int:
        return max(self._wall_clock_ms(), self.state.time_ms)

    def _known_answer(self, header: BatchHeader) -> Answer | None:
        """What can never change: a committed batch stays committed, a passed epoch stays passed."""
        producer = self.state.producers.get(header.producer_id)
        if producer is None:
            return None
        verdict = self.state.producers.check(
            header.producer_id, header.producer_epoch, header.base_sequence, header.record_count
        )
        match verdict:
            case IsRepeated(offset):
                return Repeated(offset, header.record_count)
            case IsRefused(code, message, details) if header.producer_epoch < producer.epoch:
                return Refused(code, message, details)
            case _:
                return None

    def _original(self, header: BatchHeader) -> int:
        """Where a batch was first appended; if that is too far back, the first offset that is certainly after it."""
        producer = self.state.producers.get(header.producer_id)
        upper = producer.runs[0].offset if producer is not None and producer.runs else self.state.next_offset
        try:
            found = self._log.find(header.producer_id, header.base_sequence, upper, self.state.applied_index)
        except RaftError:
            found = None
        return upper if found is None else found

    def _propose(self, entry: bytes) -> asyncio.Future[Answer]:
        if self.failure is not None:
            return _done(self.failure)
        if not self.is_leading:
            return _done(self.not_leader())
        try:
            term, index = self._host.propose(self.group, entry)
        except NotLeader:
            return _done(self.not_leader())
        except Backpressure:
            return _done(
                MeshError(ErrorCode.BACKPRESSURE, f"{self.stream.name} commits more slowly than it is written: wait.")
            )
        except RaftError as error:
            return _done(storage_failed(self.stream.name, str(error)))
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        for cut_off in self._window.add(term, index, len(entry), future):
            # Gone from this log, but not from every other: until something is committed at its index it may come back.
            _answer(cut_off, _outcome_unknown("The leadership was lost and won again meanwhile."))
        self._wake()
        return future

    def _decide(self, index: int, term: int, result: Result | None) -> None:
        for future, outcome in self._window.committed(index, term):
            if outcome is Outcome.COMMITTED and result is not None:
                _answer(future, result)
            else:
                _answer(future, self.not_leader())

    def _fail_pending(self, error: MeshError) -> None:
        for future in self._window.take_all():
            _answer(future, error)

    def _propose_floor(self) -> None:
        index = self.state.floor_to_propose()
        if index is None or index <= self._floor_proposed:
            return
        answer = self._propose(encode_entry(MoveFloorEntry(index)))
        if not answer.done():
            self._floor_proposed = index

    def _compact(self, index: int) -> None:
        snapshot = self.state.checkpoint_snapshot(index)
        # A member that restored a later snapshot has neither the entries nor the snapshot, and needs none.
        if snapshot is None or index <= self._compacted_index:
            return
        floor = self.state.floor
        self._host.compact(self.group, index, snapshot)
        self._compacted_index = index
        self._log.truncate(Position(floor.offset, index + 1, floor.time_ms))
        _log.info("stream_floor_moved", stream=self.stream.name, index=index, offset=floor.offset)


def below_floor(stream: str, offset: int, floor_offset: int) -> MeshError:
    """The offset is no longer retained."""
    return MeshError(
        ErrorCode.OFFSET_BELOW_FLOOR,
        f"Offset {offset} of {stream} is no longer kept: the first one is {floor_offset}, read from there.",
        {"offset": str(offset), "floor_offset": str(floor_offset)},
    )


def storage_failed(stream: str, reason: str) -> MeshError:
    """The replica's disk failed."""
    return MeshError(
        ErrorCode.STORAGE_FAILED,
        f"This node's replica of {stream} is closed ({reason}): ask another member, repair the disk, restart.",
        {"reason": reason},
    )


def _outcome_unknown(why: str) -> MeshError:
    return MeshError(ErrorCode.OUTCOME_UNKNOWN, f"{why} Whether the batch was committed is not known here.")


def _done(answer: Answer) -> asyncio.Future[Answer]:
    future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    future.set_result(answer)
    return future


def _answer(future: asyncio.Future[Answer], answer: Answer) -> None:
    if not future.done():
        future.set_result(answer)


def producer_ready(answer: Answer) -> ProducerReady:
    """The answer to an InitProducer. Raises MeshError."""
    match answer:
        case ProducerReady() as ready:
            return ready
        case Refused(code, message, details):
            raise MeshError(code, message, details)
        case MeshError() as error:
            raise error
        case other:
            raise AssertionError(f"an InitProducer came to {other}")
