//! Whom an election must hear in which grants *in doubt* count (`grants`): who may have confirmed what the damaged member did.
//!
//! Those are the voters, and whoever a change that this member has not applied makes one. A change that it does not even hold was
//! confirmed by a majority of the voters before it: where they are two or more, somebody undamaged among them holds it, and refuses
//! this member's log. Where there is but one, that may be the damaged one: then everybody is asked who may have become a
//! voter since, learners and whom the caller names. Who is no voter here is asked by a request of its own, which is *wide*:
//!
//! * who may be a voter by what it holds itself answers as to any other;
//! * who never was one grants, since nobody ever counted on it, unless it knows more to be committed. It votes: the term that it notes keeps it from confirming to
//!   leaders of before. A member that is blank grants as well, marked.
//!
//! Raft-rs would let a lone voter elect itself at once: one in doubt *canvasses* first, asks the others whether they would grant.
//! That it does not wait for votes is enough: without its own confirmation, which it does not give in doubt, nothing
//! was or will be committed in its configuration and those that it has forgotten, but by members that know of their promotion.
//! A learner may hold what the lone voter lost. Instead of granting it *shares* what it has more, and is asked again: the longest
//! valid log wins here too.
//!
//! Of some of those only the node may be known: then whoever is there is asked.
//!
//! Members that are out for good (`Group::is_out`) are not asked. Source: docs/design/streams.md, "A damaged log".

use std::collections::BTreeSet;

use protobuf::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeType, EntryType, Message, MessageType};
use raft::{GetEntriesContext, StateRole, CAMPAIGN_TRANSFER, INVALID_ID};

use crate::errors::Fault;
use crate::grants::Stamp;
use crate::group::Group;
use crate::log::Standing;

/// Added to a node, this stands for whoever is the group's member there.
pub const WHOEVER: u64 = 1 << 63;
/// Bytes of the log that are looked at in one go.
const SLICE_BYTES: u64 = 4 << 20;
/// The context of entries and snapshots that do not come from a leader.
const SHARE: &[u8] = b"share";

impl Group {
    /// The other members without whose grant no grant in doubt counts. None if the log cannot tell, or if somebody must be
    /// asked whose member id is not known.
    pub fn electorate(&self) -> Option<BTreeSet<u64>> {
        let conf = self.conf();
        let mut voters: BTreeSet<u64> = conf.voters.iter().copied().collect();
        let mut asked = voters.clone();
        let mut others: BTreeSet<u64> = conf.learners.iter().chain(&self.named).copied().collect();
        let mut fewest = voters.len();
        for change in self.changes_ahead()? {
            if change.get_change_type() == ConfChangeType::AddNode {
                voters.insert(change.node_id);
                asked.insert(change.node_id);
            } else {
                voters.remove(&change.node_id);
                others.insert(change.node_id);
            }
            fewest = fewest.min(voters.len());
        }
        if fewest <= 1 {
            asked.extend(others);
            for node in &self.nodes {
                asked.insert(self.member_at(*node)?);
            }
        }
        asked.retain(|member| *member != self.member && !self.is_out(*member));
        Some(asked)
    }

    fn member_at(&self, node: u64) -> Option<u64> {
        self.peers.iter().find(|(_, home)| **home == node).map(|(member, _)| *member)
    }

    /// The changes in the log that are not applied yet. None if it cannot be read.
    fn changes_ahead(&self) -> Option<Vec<ConfChange>> {
        let log = &self.node.raft.raft_log;
        let mut changes = Vec::new();
        let mut next = self.applied + 1;
        while next <= log.last_index() {
            let found = log.slice(next, log.last_index() + 1, SLICE_BYTES, GetEntriesContext::empty(false)).ok()?;
            next = found.last()?.index + 1;
            for entry in found.iter().filter(|entry| entry.get_entry_type() == EntryType::EntryConfChange) {
                changes.push(ConfChange::parse_from_carllerche_bytes(&entry.data).ok()?);
            }
        }
        Some(changes)
    }

    /// Whether a member has left for good, and nothing that it confirmed can be missed. Ids only rise: one below another that the
    /// caller names, and not named itself, was named once and is out, by a change that is committed.
    fn is_out(&self, member: u64) -> bool {
        !self.named.contains(&member) && self.named.iter().max().is_some_and(|newest| member < *newest)
    }

    /// Whether this member knows of no other voter, because its log may have forgotten them. It would elect itself as soon as
    /// it stands, or lost its own vote too.
    pub fn is_lone_in_doubt(&self) -> bool {
        self.in_doubt() && !self.is_leader() && self.conf().voters.iter().all(|voter| *voter == self.member)
    }

    /// A tick of a lone voter in doubt, in place of raft-rs's.
    pub fn tick_alone(&mut self) {
        let patience = self.settings.election_ticks as u64;
        if self.node.raft.leader_id != INVALID_ID && self.ticks - self.leader_heard > patience {
            // Its lease ends, which raft-rs would have counted.
            self.node.raft.become_follower(self.node.raft.term, INVALID_ID);
        }
        if self.node.raft.leader_id == INVALID_ID && self.ticks % patience == 0 {
            self.is_canvass_due = true;
        }
    }

