//! Elections with members on probation, and the lone voter on probation (docs/design/recovery.md).
//!
//! Every vote response carries the incarnation of the candidate that asked and a digest of the voter's configuration. A
//! response of a member on probation, or of a blank one, is *provisional* and carries its incarnation too. Provisional
//! responses, and all responses to a candidate on probation, are withheld from raft-rs until every voter has granted
//! with the same configuration. A provisional vote counts only after a pre-vote of the same incarnation in the same
//! candidacy: then all votes were requested, and so granted, after the damage.
//!
//! Source: Alagappan et al., Protocol-Aware Recovery (FAST 2018), §3.4.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, Bytes};
use raft::eraftpb::{ConfState, Message, MessageType};
use raft::{Raft, StateRole};

use crate::store::Store;

/// Begins the context of vote responses, status reports and goals; the context of a read has another length. The bytes
/// are those of earlier versions.
pub const PROBATION_CONTEXT: &[u8] = b"doubt";
/// Begins the context of vote requests.
const VOTE_REQUEST_CONTEXT: &[u8] = b"vote";
/// A lone voter on probation leaps at least this many terms, and at most twice as many: more than it can have led alone
/// in messages that are still in flight, and few enough for `admission`.
const TERM_LEAP_MIN: u64 = 1 << 16;

/// What a voter adds to its vote response.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct VoteResponse {
    /// The voter's incarnation if the response is provisional, else 0.
    pub provisional: u64,
    /// The incarnation of the candidate that asked.
    pub candidate: u64,
    /// The digest of the voter's configuration; 0 while its log holds a change that is not applied.
    pub conf: u64,
}

impl VoteResponse {
    pub fn context(self) -> Bytes {
        [PROBATION_CONTEXT, &self.provisional.to_be_bytes(), &self.candidate.to_be_bytes(), &self.conf.to_be_bytes()]
            .concat()
            .into()
    }

    /// Takes the context off a response: zeros for one of an older version, None if it is malformed.
    fn take(message: &mut Message) -> Option<VoteResponse> {
        let context = std::mem::take(&mut message.context);
        let Some(mut rest) = context.strip_prefix(PROBATION_CONTEXT) else { return Some(VoteResponse::default()) };
        (rest.len() >= 24).then(|| VoteResponse {
            provisional: rest.get_u64(),
            candidate: rest.get_u64(),
            conf: rest.get_u64(),
        })
    }
}

/// What a candidate adds to its vote request.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct VoteRequest {
    pub incarnation: u64,
    pub is_on_probation: bool,
    /// It is the only voter, and asks its learners whether they hold a longer log.
    pub is_lone: bool,
}

impl VoteRequest {
    /// Adds the context to requests that have none.
    pub fn attach(self, messages: &mut [Message]) {
        for message in messages.iter_mut().filter(|message| is_request(message) && message.context.is_empty()) {
            let flags = u8::from(self.is_on_probation) | u8::from(self.is_lone) << 1;
            message.context = [VOTE_REQUEST_CONTEXT, &self.incarnation.to_be_bytes(), &[flags]].concat().into();
        }
    }

    /// Takes the context off a request: zeros for other messages, None if it is malformed.
    pub fn take(message: &mut Message) -> Option<VoteRequest> {
        let context = message.context.strip_prefix(VOTE_REQUEST_CONTEXT).filter(|_| is_request(message));
        let Some(mut rest) = context else { return Some(VoteRequest::default()) };
        let (incarnation, flags) = (rest.len() == 9).then(|| (rest.get_u64(), rest.get_u8()))?;
        message.context.clear();
        Some(VoteRequest { incarnation, is_on_probation: flags & 1 != 0, is_lone: flags & 2 != 0 })
    }

    /// Whether a member in `term` must refuse the request: a candidate on probation may have led that term and
    /// forgotten it. A pre-vote is refused with a response, so that the candidate learns the term.
    pub fn is_refused(self, request: &Message, term: u64) -> bool {
        self.is_on_probation && !self.is_lone && request.term <= term
    }
}

