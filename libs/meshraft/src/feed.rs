//! What goes to each other node, over all groups: how much is on its way, and whose turn it is when there is room.
//!
//! A node that was away comes back with all its groups at once, and each has a window of its own: a hundred of them would
//! read gigabytes of old log and bury the links, the leader's memory and its elections. So the bytes of entries on their
//! way to one node are counted over all groups. Old log is read only for a *ticket*, and while a node has its full measure
//! newer entries wait for a ticket as well. Tickets go round: first asked, first served.
//!
//! ```text
//!            asks                    room: a ticket                   read or found, and sent
//!  content ────────► waiting ─────────────────────────► being served ─────────────────────────► on its way ──► confirmed
//!                       ▲                                    │ more to send, or nothing            │ nothing heard of the node
//!                       └────────────────────────────────────┘ was: the ticket comes back          └──► counted as lost
//! ```
//! This is the pure part; `feeding` does it to a group. Entries that were proposed this very turn go out at once: each
//! group's window bounds them, and a node that cannot take them falls back to where tickets are needed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Entries on their way to one node for tickets, in bytes: more than a round trip of a fast link holds. What is proposed
/// meanwhile takes nothing of it, or those that are up to date would keep the others from getting there.
const TICKETED_BYTES_MAX: u64 = 8 << 20;
/// All entries on their way to one node. Past it nothing goes there without a ticket but what is proposed this very turn.
/// Less than what the queue to a node holds.
const PEER_BYTES_MAX: u64 = 12 << 20;
/// What one ticket allows to be sent.
pub const TICKET_BYTES: u64 = 1 << 20;
/// After so many ticks without a confirmation, what is on its way to a node counts as lost.
const PATIENCE_TICKS: u64 = 40;
/// So does what was sent so many ticks before something that is confirmed: lanes keep the order, and so does the log there.
const OVERTAKEN_TICKS: u64 = 10;

/// A member of a group: (group, member).
pub type Seat = (u64, u64);

#[derive(Default)]
struct Peer {
    /// On its way, and how much of it for tickets.
    sent: u64,
    ticketed: u64,
    tickets: u64,
    waiting: VecDeque<Seat>,
    quiet_ticks: u64,
    /// When the newest of what is confirmed was sent.
    confirmed_to: u64,
}

impl Peer {
    fn has_room(&self) -> bool {
        self.ticketed + self.tickets * TICKET_BYTES + TICKET_BYTES <= TICKETED_BYTES_MAX
    }

    fn take_off(&mut self, appends: &[Append]) {
        for append in appends {
            self.sent -= append.bytes;
            self.ticketed -= if append.is_ticketed { append.bytes } else { 0 };
        }
    }

    fn is_shut(&self) -> bool {
        self.sent >= PEER_BYTES_MAX
    }
}

struct Append {
    last: u64,
    bytes: u64,
    is_ticketed: bool,
    sent_at: u64,
}

#[derive(Default)]
struct Flight {
    peer: u64,
    appends: Vec<Append>,
    is_waiting: bool,
    has_ticket: bool,
    /// It asked again while it had a ticket.
    wants_more: bool,
}

/// A seat that the driver has to look at when its group had a turn.
pub struct Known {
    pub member: u64,
    pub has_ticket: bool,
}

#[derive(Default)]
pub struct Feed {
    peers: BTreeMap<u64, Peer>,
    flights: BTreeMap<Seat, Flight>,
    shut: BTreeSet<u64>,
    ticks: u64,
}

impl Feed {
    /// The seat wants to be sent something. Asking again changes nothing.
    pub fn ask(&mut self, peer: u64, seat: Seat) {
        self.move_to(peer, seat);
        let flight = self.flights.entry(seat).or_default();
        flight.peer = peer;
        flight.wants_more = flight.has_ticket;
        if !flight.is_waiting && !flight.has_ticket {
            flight.is_waiting = true;
            self.peers.entry(peer).or_default().waiting.push_back(seat);
        }
    }

    /// The next seat that gets a ticket, if a node with room has one.
    pub fn next(&mut self) -> Option<Seat> {
        let (id, peer) = self.peers.iter_mut().find(|(_, peer)| !peer.waiting.is_empty() && peer.has_room())?;
        let seat = peer.waiting.pop_front()?;
        peer.tickets += 1;
        let flight = self.flights.get_mut(&seat).expect("who waits is known");
        flight.is_waiting = false;
        flight.has_ticket = true;
        flight.wants_more = false;
        let id = *id;
        self.look(id);
        Some(seat)
    }

    pub fn has_next(&self) -> bool {
        self.peers.values().any(|peer| !peer.waiting.is_empty() && peer.has_room())
    }

    pub fn has_ticket(&self, seat: Seat) -> bool {
        self.flights.get(&seat).is_some_and(|flight| flight.has_ticket)
    }

