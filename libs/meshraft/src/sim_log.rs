//! The log on a simulated disk: writes wait in memory until the test syncs them, and a crash drops those that wait.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protobuf::Message as _;
use raft::eraftpb::{Entry, HardState};

use crate::errors::{Fault, ReadError};
use crate::log::{Fetch, Fetched, Log, LogReader, MemberState, Op, Stored};

/// A known bug, planted to prove that checkers find it. A host on a real disk cannot have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// Messages that must wait for the disk are sent at once.
    ReleaseBeforeFsync,
    /// Every write counts as durable as soon as it is queued.
    FsyncLies,
    VoteNotSaved,
    /// Terms, votes and commit indexes are kept from a group's first write only.
    HardStateNotWritten,
    /// Entries that replace others are dropped; only those past the stored end are kept.
    ConflictNotReplaced,
    /// A quiesced follower ignores everybody but its leader, and does not notice its silence.
    DeafWhileQuiesced,
    /// A member whose log was damaged goes on as if it had lost nothing.
    DamageBelieved,
}

impl Mutant {
    const ALL: [(&'static str, Mutant); 7] = [
        ("release_before_fsync", Mutant::ReleaseBeforeFsync),
        ("fsync_lies", Mutant::FsyncLies),
        ("vote_not_saved", Mutant::VoteNotSaved),
        ("hard_state_not_written", Mutant::HardStateNotWritten),
        ("conflict_not_replaced", Mutant::ConflictNotReplaced),
        ("deaf_while_quiesced", Mutant::DeafWhileQuiesced),
        ("damage_believed", Mutant::DamageBelieved),
    ];

    pub fn names() -> Vec<&'static str> {
        Self::ALL.iter().map(|(name, _)| *name).collect()
    }

    pub fn named(name: &str) -> Option<Mutant> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, mutant)| *mutant)
    }
}

#[derive(Default, Clone)]
struct GroupFiles {
    stored: Stored,
    entries: BTreeMap<u64, Entry>,
}

impl GroupFiles {
    fn apply(&mut self, op: &Op, mutant: Option<Mutant>) {
        match op {
            Op::HardState { .. } if mutant == Some(Mutant::HardStateNotWritten) && self.stored.hard.term > 0 => {}
            Op::HardState { state, .. } if mutant == Some(Mutant::VoteNotSaved) => {
                self.stored.hard = HardState { vote: 0, ..state.clone() };
            }
            Op::Entries { entries, .. } if mutant == Some(Mutant::ConflictNotReplaced) => {
                for entry in entries {
                    self.entries.entry(entry.index).or_insert_with(|| entry.clone());
                }
            }
            Op::Identity { member, member_state, .. } => {
                self.stored.member = *member;
                self.stored.member_state = *member_state;
            }
            Op::HardState { state, .. } => self.stored.hard = state.clone(),
            Op::Snapshot { snapshot, drop_to, .. } => {
                self.stored.snapshot = snapshot.clone();
                self.entries = self.entries.split_off(drop_to);
            }
            Op::Entries { entries, .. } => {
                if let Some(first) = entries.first() {
                    self.entries.split_off(&first.index);
                }
                self.entries.extend(entries.iter().map(|e| (e.index, e.clone())));
            }
            Op::Destroy { .. } => *self = GroupFiles::default(),
        }
    }

    fn load(&self) -> Option<Stored> {
        if self.stored.member == 0 {
            return None;
        }
        let span = self.entries.first_key_value().zip(self.entries.last_key_value());
        Some(Stored { span: span.map(|(first, last)| (*first.0, *last.0)), ..self.stored.clone() })
    }
}

/// A write or read that waits for the disk.
enum Job {
    Write(u64, Vec<Op>),
    Read(Fetch),
}

#[derive(Default)]
struct State {
    /// Rises when a host attaches or the disk crashes; a host with an older number is detached.
    attachment: u64,
    groups: BTreeMap<u64, GroupFiles>,
    waiting: VecDeque<Job>,
    fetched: Vec<Fetched>,
    completed: u64,
    mutant: Option<Mutant>,
    /// Every synced write group, if the history is kept.
    history: Option<Vec<Vec<Op>>>,
    is_cut: bool,
    retirement: Option<String>,
}

