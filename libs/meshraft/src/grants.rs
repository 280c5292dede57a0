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
//! A marked grant also tells where its giver's caller knows members: whoever it took in, and forgot, may be among them.
//!
//! Who all voters are, with changes of the membership under way or forgotten, is told by `electorate`.
//!
//! Whom all voters elected so may trust the members in doubt that granted it: none of them voted for, or followed, anybody
//! in a higher term, because that one would not have granted. Source: Protocol-Aware Recovery (FAST 2018), §3.4; docs/design/streams.md.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, Bytes};
use raft::eraftpb::{Message, MessageType};
use raft::StateRole;

use crate::doubt::MARK;
use crate::group::Group;
use crate::log::Standing;

/// What requests and grants say of doubt: the life of the member in doubt that sends, and that of the one that asked; 0 for
/// members that are not.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    pub own: u64,
    pub asked: u64,
    /// The candidate's life in a *wide* request: to one that is no voter, as far as it knows. Else 0.
    pub wide: u64,
}

/// Where a member is; 0 if its id is not known.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub member: u64,
    pub node: u64,
}

impl Stamp {
    /// Takes the stamp off a message, and the places behind it. None if it has one that cannot be read: who takes a grant in doubt
    /// for another one counts too much.
    fn take(message: &mut Message) -> Option<(Stamp, Vec<Place>)> {
        let Some(mut rest) = message.context.strip_prefix(MARK) else {
            return Some((Stamp::default(), Vec::new()));
        };
        if rest.len() < 24 || (rest.len() - 24) % 16 != 0 {
            return None;
        }
        let stamp = Stamp { own: rest.get_u64(), asked: rest.get_u64(), wide: rest.get_u64() };
        let mut places = Vec::with_capacity(rest.len() / 16);
        while rest.has_remaining() {
            places.push(Place { member: rest.get_u64(), node: rest.get_u64() });
        }
        message.context.clear();
        Some((stamp, places))
    }

