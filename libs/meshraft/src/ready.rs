//! The Ready loop: what raft-rs wants done, in the only order that is safe.
//!
//! Per Ready: messages that may go now go now; committed entries are handed out and applied; new entries are put where
//! raft-rs can read them *and* into the write; messages that must wait are held until that write is durable. Several
//! writes may be under way; `settle` releases in order what their completion allows.
//! Source: raft-rs `RawNode` (advance_append_async, on_persist_ready), Ongaro's thesis §10.2.1.

use bytes::Bytes;
use raft::eraftpb::{ConfChange, ConfChangeType, Entry, EntryType, Message, MessageType, Snapshot};
use raft::{ReadState, StateRole};

use crate::canvass::is_share;
use crate::conf;
use crate::electorate::WHOEVER;
use crate::frame::{class_of, Outgoing};
use crate::group::{ConfAt, Group};
use crate::log::{Op, Standing};
use crate::snapshot;

pub const KIND_NORMAL: u8 = 0;
pub const KIND_EMPTY: u8 = 1;
pub const KIND_CONF: u8 = 2;

/// A group yields to the others, and to whatever else the caller's thread does, after handing out this much in one turn (a
/// reopened group replays its whole log).
const COMMITTED_BYTES_PER_TURN: usize = 1 << 20;

/// A write under way, and what waits for it.
pub struct Held {
    pub sequence: u64,
    pub ready: u64,
    pub term: u64,
    pub messages: Vec<Message>,
}

#[derive(Debug, Clone)]
pub struct Committed {
    pub group: u64,
    pub index: u64,
    pub term: u64,
    pub kind: u8,
    pub data: Bytes,
}

#[derive(Debug, Clone)]
pub struct Installed {
    pub group: u64,
    pub index: u64,
    pub term: u64,
    pub data: Bytes,
}

#[derive(Debug, Clone)]
pub struct RoleChange {
    pub group: u64,
    pub role: &'static str,
    pub term: u64,
    pub leader: u64,
}

/// Entries up to `last`, sent to a member.
pub struct Appended {
    pub peer: u64,
    pub member: u64,
    pub last: u64,
    pub bytes: u64,
}

/// What one turn of one group produced.
#[derive(Default)]
pub struct Turn {
    pub outgoing: Vec<Outgoing>,
    pub ops: Vec<Op>,
    pub committed: Vec<Committed>,
    pub installed: Option<Installed>,
    pub role: Option<RoleChange>,
    pub reads: Vec<(u64, u64, u64)>,
    /// Appends that were sent, for the count of what is on its way.
    pub appends: Vec<Appended>,
    messages: Vec<Message>,
    committed_bytes: usize,
}

impl Group {
    /// One turn. `done` is the newest durable write, `sequence` the number of the write that takes this turn's changes.
    pub fn run(&mut self, done: u64, sequence: u64) -> Turn {
        let mut turn = Turn::default();
        self.flush_proposals();
        self.settle(done, &mut turn);
        self.canvass();
        self.keep_vote();
        loop {
            while self.node.has_ready() && turn.committed_bytes < COMMITTED_BYTES_PER_TURN {
                self.handle_ready(sequence, &mut turn);
            }
            if !self.tell_commit() {
                break;
            }
        }
        self.show_readers();
        self.settle_timeout();
        self.earn_vote(sequence, &mut turn.ops);
        self.lift_doubt(&mut turn.ops);
        turn.messages.append(&mut self.notices);
        self.ask_to_sleep(&mut turn.messages);
        self.nod_off(&mut turn.messages);
        self.answer_reads(&mut turn);
        self.tell_role(&mut turn);
        if self.standing == Standing::Blank || self.full_since > done {
            turn.messages.iter_mut().filter(|message| is_answer(message)).for_each(|message| message.commit = 0);
        }
        self.route(&mut turn);
        turn
    }

    /// Tells the followers what is committed when no entry is on its way that would carry it. raft-rs by itself sends every
    /// step of the commit index in a message of its own, which each follower answers: twice the frames for nothing.
    fn tell_commit(&mut self) -> bool {
        let log = &self.node.raft.raft_log;
        let (committed, last) = (log.committed, log.last_index());
        if !self.is_leader() || committed <= self.commit_told || committed < last {
            return false;
        }
        self.commit_told = committed;
        self.node.raft.bcast_append();
        true
    }