    /// Asks everybody whether this lone voter may lead, when it is time; if nobody has to be asked it does.
    pub fn canvass(&mut self) {
        let log = &self.node.raft.raft_log;
        self.is_canvass_due &= self.is_lone_in_doubt();
        // What is not durable yet must not lead: raft-rs panics.
        if !self.is_canvass_due || log.persisted < log.last_index() {
            return;
        }
        self.is_canvass_due = false;
        let term = self.node.raft.term + 1;
        self.grants.begin(MessageType::MsgRequestPreVoteResponse, term);
        match self.electorate() {
            Some(electorate) if electorate.is_empty() => self.stand_alone(),
            Some(_) => {
                let requests = self.wide_requests(MessageType::MsgRequestPreVote, term);
                self.notices.extend(requests);
            }
            None => {
                let strangers = self.nodes.iter().filter(|node| self.member_at(**node).is_none());
                let requests = strangers.map(|node| self.request(MessageType::MsgRequestPreVote, term, WHOEVER | node));
                let requests: Vec<Message> = requests.collect();
                self.notices.extend(requests);
            }
        }
    }

    /// Elects this lone voter, if it is one.
    pub fn stand_alone(&mut self) {
        let log = &self.node.raft.raft_log;
        if log.persisted < log.last_index() {
            self.is_canvass_due = true;
        } else if self.is_voter() {
            // Refused while changes are committed and not applied: the next canvass tries again.
            let _ = self.node.campaign();
        }
    }

    /// Requests to those of the electorate whom raft-rs does not ask.
    pub fn wide_requests(&self, kind: MessageType, term: u64) -> Vec<Message> {
        let voters = &self.conf().voters;
        let electorate = self.electorate().unwrap_or_default();
        let unasked = electorate.into_iter().filter(|member| !voters.contains(member));
        unasked.map(|member| self.request(kind, term, member)).collect()
    }

    fn request(&self, kind: MessageType, term: u64, to: u64) -> Message {
        let own = if self.in_doubt() { self.life } else { 0 };
        let log = &self.node.raft.raft_log;
        let mut request = Message::default();
        request.set_msg_type(kind);
        (request.from, request.to, request.term) = (self.member, to, term);
        (request.index, request.log_term) = (log.last_index(), log.last_term());
        (request.commit, request.commit_term) = log.commit_info();
        request.context = Stamp { own, asked: 0, is_wide: true, is_alone: self.is_lone_in_doubt() }.context();
        request
    }

    /// Prepares a wide request for raft-rs; whether it is answered at all.
    pub fn take_wide_request(&mut self, message: &mut Message, is_alone: bool) -> bool {
        let raft = &self.node.raft;
        let patience = self.settings.election_ticks as u64;
        let is_led = raft.leader_id != INVALID_ID && self.ticks - self.leader_heard < patience;
        if raft.state == StateRole::Leader || is_led {
            return false;
        }
        if self.standing == Standing::Full && self.may_be_a_voter() {
            return true;
        }
        if is_alone && self.share_with(message) {
            return false;
        }
        let is_known = self.node.raft.raft_log.committed <= message.index;
        if !self.in_doubt() && is_known {
            // A blank member does not tick, so that raft-rs takes its leader for alive.
            message.context = CAMPAIGN_TRANSFER.into();
            let log = &self.node.raft.raft_log;
            (message.index, message.log_term) = (log.last_index(), log.last_term());
        }
        true
    }

    /// Sends a candidate what the log here has more than its own, or knows to be committed; whether there is any.
    fn share_with(&mut self, request: &Message) -> bool {
        let log = &self.node.raft.raft_log;
        let (last, last_term) = (log.last_index(), log.last_term());
        if log.committed <= request.commit && (last_term, last) <= (request.log_term, request.index) {
            return false;
        }
        let is_common = log.match_term(request.index, request.log_term);
        let from = if is_common { request.index } else { request.commit };
        let mut share = Message::default();
        (share.from, share.to) = (self.member, request.from);
        share.term = self.node.raft.term.max(request.term - 1);
        share.context = SHARE.into();
        if from + 1 < log.first_index() {
            share.set_msg_type(MessageType::MsgSnapshot);
            share.set_snapshot(self.node.store().snapshot_ref().clone());
        } else {
            let bytes = self.settings.max_bytes_per_append;
            let Ok(entries) = log.slice(from + 1, last + 1, bytes, GetEntriesContext::empty(false)) else {
                return true;
            };
            share.set_msg_type(MessageType::MsgAppend);
            (share.index, share.log_term) = (from, log.term(from).unwrap_or_default());
            (share.entries, share.commit) = (entries.into(), log.committed);
        }
        self.notices.push(share);
        true
    }

    /// Takes what somebody shares, and asks again if it was news.
    pub fn take_share(&mut self, mut message: Message) -> Result<(), Fault> {
        if !self.is_lone_in_doubt() || self.installing.is_some() || message.term < self.node.raft.term {
            return Ok(());
        }
        message.context.clear();
        let extent = |group: &Group| {
            let log = &group.node.raft.raft_log;
            (log.committed, log.last_term(), log.last_index())
        };
        let before = extent(self);
        self.node.step(message).map_err(|e| Fault::InvalidFrame(e.to_string()))?;
        // Raft-rs took the sender for its leader.
        self.node.raft.become_follower(self.node.raft.term, INVALID_ID);
        self.settle_timeout();
        self.is_canvass_due |= extent(self) != before;
        Ok(())
    }

    fn may_be_a_voter(&self) -> bool {
        let is_promoted =
            |change: &ConfChange| change.get_change_type() == ConfChangeType::AddNode && change.node_id == self.member;
        match self.standing {
            Standing::Blank => false,
            Standing::Doubtful => true,
            Standing::Full => {
                self.conf().voters.contains(&self.member)
                    || self.changes_ahead().is_none_or(|changes| changes.iter().any(is_promoted))
            }
        }
    }
}

/// Whether a message is what somebody shares.
pub fn is_share(message: &Message) -> bool {
    &*message.context == SHARE && matches!(message.get_msg_type(), MessageType::MsgAppend | MessageType::MsgSnapshot)
}