impl State {
    fn read(&self, group: u64, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, String> {
        let files = self.groups.get(&group).ok_or_else(|| format!("group {group} is not on the disk"))?;
        let mut bytes = 0u64;
        let mut found = Vec::new();
        for entry in files.entries.range(low..high).map(|(_, e)| e) {
            bytes += u64::from(entry.compute_size());
            if bytes > max_bytes && !found.is_empty() {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
    }

    fn write(&mut self, ops: &[Op]) {
        for op in ops {
            let group = op.group();
            self.groups.entry(group).or_default().apply(op, self.mutant);
            if matches!(op, Op::Destroy { .. }) {
                self.groups.remove(&group);
            }
        }
    }
}

/// The disk itself; it outlives the hosts on it.
#[derive(Clone, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

impl SimDisk {
    /// `keeps_history`: without it `cut` cannot go back.
    pub fn new(mutant: Option<Mutant>, keeps_history: bool) -> Self {
        let history = keeps_history.then(Vec::new);
        SimDisk(Arc::new(Mutex::new(State { mutant, history, ..State::default() })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under this lock already fails the test.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn pending(&self) -> usize {
        self.lock().waiting.len()
    }

    pub fn sync(&self, writes: Option<usize>) -> usize {
        let mut state = self.lock();
        let count = writes.unwrap_or(usize::MAX).min(state.waiting.len());
        let mut group = Vec::new();
        for _ in 0..count {
            match state.waiting.pop_front() {
                Some(Job::Write(sequence, ops)) => {
                    state.write(&ops);
                    group.extend(ops);
                    state.completed = state.completed.max(sequence);
                }
                Some(Job::Read(fetch)) => {
                    let entries =
                        state.read(fetch.group, fetch.low, fetch.high, fetch.max_bytes).map_err(ReadError::Failed);
                    state.fetched.push(Fetched { fetch, entries });
                }
                None => break,
            }
        }
        if let Some(history) = state.history.as_mut().filter(|_| !group.is_empty()) {
            history.push(group);
        }
        count
    }

    /// Another disk that holds what is durable on this one now.
    pub fn copy(&self) -> SimDisk {
        let state = self.lock();
        let copied = State { groups: state.groups.clone(), mutant: state.mutant, ..State::default() };
        SimDisk(Arc::new(Mutex::new(copied)))
    }

    /// Crashes and loses the newest write groups too, as a damaged log does: with the last one at most the members are
    /// on probation, with more they are retired, unless these were one group. False when no history is kept.
    pub fn cut(&self, groups: usize, as_one: bool) -> bool {
        self.crash();
        let mut state = self.lock();
        let Some(mut history) = state.history.take() else { return false };
        history.truncate(history.len().saturating_sub(groups));
        state.groups.clear();
        history.iter().for_each(|ops| state.write(ops));
        let is_believed = state.mutant == Some(Mutant::DamageBelieved);
        let member_state = if groups > 1 && !as_one || state.retirement.is_some() {
            MemberState::Retired
        } else {
            MemberState::Probation
        };
        for stored in state.groups.values_mut().map(|files| &mut files.stored) {
            stored.member_state = if is_believed { stored.member_state } else { member_state };
        }
        if member_state == MemberState::Retired {
            state.retirement = Some("the simulated disk was cut before its last write group".into());
        }
        state.history = Some(history);
        state.is_cut = true;
        true
    }

    pub fn crash(&self) {
        let mut state = self.lock();
        state.waiting.clear();
        state.fetched.clear();
        state.attachment += 1;
    }
}

pub struct SimLog {
    disk: SimDisk,
    attachment: u64,
}

impl SimLog {
    /// Attaches to the disk and detaches any earlier host; its unsynced writes are lost.
    pub fn attach(disk: &SimDisk) -> Self {
        disk.crash();
        let mut state = disk.lock();
        state.completed = 0;
        SimLog { disk: disk.clone(), attachment: state.attachment }
    }

    fn attached(&self) -> Result<MutexGuard<'_, State>, String> {
        let state = self.disk.lock();
        if state.attachment == self.attachment {
            Ok(state)
        } else {
            Err("the simulated disk crashed or has another host".into())
        }
    }
}

impl LogReader for SimDisk {
    fn entries(&self, group: u64, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, ReadError> {
        self.lock().read(group, low, high, max_bytes).map_err(ReadError::Failed)
    }
}

impl Log for SimLog {
    fn reader(&self) -> Arc<dyn LogReader> {
        Arc::new(self.disk.clone())
    }

    fn submit(&mut self, sequence: u64, ops: Vec<Op>) -> Result<(), String> {
        let mut state = self.attached()?;
        state.waiting.push_back(Job::Write(sequence, ops));
        if state.mutant == Some(Mutant::FsyncLies) {
            state.completed = sequence;
        }
        Ok(())
    }

    fn completed(&mut self) -> Result<u64, String> {
        Ok(self.attached()?.completed)
    }

    fn peek_completed(&self) -> u64 {
        self.attached().map(|state| state.completed).unwrap_or(0)
    }

    fn fetch(&mut self, fetch: Fetch) {
        if let Ok(mut state) = self.attached() {
            state.waiting.push_back(Job::Read(fetch));
        }
    }

    fn take_fetched(&mut self) -> Vec<Fetched> {
        self.attached().map(|mut state| std::mem::take(&mut state.fetched)).unwrap_or_default()
    }

    fn has_fetched(&self) -> bool {
        self.attached().is_ok_and(|state| !state.fetched.is_empty())
    }

    fn load(&self, group: u64, _submitted: u64) -> Result<Option<Stored>, Fault> {
        // The state after all submitted writes, as in the real log, without making them durable.
        let state = self.attached().map_err(Fault::HostPoisoned)?;
        let mut files = state.groups.get(&group).cloned().unwrap_or_default();
        let writes = state.waiting.iter().filter_map(|job| match job {
            Job::Write(_, ops) => Some(ops),
            Job::Read(_) => None,
        });
        for op in writes.flatten().filter(|op| op.group() == group) {
            files.apply(op, state.mutant);
        }
        Ok(files.load())
    }

    fn groups(&self) -> Vec<u64> {
        self.disk.lock().groups.iter().filter(|(_, files)| files.stored.member != 0).map(|(group, _)| *group).collect()
    }

    fn fileno(&self) -> i32 {
        -1
    }

    fn disk_bytes(&self) -> u64 {
        0
    }

    fn damage(&self) -> Option<String> {
        self.was_damaged().then(|| "the simulated disk was cut".into())
    }

    fn retirement(&self) -> Option<String> {
        self.disk.lock().retirement.clone()
    }

    fn forget_retirement(&mut self) -> Result<(), String> {
        self.attached()?.retirement = None;
        Ok(())
    }

    fn was_damaged(&self) -> bool {
        self.disk.lock().is_cut
    }

    fn releases_early(&self) -> bool {
        self.disk.lock().mutant == Some(Mutant::ReleaseBeforeFsync)
    }

    fn hears_only_leader_while_quiesced(&self) -> bool {
        self.disk.lock().mutant == Some(Mutant::DeafWhileQuiesced)
    }

    fn close(&mut self) -> Result<(), String> {
        drop(self.attached()?);
        self.disk.sync(None);
        self.disk.crash();
        Ok(())
    }
}
