"""Typed API of the native module: many Raft groups, one log, no sockets and no clock of its own.

The caller owns time (`tick`), the network (`step`, `Pump.frames`) and the event loop (`fileno`). Per loop turn: call
`step`/`propose`/`tick`, then call `pump` once and act on its result. Nothing here blocks on the disk: writes go to one
log thread, which signals `fileno()` when an fsync is done. The next `pump` releases the messages that waited for it.

Identity: a *group* is a 64-bit id; a *member* is a Raft id inside one group, never reused; a *peer* is a node id. One
frame to a peer carries messages of many groups.

Source: Ongaro's thesis; TiKV `raft` 0.7 and `raft-engine` 0.4; architecture §7.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, final

ENTRY_NORMAL: Final[int]  # 0: application entry, `data` is what was proposed
ENTRY_EMPTY: Final[int]  # 1: an entry of Raft itself, such as a new leader's first; it only advances the applied index
ENTRY_CONF_CHANGE: Final[int]  # 2: configuration change, already applied to the group; `data` is its context

CLASS_CONTROL: Final[int]  # 0: votes, heartbeats, responses, appends without payload
CLASS_BULK: Final[int]  # 1: appends with entries, snapshots

class RaftError(Exception):
    """Base of all exceptions of this module. `code` is stable (see subclasses)."""

    code: str

class NotLeader(RaftError):
    """Proposal or transfer at a member that does not lead. code NOT_LEADER."""

class UnknownGroup(RaftError):
    """The group is not open in this host. code UNKNOWN_GROUP."""

class GroupExists(RaftError):
    """Create of a group that is open or on disk. code GROUP_EXISTS."""

class GroupPoisoned(RaftError):
    """raft-rs panicked inside this group; it is closed and must be reopened from disk. code GROUP_POISONED."""

class HostPoisoned(RaftError):
    """The log could not be written (fsync failure, full disk, I/O error); every group is closed. code HOST_POISONED."""

class LogCorrupt(RaftError):
    """The log on disk does not parse or has a hole. code LOG_CORRUPT."""

class LogCompacted(RaftError):
    """Entries below the first index were asked for. code LOG_COMPACTED."""

class AppliedStateRefused(RaftError):
    """The applied state does not fit the stored log; the group can be opened without it. code APPLIED_STATE_REFUSED."""

class InvalidFrame(RaftError):
    """A frame from a peer is malformed, for the wrong member, or of a forbidden type. code INVALID_FRAME."""

class Backpressure(RaftError):
    """Uncommitted bytes of the group or host are past their bound; retry after the next pump. code BACKPRESSURE."""

@final
class GroupConfig:
    """Timing and bounds of one group. Ticks are counted by `RaftHost.tick`; the caller chooses their length."""

    election_ticks: int
    heartbeat_ticks: int
    max_bytes_per_append: int
    max_inflight_appends: int
    max_uncommitted_bytes: int
    quiesces: bool  # whether the group quiesces while it is idle; the ticks of its status then stand still
    def __init__(
        self,
        *,
        election_ticks: int = 10,
        heartbeat_ticks: int = 1,
        max_bytes_per_append: int = 262144,
        max_inflight_appends: int = 16,
        max_uncommitted_bytes: int = 67108864,
        quiesces: bool = False,
    ) -> None: ...

@final
class Committed:
    """One committed entry, returned once and in order per group. `kind` is an ENTRY_ constant."""

    group: int
    index: int
    term: int
    kind: int
    data: bytes

@final
class Installed:
    """A snapshot from the leader replaced the group's state; restore the application from `data` before later entries.

    Returned when it is durable here, so after a restart the application is never ahead of its log.
    """

    group: int
    index: int
    term: int
    data: bytes

@final
class Role:
    """Leadership or term of the group changed.

    `role` is "leader", "follower", "candidate" or "learner" (any member without a vote); `leader` is a member id, 0 if
    unknown. Several changes within one turn are reported as one.
    """

    group: int
    role: str
    term: int
    leader: int

@final
class Frame:
    """Bytes for peer `peer` in class `cls` (CLASS_ constant), at most 1 MiB unless one entry alone is larger."""

    peer: int
    cls: int
    data: bytes

@final
class Entries:
    """The committed entries of a turn, in order, to be taken from the front. Entries of a group are adjacent."""

    group: int | None  # of the entry at the front; None when all were taken
    index: int | None

    def take(self) -> Committed:
        """Takes the entry at the front. Raises IndexError when there is none."""
    def skip(self, count: int) -> None:
        """Takes so many entries unseen."""
    def counts(self, count: int) -> list[int]:
        """Records of each of the next `count` entries; 0 for one that is no batch."""
    def run(
        self, chain: bytes, index_last: int, bytes_max: int
    ) -> tuple[int, int, int, int, int, int, int, int, int, bytes] | None:
        """The run of batches at the front; takes nothing (see `skip`).

        Its batches are of one group, term, stamp, producer and epoch, each beginning with the sequence after the last
        (any without a producer). It ends with the entry at `index_last`, or with the one that brings it to `bytes_max`.
        None when the entry at the front is no batch. Returns first index, last index, term, stamp in ms, producer id,
        epoch, base sequence, records, bytes of entries, and the hash chain `chain` after its last entry (32 bytes).
        Raises ValueError for a `chain` of another length.
        """

@final
class PublishRun:
    """Consecutive batches in a client's frame: of one producer, epoch and stream, with consecutive sequences."""

    stream: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    records: int
    size_bytes: int  # of the batches
    counts: list[int]  # records of each batch
    correlations: list[int]  # of each batch

    def __len__(self) -> int:
        """Batches, 1 to 512."""
    def answers(self, offset: int) -> bytes:
        """A PUBLISHED message for each batch, if the first record of the run is at `offset`."""
    def batch(self, number: int) -> bytes:
        """A copy of one batch, counted from 0. Raises IndexError."""