    /// The seat's ticket is used up or was of no use.
    pub fn give_back(&mut self, seat: Seat) {
        let Some(flight) = self.flights.get_mut(&seat).filter(|flight| flight.has_ticket) else { return };
        flight.has_ticket = false;
        flight.is_waiting = std::mem::take(&mut flight.wants_more);
        let id = flight.peer;
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.tickets -= 1;
            if flight.is_waiting {
                peer.waiting.push_back(seat);
            }
        }
        self.look(id);
        self.tidy(seat);
    }

    /// Entries up to `last` were sent. What is sent again counts again: nobody knows whether the first is still under way.
    pub fn sent(&mut self, peer: u64, seat: Seat, last: u64, bytes: u64) {
        self.move_to(peer, seat);
        let flight = self.flights.entry(seat).or_default();
        flight.peer = peer;
        let is_ticketed = flight.has_ticket;
        flight.appends.push(Append { last, bytes, is_ticketed, sent_at: self.ticks });
        let at = self.peers.entry(peer).or_default();
        if at.sent == 0 {
            at.quiet_ticks = 0;
        }
        at.sent += bytes;
        at.ticketed += if is_ticketed { bytes } else { 0 };
        self.look(peer);
    }

    /// What is known of a group.
    pub fn of_group(&self, group: u64) -> Vec<Known> {
        let of_group = self.flights.range((group, 0)..=(group, u64::MAX));
        of_group.map(|((_, member), flight)| Known { member: *member, has_ticket: flight.has_ticket }).collect()
    }

    /// The seat has confirmed everything up to `matched`.
    pub fn confirmed(&mut self, seat: Seat, matched: u64) {
        let Some(flight) = self.flights.get_mut(&seat) else { return };
        let (done, rest) = std::mem::take(&mut flight.appends).into_iter().partition(|append| append.last <= matched);
        flight.appends = rest;
        let done: Vec<Append> = done;
        if done.is_empty() {
            return;
        }
        let id = flight.peer;
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.take_off(&done);
            peer.quiet_ticks = 0;
            peer.confirmed_to = done.iter().map(|append| append.sent_at).fold(peer.confirmed_to, u64::max);
        }
        self.look(id);
        self.tidy(seat);
    }

    /// The group is gone, or leads no more.
    pub fn forget(&mut self, group: u64) {
        let seats: Vec<Seat> = self.flights.range((group, 0)..=(group, u64::MAX)).map(|(seat, _)| *seat).collect();
        seats.into_iter().for_each(|seat| self.drop_seat(seat));
    }

    /// Of each node: its id, bytes of entries on their way, tickets that are out, members that wait for one.
    pub fn figures(&self) -> Vec<(u64, u64, u64, usize)> {
        self.peers.iter().map(|(id, peer)| (*id, peer.sent, peer.tickets, peer.waiting.len())).collect()
    }

    /// Nodes that have their full measure.
    pub fn shut(&self) -> &BTreeSet<u64> {
        &self.shut
    }

    /// Time passes, and what never arrived is given up. Returns seats whose tickets end with it.
    pub fn tick(&mut self) -> Vec<Seat> {
        self.ticks += 1;
        let mut silent = BTreeSet::new();
        for (id, peer) in &mut self.peers {
            if peer.sent == 0 && peer.tickets == 0 {
                continue;
            }
            peer.quiet_ticks += 1;
            if peer.quiet_ticks >= PATIENCE_TICKS {
                peer.quiet_ticks = 0;
                silent.insert(*id);
            }
        }
        let mut ended = Vec::new();
        for (seat, flight) in &mut self.flights {
            let Some(peer) = self.peers.get_mut(&flight.peer) else { continue };
            let is_silent = silent.contains(&flight.peer);
            let confirmed_to = peer.confirmed_to;
            let is_lost = |append: &Append| is_silent || append.sent_at + OVERTAKEN_TICKS <= confirmed_to;
            if flight.appends.iter().any(is_lost) {
                let (lost, rest) = std::mem::take(&mut flight.appends).into_iter().partition(is_lost);
                flight.appends = rest;
                let lost: Vec<Append> = lost;
                peer.take_off(&lost);
            }
            if is_silent && flight.has_ticket {
                ended.push(*seat);
            }
        }
        ended.iter().for_each(|seat| self.give_back(*seat));
        self.flights.retain(|_, flight| !is_idle(flight));
        self.peers.retain(|_, peer| peer.sent + peer.tickets > 0 || !peer.waiting.is_empty());
        self.shut = self.peers.iter().filter(|(_, peer)| peer.is_shut()).map(|(id, _)| *id).collect();
        ended
    }

    /// A member lives elsewhere now: what was on its way to the old node is no longer its.
    fn move_to(&mut self, peer: u64, seat: Seat) {
        if self.flights.get(&seat).is_some_and(|flight| flight.peer != peer) {
            self.drop_seat(seat);
        }
    }

    fn drop_seat(&mut self, seat: Seat) {
        let Some(flight) = self.flights.remove(&seat) else { return };
        if let Some(peer) = self.peers.get_mut(&flight.peer) {
            peer.take_off(&flight.appends);
            peer.tickets -= u64::from(flight.has_ticket);
            if flight.is_waiting {
                peer.waiting.retain(|waiting| *waiting != seat);
            }
        }
        self.look(flight.peer);
    }

    fn look(&mut self, id: u64) {
        if self.peers.get(&id).is_some_and(Peer::is_shut) {
            self.shut.insert(id);
        } else {
            self.shut.remove(&id);
        }
    }

    fn tidy(&mut self, seat: Seat) {
        if self.flights.get(&seat).is_some_and(is_idle) {
            self.flights.remove(&seat);
        }
    }
}

fn is_idle(flight: &Flight) -> bool {
    flight.appends.is_empty() && !flight.is_waiting && !flight.has_ticket
}
