//! A group's side of `feed`: what its leader may read for which member, and what it has read.
//!
//! raft-rs asks the store for the entries of an append. For entries that are not in memory, or a node that has its full
//! measure, the store answers "not now" and keeps raft-rs's context; with a ticket the driver reads them (a thread of the
//! log does) and hands the context back, upon which raft-rs asks again. Source: raft-rs `Storage::entries`,
//! `RawNode::on_entries_fetched`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use protobuf::Message as _;
use raft::eraftpb::Entry;
use raft::GetEntriesContext;

use crate::feed::TICKET_BYTES;
use crate::group::Group;

/// What the store needs to know to answer raft-rs for one recipient.
#[derive(Default)]
pub struct Serving {
    /// Members whose node has its full measure.
    shut: Vec<u64>,
    /// The member whose ticket is being used on entries in memory, and what is left of it.
    ticket: Option<(u64, u64)>,
    /// Members for whom the log is being read.
    reading: BTreeSet<u64>,
    fetched: BTreeMap<u64, VecDeque<Entry>>,
    /// Who was told "not now", and what to tell raft-rs when it can be served.
    asked: BTreeMap<u64, GetEntriesContext>,
    is_news: bool,
}

impl Serving {
    pub fn put_off(&mut self, member: u64, context: GetEntriesContext) {
        self.asked.insert(member, context);
        self.is_news = true;
    }

    /// Entries that were read for the member, if they begin at `low`: at least one, then until `max_bytes`.
    pub fn take_fetched(&mut self, member: u64, low: u64, high: u64, max_bytes: u64) -> Option<Vec<Entry>> {
        let entries = self.fetched.get_mut(&member)?;
        if entries.front().map(|entry| entry.index) != Some(low) {
            self.fetched.remove(&member);
            return None;
        }
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some(entry) = entries.front().filter(|entry| entry.index < high) {
            bytes += u64::from(entry.compute_size());
            if bytes > max_bytes && !taken.is_empty() {
                break;
            }
            taken.extend(entries.pop_front());
        }
        if entries.is_empty() {
            self.fetched.remove(&member);
        }
        Some(taken)
    }

    /// Whether nothing in memory has to be held back from anybody.
    pub fn may_send_to_all(&self) -> bool {
        self.shut.is_empty() && self.ticket.is_none()
    }

    /// Whether entries in memory may be sent to the member now.
    pub fn may_send(&self, member: u64) -> bool {
        match self.ticket {
            Some((holder, left)) if holder == member => left > 0,
            _ => !self.shut.contains(&member),
        }
    }

    pub fn spend(&mut self, member: u64, bytes: u64) {
        if let Some((_, left)) = self.ticket.as_mut().filter(|(holder, _)| *holder == member) {
            *left = left.saturating_sub(bytes);
        }
    }
}

/// What comes of a ticket.
pub enum Served {
    /// Entries `low..high` have to be read from the log first.
    Read { low: u64, high: u64 },
    /// All that could be sent was.
    Done,
}

impl Group {
    /// Members that were told "not now" since this was last asked.
    pub fn take_asks(&mut self) -> Vec<u64> {
        let serving = self.node.mut_store().serving();
        if !std::mem::take(&mut serving.is_news) {
            return Vec::new();
        }
        serving.asked.keys().copied().collect()
    }

    /// Tells which nodes have their full measure.
    pub fn shut_out(&mut self, shut: &BTreeSet<u64>) {
        let peers = &self.peers;
        let members = peers.iter().filter(|(_, peer)| shut.contains(peer)).map(|(member, _)| *member).collect();
        self.node.mut_store().serving().shut = members;
    }

    pub fn is_shutting_out(&mut self) -> bool {
        !self.node.mut_store().serving().shut.is_empty()
    }

    /// Uses a ticket for a member.
    pub fn serve(&mut self, member: u64) -> Served {
        self.flush_proposals();
        let raft = &self.node.raft;
        let next = raft.prs().get(member).filter(|_| self.is_leader()).map(|progress| progress.next_idx);
        let (Some(low), Some(context)) = (next, self.node.mut_store().serving().asked.remove(&member)) else {
            return Served::Done;
        };
        let (first, high) = (self.node.store().first(), self.node.store().tail_first());
        if (first..high).contains(&low) && !self.node.mut_store().serving().fetched.contains_key(&member) {
            let serving = self.node.mut_store().serving();
            serving.asked.insert(member, context);
            serving.reading.insert(member);
            return Served::Read { low, high };
        }
        self.node.mut_store().serving().ticket = Some((member, TICKET_BYTES));
        self.node.on_entries_fetched(context);
        self.node.mut_store().serving().ticket = None;
        Served::Done
    }

    /// What was read for a member came in. Without a ticket any more it is dropped, and the member asks again.
    pub fn hand_over(&mut self, member: u64, entries: Vec<Entry>, has_ticket: bool) {
        self.flush_proposals();
        let serving = self.node.mut_store().serving();
        if !serving.reading.remove(&member) {
            return;
        }
        if !has_ticket {
            serving.is_news = true;
            return;
        }
        let Some(context) = serving.asked.remove(&member) else { return };
        serving.fetched.insert(member, entries.into());
        self.node.on_entries_fetched(context);
    }

    /// Whether the member's ticket is still needed: the log is being read, or what was read waits for its window.
    pub fn needs_ticket(&mut self, member: u64) -> bool {
        let serving = self.node.mut_store().serving();
        serving.reading.contains(&member) || serving.fetched.contains_key(&member)
    }

    /// The member's ticket has ended: nothing is kept for it.
    pub fn let_go(&mut self, member: u64) {
        self.node.mut_store().serving().fetched.remove(&member);
    }

    /// Who leads no more feeds nobody.
    pub fn stop_feeding(&mut self) {
        let serving = self.node.mut_store().serving();
        *serving = Serving { shut: std::mem::take(&mut serving.shut), ..Serving::default() };
    }

    pub fn matched(&self, member: u64) -> Option<u64> {
        self.node.raft.prs().get(member).map(|progress| progress.matched)
    }
}