def publish_runs(frame: bytes) -> list[PublishRun] | None:
    """The runs of a `meshwire.client` frame; each batch's header and checksum were checked, its body was not opened.

    None when there is anything in it but intact batches of producers; `meshwire` then says what.
    """

@final
class Pump:
    """The output of one turn. Act in this order: send frames, restore snapshots, apply entries, then the rest."""

    frames: list[Frame]
    installed: list[Installed]
    entries: Entries  # committed entries, to be taken in runs
    committed: list[Committed]  # the same entries one by one, whatever was taken of `entries`; made on first use
    roles: list[Role]
    reads: list[tuple[int, int, int]]  # (group, token, index): ReadIndex answers
    closed: list[tuple[int, str, str]]
    """(group, kind, reason) of groups that were closed in this turn. Kind: "lost_synced_data" (the leader has
    confirmations of this member for entries that its disk does not hold), "corrupt" (a record differs from what was
    written), "panicked"."""

@final
class Progress:
    """Progress of one member, as its leader knows it; `commit` is the commit index that it reported.

    `on_probation`: the newest write group of its log was damaged, and it has not reached its goal yet.
    `quiet_ticks` counts ticks since it was last heard.
    """

    member: int
    peer: int
    matched: int
    commit: int
    voter: bool
    on_probation: bool
    state: str  # "probe", "replicate", "snapshot"
    quiet_ticks: int

@final
class GroupStatus:
    """A snapshot of one group. Indexes are log indexes; `progress` is empty unless this member leads."""

    group: int
    member: int
    role: str
    term: int
    leader: int
    leader_quiet_ticks: int
    commit: int
    applied: int
    first_index: int
    last_index: int
    last_term: int  # of the entry at the end of the log
    persisted: int
    conf_index: int  # of the last applied configuration change, or of the snapshot that includes it
    quiesced: bool
    member_state: str  # "full", "blank", "probation" or "retired": docs/design/recovery.md
    waits_for: list[int]
    """Without a leader: voters that were silent for four election timeouts; at a lone voter on probation: learners that
    did not grant its vote request."""
    voters: list[int]
    learners: list[int]
    progress: list[Progress]

@final
class Entry:
    """One log entry as stored."""

    index: int
    term: int
    kind: int
    data: bytes

@final
class SimDisk:
    """A disk in memory for simulations: writes wait until `sync` is called, `crash` drops those that wait.

    `mutant` plants one known bug for tests that prove their checkers: "release_before_fsync" (messages that must wait
    for the disk are released at once), "fsync_lies", "vote_not_saved", "hard_state_not_written",
    "conflict_not_replaced", "deaf_while_quiesced" (a quiesced follower ignores all but its leader, and does not notice
    its silence), "damage_believed" (after a `cut` no member is on probation or retired). A host on a real disk has no
    such switch.
    """

    def __init__(self, *, mutant: str | None = None, keeps_history: bool = False) -> None: ...
    def pending(self) -> int:
        """Write batches submitted and not yet synced."""
    def sync(self, batches: int | None = None) -> int:
        """Makes the oldest `batches` (all when None) durable; returns how many."""
    def copy(self) -> SimDisk:
        """A copy of the durable content: a backup, for instance."""
    def crash(self) -> None:
        """Drops every unsynced batch and detaches the host; open a new host on this disk afterwards."""
    def cut(self, groups: int, *, as_one: bool = False) -> None:
        """Crashes, and loses the newest write groups too, as damage to a real log does.

        One `sync` makes one write group. With at most one lost the members are on probation. With more they are
        retired, unless the groups count `as_one`. Raises ValueError unless the disk keeps its history.
        """

