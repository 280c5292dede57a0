//! Log transfer: flow control of the entries that leaders here send to each other node, over all groups.
//!
//! A node that was away comes back with all its groups at once, and each group has an inflight window of its own: a
//! hundred windows would read gigabytes of old log and fill the links, the leader's memory and the queue of its
//! elections. So the bytes of entries in flight to one node are counted over all groups. Old log is read only with a
//! *permit*, and while a node is full, entries in memory need a permit too. Permits are granted first come, first
//! served.
//!
//! ```text
//!          request                  room: a permit                 read or found, and sent
//!  idle ────────────► waiting ────────────────────────► permitted ─────────────────────────► in flight ──► confirmed
//!                        ▲                                  │ more to send, or nothing           │ the node is silent
//!                        └──────────────────────────────────┘ was: the permit is released        └──► counted as lost
//! ```
//! This is the pure part; `group::log_transfer` applies it to a group. Entries that were proposed this very turn go out
//! at once: each group's window bounds them, and a node that cannot take them falls back to where permits are needed.
//! Sources: CockroachDB's replication flow control; etcd's `Inflights`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Bytes in flight to one node that were sent with permits: more than a round trip of a fast link holds. New proposals
/// do not count, or members that are up to date would keep the others from catching up.
const PERMITTED_BYTES_MAX: u64 = 8 << 20;
/// All bytes in flight to one node. A node past it is full: only entries that were proposed this very turn go there
/// without a permit. Less than what the queue to a node holds.
const PEER_BYTES_MAX: u64 = 12 << 20;
/// Bytes that one permit allows to send.
pub const PERMIT_BYTES: u64 = 1 << 20;
/// After so many ticks without a confirmation, what is in flight to a node counts as lost.
const SILENCE_TICKS_MAX: u64 = 40;
/// So does what was sent so many ticks before something that is confirmed: lanes and the log keep the order.
const OVERTAKEN_TICKS: u64 = 10;

/// A replica: (group, member).
pub type Replica = (u64, u64);

/// What becomes of a permit.
pub enum PermitUse {
    /// Entries `low..high` must be read from the log first.
    Read { low: u64, high: u64 },
    /// What could be sent was sent.
    Done,
}

#[derive(Default)]
struct Peer {
    /// Bytes in flight, and those of them that were sent with permits.
    inflight_bytes: u64,
    permitted_bytes: u64,
    permits: u64,
    waiting: VecDeque<Replica>,
    silent_ticks: u64,
    /// The tick at which the newest confirmed append was sent.
    confirmed_sent_at: u64,
}

impl Peer {
    fn has_room(&self) -> bool {
        self.permitted_bytes + self.permits * PERMIT_BYTES + PERMIT_BYTES <= PERMITTED_BYTES_MAX
    }

    fn subtract(&mut self, appends: &[Append]) {
        for append in appends {
            self.inflight_bytes -= append.bytes;
            self.permitted_bytes -= if append.is_permitted { append.bytes } else { 0 };
        }
    }

    fn is_full(&self) -> bool {
        self.inflight_bytes >= PEER_BYTES_MAX
    }
}

struct Append {
    last: u64,
    bytes: u64,
    is_permitted: bool,
    sent_at: u64,
}

#[derive(Default)]
struct State {
    peer: u64,
    appends: Vec<Append>,
    is_waiting: bool,
    has_permit: bool,
    /// It requested another permit while it had one.
    wants_more: bool,
}

/// A replica that the driver looks at after a turn of its group.
pub struct Transfer {
    pub member: u64,
    pub has_permit: bool,
}

#[derive(Default)]
pub struct LogTransfer {
    peers: BTreeMap<u64, Peer>,
    replicas: BTreeMap<Replica, State>,
    full: BTreeSet<u64>,
    ticks: u64,
}

impl LogTransfer {
    /// Requests a permit for a replica. Repeated requests have no effect.
    pub fn request(&mut self, peer: u64, replica: Replica) {
        self.set_peer(peer, replica);
        let state = self.replicas.entry(replica).or_default();
        state.peer = peer;
        state.wants_more = state.has_permit;
        if !state.is_waiting && !state.has_permit {
            state.is_waiting = true;
            self.peers.entry(peer).or_default().waiting.push_back(replica);
        }
    }

    /// Grants the next permit, if a node with room has a replica that waits.
    pub fn grant(&mut self) -> Option<Replica> {
        let (id, peer) = self.peers.iter_mut().find(|(_, peer)| !peer.waiting.is_empty() && peer.has_room())?;
        let replica = peer.waiting.pop_front()?;
        peer.permits += 1;
        let state = self.replicas.get_mut(&replica).expect("a replica that waits has a state");
        state.is_waiting = false;
        state.has_permit = true;
        state.wants_more = false;
        let id = *id;
        self.update_full(id);
        Some(replica)
    }

    pub fn can_grant(&self) -> bool {
        self.peers.values().any(|peer| !peer.waiting.is_empty() && peer.has_room())
    }

    pub fn has_permit(&self, replica: Replica) -> bool {
        self.replicas.get(&replica).is_some_and(|state| state.has_permit)
    }

