//! How a group comes into being here: made anew, or read back from the log and checked.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use bytes::Bytes;
use raft::eraftpb::{ConfState, HardState, Snapshot};
use raft::{RaftState, RawNode, StateRole};

use crate::bookmark::{self, Bookmark};
use crate::canvass::Canvass;
use crate::config::GroupSettings;
use crate::doubt::{Cases, Verified};
use crate::errors::Fault;
use crate::grants::Grants;
use crate::group::{ConfAt, Group, KnownIds};
use crate::log::{LogReader, Op, Standing, Stored};
use crate::ready::{Held, Installed};
use crate::sleep::Sleep;
use crate::snapshot;
use crate::store::Store;
use crate::timeouts::Timeouts;

/// All initial members start from this index and term, so that no log begins at index 0 and a late member always gets a
/// snapshot, never a replay from nothing.
const FIRST: u64 = 1;

/// What every group of a host shares.
pub struct Surroundings {
    pub seed: u64,
    pub reader: Arc<dyn LogReader>,
    pub releases_early: bool,
    /// The log was damaged before: what is founded now may be what it no longer tells of.
    pub was_damaged: bool,
    /// How many groups were opened here.
    pub opened: AtomicU64,
}

/// Who takes part in a group from the start.
pub struct Founders {
    pub voters: Vec<u64>,
    pub learners: Vec<u64>,
    pub snapshot: Vec<u8>,
}

impl Founders {
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

/// Makes a group and the ops that record it; `sequence` is the write that will take them.
pub fn create(
    around: &Surroundings,
    group: u64,
    member: u64,
    peers: BTreeMap<u64, u64>,
    founders: &Founders,
    settings: GroupSettings,
    sequence: u64,
) -> Result<(Group, Vec<Op>), Fault> {
    if member == 0 || group == 0 {
        return Err(Fault::BadArgument("group and member ids begin at 1".into()));
    }
    founders.check(member, &peers)?;
    let standing = match (around.was_damaged, founders.voters.is_empty()) {
        (true, _) => Standing::Doubtful,
        (false, true) => Standing::Blank,
        (false, false) => Standing::Full,
    };
    let mut stored = Stored { member, standing, ..Stored::default() };
    let mut ops = vec![Op::Identity { group, member, standing }];
    if !founders.voters.is_empty() {
        stored.snapshot = snapshot::build(FIRST, FIRST, &founders.conf(), &peers, &founders.snapshot);
        stored.hard = HardState { term: FIRST, commit: FIRST, ..HardState::default() };
        ops.push(Op::Snapshot { group, snapshot: stored.snapshot.clone(), drop_to: FIRST + 1 });
        ops.push(Op::HardState { group, state: stored.hard.clone() });
    }
    let mut made = assemble(around, group, peers.clone(), &peers, None, stored, settings)?;
    wait_for(&mut made, sequence);
    Ok((made, ops))
}

/// Lets the group say nothing to others before write `sequence`, which holds what it starts from, is durable.
pub fn wait_for(group: &mut Group, sequence: u64) {
    group.durable_term = 0;
    group.held.push_back(Held { sequence, ready: 0, term: group.hard.term, messages: Vec::new() });
}

/// Rebuilds a group from what is stored, at its bookmark or else at its snapshot, which is returned too.
pub fn reopen(
    around: &Surroundings,
    group: u64,
    member: u64,
    peers: BTreeMap<u64, u64>,
    bookmark: Option<Bytes>,
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
    let named = peers.clone();
    let bookmark = match bookmark.map(bookmark::decode) {
        Some(None) => return Err(Fault::BookmarkRefused("these bytes are no bookmark".into())),
        decoded => decoded.flatten(),
    };
    if let Some(at) = &bookmark {
        known.extend(&at.peers);
    }
    known.extend(peers);
    let installed = Installed { group, index: meta.index, term: meta.term, data };
    Ok((assemble(around, group, known, &named, bookmark, stored, settings)?, installed))
}

/// Checks that the pieces of what is stored fit together, as far as can be told without reading an entry.
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
    around: &Surroundings,
    id: u64,
    peers: BTreeMap<u64, u64>,
    named: &BTreeMap<u64, u64>,
    bookmark: Option<Bookmark>,
    stored: Stored,
    settings: GroupSettings,
) -> Result<Group, Fault> {
    settings.check()?;
    let meta = stored.snapshot.get_metadata().clone();
    let last = last_of(&stored);
    let terms = runs_of_terms(&*around.reader, id, &stored.snapshot, last)?;
    if terms.last().is_some_and(|run| run.1 > stored.hard.term) {
        return Err(Fault::LogCorrupt(format!("group {id}: its term is older than its last entry's")));
    }
    let (applied, confs) = match bookmark {
        Some(at) => {
            let term = term_in(&terms, at.index).filter(|_| at.index <= last);
            let at = at.fit(meta.index, stored.hard.commit, term).map_err(Fault::BookmarkRefused)?;
            (at.index, at.confs)
        }
        None => (meta.index, vec![ConfAt { index: meta.index, conf: meta.get_conf_state().clone() }]),
    };
    let hard = stored.hard.clone();
    let conf = confs.last().expect("there is at least the snapshot's").conf.clone();
    let initial = RaftState::new(stored.hard, conf);
    let store = Store::new(id, around.reader.clone(), initial, stored.snapshot, terms, last);
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let node = RawNode::new(&settings.raft_config(stored.member, applied), store, &logger)
        .map_err(|e| Fault::LogCorrupt(format!("group {id}: {e}")))?;
    let (low, high) = (settings.election_ticks, 2 * settings.election_ticks);
    let mut group = Group {
        id,
        member: stored.member,
        standing: stored.standing,
        full_since: 0,
        named: named.keys().copied().collect(),
        known: KnownIds::default(),
        nodes: Vec::new(),
        grants: Grants::default(),
        canvass: Canvass::default(),
        goal: None,
        verified: Verified::default(),
        cases: Cases::default(),
        notices: Vec::new(),
        settings,
        node,
        timeouts: Timeouts::new(around.seed, id, stored.member, low, high),
        peers,
        confs,
        held: VecDeque::new(),
        installing: None,
        joined_at: 0,
        durable_term: hard.term,
        hard,
        hard_unwritten: false,
        applied,
        commit_told: 0,
        proposals: Vec::new(),
        proposal_bytes: 0,
        reads: Vec::new(),
        read_count: 0,
        life: around.seed.wrapping_add(around.opened.fetch_add(1, Ordering::Relaxed)),
        snapshots_sent: BTreeMap::new(),
        role_told: (StateRole::Follower, false, 0, 0),
        ticks: 0,
        heard: BTreeMap::new(),
        leader_heard: 0,
        releases_early: around.releases_early,
        span: Arc::default(),
        sleep: Sleep::new(around.seed),
    };
    group.show_readers();
    group.role_told = group.role();
    group.settle_timeout();
    Ok(group)
}

/// Finds where terms change by bisection: terms never fall along a log, so equal ends mean an equal middle.
fn runs_of_terms(reader: &dyn LogReader, group: u64, snapshot: &Snapshot, last: u64) -> Result<Vec<(u64, u64)>, Fault> {
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
    let found = reader.entries(group, index, index + 1, 0).map_err(corrupt)?;
    match found.first().filter(|entry| entry.index == index) {
        Some(entry) => Ok(entry.term),
        None => Err(corrupt("it is not there".into())),
    }
}
