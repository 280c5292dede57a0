//! Probation, elections after damage, and attested recovery of one group (docs/design/recovery.md).
//!
//! The rules are in `crate::probation`, `crate::votes` and `crate::recovery`; this file applies them.

use std::collections::BTreeMap;

use raft::eraftpb::{ConfChange, ConfChangeType, Entry, EntryType, Message};
use raft::{GetEntriesContext, SnapshotStatus, INVALID_ID};

use crate::conf::{self, Change, ConfAt};
use crate::errors::Fault;
use crate::group::Group;
use crate::log::{MemberState, Op};
use crate::probation::Probation;
use crate::recovery::{Attested, EPOCH};
use crate::votes::{self, is_grant, Candidate, VoteResponse};

impl Group {
    pub fn is_on_probation(&self) -> bool {
        self.member_state == MemberState::Probation
    }

    /// Whether this member is on probation and knows of no other voter.
    pub fn is_lone_on_probation(&self) -> bool {
        self.is_on_probation() && !self.is_leader() && self.conf().voters == [self.member]
    }

    /// Members that a group without a leader waits for: voters that were silent for four election timeouts, or the
    /// learners that have not answered a lone voter on probation.
    pub fn waits_for(&self) -> Vec<u64> {
        if self.node.raft.leader_id != INVALID_ID {
            return Vec::new();
        }
        if self.is_lone_on_probation() {
            return self.lone_voter.waits_for();
        }
        let timeout_ticks = 4 * self.settings.election_ticks as u64;
        let is_heard = |member: &u64| self.heard.get(member).is_some_and(|at| self.ticks - at <= timeout_ticks);
        let mut needed = self.conf().voters.clone();
        needed.retain(|member| *member != self.member && !is_heard(member));
        needed.sort_unstable();
        needed
    }

    /// Unapplied configuration changes in the log; None if it cannot be read.
    pub fn unapplied_changes(&self) -> Option<Vec<Entry>> {
        let log = &self.node.raft.raft_log;
        let (mut next, end) = (self.applied + 1, log.last_index() + 1);
        let mut changes = Vec::new();
        while next < end {
            let bytes = self.settings.max_bytes_per_append;
            let found = log.slice(next, end, bytes, GetEntriesContext::empty(false)).ok()?;
            next = found.last()?.index + 1;
            changes.extend(found.into_iter().filter(|entry| entry.get_entry_type() != EntryType::EntryNormal));
        }
        Some(changes)
    }

    /// The digest of the configuration; 0 while the log holds a change that is not applied, or cannot be read.
    pub fn conf_digest(&self) -> u64 {
        match self.unapplied_changes() {
            _ if self.attested.is_some() => votes::digest(self.conf()),
            Some(changes) if changes.is_empty() => votes::digest(self.conf()),
            _ => 0,
        }
    }

    /// The learners that a lone voter on probation must ask, also those of unapplied changes. None if the log cannot be
    /// read.
    pub fn learners_to_ask(&mut self) -> Option<Vec<u64>> {
        let mut others = self.conf().learners.clone();
        if self.attested.is_some() {
            return Some(others);
        }
        for entry in self.unapplied_changes()? {
            let (change, peer, _) = conf::decode(&entry)?;
            if change.get_change_type() != ConfChangeType::RemoveNode && change.node_id != self.member {
                self.peers.entry(change.node_id).or_insert(peer);
                others.push(change.node_id);
            }
        }
        Some(others)
    }

    /// Records a granted vote; returns those that raft-rs may count now.
    pub fn count_grant(&mut self, message: Message) -> Vec<Message> {
        let conf = self.conf_digest();
        let voters = &self.confs.last().expect("the snapshot's configuration is always there").conf.voters;
        let is_on_probation = self.member_state == MemberState::Probation;
        let me = Candidate { raft: &self.node.raft, incarnation: self.incarnation, is_on_probation, voters, conf };
        self.vote_tally.record(message, &me)
    }

    /// Adds this member's context to the grants that raft-rs has just made, the messages after the first `before`. Not
    /// later: one turn may hold two requests of one candidate, from before and after its damage.
    pub fn attach_vote_responses(&mut self, before: usize, candidate: u64) {
        if !self.node.raft.msgs.iter().skip(before).any(is_grant) {
            return;
        }
        let provisional = if self.member_state == MemberState::Full { 0 } else { self.incarnation };
        let conf = if self.member_state == MemberState::Blank { 0 } else { self.conf_digest() };
        let context = VoteResponse { provisional, candidate, conf }.context();
        for message in self.node.raft.msgs.iter_mut().skip(before).filter(|message| is_grant(message)) {
            message.context = context.clone();
        }
    }

    /// At the leader: takes a status report. Returns whether raft-rs must not see the message.
    pub fn take_status_report(&mut self, message: &mut Message) -> bool {
        let Some(outcome) =
            self.probation_tracker.take_status_report(message, &mut self.node, &self.vote_tally.electors)
        else {
            return false;
        };
        self.heard.insert(message.from, self.ticks);
        if outcome.is_first && self.sent_snapshots.remove(message.from) {
            self.node.report_snapshot(message.from, SnapshotStatus::Failure);
        }
        self.own_messages.extend(outcome.goal);
        !outcome.is_acknowledgement
    }

