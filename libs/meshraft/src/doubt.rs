//! A member whose log was cut at damage: what it confirmed and voted may be gone, so for a while it is *in doubt*.
//!
//! With an intact quorum it takes no part in elections: its grants are marked, and a candidate counts a marked grant only
//! when every voter has granted. So without an intact quorum the member with the longest valid log wins, once all of them
//! answer, at a term above all that they know; until then the group waits.
//!
//! What is left of its log beyond its commit index may be a tail that had been overwritten, and whose overwriting was lost: it
//! counts only as far as appends of the present leader have matched it.
//!
//! A leader is told by a *notice* (a rejection with the mark) up to where the member's log is surely its own: it forgets what
//! the member had confirmed beyond, sends it again, and names its own last index. Once the member has applied that, in the same term,
//! everything that it may have confirmed and lost is behind it, and it votes again.
//!
//! Left out: members that begin blank (`Group::earn_vote`), which never stand in for a vote.
//! Source: Alagappan et al., Protocol-Aware Recovery (FAST 2018), §3.3–3.4; Ongaro's thesis §11.7.2.

use std::collections::BTreeMap;

use bytes::Bytes;
use raft::eraftpb::{Message, MessageType};
use raft::{ProgressState, StateRole};

use crate::group::Group;
use crate::log::{Op, Standing};

/// Begins the context of marked messages. Those of reads are of another length.
const MARK: &[u8] = b"doubt";

/// The leader's last index when it learnt of the doubt, and its term.
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

/// Grants of one candidacy.
#[derive(Debug, Default)]
pub struct Grants {
    /// Pre-votes and votes of different terms never mix.
    of: Option<(MessageType, u64)>,
    granted: BTreeMap<u64, Option<Message>>,
}

impl Group {
    pub fn in_doubt(&self) -> bool {
        self.standing == Standing::Doubtful
    }

    /// Whether elections are this member's business. One in doubt has to know everybody whom the catalogue names: the
    /// change that took the missing one in may be what was lost.
    pub fn takes_part(&self) -> bool {
        match self.standing {
            Standing::Full => true,
            Standing::Blank => false,
            Standing::Doubtful => {
                let conf = self.conf();
                self.named.iter().all(|member| conf.voters.contains(member) || conf.learners.contains(member))
            }
        }
    }

    /// Whom a group without a leader waits for: voters, and members named at the opening, not heard for a while.
    pub fn silent(&self) -> Vec<u64> {
        if self.node.raft.leader_id != raft::INVALID_ID {
            return Vec::new();
        }
        let patience = 4 * self.settings.election_ticks as u64;
        let is_heard = |member: &u64| self.heard.get(member).is_some_and(|at| self.ticks - at <= patience);
        let mut silent = self.conf().voters.clone();
        silent.extend(self.named.iter().filter(|_| self.in_doubt()));
        silent.retain(|member| *member != self.member && !is_heard(member));
        silent.sort_unstable();
        silent.dedup();
        silent
    }

    /// Marks the grants that this member gives while it is in doubt.
    pub fn mark_grants(&self, messages: &mut [Message]) {
        if self.in_doubt() {
            for message in messages.iter_mut().filter(|message| is_grant(message)) {
                message.context = Bytes::from_static(MARK);
            }
        }
    }

    /// Takes a grant; returns those to be counted now.
    pub fn weigh_grant(&mut self, mut message: Message) -> Vec<Message> {
        let (kind, term) = (message.get_msg_type(), message.term);
        let raft = &self.node.raft;
        let is_current = match raft.state {
            StateRole::PreCandidate => kind == MessageType::MsgRequestPreVoteResponse && term == raft.term + 1,
            StateRole::Candidate => kind == MessageType::MsgRequestVoteResponse && term == raft.term,
            _ => false,
        };
        let is_marked = !message.take_context().is_empty();
        if !is_current {
            // Nothing is counted any more, but an unmarked one may still say something to raft-rs.
            return if is_marked { Vec::new() } else { vec![message] };
        }
        if self.grants.of != Some((kind, term)) {
            self.grants = Grants { of: Some((kind, term)), granted: BTreeMap::new() };
        }
        let from = message.from;
        let counts = !is_marked && !self.in_doubt();
        let mut ready = if counts { vec![message.clone()] } else { Vec::new() };
        self.grants.granted.insert(from, (!counts).then_some(message));
        let own = self.member;
        let granted = &self.grants.granted;
        if self.conf().voters.iter().all(|voter| *voter == own || granted.contains_key(voter)) {
            ready.extend(self.grants.granted.values_mut().filter_map(Option::take));
        }
        ready
    }

