//! The Ready loop: does what raft-rs's Ready asks for, in the order that is safe.
//!
//! Per Ready: send the messages that need no write; apply committed entries; put new entries where raft-rs can read
//! them *and* into the write; hold the messages that need the write until it is durable. Several writes may be in
//! progress; `complete_writes` releases in order what each of them allows. Source: raft-rs `RawNode`
//! (advance_append_async, on_persist_ready), Ongaro's thesis §10.2.1.

use bytes::Bytes;
use raft::eraftpb::{ConfChange, ConfChangeType, Entry, Message, MessageType, Snapshot};
use raft::StateRole;

use crate::conf::{self, ConfAt};
use crate::frame::{class_of, Outgoing};
use crate::group::Group;
use crate::log::{MemberState, Op};
use crate::snapshot;
use crate::turn::{
    kind_of, role_name, Appended, Committed, Installed, PendingWrite, RoleChange, Turn, ENTRY_CONF_CHANGE,
};
use crate::votes::VoteRequest;

/// Committed bytes after which a turn of a group ends, so that the other groups and the caller's thread go on (a
/// reopened group replays its whole log).
const COMMITTED_BYTES_PER_TURN: usize = 1 << 20;

impl Group {
    /// One turn. `done` is the newest durable write, `sequence` the number of the write that takes this turn's changes.
    pub fn run(&mut self, done: u64, sequence: u64) -> Turn {
        let mut turn = Turn::default();
        self.flush_proposals();
        self.complete_writes(done, &mut turn);
        self.campaign_alone();
        if let Some(leader) = self.probation.forgotten_vote(&self.node.raft).filter(|_| self.is_on_probation()) {
            self.node.raft.vote = leader;
        }
        loop {
            while self.node.has_ready() && turn.committed_bytes < COMMITTED_BYTES_PER_TURN {
                self.handle_ready(sequence, &mut turn);
            }
            if !self.broadcast_commit() && !self.propose_recovery() && !self.send_deferred(&mut turn.permit_requests) {
                break;
            }
        }
        self.show_readers();
        self.settle_timeout();
        self.end_blank(sequence, &mut turn.ops);
        self.end_probation(&mut turn.ops);
        turn.messages.append(&mut self.own_messages);
        self.request_quiescence(&mut turn.messages);
        self.accept_quiescence(&mut turn.messages);
        self.answer_reads(&mut turn);
        self.report_role(&mut turn);
        if self.member_state == MemberState::Blank || self.full_since_write > done {
            turn.messages
                .iter_mut()
                .filter(|message| is_progress_response(message))
                .for_each(|message| message.commit = 0);
        }
        self.route(&mut turn);
        turn
    }

    /// Sends the commit index to the followers if no entry in flight will carry it. raft-rs by itself sends every step
    /// of the commit index in its own message, which each follower answers: twice the frames for nothing.
    fn broadcast_commit(&mut self) -> bool {
        let log = &self.node.raft.raft_log;
        let (committed, last) = (log.committed, log.last_index());
        if !self.is_leader() || committed <= self.commit_broadcast || committed < last {
            return false;
        }
        self.commit_broadcast = committed;
        self.node.raft.bcast_append();
        true
    }

