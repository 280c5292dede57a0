//! Reads of applied entries from any thread, while the host goes on.
//!
//! An applied entry is durable and never changes, so it is read from the log without asking the driver. Meanwhile the
//! log may be compacted, or the group closed, destroyed or created again. So a read checks the group before and after,
//! and fails rather than return entries of another group. Closing the host waits for reads in progress.
//!
//! Left out: entries in memory (the host's own `entries` serves those), and which reads go first.

use std::collections::BTreeMap;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::errors::{panic_text, Fault, ReadError};
use crate::log::LogReader;
use crate::turn::{as_committed, Committed};

/// The readable range of one incarnation of a group.
#[derive(Default)]
pub struct Span {
    first: AtomicU64,
    applied: AtomicU64,
}

impl Span {
    pub fn set(&self, first: u64, applied: u64) {
        // First before applied: a reader that sees the applied index of a new snapshot sees its first index too.
        self.first.store(first, Ordering::Release);
        self.applied.store(applied, Ordering::Release);
    }
}

/// The open groups and their log, shared between the host and its readers.
pub struct Reads {
    /// None once the host is closed: the lock on the directory is released with the last reference to the log.
    log: RwLock<Option<Arc<dyn LogReader>>>,
    spans: Mutex<BTreeMap<u64, Arc<Span>>>,
}

impl Reads {
    pub fn new(log: Arc<dyn LogReader>) -> Arc<Self> {
        Arc::new(Reads { log: RwLock::new(Some(log)), spans: Mutex::default() })
    }

    pub fn opened(&self, group: u64, span: Arc<Span>) {
        self.spans().insert(group, span);
    }

    pub fn closed(&self, group: u64) {
        self.spans().remove(&group);
    }

    pub fn closed_all(&self) {
        self.spans().clear();
    }

    /// Waits for reads in progress and drops the log.
    pub fn close(&self) {
        self.closed_all();
        *self.log.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Entries `low..high`, up to the applied index: at least one if there is one, then until `max_bytes`.
    pub fn entries(&self, group: u64, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Committed>, Fault> {
        let log = self.log.read().unwrap_or_else(PoisonError::into_inner);
        let log = log.as_ref().ok_or_else(|| Fault::HostPoisoned("closed".into()))?;
        let span = self.span(group)?;
        // Applied before first, in the reverse order of `set`.
        let applied = span.applied.load(Ordering::Acquire);
        check_first(group, low, &span)?;
        let high = high.min(applied + 1);
        if low >= high {
            return Ok(Vec::new());
        }
        let found = catch_unwind(AssertUnwindSafe(|| log.entries(group, low, high, max_bytes)))
            .unwrap_or_else(|panic| Err(ReadError::Failed(panic_text(&*panic))));
        if !Arc::ptr_eq(&span, &self.span(group)?) {
            return Err(Fault::UnknownGroup(group));
        }
        check_first(group, low, &span)?;
        let found = found?;
        if found.first().map(|entry| entry.index) != Some(low) {
            return Err(Fault::LogCorrupt(format!("group {group}: entry {low} is missing from the log")));
        }
        Ok(found.into_iter().map(|entry| as_committed(group, entry)).collect())
    }

    fn span(&self, group: u64) -> Result<Arc<Span>, Fault> {
        self.spans().get(&group).cloned().ok_or(Fault::UnknownGroup(group))
    }

    fn spans(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Span>>> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check_first(group: u64, low: u64, span: &Span) -> Result<(), Fault> {
    let first = span.first.load(Ordering::Acquire);
    if low < first {
        return Err(Fault::LogCompacted { group, first });
    }
    Ok(())
}
