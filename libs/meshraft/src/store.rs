//! The raft-rs storage of one group: the snapshot, the terms, a tail of entries in memory, and older ones from the log.
//!
//! The tail holds every unapplied entry, because only applied ones are surely readable from the log, plus as many
//! applied ones as the host's cache allows.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use protobuf::Message as _;
use raft::eraftpb::{Entry, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};

use crate::async_fetch::AsyncFetch;
use crate::errors::ReadError;
use crate::log::LogReader;

pub struct Store {
    group: u64,
    reader: Arc<dyn LogReader>,
    initial: RaftState,
    snapshot: Snapshot,
    tail: VecDeque<Entry>,
    tail_first: u64,
    tail_bytes: usize,
    /// First index of each run of equal terms, from the snapshot's index on. Terms never fall, so this is short.
    terms: Vec<(u64, u64)>,
    /// Whether a read found the log to be corrupt.
    is_corrupt: AtomicBool,
    /// Whether an append was deferred since the driver last looked.
    has_deferred: AtomicBool,
    /// Only this group's thread takes it; raft-rs hands out `&self`.
    async_fetch: Mutex<AsyncFetch>,
}

impl Store {
    /// `initial` is what raft-rs starts from, its configuration that of the applied index; `terms` begins with the
    /// snapshot's own index and term; `last` is the last stored index.
    pub fn new(
        group: u64,
        reader: Arc<dyn LogReader>,
        initial: RaftState,
        snapshot: Snapshot,
        terms: Vec<(u64, u64)>,
        last: u64,
    ) -> Self {
        let (tail, async_fetch) = (VecDeque::new(), Mutex::default());
        let (is_corrupt, has_deferred) = (AtomicBool::new(false), AtomicBool::new(false));
        Store {
            group,
            reader,
            initial,
            snapshot,
            tail,
            tail_first: last + 1,
            tail_bytes: 0,
            terms,
            is_corrupt,
            has_deferred,
            async_fetch,
        }
    }

    pub fn async_fetch(&mut self) -> &mut AsyncFetch {
        self.async_fetch.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_corrupt(&self) -> bool {
        self.is_corrupt.load(Ordering::Relaxed)
    }

    pub fn note_deferred(&self) {
        self.has_deferred.store(true, Ordering::Relaxed);
    }

    pub fn take_deferred(&mut self) -> bool {
        std::mem::take(self.has_deferred.get_mut())
    }

    pub fn snapshot_index(&self) -> u64 {
        self.snapshot.get_metadata().index
    }

    pub fn first(&self) -> u64 {
        self.snapshot_index() + 1
    }

    pub fn last(&self) -> u64 {
        self.tail_first + self.tail.len() as u64 - 1
    }

    pub fn tail_first(&self) -> u64 {
        self.tail_first
    }

    pub fn tail_bytes(&self) -> usize {
        self.tail_bytes
    }

    /// Takes new entries, replacing a conflicting suffix.
    pub fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first().map(|e| e.index) else { return };
        assert!(first > self.snapshot_index() && first <= self.last() + 1, "entries leave a hole at {first}");
        while self.terms.len() > 1 && self.terms.last().is_some_and(|run| run.0 >= first) {
            self.terms.pop();
        }
        if first < self.tail_first {
            self.clear_tail(first);
        } else {
            while self.last() >= first {
                let dropped = self.tail.pop_back().expect("the tail reaches up to its last index");
                self.tail_bytes -= weight(&dropped);
            }
        }
        for entry in entries {
            if self.terms.last().map(|run| run.1) != Some(entry.term) {
                self.terms.push((entry.index, entry.term));
            }
            self.tail_bytes += weight(entry);
            self.tail.push_back(entry.clone());
        }
    }

    /// Replaces everything by a snapshot from the leader.
    pub fn install(&mut self, snapshot: Snapshot) {
        let meta = snapshot.get_metadata();
        self.terms = vec![(meta.index, meta.term)];
        self.clear_tail(meta.index + 1);
        self.snapshot = snapshot;
    }