    /// Takes back a replica's permit, used or not.
    pub fn release(&mut self, replica: Replica) {
        let Some(state) = self.replicas.get_mut(&replica).filter(|state| state.has_permit) else { return };
        state.has_permit = false;
        state.is_waiting = std::mem::take(&mut state.wants_more);
        let id = state.peer;
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.permits -= 1;
            if state.is_waiting {
                peer.waiting.push_back(replica);
            }
        }
        self.update_full(id);
        self.remove_if_idle(replica);
    }

    /// Notes that entries up to `last` were sent. A retransmission counts again: the first one may still be in flight.
    pub fn record_sent(&mut self, peer: u64, replica: Replica, last: u64, bytes: u64) {
        self.set_peer(peer, replica);
        let state = self.replicas.entry(replica).or_default();
        state.peer = peer;
        let is_permitted = state.has_permit;
        state.appends.push(Append { last, bytes, is_permitted, sent_at: self.ticks });
        let at = self.peers.entry(peer).or_default();
        if at.inflight_bytes == 0 {
            at.silent_ticks = 0;
        }
        at.inflight_bytes += bytes;
        at.permitted_bytes += if is_permitted { bytes } else { 0 };
        self.update_full(peer);
    }

    /// The replicas of a group.
    pub fn of_group(&self, group: u64) -> Vec<Transfer> {
        let of_group = self.replicas.range((group, 0)..=(group, u64::MAX));
        of_group.map(|((_, member), state)| Transfer { member: *member, has_permit: state.has_permit }).collect()
    }

    /// Notes that the replica has confirmed everything up to `matched`.
    pub fn record_confirmed(&mut self, replica: Replica, matched: u64) {
        let Some(state) = self.replicas.get_mut(&replica) else { return };
        let (done, rest) = std::mem::take(&mut state.appends).into_iter().partition(|append| append.last <= matched);
        state.appends = rest;
        let done: Vec<Append> = done;
        if done.is_empty() {
            return;
        }
        let id = state.peer;
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.subtract(&done);
            peer.silent_ticks = 0;
            peer.confirmed_sent_at = done.iter().map(|append| append.sent_at).fold(peer.confirmed_sent_at, u64::max);
        }
        self.update_full(id);
        self.remove_if_idle(replica);
    }

    /// Forgets a group that was closed or is not led here any more.
    pub fn remove_group(&mut self, group: u64) {
        let replicas: Vec<Replica> =
            self.replicas.range((group, 0)..=(group, u64::MAX)).map(|(replica, _)| *replica).collect();
        replicas.into_iter().for_each(|replica| self.remove_replica(replica));
    }

    /// For each node: its id, bytes in flight, permits granted, members that wait for one.
    pub fn stats(&self) -> Vec<(u64, u64, u64, usize)> {
        self.peers.iter().map(|(id, peer)| (*id, peer.inflight_bytes, peer.permits, peer.waiting.len())).collect()
    }

    /// Nodes with `PEER_BYTES_MAX` in flight.
    pub fn full_nodes(&self) -> &BTreeSet<u64> {
        &self.full
    }

    /// Advances the clock by a tick, and gives up what never arrived. Returns replicas whose permits end.
    pub fn tick(&mut self) -> Vec<Replica> {
        self.ticks += 1;
        let mut silent = BTreeSet::new();
        for (id, peer) in &mut self.peers {
            if peer.inflight_bytes == 0 && peer.permits == 0 {
                continue;
            }
            peer.silent_ticks += 1;
            if peer.silent_ticks >= SILENCE_TICKS_MAX {
                peer.silent_ticks = 0;
                silent.insert(*id);
            }
        }
        let mut ended = Vec::new();
        for (replica, state) in &mut self.replicas {
            let Some(peer) = self.peers.get_mut(&state.peer) else { continue };
            let is_silent = silent.contains(&state.peer);
            let confirmed_sent_at = peer.confirmed_sent_at;
            let is_lost = |append: &Append| is_silent || append.sent_at + OVERTAKEN_TICKS <= confirmed_sent_at;
            if state.appends.iter().any(is_lost) {
                let (lost, rest) = std::mem::take(&mut state.appends).into_iter().partition(is_lost);
                state.appends = rest;
                let lost: Vec<Append> = lost;
                peer.subtract(&lost);
            }
            if is_silent && state.has_permit {
                ended.push(*replica);
            }
        }
        ended.iter().for_each(|replica| self.release(*replica));
        self.replicas.retain(|_, state| !is_idle(state));
        self.peers.retain(|_, peer| peer.inflight_bytes + peer.permits > 0 || !peer.waiting.is_empty());
        self.full = self.peers.iter().filter(|(_, peer)| peer.is_full()).map(|(id, _)| *id).collect();
        ended
    }

    /// A member may be on another node now: what is in flight to the old one does not count for the new one.
    fn set_peer(&mut self, peer: u64, replica: Replica) {
        if self.replicas.get(&replica).is_some_and(|state| state.peer != peer) {
            self.remove_replica(replica);
        }
    }

    fn remove_replica(&mut self, replica: Replica) {
        let Some(state) = self.replicas.remove(&replica) else { return };
        if let Some(peer) = self.peers.get_mut(&state.peer) {
            peer.subtract(&state.appends);
            peer.permits -= u64::from(state.has_permit);
            if state.is_waiting {
                peer.waiting.retain(|waiting| *waiting != replica);
            }
        }
        self.update_full(state.peer);
    }

    fn update_full(&mut self, id: u64) {
        if self.peers.get(&id).is_some_and(Peer::is_full) {
            self.full.insert(id);
        } else {
            self.full.remove(&id);
        }
    }

    fn remove_if_idle(&mut self, replica: Replica) {
        if self.replicas.get(&replica).is_some_and(is_idle) {
            self.replicas.remove(&replica);
        }
    }
}

fn is_idle(state: &State) -> bool {
    state.appends.is_empty() && !state.is_waiting && !state.has_permit
}
