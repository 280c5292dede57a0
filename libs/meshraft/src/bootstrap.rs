//! Bootstrap of a new group, and reopening of a stored one with checks.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use bytes::Bytes;
use raft::eraftpb::{ConfState, HardState, Snapshot};
use raft::{RaftState, RawNode, StateRole};

use crate::applied_state::{self, AppliedState};
use crate::conf::ConfAt;
use crate::config::GroupSettings;
use crate::errors::Fault;
use crate::group::Group;
use crate::log::{LogReader, MemberState, Op, Stored};
use crate::probation::{Probation, ProbationTracker};
use crate::quiescence::Quiescence;
use crate::read_index::ReadIndex;
use crate::sent_snapshots::SentSnapshots;
use crate::snapshot;
use crate::store::Store;
use crate::timeouts::Timeouts;
use crate::turn::{Installed, PendingWrite};
use crate::votes::{LoneVoter, VoteTally};

/// All initial members start from a snapshot at this index and term. So no log begins at index 0, and a member that is
/// added later always gets a snapshot. TiKV does the same (`RAFT_INIT_LOG_INDEX`).
const INIT_LOG_INDEX: u64 = 1;
const INIT_LOG_TERM: u64 = 1;

/// What every group of a host shares.
pub struct HostContext {
    pub seed: u64,
    pub reader: Arc<dyn LogReader>,
    pub releases_early: bool,
    /// The log was damaged before: a group that is bootstrapped now may be one that it lost.
    pub was_damaged: bool,
    /// Numbers the openings of groups.
    pub opened: AtomicU64,
}

/// The members that a group is bootstrapped with, and its first snapshot.
pub struct InitialMembers {
    pub voters: Vec<u64>,
    pub learners: Vec<u64>,
    pub snapshot: Vec<u8>,
}

impl InitialMembers {
    fn check(&self, member: u64, peers: &BTreeMap<u64, u64>) -> Result<(), Fault> {
        let mut members: Vec<u64> = self.voters.iter().chain(&self.learners).copied().collect();
        members.sort_unstable();
        let bad = |why: String| Err(Fault::BadArgument(why));
        if members.contains(&0) || members.windows(2).any(|pair| pair[0] == pair[1]) {
            return bad("voters and learners must be distinct ids from 1 on".into());
        }
        if self.voters.is_empty() && !(self.learners.is_empty() && self.snapshot.is_empty()) {
            return bad("a group without voters starts blank: no learners, no snapshot".into());
        }
        if !self.voters.is_empty() && !members.contains(&member) {
            return bad(format!("member {member} is not among the initial members"));
        }
        match members.iter().find(|m| !peers.contains_key(m)) {
            Some(missing) => bad(format!("peers does not say where member {missing} lives")),
            None => Ok(()),
        }
    }

    fn conf(&self) -> ConfState {
        ConfState { voters: self.voters.clone(), learners: self.learners.clone(), ..ConfState::default() }
    }
}

/// Bootstraps a group. Returns it and the ops that record it; `sequence` is the write that will take them.
pub fn bootstrap(
    host: &HostContext,
    group: u64,
    member: u64,
    peers: BTreeMap<u64, u64>,
    initial: &InitialMembers,
    settings: GroupSettings,
    sequence: u64,
) -> Result<(Group, Vec<Op>), Fault> {
    if member == 0 || group == 0 {
        return Err(Fault::BadArgument("group and member ids begin at 1".into()));
    }
    initial.check(member, &peers)?;
    let member_state = match (host.was_damaged, initial.voters.is_empty()) {
        // Its bootstrap and its first vote may have been in the write group that was lost.
        (true, _) => MemberState::Probation,
        (false, true) => MemberState::Blank,
        (false, false) => MemberState::Full,
    };
    let mut stored = Stored { member, member_state, ..Stored::default() };
    let mut ops = vec![Op::Identity { group, member, member_state }];
    if !initial.voters.is_empty() {
        stored.snapshot = snapshot::build(INIT_LOG_INDEX, INIT_LOG_TERM, &initial.conf(), &peers, &initial.snapshot);
        stored.hard = HardState { term: INIT_LOG_TERM, commit: INIT_LOG_INDEX, ..HardState::default() };
        ops.push(Op::Snapshot { group, snapshot: stored.snapshot.clone(), drop_to: INIT_LOG_INDEX + 1 });
        ops.push(Op::HardState { group, state: stored.hard.clone() });
    }
    let mut new_group = assemble(host, group, peers, None, stored, settings)?;
    hold_until_durable(&mut new_group, sequence);
    Ok((new_group, ops))
}