    /// Releases what waited for writes up to `done`.
    fn settle(&mut self, done: u64, turn: &mut Turn) {
        let mut ready = None;
        while self.held.front().is_some_and(|held| held.sequence <= done) {
            let Some(held) = self.held.pop_front() else { break };
            turn.messages.extend(held.messages);
            self.durable_term = self.durable_term.max(held.term);
            ready = Some(held.ready);
        }
        let Some(ready) = ready else { return };
        self.node.on_persist_ready(ready);
        let log = &self.node.raft.raft_log;
        if self.installing.as_ref().is_some_and(|installed| installed.index <= log.persisted) {
            let installed = self.installing.take().expect("just seen");
            self.applied = installed.index;
            self.node.advance_apply_to(installed.index);
            turn.installed = Some(installed);
        }
    }

    fn handle_ready(&mut self, sequence: u64, turn: &mut Turn) {
        let mut ready = self.node.ready();
        let number = ready.number();
        self.take_reads(ready.take_read_states());
        let mut waiting = ready.take_persisted_messages();
        let mut now = ready.take_messages();
        for messages in [&mut waiting, &mut now] {
            self.hush(messages);
            self.stamp_requests(messages);
        }
        if let Some(state) = ready.hs() {
            self.hard = state.clone();
            self.hard_unwritten = true;
        }
        // A lone voter leads at once, in the very Ready that raises its term: a learner must not get entries of a term
        // that a crash may yet undo and then fill differently.
        if self.node.raft.term > self.durable_term {
            waiting.extend(now);
        } else {
            turn.messages.extend(now);
        }
        if !ready.snapshot().is_empty() {
            self.install(ready.snapshot().clone(), turn);
        }
        for entry in ready.take_committed_entries() {
            self.hand_out(entry, turn);
        }
        let entries = ready.take_entries();
        if !entries.is_empty() {
            self.node.mut_store().append(&entries);
            turn.ops.push(Op::Entries { group: self.id, entries });
        }
        self.hold(sequence, number, ready.must_sync(), waiting, turn);
        self.node.advance_append_async(ready);
        if self.held.is_empty() {
            // Nothing to wait for; without this raft-rs keeps a record of every heartbeat for ever.
            self.node.on_persist_ready(number);
        }
        if self.installing.is_none() {
            self.node.advance_apply_to(self.applied);
        }
    }

    /// Queues the write and its messages, or lets messages that need no write of their own wait for the newest one.
    fn hold(&mut self, sequence: u64, ready: u64, must_sync: bool, mut messages: Vec<Message>, turn: &mut Turn) {
        if self.releases_early {
            turn.messages.append(&mut messages);
        }
        if must_sync {
            turn.ops.push(Op::HardState { group: self.id, state: self.hard.clone() });
            self.hard_unwritten = false;
            self.held.push_back(Held { sequence, ready, term: self.hard.term, messages });
        } else if let Some(newest) = self.held.back_mut() {
            newest.ready = ready;
            newest.messages.append(&mut messages);
        } else {
            turn.messages.append(&mut messages);
        }
    }

    fn install(&mut self, mut snapshot: Snapshot, turn: &mut Turn) {
        if snapshot.get_metadata().index == self.joined_at {
            snapshot.mut_metadata().mut_conf_state().learners.retain(|learner| *learner != self.member);
            let mut leave = ConfChange { node_id: self.member, ..ConfChange::default() };
            leave.set_change_type(ConfChangeType::RemoveNode);
            self.node.apply_conf_change(&leave).expect("others are voters");
        }
        let meta = snapshot.get_metadata();
        let (index, term) = (meta.index, meta.term);
        let (peers, data) = snapshot::open(&snapshot).expect("admission opened it");
        self.peers.extend(peers);
        self.confs = vec![ConfAt { index, conf: meta.get_conf_state().clone() }];
        // Whatever was stored is from before the snapshot or was never committed.
        let drop_to = self.node.store().last().max(index) + 1;
        turn.ops.push(Op::Snapshot { group: self.id, snapshot: snapshot.clone(), drop_to });
        self.node.mut_store().install(snapshot);
        self.installing = Some(Installed { group: self.id, index, term, data });
    }

