//! The one log under all groups of a host, as the driver sees it: ordered writes with a number, and reads.
//!
//! Both disks (`engine_log`, `sim_log`) implement the same two traits, so the driver cannot tell them apart.

use raft::eraftpb::{Entry, HardState, Snapshot};

use crate::errors::Fault;

/// Whether a member may vote and stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Standing {
    /// It began empty: until a leader has brought it up to its own term it does neither.
    #[default]
    Blank,
    /// Its log was cut at damage: see `doubt`.
    Doubtful,
    Full,
}

/// One change in a write. A write is applied whole or not at all, and writes are applied in order.
#[derive(Debug, Clone)]
pub enum Op {
    /// Makes or replaces the group's record: which member it is, and whether its word counts.
    Identity {
        group: u64,
        member: u64,
        standing: Standing,
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

/// What is stored of one group.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    pub member: u64,
    pub standing: Standing,
    pub hard: HardState,
    pub snapshot: Snapshot,
    /// First and last index of the stored entries; none when there are none.
    pub span: Option<(u64, u64)>,
}

/// Reads of what was written. Usable while writes go on.
pub trait LogReader: Send + Sync {
    /// Entries `low..high`, at least one, then until `max_bytes` of encoded size.
    fn entries(&self, group: u64, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, String>;
}

/// A read of old entries for a follower, done while the host goes on.
#[derive(Debug, Clone)]
pub struct Fetch {
    pub group: u64,
    pub member: u64,
    /// Which opening of the group wants it.
    pub life: u64,
    pub low: u64,
    pub high: u64,
    pub max_bytes: u64,
}

/// What came of it.
pub struct Fetched {
    pub fetch: Fetch,
    pub entries: Result<Vec<Entry>, String>,
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
    /// Begins a read; what it finds is among `take_fetched` later, after a wake-up.
    fn fetch(&mut self, fetch: Fetch);
    fn take_fetched(&mut self) -> Vec<Fetched>;
    fn has_fetched(&self) -> bool;
    /// Loads one group as of the newest submitted write; may wait for the disk.
    fn load(&self, group: u64, submitted: u64) -> Result<Option<Stored>, Fault>;
    fn groups(&self) -> Vec<u64>;
    /// Descriptor that becomes readable after a write, or -1.
    fn fileno(&self) -> i32;
    fn disk_bytes(&self) -> u64;
    /// What was found damaged when it was opened, and what was done about it; every group is in doubt then.
    fn damage(&self) -> Option<String>;
    /// Whether it was ever damaged, as far as is known: a group that it does not hold may be one that it lost.
    fn was_damaged(&self) -> bool;
    /// Whether messages that must wait for the disk are let go at once (a planted bug; only a simulated disk says yes).
    fn releases_early(&self) -> bool {
        false
    }
    /// Whether sleeping followers hear nobody but their leader (a planted bug as well).
    fn has_deaf_sleepers(&self) -> bool {
        false
    }
    /// Waits until everything queued is durable, then stops.
    fn close(&mut self) -> Result<(), String>;
}
