//! One group: a raft-rs node over its store, and the calls on it.
//!
//! `group::ready` turns raft-rs's Ready into writes, messages and committed entries.

mod log_transfer;
mod quiescence;
mod ready;
mod recovery;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use protobuf::RepeatedField;
use raft::eraftpb::{ConfState, Entry, HardState, Message, MessageType};
use raft::{RawNode, SnapshotStatus, StateRole, INVALID_ID};

use crate::admission;
use crate::applied_state;
use crate::conf::{Change, ConfAt};
use crate::config::GroupSettings;
use crate::errors::{Closed, Fault};
use crate::log::{MemberState, Op};
use crate::probation::{take_goal, Probation, ProbationTracker};
use crate::quiescence::Quiescence;
use crate::read_index::ReadIndex;
use crate::reader::Span;
use crate::recovery::Attested;
use crate::sent_snapshots::SentSnapshots;
use crate::snapshot;
use crate::store::Store;
use crate::timeouts::Timeouts;
use crate::turn::{Installed, PendingWrite};
use crate::votes::{self, is_grant, LoneVoter, VoteRequest, VoteTally};

/// Reads that may wait for a quorum at once; past it a read meets Backpressure.
const PENDING_READS_MAX: usize = 4096;

/// One group. Parts with rules of their own are structs that do not know the group.
pub struct Group {
    pub id: u64,
    pub member: u64,
    pub member_state: MemberState,
    /// The write that records the full member state, if the member was blank.
    pub full_since_write: u64,
    pub probation: Probation,
    /// The attestation of an operator, until the log records it.
    pub attested: Option<Attested>,
    /// At the leader: members on probation.
    pub probation_tracker: ProbationTracker,
    pub vote_tally: VoteTally,
    pub lone_voter: LoneVoter,
    /// A lone voter campaigns as soon as its log is durable.
    pub is_campaign_due: bool,
    /// Messages that do not come from raft-rs.
    pub own_messages: Vec<Message>,
    pub settings: GroupSettings,
    pub node: RawNode<Store>,
    pub timeouts: Timeouts,
    /// The node of each member.
    pub peers: BTreeMap<u64, u64>,
    /// Configurations from the snapshot's index on, so that a compaction can name the one at its index.
    pub confs: Vec<ConfAt>,
    /// Writes in progress and the messages that wait for them, oldest first.
    pub pending_writes: VecDeque<PendingWrite>,
    /// A snapshot from the leader that is not durable yet. Elections and applies wait for it.
    pub installing: Option<Installed>,
    /// The index of the pending snapshot whose configuration this member was added to: see `add_self_to_snapshot`.
    pub self_added_at: u64,
    pub hard: HardState,
    pub hard_unwritten: bool,
    /// The newest term that is durable here.
    pub durable_term: u64,
    pub applied: u64,
    /// The newest commit index that `broadcast_commit` sent.
    pub commit_broadcast: u64,
    /// Proposals that have an index and are stepped together.
    pub proposals: Vec<Entry>,
    pub proposal_bytes: u64,
    pub reads: ReadIndex,
    /// Differs between any two openings of the group: a response to a read of an earlier one must not answer a new one.
    pub incarnation: u64,
    pub sent_snapshots: SentSnapshots,
    pub role_reported: (StateRole, bool, u64, u64),
    pub ticks: u64,
    /// Tick at which each member was last heard.
    pub heard: BTreeMap<u64, u64>,
    pub leader_heard: u64,
    pub releases_early: bool,
    /// The entries that readers on other threads may read.
    pub span: Arc<Span>,
    pub quiescence: Quiescence,
}

impl Group {
    pub fn is_voter(&self) -> bool {
        self.node.raft.promotable()
    }

    pub fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    /// Whether a snapshot is being installed. raft-rs has its configuration already.
    pub fn is_installing(&self) -> bool {
        self.installing.is_some() || self.node.raft.raft_log.unstable.snapshot.is_some()
    }

    pub fn is_candidate(&self) -> bool {
        matches!(self.node.raft.state, StateRole::PreCandidate | StateRole::Candidate)
    }

    pub fn role(&self) -> (StateRole, bool, u64, u64) {
        let raft = &self.node.raft;
        (raft.state, self.is_voter(), raft.term, raft.leader_id)
    }

    pub fn has_work(&self) -> bool {
        !self.proposals.is_empty()
            || !self.own_messages.is_empty()
            || self.is_campaign_due && self.pending_writes.is_empty()
            || self.node.has_ready()
            || self.role() != self.role_reported
            || self.reads.is_due(self.applied)
    }

    pub fn conf(&self) -> &ConfState {
        &self.confs.last().expect("the snapshot's configuration is always there").conf
    }

