//! Whom an election must hear in which grants *in doubt* count (`grants`): who may have confirmed what the damaged member did.
//!
//! Those are the voters, and whoever a change that this member has not applied makes one. A change that it does not even hold was
//! confirmed by a majority of the voters before it: where they are two or more, somebody undamaged among them holds it, and refuses
//! this member's log. Where there is but one, that may be the damaged one: then everybody is asked who may have become a
//! voter since, learners and whom the caller names. Also where there are two: the third may have been a voter when entries behind
//! its demotion were confirmed, before that was applied, by it and the damaged one alone. Of three it takes two, one of
//! whom is not damaged and votes still. Voters that are out for good (`Group::is_out`) do not count among the two: that they
//! are out was confirmed without them. A node may have become another member meanwhile, or only the node may be known: asked is
//! whoever is there. And as the damaged member may have been that only voter, and who it took in may be unknown here, it tells
//! where members are with its grant (`grants`); what the caller here knows better is passed over.
//!
//! Who is no voter here is asked by a request of its own, which is *wide*. Who may be a voter by what it holds itself answers as to
//! any other. Who finds no promotion of its own grants, blank members too: nobody counts on what it confirmed. But not if the
//! candidate's log ends, in term and index, before what it knows to be committed; and before, it shares what it holds more
//! (`canvass`). It votes: the term that it notes keeps late letters of former leaders from it.
//!
//! Source: docs/design/streams.md, "A damaged log".

use std::collections::{BTreeMap, BTreeSet};

use protobuf::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeType, EntryType, Message, MessageType};
use raft::{GetEntriesContext, StateRole, CAMPAIGN_TRANSFER, INVALID_ID};

use crate::grants::{Place, Stamp};
use crate::group::Group;

/// Added to a node, this stands for whoever is the group's member there.
pub const WHOEVER: u64 = 1 << 63;
/// Bytes of the log that are looked at in one go.
const SLICE_BYTES: u64 = 4 << 20;

/// Without whose grants no grant in doubt counts.
#[derive(Debug, Default)]
pub struct Electorate {
    /// Other members.
    pub members: BTreeSet<u64>,
    /// Nodes from which nobody was heard yet that counts, and the member that may be there, 0 if it is not known.
    pub strangers: BTreeMap<u64, u64>,
}

impl Electorate {
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.strangers.is_empty()
    }
}

impl Group {
    /// None if the log cannot tell.
    pub fn electorate(&self) -> Option<Electorate> {
        let conf = self.conf();
        let mut voters: BTreeSet<u64> = conf.voters.iter().copied().collect();
        let mut asked = voters.clone();
        let mut others: BTreeSet<u64> = conf.learners.iter().chain(&self.named).copied().collect();
        let present = |voters: &BTreeSet<u64>| voters.iter().filter(|member| !self.is_out(**member)).count();
        let mut fewest = present(&voters);
        let mut strangers = BTreeMap::new();
        for change in self.changes_ahead()? {
            if change.get_change_type() == ConfChangeType::AddNode {
                voters.insert(change.node_id);
                asked.insert(change.node_id);
            } else {
                voters.remove(&change.node_id);
                others.insert(change.node_id);
            }
            fewest = fewest.min(present(&voters));
        }
        if fewest <= 2 {
            asked.extend(others);
            asked = asked.into_iter().map(|member| self.successor(member)).collect();
            let told = self.told_in_doubt().filter(|place| self.is_news(place));
            for Place { member, node } in told.chain(self.nodes.iter().map(|node| Place { member: 0, node: *node })) {
                match self.member_at(node).filter(|there| *there >= member) {
                    Some(there) => drop(asked.insert(there)),
                    None => drop(strangers.insert(node, member)),
                }
            }
        }
        asked.retain(|member| *member != self.member && !self.is_out(*member));
        Some(Electorate { members: asked, strangers })
    }

