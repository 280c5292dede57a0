"""Typed face of the native module: many Raft groups, one log, no sockets and no clock of its own.

The caller owns time (`tick`), the network (`step`, `Pump.frames`) and the event loop (`fileno`). Per loop turn: feed
`step`/`propose`/`tick`, then call `pump` once and act on what it returns. Nothing here blocks on the disk: writes go
to one log thread, which signals `fileno()` when an fsync is done; the next `pump` releases what waited for it.

Identity: a *group* is a 64-bit id; a *member* is a Raft id inside one group, never reused; a *peer* is a node id. One
frame to a peer carries messages of many groups.

Source: Ongaro's thesis; TiKV `raft` 0.7 and `raft-engine` 0.4; architecture §7.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, final

KIND_NORMAL: Final[int]  # 0: application entry, `data` is what was proposed
KIND_EMPTY: Final[int]  # 1: an entry of Raft's own, as a new leader's first; advances the applied index only
KIND_CONF: Final[int]  # 2: configuration change, already applied to the group; `data` is its context

CLASS_CONTROL: Final[int]  # 0: votes, heartbeats, responses, appends without payload
CLASS_BULK: Final[int]  # 1: appends with entries, snapshots

class RaftError(Exception):
    """Base of everything this module raises. `code` is stable (see subclasses)."""

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

class BookmarkRefused(RaftError):
    """The bookmark does not fit what is stored; the group can be opened without it. code BOOKMARK_REFUSED."""

class InvalidFrame(RaftError):
    """A frame from a peer is malformed, for the wrong member, or of a forbidden type. code INVALID_FRAME."""

class Backpressure(RaftError):
    """Uncommitted bytes of the group or of the host are past their bound; retry after the next pump. code BACKPRESSURE."""

@final
class GroupConfig:
    """Timing and bounds of one group. Ticks are counted by `RaftHost.tick`; the caller chooses their length."""

    election_ticks: int
    heartbeat_ticks: int
    max_bytes_per_append: int
    max_inflight_appends: int
    max_uncommitted_bytes: int
    sleeps: bool  # whether the group sleeps while it is idle; what its status says in ticks then stands still
    def __init__(
        self,
        *,
        election_ticks: int = 10,
        heartbeat_ticks: int = 1,
        max_bytes_per_append: int = 262144,
        max_inflight_appends: int = 16,
        max_uncommitted_bytes: int = 67108864,
        sleeps: bool = False,
    ) -> None: ...

@final
class Committed:
    """One committed entry, handed out once and in order per group. `kind` is a KIND_ constant."""

    group: int
    index: int
    term: int
    kind: int
    data: bytes

@final
class Installed:
    """A snapshot from the leader replaced the group's state; restore the application from `data` before later entries.

    Handed out once it is durable here, so a restart never finds the application ahead of its log.
    """

    group: int
    index: int
    term: int
    data: bytes

@final
class Role:
    """Leadership or term of the group changed.

    `role` is "leader", "follower", "candidate" or "learner" (any member without a vote); `leader` is a member id, 0 if
    unknown. Several changes within one turn are told as one.
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
    """What a turn committed, in order, to be taken from the front. All of a group comes in one piece."""

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

        Its batches are of one group, term, stamp, producer and epoch, each beginning with the sequence after the last (any
        without a producer). It ends with the entry at `index_last`, or with the one that brings it to `bytes_max`. None when
        the entry at the front is no batch. Returns first index, last index, term, stamp in ms, producer id, epoch, base
        sequence, records, bytes of entries, and the hash chain `chain` after its last entry (32 bytes). Raises ValueError for
        a `chain` of another length.
        """

@final
class PublishRun:
    """Consecutive batches in a client's frame, of one producer and epoch to one stream, sequences following each other."""

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
        """A PUBLISHED message for each batch, of which the first one's records begin at `offset`, the others' behind it."""
    def batch(self, number: int) -> bytes:
        """A copy of one batch, counted from 0. Raises IndexError."""

def publish_runs(frame: bytes) -> list[PublishRun] | None:
    """The runs of a `meshwire.client` frame, each batch checked to its last record.

    None when there is anything in it but sound batches of producers; `meshwire` then says what.
    """

def is_sound_batch(data: bytes | memoryview) -> bool:
    """Whether `meshwire.batch.check_records` takes the bytes."""

@final
class Pump:
    """What one turn produced. Act in this order: send frames, restore snapshots, apply entries, then the rest."""

    frames: list[Frame]
    installed: list[Installed]
    entries: Entries  # what is committed, to be taken in runs
    committed: list[Committed]  # the same entry by entry, whatever was taken of `entries`; made when it is asked for
    roles: list[Role]
    reads: list[tuple[int, int, int]]  # (group, token, index): ReadIndex answers
    closed: list[tuple[int, str]]  # (group, reason): groups that were poisoned and dropped this turn