    /// Bytes of proposals of this leader that no quorum has confirmed. Those of a former leadership do not count.
    pub fn uncommitted_bytes(&self) -> u64 {
        if self.is_leader() {
            self.node.raft.uncommitted_size() as u64 + self.proposal_bytes
        } else {
            0
        }
    }

    /// Overwrites the election timeout that raft-rs may have drawn from its thread RNG.
    pub fn settle_timeout(&mut self) {
        let timeout = self.timeouts.at(self.node.raft.term, self.node.raft.state);
        self.node.raft.set_randomized_election_timeout(timeout);
    }

    pub fn tick(&mut self) {
        self.ticks += 1;
        self.flush_proposals();
        self.expire_snapshots();
        self.tick_quiescence();
        if self.quiescence.is_quiesced {
            return;
        }
        // An election reads the log from the applied index on, and a pending snapshot has dropped those entries.
        if self.is_installing()
            || self.member_state == MemberState::Retired
            || self.member_state == MemberState::Blank && self.is_voter()
        {
            return;
        }
        if self.is_lone_on_probation() {
            self.tick_lone_voter();
        } else if !self.must_persist_first() {
            self.node.tick();
        }
        self.settle_timeout();
    }

    pub fn propose(&mut self, data: Bytes) -> Result<(u64, u64), Fault> {
        self.check_leads()?;
        let waiting = self.node.raft.uncommitted_size() as u64 + self.proposal_bytes;
        if waiting > 0 && waiting + data.len() as u64 > self.settings.max_uncommitted_bytes {
            return Err(Fault::Backpressure(format!("{waiting} bytes of group {} are not committed yet", self.id)));
        }
        // One append per step: raft-rs sends a follower one message per step, cut at this size.
        if self.proposal_bytes + data.len() as u64 > self.settings.max_bytes_per_append {
            self.flush_proposals();
        }
        // The context tells an empty proposal from the empty first entry of a new leader.
        let mark: &'static [u8] = if data.is_empty() { &[1] } else { &[] };
        let entry = Entry { data, context: Bytes::from_static(mark), ..Entry::default() };
        self.proposal_bytes += entry.data.len() as u64;
        self.proposals.push(entry);
        Ok((self.node.raft.term, self.node.raft.raft_log.last_index() + self.proposals.len() as u64))
    }

    /// Steps the proposals that have an index. Must run before anything may change the log or the leadership.
    pub fn flush_proposals(&mut self) {
        if self.proposals.is_empty() {
            return;
        }
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.member;
        message.entries = RepeatedField::from_vec(std::mem::take(&mut self.proposals));
        self.proposal_bytes = 0;
        self.node.raft.step(message).expect("proposals were admitted and nothing ran in between");
    }

    pub fn propose_conf_change(&mut self, change: &Change) -> Result<(u64, u64), Fault> {
        self.check_leads()?;
        self.flush_proposals();
        change.check(self.member, self.conf())?;
        if self.node.raft.has_pending_conf() {
            return Err(Fault::Backpressure("another configuration change may be under way".into()));
        }
        match self.node.propose_conf_change(Vec::new(), change.encode()) {
            Ok(()) => Ok((self.node.raft.term, self.node.raft.raft_log.last_index())),
            Err(raft::Error::ProposalDropped) => {
                Err(Fault::Backpressure("too many bytes are not committed yet".into()))
            }
            Err(e) => Err(Fault::BadArgument(e.to_string())),
        }
    }

    pub fn transfer_leader(&mut self, member: u64) -> Result<(), Fault> {
        self.check_leads()?;
        self.flush_proposals();
        if !self.conf().voters.contains(&member) {
            return Err(Fault::BadArgument(format!("member {member} is no voter and cannot lead")));
        }
        self.node.transfer_leader(member);
        self.settle_timeout();
        Ok(())
    }

    pub fn campaign(&mut self) -> Result<(), Fault> {
        // raft-rs would let a member without a vote elect itself in an empty configuration, and panic.
        let may_stand = matches!(self.member_state, MemberState::Full | MemberState::Probation);
        if !self.is_voter() || self.is_installing() || !may_stand {
            return Err(Fault::BadArgument("only a voter can campaign".into()));
        }
        self.flush_proposals();
        if self.is_lone_on_probation() || self.must_persist_first() {
            self.is_campaign_due = true;
            return Ok(());
        }
        let campaigned = self.node.campaign();
        self.settle_timeout();
        campaigned.map_err(|e| Fault::BadArgument(e.to_string()))
    }

    pub fn read_index(&mut self, token: u64) -> Result<(), Fault> {
        self.flush_proposals();
        if self.node.raft.pending_read_count() + self.reads.len() >= PENDING_READS_MAX {
            return Err(Fault::Backpressure("too many reads wait for a quorum".into()));
        }
        let context = self.reads.context(self.member, token, self.incarnation);
        self.node.read_index(context);
        Ok(())
    }

