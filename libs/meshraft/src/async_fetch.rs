//! Which entries a store may give raft-rs for which member. Used by `group::log_transfer`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use protobuf::Message as _;
use raft::eraftpb::Entry;

/// The member that the driver sends to.
pub struct Recipient {
    pub member: u64,
    /// What is left of the member's permit, if one is used on entries in memory.
    pub permit_bytes: Option<u64>,
}

/// Limits on the appends of one group, and entries that were read for them.
#[derive(Default)]
pub struct AsyncFetch {
    /// Members on nodes that are full: appends to them need a permit.
    pub blocked: Vec<u64>,
    /// Set while the driver sends; without it appends that are restricted are deferred.
    pub recipient: Option<Recipient>,
    /// Members for which the log is being read.
    pub reading: BTreeSet<u64>,
    pub fetched: BTreeMap<u64, VecDeque<Entry>>,
    /// Members whose newest response confirmed an append.
    confirming: BTreeSet<u64>,
}

impl AsyncFetch {
    /// Forgets everything but which members are blocked.
    pub fn reset(&mut self) {
        *self = AsyncFetch { blocked: std::mem::take(&mut self.blocked), ..AsyncFetch::default() };
    }

    /// Notes a member's response, and whether it confirmed an append.
    pub fn note_response(&mut self, member: u64, has_confirmed: bool) {
        if has_confirmed {
            self.confirming.insert(member);
        } else {
            self.confirming.remove(&member);
        }
    }

    /// Whether to fill the member's inflight window, as raft-rs does after a confirmation. Otherwise earlier appends
    /// may be lost, and everything sent after them would be sent again.
    pub fn may_fill_window(&self, member: u64) -> bool {
        self.confirming.contains(&member)
    }

    /// Whether entries in memory may be sent to every member.
    pub fn is_unrestricted(&self) -> bool {
        self.blocked.is_empty() && self.recipient.is_none()
    }

    /// Takes entries that were read for the recipient, if they begin at `low`: at least one, then until `max_bytes`.
    pub fn take_fetched(&mut self, low: u64, high: u64, max_bytes: u64) -> Option<Vec<Entry>> {
        let member = self.recipient.as_ref()?.member;
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

    /// Whether entries in memory may be sent to the recipient now.
    pub fn may_send(&self) -> bool {
        self.recipient.as_ref().is_some_and(|recipient| match recipient.permit_bytes {
            Some(left) => left > 0,
            None => !self.blocked.contains(&recipient.member),
        })
    }

    /// Takes what was sent off the recipient's permit.
    pub fn spend(&mut self, bytes: u64) {
        if let Some(left) = self.recipient.as_mut().and_then(|recipient| recipient.permit_bytes.as_mut()) {
            *left = left.saturating_sub(bytes);
        }
    }
}
