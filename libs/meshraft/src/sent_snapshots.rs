//! Snapshots that a leader has sent, and when one counts as lost: raft-rs would wait for ever.

use std::collections::BTreeMap;

use raft::{ProgressState, Raft, StateRole};

use crate::store::Store;

/// A snapshot counts as lost after this many election timeouts, twice as many each time: it may just be slow.
const TIMEOUTS: u64 = 2;
const TIMEOUTS_MAX: u64 = 256;

#[derive(Debug, Clone, Copy)]
struct Sent {
    at_tick: u64,
    timeout_ticks: u64,
}

/// Snapshots by member.
#[derive(Debug, Default)]
pub struct SentSnapshots(BTreeMap<u64, Sent>);

impl SentSnapshots {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Notes that a snapshot was sent to a member at tick `now`.
    pub fn record(&mut self, member: u64, now: u64, election_ticks: u64) {
        let before = self.0.get(&member).map_or(TIMEOUTS * election_ticks / 2, |sent| sent.timeout_ticks);
        let timeout_ticks = (before * 2).min(TIMEOUTS_MAX * election_ticks);
        self.0.insert(member, Sent { at_tick: now, timeout_ticks });
    }

    /// Forgets the snapshot to a member; returns whether there was one.
    pub fn remove(&mut self, member: u64) -> bool {
        self.0.remove(&member).is_some()
    }

    /// Members whose snapshot counts as lost at tick `now`. Forgets those that need none any more.
    pub fn lost(&mut self, raft: &Raft<Store>, now: u64) -> Vec<u64> {
        let state = |member: &u64| raft.prs().get(*member).map(|progress| progress.state);
        let is_leader = raft.state == StateRole::Leader;
        let first = raft.raft_log.first_index();
        // A member that has installed its snapshot while nothing is written stays in Probe: its log tells, not its state.
        let needs_one = |member: &u64| {
            raft.prs().get(*member).is_some_and(|progress| {
                progress.state == ProgressState::Snapshot
                    || progress.state == ProgressState::Probe && progress.matched + 1 < first
            })
        };
        self.0.retain(|member, _| is_leader && needs_one(member));
        let is_lost = |member: &u64, sent: &Sent| {
            state(member) == Some(ProgressState::Snapshot) && now - sent.at_tick >= sent.timeout_ticks
        };
        self.0.iter().filter(|(member, sent)| is_lost(member, sent)).map(|(member, _)| *member).collect()
    }
}
