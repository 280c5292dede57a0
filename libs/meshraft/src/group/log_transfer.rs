//! How a group sends entries that need a permit; the accounting is in `crate::log_transfer`.
//!
//! raft-rs asks the store for the entries of an append. While they are not in memory, or any node is full, the store
//! defers the append: raft-rs does not say in a typed way which member it is for. The driver then looks at the progress
//! of each member. It sends what may be sent at once, naming the member to the store, and requests permits for the
//! rest. With a permit the log's fetch thread reads the entries. Sources: raft-rs `Storage::entries`,
//! `Raft::send_append`; TiKV's `async_fetch`.

use std::collections::BTreeSet;

use raft::eraftpb::Entry;

use crate::async_fetch::Recipient;
use crate::group::Group;
use crate::log_transfer::{PermitUse, PERMIT_BYTES};

impl Group {
    /// Sends deferred appends that need no permit, and adds the members of the others to `permit_requests`. Returns
    /// whether raft-rs may have messages to send.
    pub fn send_deferred(&mut self, permit_requests: &mut Vec<u64>) -> bool {
        if !self.node.mut_store().take_deferred() {
            return false;
        }
        let (first, tail_first) = (self.node.store().first(), self.node.store().tail_first());
        let in_store = first..self.node.raft.raft_log.unstable.offset;
        let members: Vec<u64> = self.node.raft.prs().iter().map(|(member, _)| *member).collect();
        let mut has_sent = false;
        for member in members {
            let Some(next) = self.next_to_send(member).filter(|next| in_store.contains(next)) else { continue };
            let fetch = self.node.mut_store().async_fetch();
            if fetch.fetched.contains_key(&member) || next >= tail_first && !fetch.blocked.contains(&member) {
                self.send_appends(member, None);
                has_sent = true;
            } else if !permit_requests.contains(&member) {
                permit_requests.push(member);
            }
        }
        permit_requests.sort_unstable();
        has_sent
    }

    /// The first entry to send to a member, if this member leads and its inflight window has room.
    fn next_to_send(&self, member: u64) -> Option<u64> {
        let raft = &self.node.raft;
        let progress = raft.prs().get(member).filter(|progress| !progress.is_paused())?;
        let is_behind = member != self.member && progress.next_idx <= raft.raft_log.last_index();
        (self.is_leader() && is_behind).then_some(progress.next_idx)
    }

    /// Has raft-rs send one append to a member, or more until the window is full or the store defers.
    fn send_appends(&mut self, member: u64, permit_bytes: Option<u64>) {
        let fetch = self.node.mut_store().async_fetch();
        fetch.recipient = Some(Recipient { member, permit_bytes });
        let may_fill_window = fetch.may_fill_window(member);
        let mut before = None;
        while let Some(next) = self.next_to_send(member).filter(|next| before != Some(*next)) {
            self.node.raft.send_append(member);
            before = Some(next);
            if !may_fill_window {
                break;
            }
        }
        self.node.mut_store().async_fetch().recipient = None;
    }

    /// Sets the nodes that are full.
    pub fn set_blocked(&mut self, full_nodes: &BTreeSet<u64>) {
        let peers = &self.peers;
        let fetch = self.node.mut_store().async_fetch();
        if !full_nodes.is_empty() || !fetch.blocked.is_empty() {
            let on_full_node = peers.iter().filter(|(_, peer)| full_nodes.contains(peer));
            fetch.blocked = on_full_node.map(|(member, _)| *member).collect();
        }
    }

    /// Uses a permit for a member.
    pub fn use_permit(&mut self, member: u64) -> PermitUse {
        self.flush_proposals();
        let Some(low) = self.next_to_send(member) else { return PermitUse::Done };
        let (first, high) = (self.node.store().first(), self.node.store().tail_first());
        let fetch = self.node.mut_store().async_fetch();
        if (first..high).contains(&low) && !fetch.fetched.contains_key(&member) {
            fetch.reading.insert(member);
            return PermitUse::Read { low, high };
        }
        self.send_appends(member, Some(PERMIT_BYTES));
        PermitUse::Done
    }

    /// Sends what was read for a member. If its permit has ended the entries are dropped, and it requests another.
    /// Without entries, because they were compacted meanwhile, raft-rs finds that a snapshot is due.
    pub fn supply_fetched(&mut self, member: u64, entries: Vec<Entry>, has_permit: bool) {
        self.flush_proposals();
        let store = self.node.mut_store();
        if !store.async_fetch().reading.remove(&member) {
            return;
        }
        if !has_permit {
            store.note_deferred();
            return;
        }
        if !entries.is_empty() {
            store.async_fetch().fetched.insert(member, entries.into());
        }
        self.send_appends(member, None);
    }

    /// Whether the member's permit is in use: the log is being read, or what was read waits for the inflight window.
    pub fn needs_permit(&mut self, member: u64) -> bool {
        let fetch = self.node.mut_store().async_fetch();
        fetch.reading.contains(&member) || fetch.fetched.contains_key(&member)
    }

    /// Drops what was read for a member whose permit has ended.
    pub fn drop_fetched(&mut self, member: u64) {
        self.node.mut_store().async_fetch().fetched.remove(&member);
    }

    /// Drops what was read and is being read: this member is not the leader any more.
    pub fn stop_log_transfer(&mut self) {
        self.node.mut_store().async_fetch().reset();
    }

    pub fn matched(&self, member: u64) -> Option<u64> {
        self.node.raft.prs().get(member).map(|progress| progress.matched)
    }
}