/// Holds the group's messages until write `sequence`, with the state that it starts from, is durable.
pub fn hold_until_durable(group: &mut Group, sequence: u64) {
    group.durable_term = 0;
    group.pending_writes.push_back(PendingWrite { sequence, ready: 0, term: group.hard.term, messages: Vec::new() });
}

/// Reopens a stored group at an applied state, or else at its snapshot, which is returned too.
pub fn reopen(
    host: &HostContext,
    group: u64,
    member: u64,
    peers: BTreeMap<u64, u64>,
    applied_state: Option<Bytes>,
    stored: Stored,
    settings: GroupSettings,
) -> Result<(Group, Installed), Fault> {
    if stored.member != member {
        return Err(Fault::LogCorrupt(format!("group {group} is stored as member {}, not {member}", stored.member)));
    }
    check_stored(group, &stored)?;
    let (meta, blank) = (stored.snapshot.get_metadata().clone(), stored.snapshot.get_metadata().index == 0);
    let (mut known, data) = match snapshot::open(&stored.snapshot) {
        Some(opened) => opened,
        None if blank => (BTreeMap::new(), Bytes::new()),
        None => return Err(Fault::LogCorrupt(format!("group {group}: its snapshot does not parse"))),
    };
    let applied_state = match applied_state.map(applied_state::decode) {
        Some(None) => return Err(Fault::AppliedStateRefused("these bytes are no applied state".into())),
        decoded => decoded.flatten(),
    };
    if let Some(at) = &applied_state {
        known.extend(&at.peers);
    }
    known.extend(peers);
    let installed = Installed { group, index: meta.index, term: meta.term, data };
    Ok((assemble(host, group, known, applied_state, stored, settings)?, installed))
}

/// Checks that the stored records fit together, without reading an entry.
pub fn check_stored(group: u64, stored: &Stored) -> Result<(), Fault> {
    let corrupt = |why: String| Err(Fault::LogCorrupt(format!("group {group}: {why}")));
    let start = stored.snapshot.get_metadata().index;
    if let Some((first, _)) = stored.span.filter(|(first, _)| *first > start + 1) {
        return corrupt(format!("entries {} to {} are missing", start + 1, first - 1));
    }
    let last = last_of(stored);
    let commit = stored.hard.commit;
    if commit < start || commit > last {
        return corrupt(format!("it committed up to {commit}, the log holds {start} to {last}"));
    }
    if stored.hard.term < stored.snapshot.get_metadata().term {
        return corrupt("its term is older than its snapshot's".into());
    }
    Ok(())
}

fn last_of(stored: &Stored) -> u64 {
    let start = stored.snapshot.get_metadata().index;
    stored.span.map_or(start, |(_, last)| last.max(start))
}