    pub fn context(self) -> Bytes {
        if self == Stamp::default() {
            return Bytes::new();
        }
        [MARK, &self.own.to_be_bytes(), &self.asked.to_be_bytes(), &self.wide.to_be_bytes()].concat().into()
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

    fn has_some(&self, term: u64) -> bool {
        self.term == term && !self.of.is_empty()
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
    /// Who in doubt granted the pre-vote, and what each of them told last of where members are.
    known: Lives,
    told: BTreeMap<u64, Vec<Place>>,
    /// Who in doubt granted the vote of this leader, as all others did.
    pub electors: Lives,
}

impl Grants {
    /// Begins to count, unless that candidacy is counted already.
    fn turn_to(&mut self, kind: MessageType, term: u64) {
        if !self.counts(kind, term) {
            self.begin(kind, term);
        }
    }

    pub fn counts(&self, kind: MessageType, term: u64) -> bool {
        self.of == Some((kind, term))
    }

    pub fn begin(&mut self, kind: MessageType, term: u64) {
        self.of = Some((kind, term));
        self.granted.clear();
        self.marked.clear();
    }

    /// Whether a member has granted what is counted.
    pub fn has(&self, member: u64) -> bool {
        self.granted.contains_key(&member)
    }
}

impl Group {
    /// Whether somebody in doubt granted this candidate in advance, so that the whole electorate has to.
    pub fn counts_doubt(&self) -> bool {
        self.is_candidate() && [0, 1].iter().any(|more| self.grants.known.has_some(self.node.raft.term + more))
    }

    /// Stamps what this member asks for in doubt, and asks the rest of the electorate too where grants in doubt count.
    pub fn stamp_requests(&self, messages: &mut Vec<Message>) {
        let is_request = |message: &Message| is_request(message) && message.context.is_empty();
        let Some((kind, term)) = messages.iter().find(|m| is_request(m)).map(|m| (m.get_msg_type(), m.term)) else {
            return;
        };
        let stamp = match self.in_doubt() {
            true => Stamp { own: self.life, ..Stamp::default() },
            // Who is a voter here may know that it is none any more.
            false if self.grants.known.has_some(term) => Stamp { wide: self.life, ..Stamp::default() },
            false => return,
        };
        messages.iter_mut().filter(|m| is_request(m)).for_each(|message| message.context = stamp.context());
        messages.extend(self.wide_requests(kind, term));
    }

    /// Stamps what this member has just granted, the messages behind the first `before`. Not later: two requests of one
    /// candidate, from before and after its damage, may come in one turn.
    pub fn stamp_grants(&mut self, before: usize, asked: u64) {
        let own = if self.standing == Standing::Full { 0 } else { self.life };
        let mut context = Stamp { own, asked, ..Stamp::default() }.context().to_vec();
        if self.in_doubt() {
            let places = self.known_places();
            context.extend(places.iter().flat_map(|place| [place.member, place.node]).flat_map(u64::to_be_bytes));
        }
        let context = Bytes::from(context);
        for message in self.node.raft.msgs.iter_mut().skip(before).filter(|message| is_grant(message)) {
            message.context = context.clone();
        }
    }

    /// Takes a grant; returns those to be counted now.
    pub fn weigh_grant(&mut self, mut message: Message) -> Vec<Message> {
        let Some((stamp, places)) = Stamp::take(&mut message) else { return Vec::new() };
        let (kind, term, from) = (message.get_msg_type(), message.term, message.from);
        let raft = &self.node.raft;
        let is_vote = kind == MessageType::MsgRequestVoteResponse;
        let canvasses = self.is_lone_in_doubt();
        let is_current = match raft.state {
            _ if canvasses => term == self.next_term() && self.grants.counts(kind, term),
            StateRole::PreCandidate => !is_vote && term == raft.term + 1,
            StateRole::Candidate => is_vote && term == raft.term,
            StateRole::Follower | StateRole::Leader => false,
        };
        if !is_current {
            // Nothing is counted any more, but an unmarked one may still say something to raft-rs.
            return if stamp.own == 0 { vec![message] } else { Vec::new() };
        }
        if self.in_doubt() && stamp.asked != self.life {
            return Vec::new();
        }
        if is_vote && stamp.own != 0 && !self.grants.known.has(term, from, stamp.own) {
            return Vec::new();
        }
        self.grants.turn_to(kind, term);
        let is_news = self.note_mark(&message, stamp.own, places);
        let counts = stamp.own == 0 && !self.in_doubt();
        let mut ready = if counts { vec![message.clone()] } else { Vec::new() };
        self.grants.granted.insert(from, (!counts).then_some(message));
        if !self.in_doubt() && self.grants.marked.is_empty() {
            return ready;
        }
        if is_news && !is_vote && !self.in_doubt() {
            let requests = self.wide_requests(MessageType::MsgRequestPreVote, term);
            self.notices.extend(requests);
        }
        if self.has_all_grants() {
            if is_vote {
                self.grants.marked.iter().for_each(|(from, life)| self.grants.electors.note(term, *from, *life));
            }
            ready.extend(self.grants.granted.values_mut().filter_map(Option::take));
            if canvasses {
                ready.clear();
                self.go_on_alone(is_vote, term);
            }
        }
        ready
    }

    fn has_all_grants(&self) -> bool {
        let has_all = |members: &BTreeSet<u64>| members.iter().all(|member| self.grants.has(*member));
        self.electorate().is_some_and(|electorate| electorate.strangers.is_empty() && has_all(&electorate.members))
    }

    /// Where members may be, as far as those in doubt know that granted this candidate.
    pub fn told_in_doubt(&self) -> impl Iterator<Item = Place> + '_ {
        let told = self.counts_doubt().then_some(&self.grants.told);
        told.into_iter().flat_map(|told| told.values().flatten().copied())
    }

    /// Notes whether a grant was given in doubt; whether that is the first such in this candidacy.
    fn note_mark(&mut self, grant: &Message, own: u64, places: Vec<Place>) -> bool {
        let grants = &mut self.grants;
        let is_first = own != 0 && grants.marked.is_empty();
        grants.marked.remove(&grant.from);
        if own != 0 {
            grants.marked.insert(grant.from, own);
            if grant.get_msg_type() == MessageType::MsgRequestPreVoteResponse {
                if !grants.known.has_some(grant.term) {
                    grants.told.clear();
                }
                grants.known.note(grant.term, grant.from, own);
                grants.told.insert(grant.from, places);
            }
        }
        is_first
    }
}

/// Takes from a request for a vote what it says of doubt; None if that cannot be read.
pub fn take_request(message: &mut Message) -> Option<Stamp> {
    if is_request(message) {
        Stamp::take(message).map(|(stamp, _)| stamp)
    } else {
        Some(Stamp::default())
    }
}

fn is_request(message: &Message) -> bool {
    matches!(message.get_msg_type(), MessageType::MsgRequestPreVote | MessageType::MsgRequestVote)
}

pub fn is_grant(message: &Message) -> bool {
    !message.reject && answers_request(message)
}

pub fn is_refusal(message: &Message) -> bool {
    message.reject && answers_request(message)
}

fn answers_request(message: &Message) -> bool {
    use MessageType::{MsgRequestPreVoteResponse, MsgRequestVoteResponse};
    matches!(message.get_msg_type(), MsgRequestPreVoteResponse | MsgRequestVoteResponse)
}
