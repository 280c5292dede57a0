//! Timing and bounds of one group, and raft-rs's configuration.

use raft::{Config, ReadOnlyOption};

use crate::errors::Fault;

/// Largest committed payload that one Ready hands out; the driver loops, this only bounds a single step.
const COMMITTED_BYTES_PER_READY: u64 = 512 << 10;

#[derive(Debug, Clone, Copy)]
pub struct GroupSettings {
    pub election_ticks: usize,
    pub heartbeat_ticks: usize,
    pub max_bytes_per_append: u64,
    pub max_inflight_appends: usize,
    pub max_uncommitted_bytes: u64,
    /// Whether the group quiesces while it is idle. Its ticks and its peers' quiet times then stand still.
    pub quiesces: bool,
}

impl Default for GroupSettings {
    fn default() -> Self {
        GroupSettings {
            election_ticks: 10,
            heartbeat_ticks: 1,
            max_bytes_per_append: 256 << 10,
            max_inflight_appends: 16,
            max_uncommitted_bytes: 64 << 20,
            quiesces: false,
        }
    }
}

impl GroupSettings {
    pub fn check(&self) -> Result<(), Fault> {
        let bad = |why: &str| Err(Fault::BadArgument(why.into()));
        if self.heartbeat_ticks == 0 || self.election_ticks <= self.heartbeat_ticks {
            return bad("election_ticks must be greater than heartbeat_ticks, and that at least 1");
        }
        if self.election_ticks > 1_000_000 {
            return bad("election_ticks must be at most 1000000");
        }
        if self.max_inflight_appends == 0 || self.max_inflight_appends > 65_536 {
            return bad("max_inflight_appends must be 1 to 65536");
        }
        if self.max_uncommitted_bytes < self.max_bytes_per_append {
            return bad("max_uncommitted_bytes must be at least max_bytes_per_append");
        }
        Ok(())
    }

    /// Pre-vote and check-quorum keep a cut-off member from disturbing the others; reads ask a quorum, since a lease
    /// would trust clocks. Telling the commit index is the Ready loop's business (`Group::tell_commit`).
    pub fn raft_config(&self, member: u64, applied: u64) -> Config {
        Config {
            id: member,
            election_tick: self.election_ticks,
            heartbeat_tick: self.heartbeat_ticks,
            applied,
            max_size_per_msg: self.max_bytes_per_append,
            max_inflight_msgs: self.max_inflight_appends,
            check_quorum: true,
            skip_bcast_commit: true,
            pre_vote: true,
            read_only_option: ReadOnlyOption::Safe,
            max_uncommitted_size: self.max_uncommitted_bytes,
            max_committed_size_per_ready: COMMITTED_BYTES_PER_READY,
            ..Config::default()
        }
    }
}
