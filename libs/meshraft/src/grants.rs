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
    /// Who in doubt granted the pre-vote.
    known: Lives,
    /// Who in doubt granted the vote, and was counted.
    pub electors: Lives,
    /// Candidates in doubt that asked for the vote here: the term, and their life.
    asked: BTreeMap<u64, (u64, u64)>,
}

impl Group {
    /// Stamps what this member asks for in doubt, and what it grants in doubt or to a candidate in doubt.
    pub fn stamp(&self, messages: &mut [Message]) {
        let own = if self.in_doubt() { self.life } else { 0 };
        for message in messages {
            if is_grant(message) {
                let asked = self.grants.asked.get(&message.to).filter(|(term, _)| *term == message.term);
                message.context = Stamp { own, asked: asked.map_or(0, |(_, life)| *life) }.context();
            } else if own != 0 && message.get_msg_type() == MessageType::MsgRequestVote {
                message.context = Stamp { own, asked: 0 }.context();
            }
        }
    }

    /// Notes which life of a candidate in doubt asks. What comes with an old term is answered by nobody.
    pub fn take_request(&mut self, message: &mut Message) {
        if message.get_msg_type() != MessageType::MsgRequestVote {
            return;
        }
        let stamp = Stamp::take(message);
        if message.term < self.node.raft.term {
            return;
        }
        if stamp.own == 0 {
            self.grants.asked.remove(&message.from);
        } else {
            self.grants.asked.insert(message.from, (message.term, stamp.own));
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
            (self.grants.of, self.grants.granted) = (Some((kind, term)), BTreeMap::new());
        }
        if stamp.own != 0 {
            let lives = if is_vote { &mut self.grants.electors } else { &mut self.grants.known };
            lives.note(term, from, stamp.own);
        }
        let counts = stamp.own == 0 && !self.in_doubt();
        let mut ready = if counts { vec![message.clone()] } else { Vec::new() };
        self.grants.granted.insert(from, (!counts).then_some(message));
        let own = self.member;
        let granted = &self.grants.granted;
        if self.conf().voters.iter().all(|voter| *voter == own || granted.contains_key(voter)) {
            ready.extend(self.grants.granted.values_mut().filter_map(Option::take));
        }
        ready
    }
}

pub fn is_grant(message: &Message) -> bool {
    use MessageType::{MsgRequestPreVoteResponse, MsgRequestVoteResponse};
    !message.reject && matches!(message.get_msg_type(), MsgRequestPreVoteResponse | MsgRequestVoteResponse)
}
