//! A member whose log was cut at damage: what it confirmed and voted may be gone, so for a while it is *in doubt*.
//!
//! What it lost may be newer than all that it hears: the leader that it follows may have been deposed with its help, and a
//! candidate may still hold its vote. So until its leader has named it a *goal* it confirms nothing, neither entries nor
//! heartbeats, and only sends *notices*: its life (opening of the group), and up to where its log is surely its own. The leader forgets
//! what the member had confirmed beyond, and writes an entry. Once that is committed, by others, its index is the goal:
//!
//! * whoever was elected in a higher term, or could still be with a vote that the member forgot, would need one of those who
//!   hold this entry, and none of them may grant it (its log has not the entry, which is younger than the vote);
//! * all that the member confirmed to this leader and lost lies before it.
//!
//! From then on it confirms, and when it has applied the goal, in the same term, it is an ordinary member again. A leader that all
//! voters elected names a goal at once to the members in doubt among them (`grants`). Notices go on till the end, as
//! confirmations: of what was taken in silence (a snapshot), and against those from before the damage, which may be processed at any time.
//!
//! What is left of the log beyond its commit index may be a tail that had been overwritten, and whose overwriting was lost: it
//! counts only as far as appends of the present leader have matched it.
//!
//! Left out: members that begin blank where no damage was seen (`Group::earn_vote`). If theirs was a disk that was emptied or set
//! back, those who have seen more of it refuse it (docs/design/stores.md).
//! Source: Alagappan et al., Protocol-Aware Recovery (FAST 2018), §3.3–3.4; Ongaro's thesis §11.7.2; docs/design/streams.md.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Buf;
use raft::eraftpb::{Message, MessageType};
use raft::{ProgressState, SnapshotStatus, INVALID_ID};

use crate::electorate::Electorate;
use crate::group::Group;
use crate::log::{Op, Standing};

/// Begins the context of messages that speak of doubt. Those of reads are of another length.
pub const MARK: &[u8] = b"doubt";

/// What a member in doubt has to apply, and in which term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Goal {
    term: u64,
    index: u64,
}

/// Up to where appends of the leader of `term` have matched the log.
#[derive(Debug, Default, Clone, Copy)]
pub struct Verified {
    term: u64,
    index: u64,
}

/// A member in doubt, as its leader knows it.
#[derive(Debug, Clone, Copy)]
struct Case {
    /// The leader's last index when it learnt of the doubt.
    after: u64,
    goal: Option<u64>,
}

/// The members in doubt, in each of their lives, that the leader of `term` knows of.
#[derive(Debug, Default)]
pub struct Cases {
    term: u64,
    of: BTreeMap<(u64, u64), Case>,
}

impl Group {
    pub fn in_doubt(&self) -> bool {
        self.standing == Standing::Doubtful
    }

    /// Whom a group without a leader may wait for: voters not heard for a while, or whoever else a member in doubt needs.
    pub fn silent(&self) -> Vec<u64> {
        if self.node.raft.leader_id != INVALID_ID {
            return Vec::new();
        }
        let patience = 4 * self.settings.election_ticks as u64;
        let is_heard = |member: &u64| self.heard.get(member).is_some_and(|at| self.ticks - at <= patience);
        let mut silent: BTreeSet<u64> = self.conf().voters.iter().copied().collect();
        if self.in_doubt() || self.counts_doubt() {
            let asked: BTreeSet<u64> = match self.electorate() {
                Some(Electorate { members, strangers }) if strangers.values().all(|member| *member != 0) => {
                    members.into_iter().chain(strangers.into_values()).collect()
                }
                _ => silent.iter().chain(&self.named).copied().collect(),
            };
            // Votes of members that are out for good are still needed while too few others have one.
            let present = silent.iter().filter(|member| **member == self.member || asked.contains(member)).count();
            silent = if 2 * present > silent.len() { asked } else { &silent | &asked };
        }
        let is_lone = self.is_lone_in_doubt();
        silent.retain(|member| *member != self.member && !(is_heard(member) && (!is_lone || self.grants.has(*member))));
        silent.into_iter().collect()
    }

    /// What a member in doubt makes of its leader's message before raft-rs sees it.
    pub fn hear_leader(&mut self, message: &mut Message) {
        let kind = message.get_msg_type();
        if !matches!(kind, MessageType::MsgHeartbeat | MessageType::MsgAppend) {
            return;
        }
        let named = take_goal(message);
        if !self.in_doubt() || message.term < self.node.raft.term {
            return;
        }
        self.goal = self.goal.filter(|goal| goal.term == message.term);
        if let Some((_, index)) = named.filter(|(life, _)| *life == self.life) {
            self.goal = Some(Goal { term: message.term, index });
        }
        if self.verified.term != message.term {
            self.verified = Verified { term: message.term, index: 0 };
        }
        let log = &self.node.raft.raft_log;
        let own = log.committed.max(self.verified.index);
        if self.goal.is_none() || kind == MessageType::MsgHeartbeat {
            self.notices.push(self.notice(message, own.min(log.persisted)));
        }
        if kind == MessageType::MsgHeartbeat {
            // The leader may count on what was confirmed here and is lost, also in a heartbeat that was long on its way.
            message.commit = message.commit.min(own);
        } else if message.index >= log.committed && log.match_term(message.index, message.log_term) {
            let end = message.index + message.entries.len() as u64;
            self.verified.index = self.verified.index.max(end);
        }
    }