@final
class EngineDisk:
    """The real log over simulated files, without threads, for tests and simulations: used like a `SimDisk`.

    Files are in directories below `root`, a new one after each crash. A crash leaves what was synced, and of the rest
    what `kept` says: "nothing", "everything", "half" (the older half, the write after it torn), "names" (of files: none
    of the bytes), "bytes". `mutant` plants a known bug: "first_name_not_synced" (of the first log file) or
    "fsync_lies".
    """

    def __init__(self, root: str, *, mutant: str | None = None) -> None: ...
    def pending(self) -> int:
        """Write batches submitted and not yet written."""
    def sync(self, batches: int | None = None) -> int:
        """Writes the oldest `batches` (all when None) and syncs, as the log's thread does; returns how many."""
    def purge(self) -> bool:
        """Removes files without live entries, as the purge thread does; False if that failed."""
    def steps(self) -> int:
        """Changes of files since the log was opened."""
    def fail_next(self, operation: str) -> None:
        """The next "sync" fails with EIO, or the next "write" with ENOSPC."""
    def cancel_failure(self) -> bool:
        """Takes back a failure that has met no operation yet. Returns whether there was one."""
    def crash(self, kept: str = "nothing") -> None:
        """Detaches the host; open a new host on this disk afterwards. Raises OSError."""
    def directory(self) -> Path:
        """Where the files of the present incarnation are, or after a crash those that it left."""
    def image(self, root: str, steps: int, kept: str) -> None:
        """Writes what a crash after the first `steps` changes would leave, for another disk with that `root`."""

@final
class LogReader:
    """Reads the open groups of one host, on any thread, while the host goes on; the GIL is released meanwhile.

    `RaftHost.close` waits for reads under way.
    """

    def entries(self, group: int, low: int, high: int, max_bytes: int) -> list[Entry]:
        """Entries low..high (exclusive), at least one, then until `max_bytes`. Only up to the applied index.

        They come from the disk or the page cache, also those that the host has in memory. Raises UnknownGroup (also
        when the group was closed meanwhile), LogCompacted, LogCorrupt, HostPoisoned after a close.
        """

