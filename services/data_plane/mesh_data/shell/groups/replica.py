"""One local replica of a stream: its Raft group, its state, and who waits for either.

It is the state machine of its group (`meshraft.group`): applies what Raft commits, compacts where the floor moved, and tells
readers of new records; it proposes for publishers where it leads. Leaves out: the order of a turn, who waits for what, opening
and destroying (`groups`), retries (`publish_call`). Everything runs on the event loop; nothing there waits for the disk.
Source: architecture §7, §8; ADR 0015.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import accumulate
from typing import Final

from mesh_data.core.chain_audit import ChainMemory
from mesh_data.core.group_leader import GroupLeader
from mesh_data.core.replica import Compaction, ReplicaCore
from mesh_data.core.replica_checkpoint import ReplicaCheckpoint, Unsaved
from mesh_data.core.stream_requests import Published, StoredBatch
from mesh_data.core.stream_snapshot import StreamConfig
from mesh_data.core.stream_state import (
    Appended,
    BatchRun,
    LaterEntry,
    Refused,
    Repeated,
    StreamState,
)
from mesh_data.core.view import Stream, StreamPhase
from mesh_data.shell.groups.entry_reader import EntryReader
from mesh_data.shell.groups.proposals import Answer, AppendedRun, Applied, Attempt, decided, outcome_unknown
from mesh_data.shell.groups.read_points import ReadPoints
from mesh_data.shell.groups.replica_log import ReplicaLog
from mesh_data.shell.groups.replica_owner import ReplicaOwner
from mesh_data.shell.groups.run_attempt import RunAttempt
from mesh_data.shell.stream_errors import below_floor, not_leader, storage_failed, update_required, version_too_low
from mesh_data.shell.streams_metrics import (
    APPLIED_INDEX,
    COMMIT_LAG,
    IS_LEADER,
    LEADER_CHANGES,
    PROPOSED_BYTES,
    RETAINED_BYTES,
)
from meshcommon.barrier import report
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NO_NODE, MemberId, NodeId
from meshcommon.logging import get_logger
from meshraft import (
    ENTRY_CONF_CHANGE,
    Backpressure,
    Committed,
    Entries,
    GroupConfig,
    GroupStatus,
    HostPoisoned,
    Installed,
    LogCompacted,
    NotLeader,
    PublishRun,
    RaftError,
    Role,
)
from meshraft.driver import RaftDriver
from meshraft.group import RaftGroup
from meshraft.proposals import Key
from meshwire.batch import BatchHeader
from meshwire.entry import (
    BATCH_LEAD_BYTES,
    InitProducerEntry,
    encode_batch_entry,
    encode_entry,
    introduced_in,
)
from meshwire.errors import WireCode, WireError

_LOST: Final = frozenset({"lost_synced_data", "corrupt"})
"""Kinds of closing after which the membership is not counted on any more."""

_log = get_logger(__name__)


class Replica:
    """An open group of this node. `stream` and `member` are those of the catalogue."""

    def __init__(
        self,
        driver: RaftDriver,
        reader: EntryReader,
        stream: Stream,
        member_id: MemberId,
        wall_clock_ms: Callable[[], int],
        config: GroupConfig,
        *,
        owner: ReplicaOwner,
    ) -> None:
        """The caller opens the group; then it has to `join` its driver.

        `driver` is that of the log's host and `reader` reads the log; `config` is how the group is opened; `wall_clock_ms`
        stamps what a leader proposes.
        """
        self.stream = stream
        self.member_id = member_id
        self.group = int(stream.stream_id)
        self.core = ReplicaCore(StreamConfig.of(stream.stream_id, stream.retained_bytes_max))
        self.leader = GroupLeader()
        self.raft: RaftGroup[Applied, MeshError] = RaftGroup(
            driver, self.group, self, config, overwritten=self.not_leader, unknown=outcome_unknown
        )
        self.leader_node = NO_NODE
        self.failure: MeshError | None = None
        self.update_required: MeshError | None = None
        """Why nothing more is applied here: an entry of a later version. What was applied before can be read."""
        self._is_shown_asleep = False
        """The gauges show the group as it was when it slept, and nothing was applied since."""
        self._host = driver.host
        self._wall_clock_ms = wall_clock_ms
        self.refusal = owner.refusal
        self._owner = owner
        self.read_points = ReadPoints(self.raft)
        self._changed = asyncio.Event()
        self._log = ReplicaLog(reader, self.group, self.core)
        self._saved_total_bytes = 0
        self._saved_bytes = 0

    def follow(self, stream: Stream) -> None:
        """The catalogue's entry changed."""
        if stream != self.stream:
            self.stream = stream
            self.leader.look_again()

    # State in and out

    def restore(self, snapshot: bytes, index: int) -> None:
        """Starts from a snapshot: the initial one, the stored one, or one that the leader sent.

        Raises:
            WireError: the snapshot is damaged.
        """
        self.core.restore(snapshot, index)
        self._is_shown_asleep = False
        self.update_required = None
        self._log.restart()
        self._saved_total_bytes = self.state.total_bytes
        self.notify()

    def resume(self, checkpoint: ReplicaCheckpoint, floor: Installed) -> None:
        """Starts from a checkpoint of its own instead of the stored snapshot, `floor`, where the log begins.

        Raises:
            WireError: a state in either is damaged, or it is not where the group was opened.
        """
        if self.status().applied != checkpoint.applied_index:
            raise WireError(f"the state is of index {checkpoint.applied_index}, its applied state is not")
        self.core.resume(checkpoint, floor.index, floor.data)
        self._log.restart()
        self._saved_total_bytes = self.state.total_bytes
        self.notify()

    def install(self, index: int, data: bytes) -> None:
        """The leader's snapshot."""
        try:
            self.restore(data, index)
        except WireError as error:
            reason = f"the leader's snapshot cannot be read: {error.reason}"
            if error.code is WireCode.BAD_VERSION:
                self.stop_applying(reason)
            else:
                self._owner.replica_failed(self, reason)

    @property
    def applied_index(self) -> int:
        """Index of the last entry that was applied here."""
        return self.state.applied_index

    @property
    def role(self) -> str:
        """What Raft says of this member: "leader", "follower", "candidate" or "learner"."""
        return self.raft.role

    @property
    def unsaved(self) -> Unsaved:
        """What a restart would have to replay beyond the last checkpoint."""
        return Unsaved(self.state.total_bytes - self._saved_total_bytes, self._saved_bytes)

    def take_checkpoint(self) -> ReplicaCheckpoint | None:
        """The replica as it is now, between two turns; None while there is nothing that could be opened again.

        Raises:
            RaftError: the group or its log failed.
        """
        # Once it stopped applying, the log is handed out further than the state goes.
        is_whole = not self.is_blank and self.failure is None and self.update_required is None
        applied_state = self._host.applied_state(self.group) if is_whole else None
        # Also when it will not be written: the next try comes after the same distance, not at once.
        self._saved_total_bytes = self.state.total_bytes
        if applied_state is None:
            return None
        return ReplicaCheckpoint(
            self.stream.stream_id,
            self.member_id,
            self.state.applied_index,
            applied_state,
            self.state.snapshot(),
            self.state.kept_snapshots(),
            self.core.index.image(),
        )

    def checkpoint_written(self, size_bytes: int) -> None:
        """The last `take_checkpoint` is durable, in so many bytes."""
        self._saved_bytes = size_bytes

    def apply(self, entry: Committed) -> None:
        """Applies one committed entry and answers who proposed it; nothing from an entry of a later version on."""
        if self.update_required is not None:
            return
        try:
            result = self.core.apply(entry)
        except LaterEntry as later:
            self.stop_applying(f"the log entry at index {entry.index} cannot be applied: {later}")
            return
        if entry.kind == ENTRY_CONF_CHANGE:
            self.leader.look_again()
        if (compaction := self.core.take_compaction()) is not None:
            self._compact(compaction)
        self.raft.applied(entry.index, entry.index, entry.term, result)

    def apply_next(self, entries: Entries) -> None:
        """Applies what is at the front of `entries`, which is this group's: a run of batches in one go, else an entry."""
        if self.update_required is not None or self.failure is not None:
            entries.skip(1)
            return
        try:
            self._apply_front(entries)
        except RaftError:
            raise  # of the host, which ends all its groups
        except Exception as error:  # noqa: BLE001 - a barrier: this group is closed, the others take what the turn has for them
            report("stream_apply", error, stream=self.stream.name)
            reason = f"an entry could not be applied ({type(error).__name__}); the log of the node has details"
            self._owner.replica_failed(self, reason)

    def _apply_front(self, entries: Entries) -> None:
        if not self.is_formed or self.stream.state is StreamPhase.DELETING:
            self._owner.replica_reports()
        core, index = self.core, entries.index or 0
        found = entries.run(core.state.chain, *core.run_max(index))
        if found is None:
            self.apply(entries.take())
            return
        run = BatchRun(*found)
        count = run.last_index - index + 1
        offset = core.apply_run(run)
        if offset is None:
            for _ in range(count):
                self.apply(entries.take())
            return
        result = None
        if self.raft.proposals:
            result = AppendedRun(index, offset, core.state.time_ms, [0, *accumulate(entries.counts(count))])
        self.raft.applied(index, run.last_index, run.term, result)
        entries.skip(count)

    def stop_applying(self, reason: str) -> None:
        """What comes next is of a later version. What was applied can be read; a restart with new software goes on there."""
        self.update_required = update_required(self.stream.name, reason)
        _log.error("stream_update_required", stream=self.stream.name, reason=reason)
        self.raft.proposals.fail(outcome_unknown(self.update_required.message))
        self._owner.replica_reports()
        self.notify()

    def turn_ended(self) -> None:
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
        self.leader_node = leader_node
        self.core.role_changed()
        self.leader.role_changed()
        IS_LEADER.labels(self.stream.name).set(self.is_leading)
        self.notify()

    def fail(self, error: MeshError) -> None:
        """The group closed: everybody who waits is told."""
        self.failure = error
        self.leader_node = NO_NODE
        IS_LEADER.labels(self.stream.name).set(0)
        # A refusal before anything was appended would be a lie about proposals, and would have them sent a second time.
        is_refusal = error.code is ErrorCode.NODE_STOPPED
        self.raft.close(outcome_unknown(error.message) if is_refusal else error)
        self.notify()

    def closed(self, kind: str, reason: str) -> None:
        """The host dropped the group."""
        self._owner.replica_failed(self, reason, is_distrusted=kind in _LOST)

    # What is held

    @property
    def state(self) -> StreamState:
        """The stream's state, as applied here."""
        return self.core.state

    @property
    def chains(self) -> ChainMemory:
        """The hash chains that this replica knows."""
        return self.core.chains

    @property
    def is_blank(self) -> bool:
        """Whether no state has come yet: neither the first snapshot nor one from the leader."""
        return self.core.is_blank

    @property
    def is_formed(self) -> bool:
        """Whether an entry has been applied after the snapshot the replica began with."""
        return self.core.is_formed

    @property
    def is_sealed(self) -> bool:
        """Whether the stream was deleted: its group takes nothing more."""
        return self.core.state.is_sealed

    @property
    def members_out(self) -> tuple[MemberId, ...]:
        """Retiring members whose removal is committed, as the leader tells."""
        return self.leader.members_out

    @property
    def stopped_because(self) -> str:
        """Why nothing more is applied here, empty while it is."""
        return self.update_required.message if self.update_required is not None else ""

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
        return self.raft.is_leading

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
        if key is not None and self.is_leading and (shared := self._join(key)) is not None:
            return shared
        return self._propose(encode_batch_entry(self._stamp_ms(), batch), key)

    def publish_run(self, run: PublishRun) -> tuple[RunAttempt, int] | None:
        """Proposes the batches of a run; returns their fate and how many of them were taken.

        None when none was, or an answer is certain already: `publish` of each of them says what.
        """
        if not self.is_leading or self.update_required is not None or self.refusal(self.stream) is not None:
            return None
        # Sequences rise, so when nothing is certain of the first record, nothing is of the others.
        first = (run.producer_id, run.producer_epoch, run.base_sequence, 1)
        if not self.is_blank and self.state.known(*first) is not None:
            return None
        try:
            term, index, taken = self._host.propose_run(self.group, self._stamp_ms(), run)
        except RaftError:
            return None
        attempt = RunAttempt(run.counts[:taken])
        self.raft.proposed(term, index, run.size_bytes + taken * BATCH_LEAD_BYTES, attempt, taken)
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
        return bool(self.raft.proposals)

    def transfer_to(self, member_id: MemberId) -> None:
        """Asks a voter to lead. Raises NOT_LEADER; ValueError when it has no vote."""
        try:
            self.raft.transfer(member_id)
        except NotLeader:
            raise self.not_leader() from None

    def heirs(self, is_reachable: Callable[[NodeId], bool]) -> list[int]:
        """Voters that could lead in this one's place, the one that holds the most of the log first; none where it does not lead.

        Raises:
            RaftError: the group cannot be asked.
        """
        if not self.is_leading:
            return []
        others = [item for item in self.status().progress if item.member != self.member_id]
        heirs = [item for item in others if item.voter and not item.on_probation and is_reachable(NodeId(item.peer))]
        heirs.sort(key=lambda item: (-item.matched, item.quiet_ticks))
        return [item.member for item in heirs]

    def propose(self, entry: bytes) -> bool:
        """Proposes an entry for whose fate nobody waits; whether it was appended."""
        return not self._propose(entry).done()

    def export_metrics(self, status: GroupStatus) -> None:
        """Sets the gauges of this stream."""
        name = self.stream.name
        APPLIED_INDEX.labels(name).set(self.state.applied_index)
        COMMIT_LAG.labels(name).set(status.last_index - self.state.applied_index)
        RETAINED_BYTES.labels(name).set(self.state.retained_bytes)
        PROPOSED_BYTES.labels(name).set(self.raft.proposals.size_bytes)
        self._is_shown_asleep = status.quiesced

    # Reading

    @property
    def next_offset(self) -> int:
        """Offset that the next record will get, as applied here."""
        return self.state.next_offset

    @property
    def floor_offset(self) -> int:
        """First offset that can be read here."""
        return self.core.floor_offset

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

    def status(self) -> GroupStatus:
        """Raft's own view. Raises RaftError."""
        return self._host.status(self.group)

    def news(self) -> GroupStatus | None:
        """The same; None when the group sleeps, is looked after, and its gauges say all. Raises RaftError."""
        is_done = self._is_shown_asleep and (self.leader.is_settled or not self.is_leading)
        return None if is_done and self._host.is_quiesced(self.group) else self.status()

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
        if self.update_required is not None:
            return decided(self.update_required)
        if (needed := introduced_in(entry)) > self._owner.mesh_version():
            return decided(version_too_low(self.stream.name, needed, self._owner.mesh_version()))
        attempt = Attempt()
        try:
            self.raft.propose(entry, attempt, key)
        except NotLeader:
            return decided(self.not_leader())
        except Backpressure:
            return decided(
                MeshError(ErrorCode.BACKPRESSURE, f"{self.stream.name} commits more slowly than it is written: wait.")
            )
        except RaftError as error:
            return decided(storage_failed(self.stream.name, str(error)))
        return attempt.future

    def _join(self, key: Key) -> asyncio.Future[Answer] | None:
        """A future of its own for a repetition of what is not decided yet, None when it is none."""
        if not self.raft.proposals.may_hold(key):
            return None
        attempt = Attempt()
        return attempt.future if self.raft.proposals.join(key, attempt) else None

    def _propose_floor(self) -> None:
        if (floor := self.core.floor_entry()) is not None:
            index, entry = floor
            if self.propose(entry):
                self.core.floor_was_proposed(index)

    def _compact(self, compaction: Compaction) -> None:
        try:
            self._host.compact(self.group, compaction.index, compaction.snapshot)
        except HostPoisoned:
            raise
        except RaftError as error:
            self._owner.replica_failed(self, str(error))
            return
        self._log.restart()
        _log.info("stream_floor_moved", stream=self.stream.name, index=compaction.index, offset=compaction.offset)