fn assemble(
    host: &HostContext,
    id: u64,
    peers: BTreeMap<u64, u64>,
    applied_state: Option<AppliedState>,
    stored: Stored,
    settings: GroupSettings,
) -> Result<Group, Fault> {
    settings.check()?;
    let meta = stored.snapshot.get_metadata().clone();
    let last = last_of(&stored);
    let terms = term_runs(&*host.reader, id, &stored.snapshot, last)?;
    if terms.last().is_some_and(|run| run.1 > stored.hard.term) {
        return Err(Fault::LogCorrupt(format!("group {id}: its term is older than its last entry's")));
    }
    let (applied, confs) = match applied_state {
        Some(at) => {
            let term = term_in(&terms, at.index).filter(|_| at.index <= last);
            let at = at.fit(meta.index, stored.hard.commit, term).map_err(Fault::AppliedStateRefused)?;
            (at.index, at.confs)
        }
        None => (meta.index, vec![ConfAt { index: meta.index, conf: meta.get_conf_state().clone() }]),
    };
    let hard = stored.hard.clone();
    let conf = confs.last().expect("there is at least the snapshot's").conf.clone();
    let initial = RaftState::new(stored.hard, conf);
    let store = Store::new(id, host.reader.clone(), initial, stored.snapshot, terms, last);
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let node = RawNode::new(&settings.raft_config(stored.member, applied), store, &logger)
        .map_err(|e| Fault::LogCorrupt(format!("group {id}: {e}")))?;
    let (low, high) = (settings.election_ticks, 2 * settings.election_ticks);
    let mut group = Group {
        id,
        member: stored.member,
        member_state: stored.member_state,
        full_since_write: 0,
        probation: Probation::default(),
        attested: None,
        probation_tracker: ProbationTracker::default(),
        vote_tally: VoteTally::default(),
        lone_voter: LoneVoter::default(),
        is_campaign_due: false,
        own_messages: Vec::new(),
        settings,
        node,
        timeouts: Timeouts::new(host.seed, id, stored.member, low, high),
        peers,
        confs,
        pending_writes: VecDeque::new(),
        installing: None,
        self_added_at: 0,
        durable_term: hard.term,
        hard,
        hard_unwritten: false,
        applied,
        commit_broadcast: 0,
        proposals: Vec::new(),
        proposal_bytes: 0,
        reads: ReadIndex::default(),
        incarnation: host.seed.wrapping_add(host.opened.fetch_add(1, Ordering::Relaxed)),
        sent_snapshots: SentSnapshots::default(),
        role_reported: (StateRole::Follower, false, 0, 0),
        ticks: 0,
        heard: BTreeMap::new(),
        leader_heard: 0,
        releases_early: host.releases_early,
        span: Arc::default(),
        quiescence: Quiescence::new(host.seed),
    };
    group.show_readers();
    group.role_reported = group.role();
    group.settle_timeout();
    Ok(group)
}

/// Finds the first index of each term by bisection: terms never fall along a log, so equal ends mean an equal middle.
fn term_runs(reader: &dyn LogReader, group: u64, snapshot: &Snapshot, last: u64) -> Result<Vec<(u64, u64)>, Fault> {
    let meta = snapshot.get_metadata();
    let mut runs = vec![(meta.index, meta.term)];
    let mut spans = Vec::new();
    if last > meta.index {
        spans.push((meta.index, meta.term, last, read_term(reader, group, last)?));
    }
    // Depth first, lower half first, so that runs come out in order.
    while let Some((low, low_term, high, high_term)) = spans.pop() {
        if high_term < low_term {
            return Err(Fault::LogCorrupt(format!("group {group}: terms fall between {low} and {high}")));
        }
        if low_term == high_term {
            continue;
        }
        if high - low == 1 {
            runs.push((high, high_term));
            continue;
        }
        let middle = low + (high - low) / 2;
        let middle_term = read_term(reader, group, middle)?;
        spans.push((middle, middle_term, high, high_term));
        spans.push((low, low_term, middle, middle_term));
    }
    Ok(runs)
}

fn term_in(runs: &[(u64, u64)], index: u64) -> Option<u64> {
    runs.partition_point(|run| run.0 <= index).checked_sub(1).map(|at| runs[at].1)
}

fn read_term(reader: &dyn LogReader, group: u64, index: u64) -> Result<u64, Fault> {
    let corrupt = |why: String| Fault::LogCorrupt(format!("group {group}: entry {index} cannot be read: {why}"));
    let found = reader.entries(group, index, index + 1, 0).map_err(|error| corrupt(error.to_string()))?;
    match found.first().filter(|entry| entry.index == index) {
        Some(entry) => Ok(entry.term),
        None => Err(corrupt("it is not there".into())),
    }
}
