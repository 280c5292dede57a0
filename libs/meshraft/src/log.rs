//! The log under all groups of a host, as the driver sees it: ordered, numbered writes, and reads.
//!
//! Both disks (`engine_log`, `sim_log`) implement the same two traits, so the driver cannot tell them apart.

use raft::eraftpb::{Entry, HardState, Snapshot};

use crate::errors::{Fault, ReadError};

/// Whether a member's votes and acknowledgements count (docs/design/recovery.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MemberState {
    /// It started empty. Its vote does not count until it has applied an entry of its leader's own term.
    #[default]
    Blank,
    /// The newest write group of its log was damaged: see `probation`.
    Probation,
    /// Its log was damaged earlier. It takes no part any more and is only read.
    Retired,
    Full,
}

impl MemberState {
    pub fn name(self) -> &'static str {
        match self {
            MemberState::Blank => "blank",
            MemberState::Probation => "probation",
            MemberState::Retired => "retired",
            MemberState::Full => "full",
        }
    }
}

/// One change in a write. A write is applied as a whole or not at all, and writes are applied in order.
#[derive(Debug, Clone)]
pub enum Op {
    /// Makes or replaces the group's record: its member id and member state.
    Identity {
        group: u64,
        member: u64,
        member_state: MemberState,
    },
    HardState {
        group: u64,
        state: HardState,
    },
    /// Replaces the snapshot; `drop_to` is the first index that stays in the log.
    Snapshot {
        group: u64,
        snapshot: Snapshot,
        drop_to: u64,
    },
    /// Appends, replacing what is stored at the first index and after.
    Entries {
        group: u64,
        entries: Vec<Entry>,
    },
    /// Forgets the group.
    Destroy {
        group: u64,
    },
}

impl Op {
    pub fn group(&self) -> u64 {
        match self {
            Op::Identity { group, .. }
            | Op::HardState { group, .. }
            | Op::Snapshot { group, .. }
            | Op::Entries { group, .. }
            | Op::Destroy { group } => *group,
        }
    }
}

/// The stored state of one group.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    pub member: u64,
    pub member_state: MemberState,
    pub hard: HardState,
    pub snapshot: Snapshot,
    /// First and last index of the stored entries; none when there are none.
    pub span: Option<(u64, u64)>,
}

/// Reads of the log, also while writes go on.
pub trait LogReader: Send + Sync {
    /// Entries `low..high`, at least one, then until `max_bytes` of encoded size.
    fn entries(&self, group: u64, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, ReadError>;
}

/// A read of old entries for a follower, done while the host goes on.
#[derive(Debug, Clone)]
pub struct Fetch {
    pub group: u64,
    pub member: u64,
    /// The opening of the group that requested it.
    pub incarnation: u64,
    pub low: u64,
    pub high: u64,
    pub max_bytes: u64,
}

/// The result of a fetch.
pub struct Fetched {
    pub fetch: Fetch,
    pub entries: Result<Vec<Entry>, ReadError>,
}

/// The writing side.
pub trait Log: Send + Sync {
    fn reader(&self) -> std::sync::Arc<dyn LogReader>;
    /// Queues a write; `sequence` rises by one each time. Never waits.
    fn submit(&mut self, sequence: u64, ops: Vec<Op>) -> Result<(), String>;
    /// The newest write that is durable; all before it are too. Clears the wake-up signal.
    fn completed(&mut self) -> Result<u64, String>;
    /// The same without clearing the signal.
    fn peek_completed(&self) -> u64;
    /// Starts a read. `take_fetched` returns its result after the descriptor was signalled.
    fn fetch(&mut self, fetch: Fetch);
    fn take_fetched(&mut self) -> Vec<Fetched>;
    fn has_fetched(&self) -> bool;
    /// Loads one group as of the newest submitted write; may wait for the disk.
    fn load(&self, group: u64, submitted: u64) -> Result<Option<Stored>, Fault>;
    fn groups(&self) -> Vec<u64>;
    /// Descriptor that becomes readable after a write, or -1.
    fn fileno(&self) -> i32;
    fn disk_bytes(&self) -> u64;
    /// The damage that was found when the log was opened, and what was done about it.
    fn damage(&self) -> Option<String>;
    /// Why all memberships are retired, until `forget_retirement`.
    fn retirement(&self) -> Option<String>;
    /// The owner has given the store up, durably.
    fn forget_retirement(&mut self) -> Result<(), String>;
    /// Whether the log was damaged before: a group that it does not hold may be one that it lost.
    fn was_damaged(&self) -> bool;
    /// Whether messages that must wait for the disk are sent at once (a planted bug, of the simulated disk only).
    fn releases_early(&self) -> bool {
        false
    }
    /// Whether quiesced followers ignore everybody but their leader (a planted bug too).
    fn hears_only_leader_while_quiesced(&self) -> bool {
        false
    }
    /// Waits until everything queued is durable, then stops.
    fn close(&mut self) -> Result<(), String>;
}