    /// Where this member's caller knows that members are.
    pub fn known_places(&self) -> Vec<Place> {
        let place = |member: &u64| self.peers.get(member).map(|node| Place { member: *member, node: *node });
        let named = self.named.iter().filter_map(place);
        named.chain(self.nodes.iter().map(|node| Place { member: 0, node: *node })).collect()
    }

    /// Whether this member's caller knows nothing of that: of all else it knows better.
    fn is_news(&self, place: &Place) -> bool {
        match place.member {
            0 => place.node >= self.known.nodes,
            member => member != self.member && !self.named.contains(&member) && !self.is_out(member),
        }
    }

    /// The newest member that is known at a node.
    pub fn member_at(&self, node: u64) -> Option<u64> {
        self.peers.iter().rev().find(|(_, home)| **home == node).map(|(member, _)| *member)
    }

    /// The newest member that is known at the node of another one. A node has one member at a time: the former one is no more.
    fn successor(&self, member: u64) -> u64 {
        self.peers.get(&member).and_then(|node| self.member_at(*node)).unwrap_or(member)
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

    /// Whether a member has left for good. Ids only rise: one below another that the caller names or knows, and not named itself,
    /// was named once. It is out by a change that is committed, or its disk is gone and its node has another one.
    fn is_out(&self, member: u64) -> bool {
        let known = self.named.iter().max().map_or(0, |newest| newest + 1).max(self.known.members);
        !self.named.contains(&member) && member < known
    }

    /// Requests to those of the electorate whom raft-rs does not ask.
    pub fn wide_requests(&self, kind: MessageType, term: u64) -> Vec<Message> {
        let (voters, is_lone) = (&self.conf().voters, self.is_lone_in_doubt());
        let electorate = self.electorate().unwrap_or_default();
        let unasked = electorate.members.into_iter().filter(|member| is_lone || !voters.contains(member));
        // The member that is known at a node may have been replaced there: the request is for whoever is.
        let address = |member: u64| self.peers.get(&member).map_or(member, |node| WHOEVER | node);
        let strangers = electorate.strangers.into_keys().map(|node| WHOEVER | node);
        unasked.map(address).chain(strangers).map(|to| self.request(kind, term, to)).collect()
    }

    fn request(&self, kind: MessageType, term: u64, to: u64) -> Message {
        let own = if self.in_doubt() { self.life } else { 0 };
        let log = &self.node.raft.raft_log;
        let mut request = Message::default();
        request.set_msg_type(kind);
        (request.from, request.to, request.term) = (self.member, to, term);
        (request.index, request.log_term) = (log.last_index(), log.last_term());
        (request.commit, request.commit_term) = log.commit_info();
        request.context = Stamp { own, asked: 0, wide: self.life }.context();
        request
    }

    /// Prepares a wide request for raft-rs; whether it is answered at all.
    pub fn take_wide_request(&mut self, message: &mut Message) -> bool {
        if self.hears_a_leader() {
            return false;
        }
        // A blank member does not tick, so that raft-rs takes its leader for alive.
        message.context = CAMPAIGN_TRANSFER.into();
        let log = &self.node.raft.raft_log;
        let (committed, term) = log.commit_info();
        if !self.may_be_a_voter() && (term, committed) <= (message.log_term, message.index) {
            (message.index, message.log_term) = (log.last_index(), log.last_term());
        }
        true
    }

    pub fn hears_a_leader(&self) -> bool {
        let raft = &self.node.raft;
        let is_fresh = self.ticks - self.leader_heard < self.settings.election_ticks as u64;
        raft.state == StateRole::Leader || raft.leader_id != INVALID_ID && is_fresh
    }

    fn may_be_a_voter(&self) -> bool {
        let is_promotion =
            |change: &ConfChange| change.get_change_type() == ConfChangeType::AddNode && change.node_id == self.member;
        self.in_doubt()
            || self.conf().voters.contains(&self.member)
            || self.changes_ahead().is_none_or(|changes| changes.iter().any(is_promotion))
    }
}