@final
class Progress:
    """How far one member is, as its leader sees it; `commit` is what it said it knows to be committed.

    `in_doubt`: its log was damaged and it is not known to be repaired; till then its votes and confirmations may not count.
    `quiet_ticks` counts ticks since it was last heard.
    """

    member: int
    peer: int
    matched: int
    commit: int
    voter: bool
    in_doubt: bool
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
    persisted: int
    conf_index: int  # of the last change of members that is applied, or of the snapshot that it lies in
    asleep: bool
    in_doubt: bool  # its log was cut at damage, and no leader has brought it past that yet
    silent: list[int]  # without a leader: members not heard for four election timeouts, whom the group may wait for
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
    """A disk in memory for simulations: writes wait until `sync` is called, `crash` drops what was not synced.

    `mutant` plants one known bug for tests that prove their checkers: "release_before_fsync" (messages that must wait for
    the disk are released at once), "fsync_lies", "vote_not_saved", "hard_state_not_written", "conflict_not_replaced",
    "deaf_sleepers" (a sleeping follower hears nobody but its leader, and does not miss it). They
    exist only here; a host on a real disk has no such switch.
    """

    def __init__(self, *, mutant: str | None = None, keeps_history: bool = False) -> None: ...
    def pending(self) -> int:
        """Write batches submitted and not yet synced."""
    def sync(self, batches: int | None = None) -> int:
        """Makes the oldest `batches` (all when None) durable; returns how many."""
    def copy(self) -> SimDisk:
        """Another disk that holds what is durable on this one now: a backup, for instance."""
    def crash(self) -> None:
        """Drops every unsynced batch and detaches the host; open a new host on this disk afterwards."""
    def cut(self, batches: int) -> None:
        """Crashes and loses the newest synced `batches` too; every group is in doubt, as after damage to a real log.

        Raises ValueError unless the disk keeps its history.
        """

@final
class EngineDisk:
    """The real log over simulated files, without threads, for tests and simulations: used like a `SimDisk`.

    Files are in directories below `root`, a new one after each crash. A crash leaves what was synced, and of the rest what
    `kept` says: "nothing", "everything", "half" (the older half, the write after it torn), "names" (of files: none of the
    bytes), "bytes". `mutant` plants a known bug: "first_name_not_synced" (of the first log file) or "fsync_lies".
    """

    def __init__(self, root: str, *, mutant: str | None = None) -> None: ...
    def pending(self) -> int:
        """Write batches submitted and not yet written."""
    def sync(self, batches: int | None = None) -> int:
        """Writes the oldest `batches` (all when None) and syncs, as the log's thread does; returns how many."""
    def purge(self) -> bool:
        """Removes what is not needed, as the purging thread does; False when that failed."""
    def steps(self) -> int:
        """Changes of files since the log was opened."""
    def fail_next(self, operation: str) -> None:
        """The next "sync" fails with EIO, or the next "write" with ENOSPC."""
    def crash(self, kept: str = "nothing") -> None:
        """Detaches the host; open a new host on this disk afterwards. Raises OSError."""
    def directory(self) -> Path:
        """Where the files of the present life are, or after a crash those that it left."""
    def image(self, root: str, steps: int, kept: str) -> None:
        """Writes what a crash after the first `steps` changes would leave, for another disk with that `root`."""

@final
class LogReader:
    """Reads the open groups of one host, on any thread, while the host goes on; the GIL is released meanwhile.

    `RaftHost.close` waits for reads under way.
    """

    def entries(self, group: int, low: int, high: int, max_bytes: int) -> list[Entry]:
        """Entries low..high (exclusive), at least one, then until `max_bytes`. Only up to the applied index.

        They come from the disk or the page cache, also those that the host has in memory. Raises UnknownGroup (also when
        the group was closed meanwhile), LogCompacted, LogCorrupt, HostPoisoned after a close.
        """

