//! How a lone voter *in doubt* comes to lead, and how candidates in doubt get back what others hold who cannot stand.
//!
//! Raft-rs would let it elect itself at once, though it may have forgotten other voters, and what late letters of its former lives
//! still tell to learners. So it *canvasses*: asks the whole electorate (`electorate`) first in advance, then for votes, and
//! leads when it has them all. Its term is a leap above all that it knows: terms in which it led alone, and which it
//! forgot, nobody else may have heard of, and a term must not be led twice. Others refuse terms that they know. A member in doubt
//! that has no vote at all, for what it knows, asks in advance too: it may have forgotten its own promotion.
//!
//! A member that cannot stand itself, a learner say, may hold more than the candidate. It *shares* that instead of granting, if the
//! candidate is in doubt or asks widely: for the life, the term and the log that asked, so that nothing old is taken. The
//! candidate takes it as from a leader, and asks anew. What is shared is a log that wins by its last term and index, so that the
//! longest valid log wins here too; of another one only what is known to be committed.
//! Source: Protocol-Aware Recovery (FAST 2018), §3.4; docs/design/streams.md, "A damaged log".

use raft::eraftpb::{Message, MessageType};
use raft::{GetEntriesContext, StateRole, INVALID_ID};

use crate::errors::Fault;
use crate::grants::Stamp;
use crate::group::{join_snapshot, Group};

/// Begins the context of entries and snapshots that do not come from a leader.
const SHARE: &[u8] = b"share";
/// A lone voter in doubt leaps over at least so many terms, and at most twice as many. More than it can have led alone in
/// letters that are still on their way, and few enough for `admission`'s bound.
const LEAP: u64 = 1 << 16;
/// A canvass that is not answered in time waits longer the next time, at most this many times its patience.
const PATIENCE_MAX: u64 = 8;

/// When a member asks the others again, or a lone one in doubt at all.
#[derive(Debug, Default)]
pub struct Canvass {
    /// As soon as its log is durable.
    pub is_due: bool,
    asked_at: u64,
    tries: u64,
}

impl Group {
    /// Whether this member in doubt knows of no other voter, or not even of its own vote: it may have forgotten them.
    pub fn is_lone_in_doubt(&self) -> bool {
        let is_only_voter = || self.conf().voters == [self.member];
        self.in_doubt() && !self.is_leader() && (!self.is_voter() || is_only_voter())
    }