    fn hand_out(&mut self, entry: Entry, turn: &mut Turn) {
        assert!(entry.index == self.applied + 1, "entry {} follows {}", entry.index, self.applied);
        let kind = kind_of(&entry);
        let data = if kind == KIND_CONF { self.apply_conf_change(&entry) } else { entry.data };
        self.applied = entry.index;
        turn.committed_bytes += data.len() + 64;
        turn.committed.push(Committed { group: self.id, index: entry.index, term: entry.term, kind, data });
    }

    /// Applies a change and returns its caller's context. A change that does not fit the configuration (all members see
    /// the same one) is passed over by all of them alike.
    fn apply_conf_change(&mut self, entry: &Entry) -> Bytes {
        let (change, peer, context) = conf::decode(entry).expect("a committed change parses");
        if change.get_change_type() != ConfChangeType::RemoveNode {
            self.peers.insert(change.node_id, peer);
        }
        if let Ok(conf) = self.node.apply_conf_change(&change) {
            self.confs.push(ConfAt { index: entry.index, conf });
        }
        let raft = &mut self.node.raft;
        if raft.state == StateRole::Leader && !raft.promotable() {
            // raft-rs leaves it leading, and panics at its next commit.
            raft.become_follower(raft.term, raft::INVALID_ID);
        }
        context
    }

    fn take_reads(&mut self, states: Vec<ReadState>) {
        for state in states {
            let number = |part: Option<&[u8]>| part.and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
            let (token, life) = (number(state.request_ctx.get(16..24)), number(state.request_ctx.get(24..32)));
            if life == Some(self.life) {
                self.reads.extend(token.map(|token| (state.index, token)));
            }
        }
    }

    fn answer_reads(&mut self, turn: &mut Turn) {
        let (group, applied) = (self.id, self.applied);
        self.reads.retain(|(index, token)| {
            if *index <= applied {
                turn.reads.push((group, *token, *index));
            }
            *index > applied
        });
    }

    fn tell_role(&mut self, turn: &mut Turn) {
        let role = self.role();
        if role != self.role_told {
            self.role_told = role;
            turn.role =
                Some(RoleChange { group: self.id, role: role_name(role.0, role.1), term: role.2, leader: role.3 });
        }
    }

    /// Addresses the turn's messages. One for a member whose node is unknown is dropped: raft sends again.
    fn route(&mut self, turn: &mut Turn) {
        for message in std::mem::take(&mut turn.messages) {
            let whoever = (message.to & WHOEVER != 0).then_some(message.to & !WHOEVER);
            let Some(peer) = self.peers.get(&message.to).copied().or(whoever) else { continue };
            let is_shared = is_share(&message);
            if message.get_msg_type() == MessageType::MsgSnapshot && !is_shared {
                self.note_snapshot_sent(message.to);
            }
            let is_append = message.get_msg_type() == MessageType::MsgAppend && !is_shared;
            if let Some(last) = message.entries.last().filter(|_| is_append) {
                let bytes = message.entries.iter().map(|entry| entry.data.len() as u64 + 32).sum();
                turn.appends.push(Appended { peer, member: message.to, last: last.index, bytes });
            }
            let matched = self.node.raft.prs().get(message.to).map_or(0, |progress| progress.matched);
            let class = class_of(&message, message.index > matched);
            turn.outgoing.push(Outgoing { peer, class, group: self.id, message });
        }
    }
}

/// Whether a message tells a leader how far its sender is.
fn is_answer(message: &Message) -> bool {
    matches!(message.get_msg_type(), MessageType::MsgAppendResponse | MessageType::MsgHeartbeatResponse)
}

pub fn kind_of(entry: &Entry) -> u8 {
    match entry.get_entry_type() {
        EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => KIND_CONF,
        EntryType::EntryNormal if entry.data.is_empty() && entry.context.is_empty() => KIND_EMPTY,
        EntryType::EntryNormal => KIND_NORMAL,
    }
}

/// An entry as its reader wants it: a configuration change shows its caller's context only.
pub fn as_committed(group: u64, entry: Entry) -> Committed {
    let kind = kind_of(&entry);
    let context = if kind == KIND_CONF { conf::decode(&entry).map(|(_, _, context)| context) } else { None };
    Committed { group, index: entry.index, term: entry.term, kind, data: context.unwrap_or(entry.data) }
}

pub fn role_name(state: StateRole, voter: bool) -> &'static str {
    match state {
        StateRole::Leader => "leader",
        StateRole::Candidate | StateRole::PreCandidate => "candidate",
        StateRole::Follower if voter => "follower",
        StateRole::Follower => "learner",
    }
}