    /// Replaces the snapshot by one of our own at an index that the log still has.
    pub fn compact(&mut self, snapshot: Snapshot) {
        let (index, term) = (snapshot.get_metadata().index, snapshot.get_metadata().term);
        self.terms.retain(|run| run.0 > index);
        self.terms.insert(0, (index, term));
        self.trim(index);
        self.snapshot = snapshot;
    }

    /// Drops cached entries up to `index`, which must be durable and applied.
    pub fn trim(&mut self, index: u64) {
        while self.tail_first <= index {
            let Some(dropped) = self.tail.pop_front() else { break };
            self.tail_bytes -= weight(&dropped);
            self.tail_first += 1;
        }
    }

    pub fn snapshot_ref(&self) -> &Snapshot {
        &self.snapshot
    }

    pub fn term_at(&self, index: u64) -> Option<u64> {
        if index < self.snapshot_index() || index > self.last() {
            return None;
        }
        let run = self.terms.partition_point(|run| run.0 <= index);
        Some(self.terms[run - 1].1)
    }

    /// Entries `low..high` from the log and the tail, at least one, then until `max_bytes`.
    pub fn read(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, ReadError> {
        let mut found = Vec::new();
        let mut bytes = 0u64;
        if low < self.tail_first {
            let until = high.min(self.tail_first);
            found = self.reader.entries(self.group, low, until, max_bytes)?;
            if found.first().map(|e| e.index) != Some(low) {
                return Err(ReadError::Corrupt(format!("group {}: entry {low} is missing", self.group)));
            }
            bytes = found.iter().map(|e| u64::from(e.compute_size())).sum();
            if (found.len() as u64) < until - low {
                return Ok(found);
            }
        }
        self.add_from_tail(low.max(self.tail_first), high, max_bytes, bytes, &mut found);
        Ok(found)
    }

    /// Adds entries of the tail to what was found, which has so many `bytes`.
    fn add_from_tail(&self, low: u64, high: u64, max_bytes: u64, mut bytes: u64, found: &mut Vec<Entry>) {
        let (skipped, count) = ((low - self.tail_first) as usize, high.saturating_sub(low) as usize);
        for entry in self.tail.iter().skip(skipped).take(count) {
            bytes += u64::from(entry.compute_size());
            if bytes > max_bytes && !found.is_empty() {
                break;
            }
            found.push(entry.clone());
        }
    }

    fn clear_tail(&mut self, first: u64) {
        self.tail.clear();
        self.tail_bytes = 0;
        self.tail_first = first;
    }
}

impl Storage for Store {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(self.initial.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.first() {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let max_bytes = max_size.into().unwrap_or(u64::MAX);
        let mut fetch = self.async_fetch.lock().unwrap_or_else(PoisonError::into_inner);
        let is_in_memory = low >= self.tail_first;
        if !context.can_async() || is_in_memory && fetch.is_unrestricted() {
            return self.read(low, high, max_bytes).map_err(|error| {
                self.is_corrupt.fetch_or(matches!(error, ReadError::Corrupt(_)), Ordering::Relaxed);
                Error::Store(StorageError::Other(error.to_string().into()))
            });
        }
        let sent = if !is_in_memory {
            fetch.take_fetched(low, high.min(self.tail_first), max_bytes)
        } else if fetch.may_send() {
            let mut found = Vec::new();
            self.add_from_tail(low, high, max_bytes, 0, &mut found);
            fetch.spend(found.iter().map(|entry| weight(entry) as u64).sum());
            Some(found)
        } else {
            None
        };
        sent.ok_or_else(|| {
            self.note_deferred();
            Error::Store(StorageError::LogTemporarilyUnavailable)
        })
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index < self.snapshot_index() {
            return Err(Error::Store(StorageError::Compacted));
        }
        self.term_at(index).ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        // raft-rs panics on any other error, and on an empty snapshot.
        if self.snapshot_index() == 0 || self.snapshot_index() < request_index {
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        Ok(self.snapshot.clone())
    }
}

fn weight(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len() + 64
}