/// The refusal of a pre-vote, with the term; None for a vote request, which gets no response.
pub fn refusal(request: &Message, term: u64) -> Option<Message> {
    (request.get_msg_type() == MessageType::MsgRequestPreVote).then(|| {
        let mut refusal = Message::default();
        refusal.set_msg_type(MessageType::MsgRequestPreVoteResponse);
        (refusal.from, refusal.to, refusal.term, refusal.reject) = (request.to, request.from, term, true);
        refusal
    })
}

/// The digest of a configuration, on which all voters of an election with provisional votes must agree. Never 0.
pub fn digest(conf: &ConfState) -> u64 {
    let mut members: Vec<(bool, u64)> = conf.voters.iter().map(|voter| (true, *voter)).collect();
    members.extend(conf.learners.iter().map(|learner| (false, *learner)));
    members.sort_unstable();
    let numbers = members.iter().flat_map(|(is_voter, member)| [u64::from(*is_voter), *member]);
    let bytes = numbers.flat_map(u64::to_be_bytes);
    // FNV-1a is enough: a member that could forge it could forge the whole response.
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    hash.max(1)
}

/// Incarnations of members with provisional responses, in one term.
#[derive(Debug, Default)]
pub struct Incarnations {
    term: u64,
    of: BTreeMap<u64, u64>,
}

impl Incarnations {
    fn note(&mut self, term: u64, member: u64, incarnation: u64) {
        if self.term != term {
            *self = Incarnations { term, of: BTreeMap::new() };
        }
        self.of.insert(member, incarnation);
    }

    pub fn has(&self, term: u64, member: u64, incarnation: u64) -> bool {
        self.term == term && self.of.get(&member) == Some(&incarnation)
    }
}

/// The candidate, as far as its election needs to know it.
pub struct Candidate<'a> {
    pub raft: &'a Raft<Store>,
    pub incarnation: u64,
    pub is_on_probation: bool,
    pub voters: &'a [u64],
    pub conf: u64,
}

#[derive(Debug)]
struct Grant {
    response: VoteResponse,
    withheld: Option<Message>,
}

/// The grants of one candidacy: pre-votes and votes of different terms never mix.
#[derive(Debug, Default)]
pub struct VoteTally {
    candidacy: Option<(MessageType, u64)>,
    grants: BTreeMap<u64, Grant>,
    /// Members that granted a provisional pre-vote.
    pre_voters: Incarnations,
    /// Members whose provisional votes elected this leader, together with the votes of all others.
    pub electors: Incarnations,
}

impl VoteTally {
    /// Takes a grant; returns those that raft-rs may count now.
    pub fn record(&mut self, mut message: Message, me: &Candidate) -> Vec<Message> {
        let Some(response) = VoteResponse::take(&mut message) else { return Vec::new() };
        let (kind, term, from) = (message.get_msg_type(), message.term, message.from);
        let is_vote = kind == MessageType::MsgRequestVoteResponse;
        let is_current = match me.raft.state {
            StateRole::PreCandidate => !is_vote && term == me.raft.term + 1,
            StateRole::Candidate => is_vote && term == me.raft.term,
            StateRole::Follower | StateRole::Leader => false,
        };
        let is_provisional = response.provisional != 0;
        if !is_current {
            // The election is over. Only raft-rs knows what else an ordinary response means.
            return if is_provisional { Vec::new() } else { vec![message] };
        }
        let is_of_this_incarnation = response.candidate == me.incarnation || !is_provisional && !me.is_on_probation;
        if !is_of_this_incarnation
            || is_provisional && is_vote && !self.pre_voters.has(term, from, response.provisional)
        {
            return Vec::new();
        }
        if self.candidacy != Some((kind, term)) {
            self.candidacy = Some((kind, term));
            self.grants.clear();
        }
        if is_provisional && !is_vote {
            self.pre_voters.note(term, from, response.provisional);
        }
        let is_withheld = is_provisional || me.is_on_probation;
        let mut ready = if is_withheld { Vec::new() } else { vec![message.clone()] };
        self.grants.insert(from, Grant { response, withheld: is_withheld.then_some(message) });
        if self.is_unanimous(me) {
            for (member, grant) in self.grants.iter_mut().filter(|(_, grant)| grant.withheld.is_some()) {
                if is_vote && grant.response.provisional != 0 {
                    self.electors.note(term, *member, grant.response.provisional);
                }
                ready.extend(grant.withheld.take());
            }
        }
        ready
    }

