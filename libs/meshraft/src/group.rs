//! One group: a raft-rs node over its store, and the calls on it that come from outside.
//!
//! The loop that turns raft-rs's Ready into writes, messages and committed entries is in `ready`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use protobuf::RepeatedField;
use raft::eraftpb::{ConfState, Entry, HardState, Message, MessageType};
use raft::{ProgressState, RawNode, SnapshotStatus, StateRole, INVALID_ID};

use crate::admission;
use crate::bookmark;
use crate::canvass::{is_share, Canvass};
use crate::conf::Change;
use crate::config::GroupSettings;
use crate::doubt::{Cases, Goal, Verified};
use crate::electorate::WHOEVER;
use crate::errors::Fault;
use crate::grants::{is_grant, is_refusal, take_request, Grants};
use crate::log::{Op, Standing};
use crate::reader::Span;
use crate::ready::{Held, Installed};
use crate::sleep::Sleep;
use crate::snapshot;
use crate::store::Store;
use crate::timeouts::Timeouts;

/// Reads that may wait for a quorum at once; past it the caller is told to slow down.
const PENDING_READS_MAX: usize = 4096;
/// A lost snapshot is sent again after this many election timeouts, doubling each time: it may just be slow.
const SNAPSHOT_PATIENCE: u64 = 2;
const SNAPSHOT_PATIENCE_MAX: u64 = 256;

/// The configuration from an index on.
#[derive(Debug, Clone)]
pub struct ConfAt {
    pub index: u64,
    pub conf: ConfState,
}

/// Ids from these on are not known to the caller.
#[derive(Debug, Default, Clone, Copy)]
pub struct KnownIds {
    pub members: u64,
    pub nodes: u64,
}

/// A snapshot on its way to a member.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    pub at_tick: u64,
    pub patience: u64,
}

pub struct Group {
    pub id: u64,
    pub member: u64,
    /// Full, unless the disk may be one that lost votes and entries that others count on.
    pub standing: Standing,
    /// The write that makes it full, if it was blank.
    pub full_since: u64,
    /// Members that the caller names: all that are in the group or on their way, as far as it knows.
    pub named: Vec<u64>,
    /// Members and nodes with smaller ids are known to the caller: whom it does not name is out.
    pub known: KnownIds,
    /// Nodes of which the caller knows that each has some member.
    pub nodes: Vec<u64>,
    pub grants: Grants,
    pub canvass: Canvass,
    pub goal: Option<Goal>,
    pub verified: Verified,
    pub cases: Cases,
    /// Messages that do not come from raft-rs.
    pub notices: Vec<Message>,
    pub settings: GroupSettings,
    pub node: RawNode<Store>,
    pub timeouts: Timeouts,
    /// Where each member lives.
    pub peers: BTreeMap<u64, u64>,
    /// Configurations from the snapshot's index on, so that a compaction can name the one at its index.
    pub confs: Vec<ConfAt>,
    /// Writes under way and what waits for them, oldest first.
    pub held: VecDeque<Held>,
    /// A snapshot from the leader that is not durable yet: until it is, elections and applies must wait.
    pub installing: Option<Installed>,
    /// The index of the snapshot to be installed that names this member only because raft-rs wants that.
    pub joined_at: u64,
    pub hard: HardState,
    pub hard_unwritten: bool,
    /// The newest term that is durable here.
    pub durable_term: u64,
    pub applied: u64,
    /// The newest commit index that the followers were told for its own sake.
    pub commit_told: u64,
    /// Proposals that were numbered and are stepped together.
    pub proposals: Vec<Entry>,
    pub proposal_bytes: u64,
    /// Read points that wait for the applied index: (index, token).
    pub reads: Vec<(u64, u64)>,
    pub read_count: u64,
    /// Differs between any two openings of the group: an answer to a read of an earlier one is old, and must answer no other.
    pub life: u64,
    pub snapshots_sent: BTreeMap<u64, Sent>,
    pub role_told: (StateRole, bool, u64, u64),
    pub ticks: u64,
    /// Tick at which each member was last heard.
    pub heard: BTreeMap<u64, u64>,
    pub leader_heard: u64,
    pub releases_early: bool,
    /// What readers on other threads may see.
    pub span: Arc<Span>,
    pub sleep: Sleep,
}

impl Group {
    pub fn is_voter(&self) -> bool {
        self.node.raft.promotable()
    }

    pub fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    /// Whether a snapshot was taken that is not durable yet. Raft-rs has its configuration already.
    fn is_installing(&self) -> bool {
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
            || !self.notices.is_empty()
            || self.canvass.is_due && self.held.is_empty()
            || self.node.has_ready()
            || self.role() != self.role_told
            || self.read_is_due()
    }

    pub fn conf(&self) -> &ConfState {
        &self.confs.last().expect("the snapshot's configuration is always there").conf
    }