    /// Releases the messages that waited for writes up to `done`.
    fn complete_writes(&mut self, done: u64, turn: &mut Turn) {
        let mut ready = None;
        while self.pending_writes.front().is_some_and(|held| held.sequence <= done) {
            let Some(held) = self.pending_writes.pop_front() else { break };
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
        self.reads.confirm(ready.take_read_states(), self.incarnation);
        let mut waiting = ready.take_persisted_messages();
        let mut now = ready.take_messages();
        for messages in [&mut waiting, &mut now] {
            if self.is_on_probation() {
                self.probation.drop_acknowledgements(messages);
            }
            VoteRequest { incarnation: self.incarnation, is_on_probation: self.is_on_probation(), is_lone: false }
                .attach(messages);
        }
        if let Some(state) = ready.hs() {
            self.hard = state.clone();
            self.hard_unwritten = true;
        }
        // A lone voter leads in the same Ready that raises its term. A learner must not get entries of that term before
        // it is durable: a crash could undo the term and fill it differently.
        if self.node.raft.term > self.durable_term {
            waiting.extend(now);
        } else {
            turn.messages.extend(now);
        }
        if !ready.snapshot().is_empty() {
            self.install(ready.snapshot().clone(), turn);
        }
        for entry in ready.take_committed_entries() {
            self.apply_entry(entry, turn);
        }
        let entries = ready.take_entries();
        if !entries.is_empty() {
            self.node.mut_store().append(&entries);
            turn.ops.push(Op::Entries { group: self.id, entries });
        }
        self.hold(sequence, number, ready.must_sync(), waiting, turn);
        self.node.advance_append_async(ready);
        if self.pending_writes.is_empty() {
            // Without this raft-rs would keep a record of every heartbeat for ever.
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
            self.pending_writes.push_back(PendingWrite { sequence, ready, term: self.hard.term, messages });
        } else if let Some(newest) = self.pending_writes.back_mut() {
            newest.ready = ready;
            newest.messages.append(&mut messages);
        } else {
            turn.messages.append(&mut messages);
        }
    }

    fn install(&mut self, mut snapshot: Snapshot, turn: &mut Turn) {
        if snapshot.get_metadata().index == self.self_added_at {
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

    fn apply_entry(&mut self, entry: Entry, turn: &mut Turn) {
        assert!(entry.index == self.applied + 1, "entry {} follows {}", entry.index, self.applied);
        let kind = kind_of(&entry);
        let data = if kind == ENTRY_CONF_CHANGE { self.apply_conf_change(&entry) } else { entry.data };
        self.applied = entry.index;
        turn.committed_bytes += data.len() + 64;
        turn.committed.push(Committed { group: self.id, index: entry.index, term: entry.term, kind, data });
    }

    /// Applies a change and returns its caller's context. All members ignore a change that does not fit the
    /// configuration, because all see the same one.
    fn apply_conf_change(&mut self, entry: &Entry) -> Bytes {
        let (change, peer, context) = conf::decode(entry).expect("a committed change parses");
        if change.get_change_type() != ConfChangeType::RemoveNode {
            self.peers.insert(change.node_id, peer);
        }
        let has_ended = self.attested.take_if(|attested| attested.ends_with(entry, &change)).is_some();
        if has_ended && self.is_leader() {
            // This entry's write makes the commit index durable: a restart needs no attestation any more.
            self.proposals.push(Entry::default());
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

    fn answer_reads(&mut self, turn: &mut Turn) {
        let due = self.reads.take_due(self.applied);
        turn.reads.extend(due.into_iter().map(|(index, token)| (self.id, token, index)));
    }

    fn report_role(&mut self, turn: &mut Turn) {
        let role = self.role();
        if role != self.role_reported {
            self.role_reported = role;
            turn.role =
                Some(RoleChange { group: self.id, role: role_name(role.0, role.1), term: role.2, leader: role.3 });
        }
    }

    /// Addresses the turn's messages. A message for a member without a known node is dropped: Raft sends again.
    fn route(&mut self, turn: &mut Turn) {
        for message in std::mem::take(&mut turn.messages) {
            let Some(peer) = self.peers.get(&message.to).copied() else { continue };
            if message.get_msg_type() == MessageType::MsgSnapshot {
                self.sent_snapshots.record(message.to, self.ticks, self.settings.election_ticks as u64);
            }
            let is_append = message.get_msg_type() == MessageType::MsgAppend;
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

/// Whether a message tells the leader its sender's progress.
fn is_progress_response(message: &Message) -> bool {
    matches!(message.get_msg_type(), MessageType::MsgAppendResponse | MessageType::MsgHeartbeatResponse)
}
