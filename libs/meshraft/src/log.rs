//! The one log under all groups of a host, as the driver sees it: ordered writes with a number, and reads.
//!
//! Both disks (`engine_log`, `sim_log`) implement the same two traits, so the driver cannot tell them apart.

use raft::eraftpb::{Entry, HardState, Snapshot};

use crate::errors::Fault;

/// One change in a write. A write is applied whole or not at all, and writes are applied in order.
#[derive(Debug, Clone)]
pub enum Op {
    /// Makes or replaces the group's record: which member it is, and whether it may vote.
    Identity {
        group: u64,
        member: u64,
        may_vote: bool,
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

/// What is stored of one group.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    pub member: u64,
    pub may_vote: bool,
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

/// The writing side.
pub trait Log: Send + Sync {
    fn reader(&self) -> std::sync::Arc<dyn LogReader>;
    /// Queues a write; `sequence` rises by one each time. Never waits.
    fn submit(&mut self, sequence: u64, ops: Vec<Op>) -> Result<(), String>;
    /// The newest write that is durable; all before it are too. Clears the wake-up signal.
    fn completed(&mut self) -> Result<u64, String>;
    /// The same without clearing the signal.
    fn peek_completed(&self) -> u64;
    /// Loads one group as of the newest submitted write; may wait for the disk.
    fn load(&self, group: u64, submitted: u64) -> Result<Option<Stored>, Fault>;
    fn groups(&self) -> Vec<u64>;
    /// Descriptor that becomes readable after a write, or -1.
    fn fileno(&self) -> i32;
    fn disk_bytes(&self) -> u64;
    /// Whether messages that must wait for the disk are let go at once (a planted bug; only a simulated disk says yes).
    fn releases_early(&self) -> bool {
        false
    }
    /// Waits until everything queued is durable, then stops.
    fn close(&mut self) -> Result<(), String>;
}