    /// What a member in doubt makes of its leader's message before raft-rs sees it.
    pub fn hear_leader(&mut self, message: &mut Message) {
        let kind = message.get_msg_type();
        if !matches!(kind, MessageType::MsgHeartbeat | MessageType::MsgAppend) {
            return;
        }
        let goal = parse_goal(message);
        if goal.is_some() {
            message.context.clear();
        }
        if !self.in_doubt() || message.term < self.node.raft.term {
            return;
        }
        self.goal = goal.or(self.goal.filter(|goal| goal.term == message.term));
        let log = &self.node.raft.raft_log;
        let has = log.committed.min(log.persisted);
        if self.verified.term != message.term {
            self.verified = Verified { term: message.term, index: 0 };
        }
        if kind == MessageType::MsgHeartbeat {
            // The leader may count on what was confirmed here and is lost, also in a heartbeat that was long on its way.
            message.commit = message.commit.min(log.committed.max(self.verified.index));
        } else if message.index >= log.committed && log.match_term(message.index, message.log_term) {
            let end = message.index + message.entries.len() as u64;
            self.verified.index = self.verified.index.max(end);
        }
        if self.goal.is_none() {
            let mut notice = Message::default();
            notice.set_msg_type(MessageType::MsgAppendResponse);
            (notice.from, notice.to, notice.term) = (self.member, message.from, message.term);
            (notice.reject, notice.index, notice.reject_hint) = (true, has, has);
            notice.context = Bytes::from_static(MARK);
            self.notices.push(notice);
        }
    }

    /// At the leader: takes a notice. Whether the message was one.
    pub fn take_notice(&mut self, message: &Message) -> bool {
        if message.get_msg_type() != MessageType::MsgAppendResponse || message.context.as_ref() != MARK {
            return false;
        }
        if !self.is_leader() || message.term != self.node.raft.term {
            return true;
        }
        let last = self.node.raft.raft_log.last_index();
        let Some(progress) = self.node.raft.mut_prs().get_mut(message.from) else { return true };
        progress.recent_active = true;
        if progress.matched > message.reject_hint {
            progress.matched = message.reject_hint;
            if progress.state == ProgressState::Replicate {
                progress.become_probe();
            }
        }
        let mut answer = Message::default();
        answer.set_msg_type(MessageType::MsgHeartbeat);
        (answer.from, answer.to, answer.term) = (self.member, message.from, message.term);
        answer.commit = progress.matched.min(self.node.raft.raft_log.committed);
        answer.context = [MARK, &last.to_be_bytes()].concat().into();
        self.heard.insert(message.from, self.ticks);
        self.notices.push(answer);
        true
    }

    /// Ends the doubt: at a leader, whom every voter granted; at others once they have reached their goal.
    pub fn lift_doubt(&mut self, ops: &mut Vec<Op>) {
        if !self.in_doubt() {
            return;
        }
        let term = self.node.raft.term;
        let reached = self.goal.is_some_and(|goal| goal.term == term && goal.index <= self.applied);
        if reached || self.is_leader() {
            self.standing = Standing::Full;
            self.goal = None;
            ops.push(Op::Identity { group: self.id, member: self.member, standing: Standing::Full });
        }
    }
}

pub fn is_grant(message: &Message) -> bool {
    use MessageType::{MsgRequestPreVoteResponse, MsgRequestVoteResponse};
    !message.reject && matches!(message.get_msg_type(), MsgRequestPreVoteResponse | MsgRequestVoteResponse)
}

fn parse_goal(message: &Message) -> Option<Goal> {
    let index = message.context.strip_prefix(MARK)?.try_into().ok()?;
    Some(Goal { term: message.term, index: u64::from_be_bytes(index) })
}
