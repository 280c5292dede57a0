//! The log on a simulated disk: writes wait in memory until the test syncs them, a crash drops those that wait.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protobuf::Message as _;
use raft::eraftpb::Entry;

use crate::errors::Fault;
use crate::log::{Log, LogReader, Op, Stored};

#[derive(Default, Clone)]
struct GroupFiles {
    stored: Stored,
    entries: BTreeMap<u64, Entry>,
}

impl GroupFiles {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Identity { member, may_vote, .. } => {
                self.stored.member = *member;
                self.stored.may_vote = *may_vote;
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

#[derive(Default)]
struct State {
    /// Rises when a host attaches or the disk crashes; a host with an older number is detached.
    attachment: u64,
    groups: BTreeMap<u64, GroupFiles>,
    waiting: VecDeque<(u64, Vec<Op>)>,
    completed: u64,
    release_early: bool,
}

impl State {
    fn write(&mut self, ops: &[Op]) {
        for op in ops {
            let group = group_of(op);
            self.groups.entry(group).or_default().apply(op);
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
    pub fn new(release_early: bool) -> Self {
        SimDisk(Arc::new(Mutex::new(State { release_early, ..State::default() })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under this lock cannot leave it half changed in a way that matters more than the panic itself.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn pending(&self) -> usize {
        self.lock().waiting.len()
    }

    pub fn sync(&self, writes: Option<usize>) -> usize {
        let mut state = self.lock();
        let count = writes.unwrap_or(usize::MAX).min(state.waiting.len());
        for _ in 0..count {
            if let Some((sequence, ops)) = state.waiting.pop_front() {
                state.write(&ops);
                state.completed = sequence;
            }
        }
        count
    }

    pub fn crash(&self) {
        let mut state = self.lock();
        state.waiting.clear();
        state.attachment += 1;
    }
}

pub struct SimLog {
    disk: SimDisk,
    attachment: u64,
}

impl SimLog {
    /// Attaches to the disk, detaching any host before it; what that one had not synced is lost.
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
    fn entries(&self, group: u64, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, String> {
        let state = self.lock();
        let files = state.groups.get(&group).ok_or_else(|| format!("group {group} is not on the disk"))?;
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
}

impl Log for SimLog {
    fn reader(&self) -> Arc<dyn LogReader> {
        Arc::new(self.disk.clone())
    }

    fn submit(&mut self, sequence: u64, ops: Vec<Op>) -> Result<(), String> {
        self.attached()?.waiting.push_back((sequence, ops));
        Ok(())
    }

    fn completed(&mut self) -> Result<u64, String> {
        Ok(self.attached()?.completed)
    }

    fn peek_completed(&self) -> u64 {
        self.attached().map(|state| state.completed).unwrap_or(0)
    }

    fn load(&self, group: u64, _submitted: u64) -> Result<Option<Stored>, Fault> {
        // The view after all that was submitted, as the real log gives it, without making any of it durable.
        let state = self.attached().map_err(Fault::HostPoisoned)?;
        let mut files = state.groups.get(&group).cloned().unwrap_or_default();
        for op in state.waiting.iter().flat_map(|(_, ops)| ops).filter(|op| group_of(op) == group) {
            files.apply(op);
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

    fn releases_early(&self) -> bool {
        self.disk.lock().release_early
    }

    fn close(&mut self) -> Result<(), String> {
        drop(self.attached()?);
        self.disk.sync(None);
        self.disk.crash();
        Ok(())
    }
}

fn group_of(op: &Op) -> u64 {
    match op {
        Op::Identity { group, .. }
        | Op::HardState { group, .. }
        | Op::Snapshot { group, .. }
        | Op::Entries { group, .. }
        | Op::Destroy { group } => *group,
    }
}