@final
class RaftHost:
    """Many Raft groups over one log. One thread only (the event loop's).

    Calls return without waiting for the disk, except `open`, `open_group` and `close`, which release the GIL. After a
    failed write or fsync every call raises HostPoisoned: what reached the disk is unknown, so nothing is retried.
    Arguments that no caller should pass (an unknown change, a leader's own removal) raise ValueError.
    """

    @staticmethod
    def open(path: str, *, seed: int, recycle: bool = True) -> RaftHost:
        """Opens or creates the log directory `path`.

        `recycle` reuses old files; without it purges stall writes. Of a damaged log the part before the damage stays in
        use, the rest is quarantined (`*.damaged`), and `damage` describes it. Every member is on probation then, or
        retired: docs/design/recovery.md. Raises HostPoisoned if the files cannot be opened ("locked" if another
        process has them).
        """
    @staticmethod
    def simulated(disk: SimDisk | EngineDisk, *, seed: int) -> RaftHost:
        """The same host over a simulated disk; deterministic for equal seeds and equal inputs."""
    def fileno(self) -> int:
        """Eventfd that becomes readable when a write finished; -1 when simulated. `pump` drains it."""
    def damage(self) -> str | None:
        """The damage that was found when the log was opened, and what was done about it; None if there was none."""
    def retirement(self) -> str | None:
        """Why all memberships in this log are retired, at every opening until `forget_retirement`; else None."""
    def forget_retirement(self) -> None:
        """The owner has given the store up, durably. The members that are stored stay retired."""
    def stored_groups(self) -> list[int]:
        """Groups found on disk, open or not."""
    def create_group(
        self,
        group: int,
        member: int,
        peers: dict[int, int],
        *,
        voters: Sequence[int],
        learners: Sequence[int] = (),
        snapshot: bytes = b"",
        config: GroupConfig | None = None,
    ) -> None:
        """Starts a group that has no data here.

        `peers` maps member to node id. With `voters` given, all initial members start from the same configuration at
        index 1, term 1 holding `snapshot` (so no log begins at index 0). With no voters the group starts blank
        and waits for its leader's snapshot. An empty disk may be one that was lost, so a blank member neither votes nor
        campaigns, across restarts, until it has applied an entry of its leader's own term. The group sends nothing
        before its record is durable. Raises GroupExists.
        """
    def open_group(
        self,
        group: int,
        member: int,
        peers: dict[int, int],
        *,
        applied_state: bytes | None = None,
        config: GroupConfig | None = None,
    ) -> Installed:
        """Opens a stored group; returns its stored snapshot (index 0 when blank).

        Committed entries after it come again from `pump`, at most about 1 MiB a turn; with an `applied_state` only
        those after its index, where the application must be. `peers` adds to the stored map.
        Raises UnknownGroup, GroupExists when it is open, LogCorrupt, AppliedStateRefused (nothing is open then).
        """
    def applied_state(self, group: int) -> bytes | None:
        """What `open_group` needs to open the group at its applied index; None while a snapshot is being installed.

        Take it when every entry of the last `pump` has been applied, and keep it with the application's state.
        """
    def close_group(self, group: int) -> None:
        """Closes the group; it can be opened again. Proposals that are not committed stay undecided."""
    def destroy_group(self, group: int) -> None:
        """Closes the group and removes its entries and state from the log. Not reversible."""
    def set_peers(self, group: int, peers: dict[int, int]) -> None:
        """Sets the nodes of members.

        Needed only for members that the group cannot know: entries and snapshots carry the nodes of the configuration's
        members, and the node of an unknown member is learnt from its first message. Messages for a member without a
        node are dropped.
        """
    def is_quiesced(self, group: int) -> bool:
        """Whether the group is quiesced: its status but for ticks has not changed since. Raises UnknownGroup."""
    def tick(self) -> None:
        """One tick for all groups that are not quiesced."""
    def step(self, peer: int, frame: bytes | memoryview) -> list[int]:
        """Steps a frame from node `peer`; returns groups in it that are not open here.

        Raises InvalidFrame after taking the valid messages; the invalid ones changed nothing.
        """
    def propose(self, group: int, data: bytes) -> tuple[int, int]:
        """Appends at the leader; returns (term, index).

        It took effect iff an entry with that term and index is committed; another term at that index means that it did
        not. Raises NotLeader (also during a leadership transfer), Backpressure, UnknownGroup.
        """
    def propose_run(self, group: int, stamp_ms: int, run: PublishRun) -> tuple[int, int, int]:
        """Appends the run's batches as entries of `meshwire.entry`, one after the other.

        Returns the term, the index of the first and how many were taken; the rest met Backpressure. Raises as `propose`
        if none was.
        """
    def propose_conf_change(
        self, group: int, change: str, member: int, peer: int, context: bytes = b""
    ) -> tuple[int, int]:
        """Single-step change: "add_voter" (also promotes), "add_learner" (also demotes), "remove". One at a time.

        Raises NotLeader, Backpressure when one is pending (or may be: a new leader must commit first), ValueError for
        the leader itself (transfer first) and for the last voter.
        """
    def recover(self, group: int, survivors: dict[int, int]) -> None:
        """Attested recovery: the group goes on with these members (member to node) alone (docs/design/recovery.md).

        To be called at each survivor, with the same survivors. Raises ValueError if this member is none of them or is
        blank, or if the group has a leader. A restart before the leader has written the survivors forgets the call.
        """
    def transfer_leader(self, group: int, member: int) -> None:
        """Transfers the leadership to a voter; proposals are refused until it leads or an election timeout has passed.

        Raises NotLeader, ValueError when `member` has no vote.
        """
    def campaign(self, group: int) -> None:
        """Starts an election now (first leader of a new group). Raises ValueError without a vote."""
    def read_index(self, group: int, token: int) -> None:
        """Asks for a linearizable read point; the answer comes in `Pump.reads`, or never.

        Answers to reads of an earlier opening of the group, before a restart for instance, are dropped.

        Deadline and retry are the caller's. Raises Backpressure when 4,096 reads wait already.
        """
    def pump(self) -> Pump:
        """Runs all dirty groups once, submits one log write, collects outputs.

        Raises HostPoisoned when the log failed.
        """
    def has_work(self) -> bool:
        """True when `pump` would do something now."""
    def entries(self, group: int, low: int, high: int, max_bytes: int) -> list[Entry]:
        """Entries low..high (exclusive), at least one, then until `max_bytes`. Only up to the applied index.

        Older entries than the cache holds are read from the disk. Raises LogCompacted, LogCorrupt.
        """
    def first_in_memory(self, group: int) -> int:
        """First index that `entries` serves without the disk (the last index + 1 when there is none)."""
    def reader(self) -> LogReader:
        """A reader of this host's groups for other threads."""
    def compact(self, group: int, index: int, snapshot: bytes) -> None:
        """Stores `snapshot` as the group's state at `index` (≤ applied) and drops entries up to it, in one log batch.

        Raises ValueError when the index is past the applied one or below the stored snapshot's.
        """
    def status(self, group: int) -> GroupStatus:
        """The group now. Raises UnknownGroup, GroupPoisoned."""
    def log_transfers(self) -> list[tuple[int, int, int, int]]:
        """Entries in flight from leaders here to other nodes, over all groups.

        For each such node: its id, bytes in flight, permits granted, and members there that wait for a permit.
        """
    def disk_bytes(self) -> int:
        """Bytes that the log directory takes on disk (0 when simulated)."""
    def close(self) -> None:
        """Writes what is queued and closes the log. The host is unusable afterwards."""
