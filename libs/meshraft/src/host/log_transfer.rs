//! How a host sends the log to nodes that lag: permits, reads of old log, and bytes in flight (`crate::log_transfer`).

use raft::eraftpb::{Message, MessageType};

use super::Host;
use crate::errors::Closed;
use crate::group::Group;
use crate::log::{Fetch, Fetched};
use crate::log_transfer::{LogTransfer, PermitUse, PERMIT_BYTES};
use crate::turn::Turn;

/// Unapplied entries, which must stay in memory, over all groups. Past it a follower takes one append a tick, since
/// that one may be what lets it apply the rest; leaders send again.
const UNAPPLIED_BYTES_MAX: usize = 256 << 20;

impl Host {
    /// Whether to drop an append because the host holds too many unapplied bytes.
    pub(super) fn exceeds_tail_bytes(&mut self, message: &Message) -> bool {
        if self.tail_bytes <= UNAPPLIED_BYTES_MAX
            || message.get_msg_type() != MessageType::MsgAppend
            || message.entries.is_empty()
        {
            return false;
        }
        !std::mem::take(&mut self.may_exceed_tail_bytes)
    }

    /// Grants permits, and reads or sends with them.
    pub(super) fn grant_permits(&mut self) {
        while let Some((id, member)) = self.transfer.grant() {
            let used = self.reach(id, |group, _| Ok((group.use_permit(member), group.incarnation)));
            if let Ok((PermitUse::Read { low, high }, incarnation)) = used {
                self.log.fetch(Fetch { group: id, member, incarnation, low, high, max_bytes: PERMIT_BYTES });
            }
            // `record_turn` counts what was sent and releases the permit.
            self.dirty.insert(id);
        }
    }

    /// Passes what was read for a member to its group, if it is still open.
    pub(super) fn supply_fetched(&mut self, fetched: Fetched) {
        let Fetch { group: id, member, incarnation, low, .. } = fetched.fetch;
        let has_permit = self.transfer.has_permit((id, member));
        let Some(group) = self.groups.get(&id).filter(|group| group.incarnation == incarnation) else { return };
        let is_there = group.node.store().first() <= low;
        let entries = match fetched.entries {
            Ok(entries) if entries.first().map(|entry| entry.index) == Some(low) => entries,
            // Compacted meanwhile.
            _ if !is_there => Vec::new(),
            Ok(_) => return self.poison(id, Closed::Corrupt, format!("entry {low} is missing from the log")),
            Err(error) => return self.poison(id, error.closes(), format!("entry {low} cannot be read: {error}")),
        };
        let _ = self.reach(id, |group, _| {
            group.supply_fetched(member, entries, has_permit);
            Ok(())
        });
        self.dirty.insert(id);
    }

    /// Counts what a turn of the group sent and what was confirmed, and releases permits that are used up.
    pub(super) fn record_turn(&mut self, id: u64, turn: &Turn) {
        for append in &turn.appends {
            self.transfer.record_sent(append.peer, (id, append.member), append.last, append.bytes);
        }
        let known = self.transfer.of_group(id);
        let Some(group) = self.groups.get_mut(&id).filter(|_| !known.is_empty()) else { return };
        if !group.is_leader() {
            group.stop_log_transfer();
            self.transfer.remove_group(id);
            return;
        }
        for transfer in known {
            self.transfer.record_confirmed((id, transfer.member), group.matched(transfer.member).unwrap_or(u64::MAX));
            if transfer.has_permit && !group.needs_permit(transfer.member) {
                self.transfer.release((id, transfer.member));
            }
        }
    }

    /// Advances the clock, and gives up what never arrived.
    pub(super) fn tick_log_transfer(&mut self) {
        self.may_exceed_tail_bytes = true;
        for (id, member) in self.transfer.tick() {
            if let Some(group) = self.groups.get_mut(&id) {
                group.drop_fetched(member);
            }
        }
    }
}

/// Requests permits for members of a group.
pub(super) fn request_permits(group: &Group, members: &[u64], transfer: &mut LogTransfer) {
    for member in members {
        if let Some(peer) = group.peers.get(member) {
            transfer.request(*peer, (group.id, *member));
        }
    }
}
