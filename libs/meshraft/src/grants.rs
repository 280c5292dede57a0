//! Elections with members *in doubt* (`doubt`): which grants a candidate may count.
//!
//! A grant that a member gives in doubt is marked, and counts only together with the grants of all voters: then the longest
//! valid log wins. That holds only for grants given after the damage. One from before may come late, and whoever gave it may have
//! led meanwhile with entries that the damaged member confirmed and lost. So
//!
//! * a marked grant names its giver's *life* (opening of the group), and counts only if the pre-vote of the same candidacy
//!   came from that life: the votes of all others were asked for after that, and so given after the damage;
//! * a candidate in doubt names its own life when it asks, and counts only grants that name it too: what it has forgotten
//!   it may have asked for in the same term.
//!
//! Known gap: all voters are those of the applied configuration, see "known gaps" in docs/design/streams.md.
//!
//! Whom all voters elected so may trust the members in doubt that granted it: none of them voted for, or followed, anybody
//! in a higher term, because that one would not have granted. Source: Protocol-Aware Recovery (FAST 2018), §3.4; docs/design/streams.md.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes};
use raft::eraftpb::{Message, MessageType};
use raft::StateRole;

use crate::doubt::MARK;
use crate::group::Group;

/// What requests and grants say of doubt: the life of the member in doubt that sends, and that of the one that asked; 0 for
/// members that are not.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    own: u64,
    asked: u64,
}

impl Stamp {
    /// Takes the stamp off a message.
    fn take(message: &mut Message) -> Stamp {
        let Some(mut rest) = message.context.strip_prefix(MARK).filter(|rest| rest.len() == 16) else {
            return Stamp::default();
        };
        let stamp = Stamp { own: rest.get_u64(), asked: rest.get_u64() };
        message.context.clear();
        stamp
    }

    fn context(self) -> Bytes {
        if self == Stamp::default() {
            return Bytes::new();
        }
        [MARK, &self.own.to_be_bytes(), &self.asked.to_be_bytes()].concat().into()
    }
}

/// Members in doubt, by their lives, in one term.
#[derive(Debug, Default)]
pub struct Lives {
    term: u64,
    of: BTreeMap<u64, u64>,
}

impl Lives {
    fn note(&mut self, term: u64, member: u64, life: u64) {
        if self.term != term {
            *self = Lives { term, of: BTreeMap::new() };
        }
        self.of.insert(member, life);
    }

    pub fn has(&self, term: u64, member: u64, life: u64) -> bool {
        self.term == term && self.of.get(&member) == Some(&life)
    }
}

/// A member's part in elections, as far as members in doubt take part in them.
#[derive(Debug, Default)]
pub struct Grants {
    /// The candidacy that is counted: pre-votes and votes of different terms never mix.
    of: Option<(MessageType, u64)>,
    /// Who granted, and the grants that wait for all others.
    granted: BTreeMap<u64, Option<Message>>,
    /// The lives of those that granted in doubt.
    marked: BTreeMap<u64, u64>,
    /// Who in doubt granted the pre-vote.
    known: Lives,
    /// Who in doubt granted the vote of this leader, as all others did.
    pub electors: Lives,
}

impl Group {
    /// Stamps what this member asks for in doubt.
    pub fn stamp_requests(&self, messages: &mut [Message]) {
        if !self.in_doubt() {
            return;
        }
        for message in messages.iter_mut().filter(|message| message.get_msg_type() == MessageType::MsgRequestVote) {
            message.context = Stamp { own: self.life, asked: 0 }.context();
        }
    }

    /// Stamps what this member has just granted, the messages behind the first `before`. Not later: two requests of one
    /// candidate, from before and after its damage, may come in one turn.
    pub fn stamp_grants(&mut self, before: usize, asked: u64) {
        let own = if self.in_doubt() { self.life } else { 0 };
        for message in self.node.raft.msgs.iter_mut().skip(before).filter(|message| is_grant(message)) {
            message.context = Stamp { own, asked }.context();
        }
    }

    /// Takes a grant; returns those to be counted now.
    pub fn weigh_grant(&mut self, mut message: Message) -> Vec<Message> {
        let stamp = Stamp::take(&mut message);
        let (kind, term, from) = (message.get_msg_type(), message.term, message.from);
        let raft = &self.node.raft;
        let is_vote = kind == MessageType::MsgRequestVoteResponse;
        let is_current = match raft.state {
            StateRole::PreCandidate => !is_vote && term == raft.term + 1,
            StateRole::Candidate => is_vote && term == raft.term,
            _ => false,
        };
        if !is_current {
            // Nothing is counted any more, but an unmarked one may still say something to raft-rs.
            return if stamp.own == 0 { vec![message] } else { Vec::new() };
        }
        if is_vote && self.in_doubt() && stamp.asked != self.life {
            return Vec::new();
        }
        if is_vote && stamp.own != 0 && !self.grants.known.has(term, from, stamp.own) {
            return Vec::new();
        }
        if self.grants.of != Some((kind, term)) {
            (self.grants.of, self.grants.granted, self.grants.marked) =
                (Some((kind, term)), BTreeMap::new(), BTreeMap::new());
        }
        self.grants.marked.remove(&from);
        if stamp.own != 0 {
            self.grants.marked.insert(from, stamp.own);
            if !is_vote {
                self.grants.known.note(term, from, stamp.own);
            }
        }
        let counts = stamp.own == 0 && !self.in_doubt();
        let mut ready = if counts { vec![message.clone()] } else { Vec::new() };
        self.grants.granted.insert(from, (!counts).then_some(message));
        let own = self.member;
        let granted = &self.grants.granted;
        if self.conf().voters.iter().all(|voter| *voter == own || granted.contains_key(voter)) {
            if is_vote {
                self.grants.marked.iter().for_each(|(from, life)| self.grants.electors.note(term, *from, *life));
            }
            ready.extend(self.grants.granted.values_mut().filter_map(Option::take));
        }
        ready
    }
}

/// Takes from a request for a vote which life of a candidate in doubt asks; 0 for a candidate that is not.
pub fn take_request(message: &mut Message) -> u64 {
    if message.get_msg_type() == MessageType::MsgRequestVote {
        Stamp::take(message).own
    } else {
        0
    }
}

pub fn is_grant(message: &Message) -> bool {
    use MessageType::{MsgRequestPreVoteResponse, MsgRequestVoteResponse};
    !message.reject && matches!(message.get_msg_type(), MsgRequestPreVoteResponse | MsgRequestVoteResponse)
}
