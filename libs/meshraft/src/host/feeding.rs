//! How a host brings up nodes that were away: tickets, reads of old log, and the count of what is on its way (`feed`).

use raft::eraftpb::{Message, MessageType};

use super::Host;
use crate::feed::{Feed, TICKET_BYTES};
use crate::feeding::Served;
use crate::group::Group;
use crate::log::{Fetch, Fetched};
use crate::ready::Turn;

/// Entries that cannot leave memory, since they are not applied yet, over all groups. Past it a follower takes one append a
/// tick (none at all could leave it waiting for just the one that lets it apply the rest); leaders send again.
const HELD_BYTES_MAX: usize = 256 << 20;

impl Host {
    /// Whether a message would add to what this host holds more than it may.
    pub(super) fn is_too_much(&mut self, message: &Message) -> bool {
        if self.held <= HELD_BYTES_MAX || message.get_msg_type() != MessageType::MsgAppend || message.entries.is_empty()
        {
            return false;
        }
        !std::mem::take(&mut self.takes_past_bound)
    }

    /// Lets those read or send whose turn it is.
    pub(super) fn give_tickets(&mut self) {
        while let Some((id, member)) = self.feed.next() {
            let served = self.reach(id, |group, _| Ok((group.serve(member), group.life)));
            if let Ok((Served::Read { low, high }, life)) = served {
                self.log.fetch(Fetch { group: id, member, life, low, high, max_bytes: TICKET_BYTES });
            }
            // Its turn counts what was sent and takes the ticket back.
            self.dirty.insert(id);
        }
    }

    /// Gives what was read for a member to its group, if that still wants it.
    pub(super) fn hand_over(&mut self, fetched: Fetched) {
        let Fetch { group: id, member, life, low, .. } = fetched.fetch;
        let has_ticket = self.feed.has_ticket((id, member));
        let Some(group) = self.groups.get(&id).filter(|group| group.life == life) else { return };
        let is_there = group.node.store().first() <= low;
        let entries = match fetched.entries {
            Ok(entries) if entries.first().map(|entry| entry.index) == Some(low) => entries,
            // Compacted meanwhile: raft-rs asks again and finds that a snapshot is due.
            _ if !is_there => Vec::new(),
            Ok(_) => return self.poison(id, format!("entry {low} is missing from the log")),
            Err(why) => return self.poison(id, format!("entry {low} cannot be read: {why}")),
        };
        let _ = self.reach(id, |group, _| {
            group.hand_over(member, entries, has_ticket);
            Ok(())
        });
        self.dirty.insert(id);
    }

    /// Keeps count of what the group has on its way, after a turn of it.
    pub(super) fn count(&mut self, id: u64, turn: &Turn) {
        for append in &turn.appends {
            self.feed.sent(append.peer, (id, append.member), append.last, append.bytes);
        }
        let known = self.feed.of_group(id);
        let Some(group) = self.groups.get_mut(&id).filter(|_| !known.is_empty()) else { return };
        if !group.is_leader() {
            group.stop_feeding();
            self.feed.forget(id);
            return;
        }
        for seat in known {
            self.feed.confirmed((id, seat.member), group.matched(seat.member).unwrap_or(u64::MAX));
            if seat.has_ticket && !group.needs_ticket(seat.member) {
                self.feed.give_back((id, seat.member));
            }
        }
    }

    /// Gives up what never arrived.
    pub(super) fn tick_feed(&mut self) {
        self.takes_past_bound = true;
        for (id, member) in self.feed.tick() {
            if let Some(group) = self.groups.get_mut(&id) {
                group.let_go(member);
            }
        }
    }
}

/// Takes down whom the group could not send to at once.
pub(super) fn note_asks(group: &mut Group, feed: &mut Feed) {
    for member in group.take_asks() {
        if let Some(peer) = group.peers.get(&member) {
            feed.ask(*peer, (group.id, member));
        }
    }
}