    /// Sets the nodes of members. Members of the configuration that are not named keep theirs.
    pub fn set_peers(&mut self, peers: BTreeMap<u64, u64>) {
        let conf = self.conf().clone();
        let leader = self.node.raft.leader_id;
        let is_member = |member: &u64| conf.voters.contains(member) || conf.learners.contains(member);
        self.peers.retain(|member, _| is_member(member) || *member == leader);
        self.peers.extend(peers);
    }

    /// Steps one message from node `peer`.
    pub fn step(&mut self, peer: u64, mut message: Message) -> Result<(), Fault> {
        let is_lost = self.attested.as_ref().is_some_and(|attested| !attested.names(message.from));
        if self.member_state == MemberState::Retired || is_lost {
            return Ok(());
        }
        let raft = &self.node.raft;
        let receiver = admission::Receiver { member: self.member, term: raft.term, leader: raft.leader_id };
        admission::check(&message, peer, self.peers.get(&message.from).copied(), &receiver)?;
        if admission::is_stray(&message, &receiver) {
            return Ok(());
        }
        self.flush_proposals();
        let kind = message.get_msg_type();
        let raft = &self.node.raft;
        if kind == MessageType::MsgHeartbeat
            && !self.is_on_probation()
            && message.term >= raft.term
            && message.commit > raft.raft_log.last_index()
        {
            // The leader names an index that this member once confirmed. raft-rs would panic here.
            let why = format!("the leader knows entries up to {} of this member, it has lost some", message.commit);
            return Err(Fault::LostSyncedData(self.id, why));
        }
        if kind == MessageType::MsgTimeoutNow && (self.is_installing() || self.member_state != MemberState::Full) {
            return Ok(());
        }
        // A new member may lead before its configuration entry is applied here, and responses must reach it.
        self.peers.entry(message.from).or_insert(peer);
        let Some(request) = VoteRequest::take(&mut message) else { return Ok(()) };
        if request.is_refused(&message, self.node.raft.term) {
            self.own_messages.extend(votes::refusal(&message, self.node.raft.term));
            return Ok(());
        }
        if starts_election(kind) && self.member_state == MemberState::Blank && !request.is_lone {
            return Ok(());
        }
        let named = take_goal(&mut message);
        if self.is_on_probation() {
            let report = self.probation.observe(&mut message, named, &self.node.raft, self.incarnation);
            self.own_messages.extend(report);
        }
        self.take_quiesce_context(&mut message);
        if self.take_status_report(&mut message) {
            return Ok(());
        }
        let joined = add_self_to_snapshot(&mut message, self.member);
        let from = message.from;
        self.heard.insert(from, self.ticks);
        if self.is_lone_on_probation() && self.lone_voter.take_response(&mut message, self.incarnation) {
            self.is_campaign_due = true;
            return Ok(());
        }
        if matches!(kind, MessageType::MsgAppendResponse | MessageType::MsgHeartbeatResponse) {
            let has_confirmed = kind == MessageType::MsgAppendResponse && !message.reject;
            self.node.mut_store().async_fetch().note_response(from, has_confirmed);
        }
        let counted = if is_grant(&message) { self.count_grant(message) } else { vec![message] };
        let before = self.node.raft.msgs.len();
        for message in counted {
            match self.node.step(message) {
                // Messages of a former membership or leadership: normal on a network.
                Ok(()) | Err(raft::Error::StepPeerNotFound | raft::Error::ProposalDropped) => {}
                Err(e) => return Err(Fault::InvalidFrame(e.to_string())),
            }
        }
        self.note_self_added(joined);
        if starts_election(kind) {
            self.attach_vote_responses(before, request.incarnation);
        }
        if self.node.raft.leader_id == from && !starts_election(kind) {
            self.leader_heard = self.ticks;
        }
        self.settle_timeout();
        Ok(())
    }

    /// Notes that this member was added to the snapshot at index `joined`, if raft-rs accepted it.
    fn note_self_added(&mut self, joined: Option<u64>) {
        let pending = self.node.raft.raft_log.unstable.snapshot.as_ref().map(|snapshot| snapshot.get_metadata().index);
        if joined.is_some() && joined == pending {
            self.self_added_at = pending.unwrap_or_default();
        }
    }