@final
class RaftHost:
    """Many Raft groups over one log. One thread only (the event loop's).

    Calls return without waiting for the disk, except `open`, `open_group` and `close`, which release the GIL. After a
    failed write or fsync every call raises HostPoisoned: nobody knows what reached the disk, so nothing is retried.
    Arguments that no caller should pass (an unknown change, a leader's own removal) raise ValueError.
    """

    @staticmethod
    def open(path: str, *, seed: int, recycle: bool = True) -> RaftHost:
        """Opens or creates the log directory `path`.

        `recycle` reuses old files, without which purges stall writes. Of a damaged log what lies before the damage is
        kept, the rest put aside (`*.damaged`), and `damage` tells of it. Every group is in doubt then, across restarts:
        its grants count, and it can be elected, only when every voter grants; it is an ordinary member again once it has
        applied all that its leader had when it learnt of the doubt, or leads. Raises HostPoisoned when the files cannot be
        opened ("locked" when another process has them).
        """
    @staticmethod
    def simulated(disk: SimDisk | EngineDisk, *, seed: int) -> RaftHost:
        """The same host over a simulated disk; deterministic for equal seeds and equal inputs."""
    def fileno(self) -> int:
        """Eventfd that becomes readable when a write finished; -1 when simulated. `pump` drains it."""
    def damage(self) -> str | None:
        """What was found damaged when the log was opened, and what was done about it; None when it was whole."""
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
        index 1, term 1 holding `snapshot` (so nobody can start from index 0). With no voters the group starts blank
        and waits for its leader's snapshot. Since an empty disk may be one that was lost, such a member neither votes nor
        stands, across restarts, until it has applied an entry of its leader's own term. The group says nothing to others
        before its record is durable. Raises GroupExists.
        """
    def open_group(
        self,
        group: int,
        member: int,
        peers: dict[int, int],
        *,
        bookmark: bytes | None = None,
        config: GroupConfig | None = None,
    ) -> Installed:
        """Opens a stored group; returns its stored snapshot (index 0 when blank).

        Committed entries after it come again from `pump`, at most about 1 MiB a turn; with a `bookmark` only those after
        the bookmark's index, where the application must be. `peers` adds to the stored map.
        Raises UnknownGroup, GroupExists when it is open, LogCorrupt, BookmarkRefused (nothing is open then).
        """
    def know_nodes(self, group: int, nodes: Sequence[int]) -> None:
        """Says that each of these nodes has a member of the group, by whatever id.

        Where one or two voters are left and one is in doubt, nobody leads before whoever is there has answered: the change that took
        that one in may be forgotten.
        """
    def bookmark(self, group: int) -> bytes | None:
        """What `open_group` needs to open the group at the applied index; None while a snapshot is being installed.

        Take it when every entry of the last `pump` has been applied, and keep it with the application's state.
        """
    def close_group(self, group: int) -> None:
        """Lets the group go; it can be opened again. Proposals that are not committed stay undecided."""
    def destroy_group(self, group: int) -> None:
        """Closes the group and removes its entries and state from the log. Not reversible."""
    def set_peers(self, group: int, peers: dict[int, int], *, known_members: int = 0, known_nodes: int = 0) -> None:
        """Names the members anew, with their nodes: all that are in the group or on their way, as far as the caller knows.

        Needed only for what the group cannot know: entries and snapshots carry where the members of the configuration live, and
        an unknown member's node is learnt from its first message. Messages for a member without a node are dropped. Ids only
        rise: a member that is not named, and smaller than one that is or than `known_members`, counts as out of the group for
        good. In the same way a node below `known_nodes` has the members that are named there, and no other.
        """
    def is_asleep(self, group: int) -> bool:
        """Whether the group sleeps: what its status says but for ticks is as it was when it fell asleep. Raises UnknownGroup."""
    def tick(self) -> None:
        """One tick for all groups that do not sleep."""
    def step(self, peer: int, frame: bytes | memoryview) -> list[int]:
        """Feeds a frame from node `peer`; returns groups in it that are not open here.

        Raises InvalidFrame after taking the good messages; the bad ones changed nothing.
        """
    def propose(self, group: int, data: bytes) -> tuple[int, int]:
        """Appends at the leader; returns (term, index).

        It took effect iff an entry with that term and index is committed; another term at that index means that it did
        not. Raises NotLeader (also while leadership is handed over), Backpressure, UnknownGroup.
        """
    def propose_run(self, group: int, stamp_ms: int, run: PublishRun) -> tuple[int, int, int]:
        """Appends the run's batches as entries of `meshwire.entry`, one after the other.

        Returns the term, the first one's index and how many were taken; the rest met Backpressure. Raises as `propose` when
        none was.
        """
    def propose_conf_change(
        self, group: int, change: str, member: int, peer: int, context: bytes = b""
    ) -> tuple[int, int]:
        """Single-step change: "add_voter" (also promotes), "add_learner" (also demotes), "remove". One at a time.

        Raises NotLeader, Backpressure when one is pending (or may be: a new leader must commit first), ValueError for
        the leader itself (transfer first) and for the last voter.
        """
    def transfer_leader(self, group: int, member: int) -> None:
        """Hands leadership to a voter; proposals are refused until it is done or an election timeout has passed.

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
        """What reads this host's groups from other threads."""
    def compact(self, group: int, index: int, snapshot: bytes) -> None:
        """Stores `snapshot` as the group's state at `index` (≤ applied) and drops entries up to it, in one log batch.

        Raises ValueError when the index is past the applied one or below the stored snapshot's.
        """
    def status(self, group: int) -> GroupStatus:
        """The group now. Raises UnknownGroup, GroupPoisoned."""
    def feeding(self) -> list[tuple[int, int, int, int]]:
        """What leaders here have on its way to other nodes, over all groups.

        Of each such node: its id, bytes of entries that it has not confirmed, reads of old entries that are under way for
        it, and members there that wait for their turn.
        """
    def disk_bytes(self) -> int:
        """Bytes that the log directory takes on disk (0 when simulated)."""
    def close(self) -> None:
        """Flushes what is queued and closes the log. The host is unusable afterwards."""
