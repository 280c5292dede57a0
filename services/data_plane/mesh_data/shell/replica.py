"""One local replica of a stream: its Raft group, its state, and who waits for either.

It applies what Raft commits, proposes for publishers where it leads, compacts where the floor moved, and tells readers of
new records. Leaves out: Raft itself, opening and destroying (`groups`), retries (`publish_call`). Everything runs on
the event loop; nothing there waits for the disk. Source: architecture §7, §8.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable
from struct import Struct
from typing import Final

from mesh_data.core.chain_audit import ChainMemory, next_mark
from mesh_data.core.group_steps import Witness
from mesh_data.core.offset_index import OffsetIndex, Position
from mesh_data.core.publish_window import Key
from mesh_data.core.replica_checkpoint import ReplicaCheckpoint, Unsaved
from mesh_data.core.stream_requests import Freshness, Published, StoredBatch
from mesh_data.core.stream_snapshot import StreamConfig, decode_snapshot
from mesh_data.core.stream_state import (
    FIRST_INDEX,
    Appended,
    BatchRun,
    FloorMoved,
    Refused,
    Repeated,
    Result,
    StreamState,
)
from mesh_data.core.view import Stream
from mesh_data.shell.entry_reader import EntryReader
from mesh_data.shell.proposals import Answer, Proposals, decided, outcome_unknown
from mesh_data.shell.replica_log import ReplicaLog
from mesh_data.shell.run_attempt import RunAttempt
from mesh_data.shell.stream_errors import below_floor, not_leader, storage_failed
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
    KIND_CONF,
    KIND_NORMAL,
    Backpressure,
    Committed,
    Entries,
    GroupStatus,
    Installed,
    LogCompacted,
    NotLeader,
    PublishRun,
    RaftError,
    RaftHost,
    Role,
)
from meshwire.batch import BatchHeader
from meshwire.entry import (
    BATCH_LEAD_BYTES,
    InitProducerEntry,
    MoveFloorEntry,
    SealEntry,
    encode_batch_entry,
    encode_entry,
)
from meshwire.errors import WireError

REVISION: Final = Struct("!Q")
"""Context of a configuration change: the catalogue revision that it follows."""

_log = get_logger(__name__)


class Replica:
    """An open group of this node. `stream` and `member` are those of the catalogue."""

    def __init__(
        self,
        host: RaftHost,
        reader: EntryReader,
        stream: Stream,
        member_id: MemberId,
        wake: Callable[[], None],
        wall_clock_ms: Callable[[], int],
        *,
        refusal: Callable[[Stream], MeshError | None] = lambda _stream: None,
    ) -> None:
        """`reader` reads the log; `wake` asks for a pump; `refusal` says why a leader takes no batch now, or None."""
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
        self.applied_term = 0
        """Term of the last entry that was applied here since the replica was opened."""
        self.term_begins_at = 0
        """Index of the first entry of that term."""
        self.change = ""
        """What the leader does about the group's members; empty elsewhere and when there is nothing to do."""
        self.members_out: tuple[MemberId, ...] = ()
        """Retiring members whose removal is committed, as the leader tells."""
        self.witness = Witness()
        """Of the last change of members, where this one leads."""
        self.is_settled = False
        """The leader found nothing to do since the last change of leader, catalogue or configuration."""
        self._is_shown_asleep = False
        """The gauges show the group as it was when it slept, and nothing was applied since."""
        self.hand_over_after_ticks = 0
        self.chains = ChainMemory()
        self._seal_proposed = False
        self._host = host
        self._reader = reader
        self._wake = wake
        self._wall_clock_ms = wall_clock_ms
        self.refusal = refusal
        self._proposals = Proposals(self.not_leader)
        self._reads: dict[int, tuple[float, asyncio.Future[int]]] = {}
        self._confirmed_at: float | None = None
        self._read_tokens = itertools.count(1)
        self._changed = asyncio.Event()
        self._compacted_index = 0
        self._floor_proposed = 0
        self._log = ReplicaLog(reader, self.group, OffsetIndex(Position(0, 0, 0)))
        self._saved_total_bytes = 0
        self._saved_bytes = 0

    def follow(self, stream: Stream) -> None:
        """The catalogue's entry changed."""
        if stream != self.stream:
            self.stream = stream
            self.is_settled = False

    def wake(self) -> None:
        """Asks for a pump."""
        self._wake()

    # State in and out

    def restore(self, snapshot: bytes, index: int) -> None:
        """Starts from a snapshot: the initial one, the stored one, or one that the leader sent.

        Raises:
            WireError: the snapshot is damaged.
        """
        self.state = StreamState.restore(snapshot)
        self._is_shown_asleep = False
        self.is_blank = False
        self.is_formed = self.is_formed or index > FIRST_INDEX
        self._compacted_index = index
        self.chains.begin(index, self.state.chain)
        start = Position(self.state.next_offset, index + 1, self.state.time_ms)
        self._log = ReplicaLog(self._reader, self.group, OffsetIndex(start))
        self._saved_total_bytes = self.state.total_bytes
        self._proposals.fail(outcome_unknown("This node fell behind and was sent a snapshot."))
        self.notify()

    def resume(self, checkpoint: ReplicaCheckpoint, floor: Installed) -> None:
        """Starts from a checkpoint of its own instead of the stored snapshot, `floor`, where the log begins.

        Raises:
            WireError: a state in either is damaged, or it is not where the group was opened.
        """
        if self.status().applied != checkpoint.applied_index:
            raise WireError(f"the state is of index {checkpoint.applied_index}, its bookmark is not")
        state = StreamState.restore(checkpoint.state, checkpoint.kept)
        begin = decode_snapshot(floor.data)
        index = OffsetIndex.of(checkpoint.index)
        index.truncate(Position(begin.next_offset, floor.index + 1, begin.time_ms))
        self.state = state
        self.is_blank = False
        self.is_formed = checkpoint.applied_index > FIRST_INDEX
        self._compacted_index = floor.index
        self.chains.begin(floor.index, begin.chain)
        self._log = ReplicaLog(self._reader, self.group, index)
        self._saved_total_bytes = state.total_bytes
        self.notify()

    @property
    def unsaved(self) -> Unsaved:
        """What a restart would have to replay beyond the last checkpoint."""
        return Unsaved(self.state.total_bytes - self._saved_total_bytes, self._saved_bytes)

    def take_checkpoint(self) -> ReplicaCheckpoint | None:
        """The replica as it is now, between two turns; None while there is nothing that could be opened again.

        Raises:
            RaftError: the group or its log failed.
        """
        bookmark = None if self.is_blank or self.failure is not None else self._host.bookmark(self.group)
        # Also when it will not be written: the next try comes after the same distance, not at once.
        self._saved_total_bytes = self.state.total_bytes
        if bookmark is None:
            return None
        return ReplicaCheckpoint(
            self.stream.stream_id,
            self.member_id,
            self.state.applied_index,
            bookmark,
            self.state.snapshot(),
            self.state.kept_snapshots(),
            self._log.index.image(),
        )

    def checkpoint_written(self, size_bytes: int) -> None:
        """The last `take_checkpoint` is durable, in so many bytes."""
        self._saved_bytes = size_bytes

    def apply(self, entry: Committed) -> None:
        """Applies one committed entry and answers who proposed it."""
        self.is_formed = True
        index = entry.index
        if entry.term != self.applied_term:
            self.applied_term, self.term_begins_at = entry.term, index
        data = entry.data
        result: Result | None = None
        if entry.kind == KIND_CONF:
            self.is_settled = False
            revision = REVISION.unpack(data)[0] if len(data) == REVISION.size else 0
            self.state.reconfigured(index, revision)
        elif entry.kind != KIND_NORMAL or not data:
            self.state.skip(index)
        else:
            result = self._apply_command(index, data)
        if self._proposals:
            self._proposals.decide(index, entry.term, result)

    def apply_next(self, entries: Entries) -> None:
        """Applies what is at the front of `entries`, which is this group's: a run of batches in one go, else an entry."""
        state, index = self.state, entries.index or 0
        # A run ends where something has to be noted: a mark of the chain, one of the index of offsets, a checkpoint.
        entries_max, bytes_max = self._log.index.run_max
        last = min(index + entries_max - 1, next_mark(index))
        found = entries.run(state.chain, last, min(bytes_max, state.run_bytes_max))
        if found is None:
            self.apply(entries.take())
            return
        run = BatchRun(*found)
        count = run.last_index - index + 1
        time_before_ms = state.time_ms
        offset = state.apply_run(run)
        if offset is None:
            for _ in range(count):
                self.apply(entries.take())
            return
        self.is_formed = True
        if run.term != self.applied_term:
            self.applied_term, self.term_begins_at = run.term, index
        self._log.index.append_run(Position(offset, index, time_before_ms), count, run.size_bytes)
        self.chains.note(run.last_index, run.chain)
        if self._proposals:
            self._proposals.decide_run(run, offset, state.time_ms, entries.counts(count))
        entries.skip(count)

    def _apply_command(self, index: int, data: bytes) -> Result:
        state = self.state
        time_before_ms = state.time_ms
        result = state.apply(index, data)
        if isinstance(result, Appended):
            self._log.index.append(Position(result.offset, index, time_before_ms), len(data))
        elif isinstance(result, Repeated | Refused):
            self._log.index.refuse(index)
        elif isinstance(result, FloorMoved):
            self._compact(result.index)
        self.chains.note(index, state.chain)
        return result

    def applied(self) -> None:
        """After the last entry of a turn: wakes readers, and moves the floor when it is time."""
        self._is_shown_asleep = False
        self.notify()
        if self.is_leading:
            self._propose_floor()

    def role_changed(self, role: Role) -> None:
        """Raft says who leads."""
        leader_node = self.stream.node_of(MemberId(role.leader))
        if leader_node not in (NO_NODE, self.leader_node):
            LEADER_CHANGES.labels(self.stream.name).inc()
            _log.info("stream_leader", stream=self.stream.name, leader_node=leader_node, term=role.term)
        self.role = role.role
        self.leader_node = leader_node
        self._floor_proposed = 0
        self.change, self.members_out, self.is_settled, self._seal_proposed = "", (), False, False
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
        self._proposals.fail(outcome_unknown(error.message) if is_refusal else error)
        for _asked_at, future in self._reads.values():
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
        return not_leader(self.stream.name, self.leader_node)

    def publish(
        self, batch: bytes | memoryview, header: BatchHeader, *, is_request: bool = False
    ) -> asyncio.Future[Answer]:
        """Proposes a batch (checked by the caller). What is already certain from the state is answered at once.

        `is_request`: another node asks, which asks again when the answer takes long; a repetition then shares the outcome
        of what is on its way.
        """
        if header.producer_id and not self.is_blank:
            known = self.state.known(
                header.producer_id, header.producer_epoch, header.base_sequence, header.record_count
            )
            if known is not None:
                return decided(known)
        if self.is_leading and (refused := self.refusal(self.stream)) is not None:
            return decided(refused)
        key = None
        if is_request and header.producer_id:
            key = (header.producer_id, header.producer_epoch, header.base_sequence)
        if key is not None and self.is_leading and (shared := self._proposals.join(key)) is not None:
            return shared
        return self._propose(encode_batch_entry(self._stamp_ms(), batch), key)

    def publish_run(self, run: PublishRun) -> tuple[RunAttempt, int] | None:
        """Proposes the batches of a run; returns their fate and how many of them were taken.

        None when none was, or an answer is certain already: `publish` of each of them says what.
        """
        if not self.is_leading or self.refusal(self.stream) is not None:
            return None
        # Sequences rise, so when nothing is certain of the first record, nothing is of the others.
        if (
            not self.is_blank
            and self.state.known(run.producer_id, run.producer_epoch, run.base_sequence, 1) is not None
        ):
            return None
        try:
            term, index, taken = self._host.propose_run(self.group, self._stamp_ms(), run)
        except RaftError:
            return None
        attempt = RunAttempt(run.counts[:taken])
        self._wake()
        self._proposals.add_run(term, index, run.size_bytes + taken * BATCH_LEAD_BYTES, attempt, taken)
        return attempt, taken

    def init_producer(self, name: str) -> asyncio.Future[Answer]:
        """Proposes an InitProducer."""
        return self._propose(encode_entry(InitProducerEntry(self._stamp_ms(), name)))

    async def published(self, answer: Answer, header: BatchHeader) -> Published:
        """The answer to a batch as a publisher wants it; an old repetition is looked up in the log.

        Raises:
            MeshError: the batch was refused, or its outcome is not known.
        """
        match answer:
            case Appended(offset, count):
                return Published(offset, count, is_duplicate=False)
            case Repeated(offset, count):
                return Published(await self._original(header) if offset is None else offset, count, is_duplicate=True)
            case Refused(code, message, details):
                raise MeshError(code, message, details)
            case MeshError() as error:
                raise error
            case other:
                raise AssertionError(f"a batch came to {other}")

    @property
    def has_pending(self) -> bool:
        """Whether something that was proposed here is not decided yet."""
        return len(self._proposals) > 0

    def give_leadership_to(self, member_id: MemberId) -> None:
        """Asks a voter to lead. Raises NOT_LEADER; ValueError when it has no vote."""
        try:
            self._host.transfer_leader(self.group, int(member_id))
        except NotLeader:
            raise self.not_leader() from None
        self._wake()

    def hand_over(self, is_reachable: Callable[[NodeId], bool]) -> bool:
        """Asks the voter that holds the most of the log to lead in this one's place; False when none can, or none need.

        Raises:
            RaftError: the group cannot be asked.
        """
        if not self.is_leading:
            return False
        others = [item for item in self.status().progress if item.member != self.member_id]
        heirs = [item for item in others if item.voter and not item.in_doubt and is_reachable(NodeId(item.peer))]
        if not heirs:
            return False
        heir = max(heirs, key=lambda item: (item.matched, -item.quiet_ticks))
        self._host.transfer_leader(self.group, heir.member)
        self._wake()
        return True

    def seal(self) -> None:
        """Proposes, where this member leads, that the deleted stream takes nothing more; once in a leadership."""
        if self.state.is_sealed or self._seal_proposed:
            return
        answer = self._propose(encode_entry(SealEntry(self.stream.revision)))
        self._seal_proposed = not answer.done()

    def export_metrics(self, status: GroupStatus) -> None:
        """Sets the gauges of this stream."""
        name = self.stream.name
        APPLIED_INDEX.labels(name).set(self.state.applied_index)
        COMMIT_LAG.labels(name).set(status.last_index - self.state.applied_index)
        RETAINED_BYTES.labels(name).set(self.state.retained_bytes)
        PROPOSED_BYTES.labels(name).set(self._proposals.size_bytes)
        self._is_shown_asleep = status.asleep

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
        progress = next((item for item in status.progress if item.member == first and not item.in_doubt), None)
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

    async def read(self, offset: int, bytes_max: int) -> list[StoredBatch]:
        """Batches from the one that holds `offset` on; may be empty although there are more (read again then).

        Raises:
            MeshError: OFFSET_BELOW_FLOOR, STORAGE_FAILED, or why the replica closed meanwhile.
        """
        self._check_open()
        if offset < self.floor_offset:
            raise below_floor(self.stream.name, offset, self.floor_offset)
        try:
            return await self._log.read(offset, self.state.applied_index, bytes_max)
        except LogCompacted:
            raise below_floor(self.stream.name, offset, self.floor_offset) from None
        except RaftError as error:
            self._check_open()  # closed while it was read: that is then the reason
            raise storage_failed(self.stream.name, str(error)) from error

    def ask_read_index(self) -> tuple[int, asyncio.Future[int]]:
        """Asks the leader for a read point; the future may never be done. Give the token to `forget_read`."""
        token = next(self._read_tokens)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        self._host.read_index(self.group, token)
        self._reads[token] = (loop.time(), future)
        self._wake()
        return token, future

    def read_index_answer(self, token: int, index: int) -> None:
        """Raft answers `ask_read_index`; the entry at `index` is applied."""
        asked = self._reads.pop(token, None)
        if asked is None:
            return
        asked_at, future = asked
        self._confirmed_at = max(asked_at, self._confirmed_at or asked_at)
        if not future.done():
            future.set_result(index)

    def freshness(self) -> Freshness:
        """How new this replica's view is, by the last read point that the leader gave it."""
        if self._confirmed_at is None:
            return Freshness(self.state.applied_index, None)
        age_s = asyncio.get_running_loop().time() - self._confirmed_at
        return Freshness(self.state.applied_index, math.ceil(age_s * 1000))

    def forget_read(self, token: int) -> None:
        """Nobody waits for that read point any more."""
        self._reads.pop(token, None)

    def status(self) -> GroupStatus:
        """Raft's own view. Raises RaftError."""
        return self._host.status(self.group)

    def news(self) -> GroupStatus | None:
        """Raft's own view; None when the group sleeps, is looked after, and its gauges say all. Raises RaftError."""
        is_done = self._is_shown_asleep and (self.is_settled or not self.is_leading)
        return None if is_done and self._host.is_asleep(self.group) else self.status()

    # Inside

    def _check_open(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _stamp_ms(self) -> int:
        return max(self._wall_clock_ms(), self.state.time_ms)

    async def _original(self, header: BatchHeader) -> int:
        """Where a batch was first appended; if that is too far back, the first offset that is certainly after it."""
        producer = self.state.producers.get(header.producer_id)
        upper = producer.runs[0].offset if producer is not None and producer.runs else self.state.next_offset
        try:
            found = await self._log.find(header.producer_id, header.base_sequence, upper, self.state.applied_index)
        except RaftError:
            found = None
        return upper if found is None else found

    def _propose(self, entry: bytes, key: Key | None = None) -> asyncio.Future[Answer]:
        if self.failure is not None:
            return decided(self.failure)
        if not self.is_leading:
            return decided(self.not_leader())
        try:
            term, index = self._host.propose(self.group, entry)
        except NotLeader:
            return decided(self.not_leader())
        except Backpressure:
            return decided(
                MeshError(ErrorCode.BACKPRESSURE, f"{self.stream.name} commits more slowly than it is written: wait.")
            )
        except RaftError as error:
            return decided(storage_failed(self.stream.name, str(error)))
        self._wake()
        return self._proposals.add(term, index, len(entry), key)

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
        self.chains.truncate(index, decode_snapshot(snapshot).chain)
        self._log.truncate(Position(floor.offset, index + 1, floor.time_ms))
        _log.info("stream_floor_moved", stream=self.stream.name, index=index, offset=floor.offset)