    /// Stores the application's state at `index` and drops the entries up to it.
    pub fn compact(&mut self, index: u64, data: &[u8], ops: &mut Vec<Op>) -> Result<(), Fault> {
        self.flush_proposals();
        let current = self.node.store().snapshot_index();
        if index > self.applied || index < current || index == 0 || self.installing.is_some() {
            let range = format!("{} to {}", current.max(1), self.applied);
            return Err(Fault::BadArgument(format!("index {index} cannot be compacted, only {range}")));
        }
        let term = self.node.store().term_at(index).expect("an applied index has a term");
        let at = self.confs.partition_point(|conf| conf.index <= index) - 1;
        let built = snapshot::build(index, term, &self.confs[at].conf, &self.peers, data);
        self.confs.drain(..at);
        // All records of the group are written again: one old record would keep every later log file from the purge.
        ops.push(Op::Identity { group: self.id, member: self.member, member_state: self.member_state });
        ops.push(Op::Snapshot { group: self.id, snapshot: built.clone(), drop_to: index + 1 });
        // The commit index on disk must not be below the snapshot's.
        ops.push(Op::HardState { group: self.id, state: self.hard.clone() });
        self.hard_unwritten = false;
        self.node.mut_store().compact(built);
        self.show_readers();
        Ok(())
    }

    /// The encoded applied state; None while a snapshot is being installed.
    pub fn applied_state(&self) -> Option<Bytes> {
        let term = self.node.store().term_at(self.applied)?;
        (self.installing.is_none() && self.applied > 0)
            .then(|| applied_state::encode(self.applied, term, &self.peers, &self.confs))
    }

    /// Updates the entries that readers on other threads may read.
    pub fn show_readers(&self) {
        self.span.set(self.node.store().first(), self.applied);
    }

    /// The ops that must be written before the group is closed.
    pub fn closing_ops(&mut self) -> Vec<Op> {
        if !std::mem::take(&mut self.hard_unwritten) {
            return Vec::new();
        }
        vec![Op::HardState { group: self.id, state: self.hard.clone() }]
    }

    /// Makes a blank member full once it has applied an entry of its leader's own term. That entry comes after every
    /// entry that was committed before, and so after all that the member may have confirmed and lost (Ongaro's thesis
    /// §11.7.2; PAR, FAST 2018).
    ///
    /// A leader promotes the member because of the commit index that it reports, so it reports one only when the record
    /// is durable.
    pub fn end_blank(&mut self, sequence: u64, ops: &mut Vec<Op>) {
        let raft = &self.node.raft;
        let follows = raft.leader_id != INVALID_ID && raft.leader_id != self.member;
        if self.member_state == MemberState::Blank
            && follows
            && self.node.store().term_at(self.applied) == Some(raft.term)
        {
            self.member_state = MemberState::Full;
            self.full_since_write = sequence;
            ops.push(Op::Identity { group: self.id, member: self.member, member_state: MemberState::Full });
        }
    }

    /// Why the group closes after a panic in a call on it.
    pub fn panic_reason(&self) -> Closed {
        if self.node.store().is_corrupt() {
            Closed::Corrupt
        } else {
            Closed::Panicked
        }
    }

    /// Reports snapshots that may be lost as failed: raft-rs would wait for ever.
    fn expire_snapshots(&mut self) {
        for member in self.sent_snapshots.lost(&self.node.raft, self.ticks) {
            self.node.report_snapshot(member, SnapshotStatus::Failure);
        }
    }

    fn check_leads(&self) -> Result<(), Fault> {
        let raft = &self.node.raft;
        if raft.state != StateRole::Leader || raft.prs().get(self.member).is_none() {
            let who = match raft.leader_id {
                INVALID_ID => "no leader is known".to_owned(),
                leader => format!("member {leader} leads"),
            };
            return Err(Fault::NotLeader(format!("member {} does not lead group {}, {who}", self.member, self.id)));
        }
        if let Some(member) = raft.lead_transferee {
            return Err(Fault::NotLeader(format!("the leadership of group {} is going to member {member}", self.id)));
        }
        Ok(())
    }
}

fn starts_election(kind: MessageType) -> bool {
    use MessageType::{MsgRequestPreVote, MsgRequestVote, MsgTimeoutNow};
    matches!(kind, MsgRequestPreVote | MsgRequestVote | MsgTimeoutNow)
}

/// Adds this member as a learner to a snapshot from before it was added; returns the snapshot's index if it had to.
/// raft-rs refuses a snapshot that does not name the receiver. Our snapshots are of the log's floor, and the entry that
/// adds the receiver comes later. `Group::install` removes it from the configuration again.
pub fn add_self_to_snapshot(message: &mut Message, member: u64) -> Option<u64> {
    if message.get_msg_type() != MessageType::MsgSnapshot {
        return None;
    }
    let index = message.get_snapshot().get_metadata().index;
    let conf = message.mut_snapshot().mut_metadata().mut_conf_state();
    let joins = !conf.voters.contains(&member) && !conf.learners.contains(&member);
    if joins {
        conf.learners.push(member);
    }
    joins.then_some(index)
}