    fn is_unanimous(&self, me: &Candidate) -> bool {
        let agrees = |voter: &u64| self.grants.get(voter).is_some_and(|grant| grant.response.conf == me.conf);
        me.conf != 0
            && me.voters.contains(&me.raft.id)
            && me.voters.iter().all(|voter| *voter == me.raft.id || agrees(voter))
    }
}

/// The election of a lone voter on probation: it asks its learners whether any of them holds a longer log.
#[derive(Debug, Default)]
pub struct LoneVoter {
    term: u64,
    asked_at: u64,
    learners: BTreeSet<u64>,
    granted: BTreeSet<u64>,
}

impl LoneVoter {
    /// Vote requests, every `retry_ticks`. No earlier incarnation can have led their term, and no later one uses it.
    pub fn request_votes(
        &mut self,
        raft: &Raft<Store>,
        learners: &[u64],
        incarnation: u64,
        now: u64,
        retry_ticks: u64,
    ) -> Vec<Message> {
        self.learners = learners.iter().copied().collect();
        if self.term != 0 && now - self.asked_at < retry_ticks {
            return Vec::new();
        }
        if self.term <= raft.term {
            self.term = raft.term
                + 1
                + TERM_LEAP_MIN
                + (incarnation.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - TERM_LEAP_MIN.trailing_zeros()));
            self.granted.clear();
        }
        self.asked_at = now;
        let (commit, commit_term) = raft.raft_log.commit_info();
        let request = |to: &u64| {
            let mut request = Message::default();
            request.set_msg_type(MessageType::MsgRequestVote);
            (request.from, request.to, request.term) = (raft.id, *to, self.term);
            (request.index, request.log_term) = (raft.raft_log.last_index(), raft.raft_log.last_term());
            (request.commit, request.commit_term) = (commit, commit_term);
            request
        };
        let mut requests: Vec<Message> =
            learners.iter().filter(|learner| !self.granted.contains(learner)).map(request).collect();
        VoteRequest { incarnation, is_on_probation: true, is_lone: true }.attach(&mut requests);
        requests
    }

    /// Takes a response to these requests; returns whether it was one.
    pub fn take_response(&mut self, message: &mut Message, incarnation: u64) -> bool {
        if message.get_msg_type() != MessageType::MsgRequestVoteResponse || message.term != self.term {
            return false;
        }
        if !message.reject && VoteResponse::take(message).is_some_and(|response| response.candidate == incarnation) {
            self.granted.insert(message.from);
        }
        true
    }

    pub fn waits_for(&self) -> Vec<u64> {
        self.learners.difference(&self.granted).copied().collect()
    }

    /// The term to lead, once all learners have granted.
    pub fn term_to_lead(&self) -> Option<u64> {
        (self.term != 0 && self.learners.is_subset(&self.granted)).then_some(self.term)
    }
}

fn is_request(message: &Message) -> bool {
    matches!(message.get_msg_type(), MessageType::MsgRequestPreVote | MessageType::MsgRequestVote)
}

pub fn is_grant(message: &Message) -> bool {
    use MessageType::{MsgRequestPreVoteResponse, MsgRequestVoteResponse};
    !message.reject && matches!(message.get_msg_type(), MsgRequestPreVoteResponse | MsgRequestVoteResponse)
}