    /// Proposals that this leader has taken and no quorum confirmed; those of a lost leadership are not ours any more.
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
        self.give_up_on_snapshots();
        self.doze();
        if self.sleep.is_asleep {
            return;
        }
        // An election reads the log from the applied index on, which an uninstalled snapshot has cut off.
        if self.is_installing() || self.standing == Standing::Blank {
            return;
        }
        if self.is_lone_in_doubt() {
            self.tick_alone();
        } else if !self.must_write_first() {
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
        // A mark on empty data: without it the entry could not be told from a new leader's first one.
        let mark: &'static [u8] = if data.is_empty() { &[1] } else { &[] };
        let entry = Entry { data, context: Bytes::from_static(mark), ..Entry::default() };
        self.proposal_bytes += entry.data.len() as u64;
        self.proposals.push(entry);
        Ok((self.node.raft.term, self.node.raft.raft_log.last_index() + self.proposals.len() as u64))
    }

    /// Steps the proposals that were numbered. Must run before anything else may change the log or the leadership.
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
        if !self.is_voter() || self.is_installing() || self.standing == Standing::Blank {
            return Err(Fault::BadArgument("only a voter can campaign".into()));
        }
        self.flush_proposals();
        if self.is_lone_in_doubt() || self.must_write_first() {
            self.canvass.is_due = true;
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
        // raft-rs drops a request whose context it has already: make it unique over members and restarts of a token.
        self.read_count += 1;
        let context = [self.member, self.read_count, token, self.life].map(u64::to_be_bytes).concat();
        self.node.read_index(context);
        Ok(())
    }

    /// Takes who the members are, as far as the caller knows, and where they live.
    pub fn name(&mut self, peers: BTreeMap<u64, u64>, known: KnownIds) {
        self.known = known;
        self.named = peers.keys().copied().collect();
        let conf = self.conf().clone();
        let leader = self.node.raft.leader_id;
        let is_member = |member: &u64| conf.voters.contains(member) || conf.learners.contains(member);
        self.peers.retain(|member, _| is_member(member) || *member == leader);
        self.peers.extend(peers);
    }

    /// Feeds one message from node `peer`.
    pub fn step(&mut self, peer: u64, mut message: Message) -> Result<(), Fault> {
        if message.to & WHOEVER != 0 && asks_for_a_vote(message.get_msg_type()) {
            message.to = self.member;
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
            && !self.in_doubt()
            && message.term >= raft.term
            && message.commit > raft.raft_log.last_index()
        {
            // The leader names an index that this member once confirmed: its disk lost synced data. raft-rs panics here.
            panic!("the leader knows entries up to {} of this member, it has lost some", message.commit);
        }
        if kind == MessageType::MsgTimeoutNow && (self.is_installing() || self.standing != Standing::Full) {
            return Ok(());
        }
        // A member that joined lately may lead before its configuration entry is applied here; answers must reach it.
        self.peers.entry(message.from).or_insert(peer);
        if is_share(&message) {
            self.heard.insert(message.from, self.ticks);
            return self.take_share(message);
        }
        let Some(request) = take_request(&mut message) else { return Ok(()) };
        if self.answers_by_itself(&message, request) {
            return Ok(());
        }
        let is_wide = request.wide != 0;
        if is_wide && !self.take_wide_request(&mut message) {
            return Ok(());
        }
        if asks_for_a_vote(kind) && self.standing == Standing::Blank && !is_wide {
            return Ok(());
        }
        self.hear_leader(&mut message);
        self.take_word(&mut message);
        if self.take_notice(&mut message) {
            return Ok(());
        }
        let joined = join_snapshot(&mut message, self.member);
        let from = message.from;
        self.heard.insert(from, self.ticks);
        if is_refusal(&message) && (self.in_doubt() || self.is_candidate()) {
            // Raft-rs looks at no answer of one that it does not know as a member, also not at its term: it may have been asked widely.
            self.node.raft.step(message).map_err(|e| Fault::InvalidFrame(e.to_string()))?;
            self.settle_timeout();
            return Ok(());
        }
        let counted = if is_grant(&message) { self.weigh_grant(message) } else { vec![message] };
        let before = self.node.raft.msgs.len();
        for message in counted {
            match self.node.step(message) {
                // Strays of a former membership or leadership: normal on a network.
                Ok(()) | Err(raft::Error::StepPeerNotFound | raft::Error::ProposalDropped) => {}
                Err(e) => return Err(Fault::InvalidFrame(e.to_string())),
            }
        }
        self.note_joining(joined);
        if asks_for_a_vote(kind) {
            self.stamp_grants(before, request.own);
        }
        if self.node.raft.leader_id == from && !asks_for_a_vote(kind) {
            self.leader_heard = self.ticks;
        }
        self.settle_timeout();
        Ok(())
    }

    /// Notes that the snapshot at index `joined` was made to name this member, if raft-rs takes it.
    pub fn note_joining(&mut self, joined: Option<u64>) {
        let pending = self.node.raft.raft_log.unstable.snapshot.as_ref().map(|snapshot| snapshot.get_metadata().index);
        if joined.is_some() && joined == pending {
            self.joined_at = pending.unwrap_or_default();
        }
    }

    /// Stores the application's state at `index` and forgets the entries up to it.
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
        // All that is kept of the group beside its entries is written anew: one old key would hold back every file after it.
        ops.push(Op::Identity { group: self.id, member: self.member, standing: self.standing });
        ops.push(Op::Snapshot { group: self.id, snapshot: built.clone(), drop_to: index + 1 });
        // The commit index on disk must not stay behind the snapshot's.
        ops.push(Op::HardState { group: self.id, state: self.hard.clone() });
        self.hard_unwritten = false;
        self.node.mut_store().compact(built);
        self.show_readers();
        Ok(())
    }