    /// Tells the sender of `message` that this member is in doubt and holds its log up to `end`; confirms that if it may.
    fn notice(&self, message: &Message, end: u64) -> Message {
        let mut notice = Message::default();
        notice.set_msg_type(MessageType::MsgAppendResponse);
        (notice.from, notice.to, notice.term) = (self.member, message.from, message.term);
        (notice.reject, notice.index, notice.commit) = (self.goal.is_none(), end, self.node.raft.raft_log.committed);
        notice.context = [MARK, &self.life.to_be_bytes()].concat().into();
        notice
    }

    /// Drops what would confirm something to a leader that named no goal, also when one of another term has.
    pub fn hush(&self, messages: &mut Vec<Message>) {
        if self.in_doubt() {
            let certain = self.goal.map(|goal| goal.term);
            messages.retain(|message| !confirms(message) || Some(message.term) == certain);
        }
    }

    /// Notes the vote that this member may have given and lost, before it may vote again: another one in the same term would
    /// be a second.
    pub fn keep_vote(&mut self) {
        let raft = &mut self.node.raft;
        let is_led = self.goal.is_some_and(|goal| goal.term == raft.term) && raft.leader_id != INVALID_ID;
        if self.standing == Standing::Doubtful && is_led && raft.vote == INVALID_ID {
            raft.vote = raft.leader_id;
        }
    }

    /// At the leader: takes a notice. Whether raft-rs need not see the message.
    pub fn take_notice(&mut self, message: &mut Message) -> bool {
        let Some(life) = life_in(message) else { return false };
        message.context.clear();
        if !self.is_leader() || message.term != self.node.raft.term {
            return true;
        }
        let Some(progress) = self.node.raft.mut_prs().get_mut(message.from) else { return true };
        if progress.matched > message.index {
            progress.matched = message.index;
            if progress.state == ProgressState::Replicate {
                progress.become_probe();
            }
        }
        let matched = progress.matched;
        self.heard.insert(message.from, self.ticks);
        let Some(goal) = self.goal_of(message.from, life) else { return true };
        let mut answer = Message::default();
        answer.set_msg_type(MessageType::MsgHeartbeat);
        (answer.from, answer.to, answer.term) = (self.member, message.from, message.term);
        answer.commit = matched.min(self.node.raft.raft_log.committed);
        answer.context = [MARK, &life.to_be_bytes(), &goal.to_be_bytes()].concat().into();
        if message.reject {
            self.notices.push(answer);
        }
        message.reject
    }

    /// The goal of a member in doubt, once there is one.
    fn goal_of(&mut self, member: u64, life: u64) -> Option<u64> {
        let raft = &self.node.raft;
        let (term, last, committed) = (raft.term, raft.raft_log.last_index(), raft.raft_log.committed);
        if self.cases.term != term {
            self.cases = Cases { term, of: BTreeMap::new() };
        }
        let granted = self.grants.electors.has(term, member, life);
        let first = Case { after: last, goal: granted.then_some(last) };
        if !self.cases.of.contains_key(&(member, life)) && self.snapshots_sent.remove(&member).is_some() {
            // It went to an earlier life, which will not answer.
            self.node.report_snapshot(member, SnapshotStatus::Failure);
        }
        let case = self.cases.of.entry((member, life)).or_insert(first);
        if case.goal.is_none() && committed > case.after {
            case.goal = Some(case.after + 1);
        }
        let goal = case.goal;
        if goal.is_none() && case.after == last {
            // Refused while the leadership is being handed over: the next notice asks again.
            let _ = self.node.propose(Vec::new(), Vec::new());
        }
        goal
    }

    /// At the leader: whether a member is known to be in doubt, and did not say yet that it has reached its goal.
    pub fn doubts(&self, member: u64) -> bool {
        let raft = &self.node.raft;
        let committed = raft.prs().get(member).map_or(0, |progress| progress.committed_index);
        let cases = self.cases.of.range((member, 0)..=(member, u64::MAX));
        self.is_leader()
            && self.cases.term == raft.term
            && cases.into_iter().any(|(_, case)| committed < case.goal.unwrap_or(case.after + 1))
    }

    /// Ends the doubt: at a leader, whom every voter granted; at others once they have reached their goal.
    pub fn lift_doubt(&mut self, ops: &mut Vec<Op>) {
        if !self.in_doubt() {
            return;
        }
        let term = self.node.raft.term;
        let has_voted = self.node.raft.vote != INVALID_ID;
        let reached = has_voted && self.goal.is_some_and(|goal| goal.term == term && goal.index <= self.applied);
        if reached || self.is_leader() {
            self.standing = Standing::Full;
            self.goal = None;
            ops.push(Op::Identity { group: self.id, member: self.member, standing: Standing::Full });
        }
    }
}

/// Whether a message says that entries are here, or that its receiver leads. An answer without an index only tells a former
/// leader of a newer term.
fn confirms(message: &Message) -> bool {
    match message.get_msg_type() {
        MessageType::MsgHeartbeatResponse => true,
        MessageType::MsgAppendResponse => message.index > 0 || message.reject,
        _ => false,
    }
}

/// The life of the member that a notice is from, if the message is one.
fn life_in(message: &Message) -> Option<u64> {
    let is_answer = message.get_msg_type() == MessageType::MsgAppendResponse;
    let mut life = message.context.strip_prefix(MARK).filter(|life| is_answer && life.len() == 8)?;
    Some(life.get_u64())
}

/// Takes the goal out of a leader's message: whose it is (a life), and the index.
fn take_goal(message: &mut Message) -> Option<(u64, u64)> {
    let mut rest = message.context.strip_prefix(MARK).filter(|rest| rest.len() == 16)?;
    let goal = (rest.get_u64(), rest.get_u64());
    message.context.clear();
    Some(goal)
}
