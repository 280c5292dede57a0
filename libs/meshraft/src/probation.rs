//! Probation: a member whose newest write group was damaged, beside an intact quorum (docs/design/recovery.md).
//!
//! The member may have forgotten a vote or an acknowledgement for a later leader than the one that it hears. So it
//! acknowledges nothing and sends *status reports* instead: its incarnation (opening of the group), and the index up to
//! which its log certainly matches its leader's. The leader forgets what the member had confirmed beyond that, and
//! writes an entry. When the other members have committed it, its index is the member's *goal*.
//!
//! Status reports go on until the goal is applied, because acknowledgements from before the damage may arrive late.
//!
//! Left out: elections (`votes`). Source: Alagappan et al., Protocol-Aware Recovery (FAST 2018), §3.3; Ongaro's thesis
//! §11.7.2.

use std::collections::BTreeMap;

use bytes::Buf;
use raft::eraftpb::{Message, MessageType};
use raft::{ProgressState, Raft, RawNode, StateRole, INVALID_ID};

use crate::store::Store;
use crate::votes::{Incarnations, PROBATION_CONTEXT};

/// The member's side: its leader, as heard in this incarnation.
#[derive(Debug, Default)]
pub struct Probation {
    /// (term, index): the entry that must be applied, and the leader's term.
    goal: Option<(u64, u64)>,
    /// (term, index) up to which appends of that term's leader matched the log. Entries past the commit index may have
    /// been overwritten before the damage.
    verified: (u64, u64),
}

impl Probation {
    /// Looks at a leader's message before raft-rs does. Returns the status report that is due.
    pub fn observe(
        &mut self,
        message: &mut Message,
        named: Option<(u64, u64)>,
        raft: &Raft<Store>,
        incarnation: u64,
    ) -> Option<Message> {
        let kind = message.get_msg_type();
        if !is_from_leader(message) || message.term < raft.term {
            return None;
        }
        self.goal = self.goal.filter(|(term, _)| *term == message.term);
        if let Some((_, index)) = named.filter(|(to, _)| *to == incarnation) {
            self.goal = Some((message.term, index));
        }
        if self.verified.0 != message.term {
            self.verified = (message.term, 0);
        }
        let log = &raft.raft_log;
        let verified = log.committed.max(self.verified.1);
        let is_due = self.goal.is_none() || kind == MessageType::MsgHeartbeat;
        let report = is_due.then(|| {
            let mut report = Message::default();
            report.set_msg_type(MessageType::MsgAppendResponse);
            (report.from, report.to, report.term) = (message.to, message.from, message.term);
            (report.reject, report.commit) = (self.goal.is_none(), log.committed);
            report.index = verified.min(log.persisted);
            report.context = [PROBATION_CONTEXT, &incarnation.to_be_bytes()].concat().into();
            report
        });
        if kind == MessageType::MsgHeartbeat {
            // The leader may count entries that this member confirmed and lost, also in a delayed heartbeat.
            message.commit = message.commit.min(verified);
        } else if message.index >= log.committed && log.match_term(message.index, message.log_term) {
            self.verified.1 = self.verified.1.max(message.index + message.entries.len() as u64);
        }
        report
    }

    /// Drops acknowledgements to a leader that has not named a goal.
    pub fn drop_acknowledgements(&self, messages: &mut Vec<Message>) {
        let certain = self.goal.map(|(term, _)| term);
        messages.retain(|message| !acknowledges(message) || Some(message.term) == certain);
    }

    /// The leader that this member must take for its vote: it may have voted in this term and forgotten it.
    pub fn forgotten_vote(&self, raft: &Raft<Store>) -> Option<u64> {
        let is_led = self.goal.is_some_and(|(term, _)| term == raft.term) && raft.leader_id != INVALID_ID;
        (is_led && raft.vote == INVALID_ID).then_some(raft.leader_id)
    }

    /// Whether the goal is applied in its leader's term.
    pub fn is_over(&self, raft: &Raft<Store>, applied: u64) -> bool {
        raft.vote != INVALID_ID && self.goal.is_some_and(|(term, index)| term == raft.term && index <= applied)
    }
}

/// A member on probation, as its leader knows it.
#[derive(Debug, Clone, Copy)]
struct Member {
    /// The leader's last index at the first status report.
    after: u64,
    goal: Option<u64>,
}

/// The leader's side: members on probation by (member, incarnation), in the term of its leadership.
#[derive(Debug, Default)]
pub struct ProbationTracker {
    term: u64,
    members: BTreeMap<(u64, u64), Member>,
}