    /// What the group needs to be opened at its applied index; none while a snapshot is on its way to the disk.
    pub fn bookmark(&self) -> Option<Bytes> {
        let term = self.node.store().term_at(self.applied)?;
        (self.installing.is_none() && self.applied > 0)
            .then(|| bookmark::encode(self.applied, term, &self.peers, &self.confs))
    }

    /// Tells readers on other threads what can be read.
    pub fn show_readers(&self) {
        self.span.set(self.node.store().first(), self.applied);
    }

    /// What has to be written before the group is let go.
    pub fn parting_ops(&mut self) -> Vec<Op> {
        if !std::mem::take(&mut self.hard_unwritten) {
            return Vec::new();
        }
        vec![Op::HardState { group: self.id, state: self.hard.clone() }]
    }

    pub fn note_snapshot_sent(&mut self, to: u64) {
        let first = SNAPSHOT_PATIENCE * self.settings.election_ticks as u64;
        let limit = SNAPSHOT_PATIENCE_MAX * self.settings.election_ticks as u64;
        let at_tick = self.ticks;
        let sent = self.snapshots_sent.entry(to).or_insert(Sent { at_tick, patience: first / 2 });
        *sent = Sent { at_tick, patience: (sent.patience * 2).min(limit) };
    }

    /// Ends the probation of a member that began blank. What it applied in its leader's own term comes after all that was
    /// committed before, and so after whatever it may have confirmed and lost (Ongaro's thesis §11.7.2; PAR, FAST 2018).
    ///
    /// Whoever promotes it counts on that, so it tells what it knows to be committed only when a crash cannot undo it.
    pub fn earn_vote(&mut self, sequence: u64, ops: &mut Vec<Op>) {
        let raft = &self.node.raft;
        let follows = raft.leader_id != INVALID_ID && raft.leader_id != self.member;
        if self.standing == Standing::Blank && follows && self.node.store().term_at(self.applied) == Some(raft.term) {
            self.standing = Standing::Full;
            self.full_since = sequence;
            ops.push(Op::Identity { group: self.id, member: self.member, standing: Standing::Full });
        }
    }

    fn read_is_due(&self) -> bool {
        self.reads.iter().any(|(index, _)| *index <= self.applied)
    }

    /// A snapshot frame may be lost, and raft-rs waits for it for ever: after a while it is reported as failed.
    fn give_up_on_snapshots(&mut self) {
        if self.snapshots_sent.is_empty() {
            return;
        }
        if !self.is_leader() {
            self.snapshots_sent.clear();
            return;
        }
        let ticks = self.ticks;
        let progress = self.node.raft.prs();
        let state = |to: &u64| progress.get(*to).map(|p| p.state);
        self.snapshots_sent.retain(|to, _| state(to).is_some_and(|s| s != ProgressState::Replicate));
        let lost: Vec<u64> = self
            .snapshots_sent
            .iter()
            .filter(|(to, sent)| state(to) == Some(ProgressState::Snapshot) && ticks - sent.at_tick >= sent.patience)
            .map(|(to, _)| *to)
            .collect();
        for member in lost {
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

fn asks_for_a_vote(kind: MessageType) -> bool {
    use MessageType::{MsgRequestPreVote, MsgRequestVote, MsgTimeoutNow};
    matches!(kind, MsgRequestPreVote | MsgRequestVote | MsgTimeoutNow)
}

/// Makes the receiver a learner of a snapshot that is older than its own joining; returns its index if it had to. raft-rs expects
/// snapshots of the present and refuses one that does not name the receiver; ours are of the log's floor, and the entry that
/// adds the receiver follows. When it is installed the receiver is taken out again (`Group::install`).
pub fn join_snapshot(message: &mut Message, member: u64) -> Option<u64> {
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