    /// The term for which this member asks in advance, or as a lone voter for votes.
    pub fn next_term(&self) -> u64 {
        let next = self.node.raft.term + 1;
        if self.is_lone_in_doubt() {
            // Another one in each life: what a former one led may be forgotten too.
            next + LEAP + (self.life.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - LEAP.trailing_zeros()))
        } else {
            next
        }
    }

    /// A tick of a lone voter in doubt, in place of raft-rs's.
    pub fn tick_alone(&mut self) {
        let raft = &self.node.raft;
        if raft.leader_id != INVALID_ID && !self.hears_a_leader() {
            // Its lease ends, which raft-rs would have counted.
            self.node.raft.become_follower(self.node.raft.term, INVALID_ID);
        }
        let timeout = self.timeouts.at(self.node.raft.term, StateRole::Follower) as u64;
        let patience = timeout * self.canvass.tries.clamp(1, PATIENCE_MAX);
        if self.node.raft.leader_id == INVALID_ID && self.ticks - self.canvass.asked_at >= patience {
            self.canvass.is_due = true;
        }
    }

    /// Asks everybody whether this member may lead, when it is time; a lone voter that has to ask nobody leads.
    pub fn canvass(&mut self) {
        self.canvass.is_due &= !self.is_leader() && self.node.raft.leader_id == INVALID_ID;
        if !self.canvass.is_due || !self.is_durable() {
            return;
        }
        self.canvass.is_due = false;
        if !self.is_lone_in_doubt() {
            if self.is_voter() {
                let _ = self.node.campaign();
            }
            return;
        }
        self.canvass.tries += 1;
        self.canvass.asked_at = self.ticks;
        let term = self.next_term();
        self.grants.begin(MessageType::MsgRequestPreVoteResponse, term);
        if self.electorate().is_some_and(|electorate| electorate.is_empty()) {
            self.stand_alone();
        } else {
            self.ask_widely(MessageType::MsgRequestPreVote, term);
        }
    }

    /// What a lone voter does when everybody has granted: asks for votes, or leads.
    pub fn go_on_alone(&mut self, is_vote: bool, term: u64) {
        if is_vote {
            self.stand_alone();
        } else if self.is_voter() {
            self.canvass.asked_at = self.ticks;
            self.grants.begin(MessageType::MsgRequestVoteResponse, term);
            self.ask_widely(MessageType::MsgRequestVote, term);
        }
    }

    fn ask_widely(&mut self, kind: MessageType, term: u64) {
        let requests = self.wide_requests(kind, term);
        self.notices.extend(requests);
    }

    /// Elects this lone voter, if it is one.
    fn stand_alone(&mut self) {
        if !self.is_voter() {
            return;
        }
        if !self.is_durable() {
            self.canvass.is_due = true;
            return;
        }
        self.node.raft.become_follower(self.next_term() - 1, INVALID_ID);
        // Refused while changes are committed and not applied: the next canvass tries again.
        let _ = self.node.campaign();
    }

    /// Whether this member would lead at once if it stood, with a log that is not durable: raft-rs panics then.
    pub fn must_write_first(&self) -> bool {
        !self.is_leader() && self.conf().voters == [self.member] && !self.is_durable()
    }

    fn is_durable(&self) -> bool {
        self.node.raft.raft_log.persisted == self.node.raft.raft_log.last_index()
    }

    /// Answers a request for a vote instead of raft-rs, if it says something of doubt: refuses a candidate in doubt a term that is
    /// known here, which it may have led and forgotten, or shares. Whether that is all.
    pub fn answers_by_itself(&mut self, request: &Message, stamp: Stamp) -> bool {
        let (term, is_vote) = (self.node.raft.term, request.get_msg_type() == MessageType::MsgRequestVote);
        if stamp.own == 0 && stamp.wide == 0 {
            return false;
        }
        if stamp.own == 0 || request.term > term {
            return !is_vote && self.share_with(request, stamp.own.max(stamp.wide));
        }
        // A vote in this very term may be one that was given to it already: no answer can be right.
        if !is_vote {
            let mut refusal = Message::default();
            refusal.set_msg_type(MessageType::MsgRequestPreVoteResponse);
            (refusal.from, refusal.to, refusal.term, refusal.reject) = (self.member, request.from, term, true);
            self.notices.push(refusal);
        }
        true
    }

    /// Sends a candidate what the log here has more than its own, or knows to be committed, if this member cannot stand itself;
    /// whether there is any.
    fn share_with(&mut self, request: &Message, life: u64) -> bool {
        let log = &self.node.raft.raft_log;
        let (last, last_term) = (log.last_index(), log.last_term());
        let is_longer = (last_term, last) > (request.log_term, request.index);
        // A tail that lacks what the candidate knows to be committed was written by nobody who could lead.
        let agrees = log.committed >= request.commit || log.match_term(request.commit, request.commit_term);
        let has_more = agrees && is_longer || log.committed > request.commit;
        if self.is_voter() || self.hears_a_leader() || self.installing.is_some() || !has_more {
            return false;
        }
        let is_common = log.match_term(request.index, request.log_term);
        let from = if is_common { request.index } else { request.commit };
        // A tail that is not the longer one must not take the place of what the candidate holds.
        let end = if is_longer { last } else { log.committed.max(from) };
        let mut share = Message::default();
        (share.from, share.to, share.term) = (self.member, request.from, self.node.raft.term);
        let asked = [life, request.term, request.log_term, request.index, request.commit];
        share.context = [SHARE, &asked.map(u64::to_be_bytes).concat()].concat().into();
        if from + 1 < log.first_index() {
            share.set_msg_type(MessageType::MsgSnapshot);
            share.set_snapshot(self.node.store().snapshot_ref().clone());
        } else {
            let bytes = self.settings.max_bytes_per_append;
            let (Ok(log_term), true) = (log.term(from), from <= last) else { return false };
            let Ok(entries) = log.slice(from + 1, end + 1, bytes, GetEntriesContext::empty(false)) else {
                return false;
            };
            share.set_msg_type(MessageType::MsgAppend);
            (share.index, share.log_term) = (from, log_term);
            (share.entries, share.commit) = (entries.into(), log.committed);
        }
        self.notices.push(share);
        true
    }

    /// Takes what somebody shares, if this member would still ask for it with the same words, and asks again if it was news.
    /// Others may have refused meanwhile, so that it does not stand any more.
    pub fn take_share(&mut self, mut message: Message) -> Result<(), Fault> {
        let raft = &self.node.raft;
        let log = &raft.raft_log;
        let asked = [self.life, self.next_term(), log.last_term(), log.last_index(), log.committed];
        let is_free = raft.leader_id == INVALID_ID && self.installing.is_none();
        if !is_free || message.context[SHARE.len()..] != asked.map(u64::to_be_bytes).concat() {
            return Ok(());
        }
        message.context.clear();
        message.term = message.term.max(raft.term);
        let extent = |group: &Group| {
            let log = &group.node.raft.raft_log;
            (log.committed, log.last_term(), log.last_index())
        };
        let before = extent(self);
        let joined = join_snapshot(&mut message, self.member);
        self.node.raft.step(message).map_err(|e| Fault::InvalidFrame(e.to_string()))?;
        // Raft-rs took the sender for its leader.
        self.node.raft.become_follower(self.node.raft.term, INVALID_ID);
        self.note_joining(joined);
        self.settle_timeout();
        if extent(self) != before {
            (self.canvass.is_due, self.canvass.tries) = (true, 0);
        }
        Ok(())
    }
}

/// Whether a message is what somebody shares.
pub fn is_share(message: &Message) -> bool {
    message.context.starts_with(SHARE)
        && matches!(message.get_msg_type(), MessageType::MsgAppend | MessageType::MsgSnapshot)
}