/// The effect of a status report.
#[derive(Debug, Default)]
pub struct ReportOutcome {
    /// It is the first of this incarnation: messages to an earlier one will not be answered.
    pub is_first: bool,
    /// A message that names the goal.
    pub goal: Option<Message>,
    /// The member knows its goal: raft-rs may take the message as an acknowledgement.
    pub is_acknowledgement: bool,
}

impl ProbationTracker {
    /// Takes a status report; None if the message is none. `electors`: members whose provisional votes elected this
    /// leader.
    pub fn take_status_report(
        &mut self,
        message: &mut Message,
        node: &mut RawNode<Store>,
        electors: &Incarnations,
    ) -> Option<ReportOutcome> {
        let incarnation = report_incarnation(message)?;
        message.context.clear();
        let raft = &mut node.raft;
        let (own, term, committed) = (raft.id, raft.term, raft.raft_log.committed);
        let mut outcome = ReportOutcome::default();
        if raft.state != StateRole::Leader || message.term != term {
            return Some(outcome);
        }
        let Some(progress) = raft.mut_prs().get_mut(message.from) else { return Some(outcome) };
        if progress.matched > message.index {
            progress.matched = message.index;
            if progress.state == ProgressState::Replicate {
                progress.become_probe();
            }
        }
        let matched = progress.matched;
        let key = (message.from, incarnation);
        if self.term != term {
            *self = ProbationTracker { term, members: BTreeMap::new() };
        }
        outcome.is_first = !self.members.contains_key(&key);
        let last = node.raft.raft_log.last_index();
        let granted = electors.has(term, message.from, incarnation).then_some(last);
        let member = self.members.entry(key).or_insert(Member { after: last, goal: granted });
        if member.goal.is_none() && committed > member.after {
            member.goal = Some(member.after + 1);
        }
        let Some(goal) = member.goal else {
            if member.after == last {
                // Refused during a leadership transfer: the next status report tries again.
                let _ = node.propose(Vec::new(), Vec::new());
            }
            return Some(outcome);
        };
        outcome.is_acknowledgement = !message.reject;
        if message.reject {
            let mut answer = Message::default();
            answer.set_msg_type(MessageType::MsgHeartbeat);
            (answer.from, answer.to, answer.term) = (own, message.from, term);
            answer.commit = matched.min(committed);
            answer.context = [PROBATION_CONTEXT, &incarnation.to_be_bytes(), &goal.to_be_bytes()].concat().into();
            outcome.goal = Some(answer);
        }
        Some(outcome)
    }

    /// Whether a member is on probation and has not reported that it reached its goal.
    pub fn has(&self, member: u64, raft: &Raft<Store>) -> bool {
        let committed = raft.prs().get(member).map_or(0, |progress| progress.committed_index);
        let mut members = self.members.range((member, 0)..=(member, u64::MAX));
        raft.state == StateRole::Leader
            && self.term == raft.term
            && members.any(|(_, member)| committed < member.goal.unwrap_or(member.after + 1))
    }
}

/// Takes the goal out of a leader's message: (incarnation that it is for, index).
pub fn take_goal(message: &mut Message) -> Option<(u64, u64)> {
    let mut rest = message.context.strip_prefix(PROBATION_CONTEXT).filter(|rest| rest.len() == 16)?;
    let goal = (rest.get_u64(), rest.get_u64());
    message.context.clear();
    Some(goal).filter(|_| is_from_leader(message))
}

/// The sender's incarnation, if the message is a status report.
fn report_incarnation(message: &Message) -> Option<u64> {
    let is_answer = message.get_msg_type() == MessageType::MsgAppendResponse;
    let mut incarnation =
        message.context.strip_prefix(PROBATION_CONTEXT).filter(|incarnation| is_answer && incarnation.len() == 8)?;
    Some(incarnation.get_u64())
}

fn is_from_leader(message: &Message) -> bool {
    matches!(message.get_msg_type(), MessageType::MsgHeartbeat | MessageType::MsgAppend)
}

/// Whether a message confirms entries or follows its receiver. A response without an index only tells a former leader
/// the newer term.
fn acknowledges(message: &Message) -> bool {
    match message.get_msg_type() {
        MessageType::MsgHeartbeatResponse => true,
        MessageType::MsgAppendResponse => message.index > 0 || message.reject,
        _ => false,
    }
}