    /// A tick of a lone voter on probation, instead of raft-rs's.
    pub fn tick_lone_voter(&mut self) {
        let timeout_ticks = self.settings.election_ticks as u64;
        if self.node.raft.leader_id != INVALID_ID && self.ticks - self.leader_heard >= timeout_ticks {
            self.node.raft.become_follower(self.node.raft.term, INVALID_ID);
        }
        self.is_campaign_due = self.node.raft.leader_id == INVALID_ID;
    }

    /// A lone voter campaigns when its log is durable, because raft-rs makes it leader at once. On probation it asks
    /// its learners first.
    pub fn campaign_alone(&mut self) {
        self.is_campaign_due &= !self.is_leader() && self.is_voter() && self.node.raft.leader_id == INVALID_ID;
        // The configuration is known only when every committed entry is applied.
        let is_ready = self.is_durable() && !self.is_installing() && self.applied >= self.node.raft.raft_log.committed;
        if !self.is_campaign_due || !is_ready {
            return;
        }
        self.is_campaign_due = false;
        if self.is_lone_on_probation() {
            let Some(learners) = self.learners_to_ask() else { return };
            let timeout_ticks = 2 * self.settings.election_ticks as u64;
            let requests =
                self.lone_voter.request_votes(&self.node.raft, &learners, self.incarnation, self.ticks, timeout_ticks);
            self.own_messages.extend(requests);
            let Some(term) = self.lone_voter.term_to_lead() else { return };
            self.node.raft.become_follower(term - 1, INVALID_ID);
        }
        // Refused while a committed change is not applied: the next tick tries again.
        let _ = self.node.campaign();
    }

    /// Whether a campaign would make this member leader at once with a log that is not durable: raft-rs panics then.
    pub fn must_persist_first(&self) -> bool {
        !self.is_leader() && self.conf().voters == [self.member] && !self.is_durable()
    }

    pub fn is_durable(&self) -> bool {
        self.node.raft.raft_log.persisted == self.node.raft.raft_log.last_index()
    }

    /// Ends probation: at a leader, because every voter granted; at others when they have applied their goal.
    pub fn end_probation(&mut self, ops: &mut Vec<Op>) {
        if self.is_on_probation() && (self.is_leader() || self.probation.is_over(&self.node.raft, self.applied)) {
            self.member_state = MemberState::Full;
            self.probation = Probation::default();
            ops.push(Op::Identity { group: self.id, member: self.member, member_state: MemberState::Full });
        }
    }

    /// Attested recovery: makes these members, given with their nodes, the whole configuration.
    pub fn recover(&mut self, survivors: &BTreeMap<u64, u64>) -> Result<(), Fault> {
        let bad = |why: &str| Err(Fault::BadArgument(why.into()));
        if !survivors.contains_key(&self.member) || survivors.contains_key(&0) {
            return bad("this member must be among the survivors, and each has an id");
        }
        if self.member_state == MemberState::Blank || self.is_installing() {
            return bad("this member holds no log of its own: name others");
        }
        if self.node.raft.leader_id != INVALID_ID && self.has_live_leader() {
            return bad("the group has a leader: change its members in the ordinary way");
        }
        let Some(ahead) = self.unapplied_changes() else { return bad("the log of this member cannot be read") };
        let mut known = self.conf().voters.clone();
        known.extend(&self.conf().learners);
        known.extend(ahead.iter().filter_map(conf::decode).map(|(change, _, _)| change.node_id));
        known.sort_unstable();
        known.dedup();
        let change = |kind: ConfChangeType, member: u64, peer: u64| Change { kind, member, peer, context: Vec::new() };
        let votes = survivors.iter().map(|(member, peer)| change(ConfChangeType::AddNode, *member, *peer));
        let lost = known.iter().filter(|member| !survivors.contains_key(member));
        let mut changes: Vec<Change> = lost.map(|member| change(ConfChangeType::RemoveNode, *member, 0)).collect();
        changes.extend(votes);
        // In reverse order here, because a configuration must never be without a voter.
        for Change { kind, member, .. } in changes.iter().rev() {
            let mut step = ConfChange { node_id: *member, ..ConfChange::default() };
            step.set_change_type(*kind);
            let conf = self.node.apply_conf_change(&step).map_err(|e| Fault::BadArgument(e.to_string()))?;
            self.confs.push(ConfAt { index: self.applied, conf });
        }
        self.peers.extend(survivors);
        self.member_state = MemberState::Probation;
        let since = self.node.raft.term + EPOCH;
        self.node.raft.become_follower(since, INVALID_ID);
        self.attested =
            Some(Attested { survivors: survivors.keys().copied().collect(), changes, since, writing: (0, 0) });
        Ok(())
    }

    /// At the leader: proposes the next change that writes the attested configuration to the log. Returns whether it
    /// did.
    pub fn propose_recovery(&mut self) -> bool {
        let (term, is_free) = (self.node.raft.term, self.is_leader() && !self.node.raft.has_pending_conf());
        let Some(attested) = self.attested.as_mut().filter(|_| is_free) else { return false };
        if attested.writing.0 != term {
            attested.writing = (term, 0);
        }
        let Some(change) = attested.changes.get(attested.writing.1) else { return false };
        let is_written = self.node.propose_conf_change(Vec::new(), change.encode()).is_ok();
        attested.writing.1 += usize::from(is_written);
        is_written
    }

    fn has_live_leader(&self) -> bool {
        self.is_leader() || self.ticks - self.leader_heard < 2 * self.settings.election_ticks as u64
    }
}
