//! The log on a real disk: raft-engine, one thread that writes and syncs, one that purges old files.
//!
//! The log thread drains its queue into one batch (up to `MERGE_BYTES_MAX`), so that one fsync serves all groups, and
//! signals an eventfd. A failed write or fsync is final: nobody knows what reached the disk (fsyncgate), so the host is
//! poisoned and never retried.
//!
//! Left out: damage in files, which `damage` looks for before raft-engine opens them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use raft::eraftpb::{Entry, HardState, Snapshot};
use raft_engine::{Command, Config, Engine, LogBatch, MessageExt, ReadableSize, RecoveryMode};

use crate::damage;
use crate::errors::{one_line, panic_text, Fault};
use crate::log::{Log, LogReader, Op, Stored};
use crate::wake::Wake;

const KEY_IDENTITY: &[u8] = b"i";
const KEY_HARD_STATE: &[u8] = b"h";
const KEY_SNAPSHOT: &[u8] = b"s";

const MERGE_BYTES_MAX: usize = 8 << 20;
const FILE_BYTES: u64 = 64 << 20;
/// Real use runs about 1.5 times over it.
const PURGE_BYTES: u64 = 512 << 20;
const PURGE_INTERVAL: Duration = Duration::from_secs(10);

struct EntryOf;

impl MessageExt for EntryOf {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

struct Job {
    sequence: u64,
    ops: Vec<Op>,
}

/// What the log thread tells the rest.
struct Outcome {
    completed: AtomicU64,
    failure: Mutex<Option<String>>,
    advanced: Condvar,
    wake: Wake,
}

impl Outcome {
    fn failure(&self) -> MutexGuard<'_, Option<String>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, result: Result<u64, String>) {
        let mut failure = self.failure();
        match result {
            Ok(sequence) => self.completed.store(sequence, Ordering::Release),
            Err(why) => *failure = Some(why),
        }
        self.advanced.notify_all();
        self.wake.signal();
    }
}

pub struct EngineLog {
    path: PathBuf,
    engine: Arc<Engine>,
    outcome: Arc<Outcome>,
    jobs: Option<Sender<Job>>,
    writer: Option<JoinHandle<()>>,
    purger: Option<(Sender<()>, JoinHandle<()>)>,
}

impl EngineLog {
    /// Opens or creates the directory. `recycle` reuses old files, without which purges stall writes.
    pub fn open(path: &str, recycle: bool) -> Result<Self, Fault> {
        damage::check(Path::new(path))?;
        let config = Config {
            dir: path.to_owned(),
            recovery_mode: RecoveryMode::TolerateTailCorruption,
            batch_compression_threshold: ReadableSize(0),
            target_file_size: ReadableSize(FILE_BYTES),
            purge_threshold: ReadableSize(PURGE_BYTES),
            enable_log_recycle: recycle,
            ..Config::default()
        };
        let engine = catch_unwind(AssertUnwindSafe(|| Engine::open(config)))
            .map_err(|panic| Fault::LogCorrupt(panic_text(&*panic)))?
            .map_err(open_fault)?;
        let engine = Arc::new(engine);
        let io = |e: std::io::Error| Fault::HostPoisoned(e.to_string());
        let outcome = Arc::new(Outcome {
            completed: AtomicU64::new(0),
            failure: Mutex::new(None),
            advanced: Condvar::new(),
            wake: Wake::new().map_err(io)?,
        });
        let (jobs, queue) = mpsc::channel();
        let (stop, stopped) = mpsc::channel();
        let (writing, reported) = (engine.clone(), outcome.clone());
        let writer = Builder::new().name("meshraft-log".into()).spawn(move || write_loop(&writing, &queue, &reported));
        let purging = engine.clone();
        let purger = Builder::new().name("meshraft-purge".into()).spawn(move || purge_loop(&purging, &stopped));
        Ok(EngineLog {
            path: path.into(),
            engine,
            outcome,
            jobs: Some(jobs),
            writer: Some(writer.map_err(io)?),
            purger: Some((stop, purger.map_err(io)?)),
        })
    }

    /// Waits until write `sequence` is durable.
    fn wait_for(&self, sequence: u64) -> Result<(), Fault> {
        let mut failure = self.outcome.failure();
        while self.outcome.completed.load(Ordering::Acquire) < sequence {
            if let Some(why) = failure.as_ref() {
                return Err(Fault::HostPoisoned(why.clone()));
            }
            failure = self.outcome.advanced.wait(failure).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }
}

impl Log for EngineLog {
    fn reader(&self) -> Arc<dyn LogReader> {
        Arc::new(EngineReader(self.engine.clone()))
    }

    fn submit(&mut self, sequence: u64, ops: Vec<Op>) -> Result<(), String> {
        let jobs = self.jobs.as_ref().ok_or("the log is closed")?;
        jobs.send(Job { sequence, ops })
            .map_err(|_| self.outcome.failure().clone().unwrap_or("the log thread ended".into()))
    }

    fn completed(&mut self) -> Result<u64, String> {
        self.outcome.wake.clear();
        match self.outcome.failure().as_ref() {
            Some(why) => Err(why.clone()),
            None => Ok(self.outcome.completed.load(Ordering::Acquire)),
        }
    }

    fn peek_completed(&self) -> u64 {
        self.outcome.completed.load(Ordering::Acquire)
    }

    fn load(&self, group: u64, submitted: u64) -> Result<Option<Stored>, Fault> {
        self.wait_for(submitted)?;
        let Some(identity) = self.engine.get(group, KEY_IDENTITY) else { return Ok(None) };
        let broken = |what: &str| Fault::LogCorrupt(format!("group {group}: its {what} does not parse"));
        let (member, may_vote) = parse_identity(&identity).ok_or_else(|| broken("identity"))?;
        let hard: Option<HardState> =
            self.engine.get_message(group, KEY_HARD_STATE).map_err(|_| broken("hard state"))?;
        let snapshot: Option<Snapshot> =
            self.engine.get_message(group, KEY_SNAPSHOT).map_err(|_| broken("snapshot"))?;
        let span = self.engine.first_index(group).zip(self.engine.last_index(group));
        let (hard, snapshot) = (hard.unwrap_or_default(), snapshot.unwrap_or_default());
        Ok(Some(Stored { member, may_vote, hard, snapshot, span }))
    }

    fn groups(&self) -> Vec<u64> {
        let mut groups = self.engine.raft_groups();
        groups.retain(|group| self.engine.get(*group, KEY_IDENTITY).is_some());
        groups.sort_unstable();
        groups
    }

    fn fileno(&self) -> i32 {
        self.outcome.wake.fileno()
    }

    fn disk_bytes(&self) -> u64 {
        let Ok(files) = fs::read_dir(&self.path) else { return 0 };
        files.flatten().filter_map(|file| file.metadata().ok()).map(|meta| meta.blocks() * 512).sum()
    }

    fn close(&mut self) -> Result<(), String> {
        drop(self.jobs.take());
        if let Some((stop, purger)) = self.purger.take() {
            drop(stop);
            let _ = purger.join();
        }
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
        self.outcome.failure().clone().map_or(Ok(()), Err)
    }
}

impl Drop for EngineLog {
    fn drop(&mut self) {
        let _ = self.close();
    }
}

/// The member's id; a byte follows while it may not vote.
fn encode_identity(member: u64, may_vote: bool) -> Vec<u8> {
    let mut bytes = member.to_be_bytes().to_vec();
    if !may_vote {
        bytes.push(0);
    }
    bytes
}

fn parse_identity(bytes: &[u8]) -> Option<(u64, bool)> {
    let (member, rest) = bytes.split_first_chunk::<8>()?;
    (rest.is_empty() || rest == [0]).then(|| (u64::from_be_bytes(*member), rest.is_empty()))
}

struct EngineReader(Arc<Engine>);

impl LogReader for EngineReader {
    fn entries(&self, group: u64, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, String> {
        let mut found = Vec::new();
        let limit = usize::try_from(max_bytes).ok().filter(|bytes| *bytes < u32::MAX as usize);
        self.0
            .fetch_entries_to::<EntryOf>(group, low, high, limit, &mut found)
            .map_err(|e| one_line(&e.to_string()))?;
        Ok(found)
    }
}

fn open_fault(error: raft_engine::Error) -> Fault {
    let text = one_line(&error.to_string());
    match error {
        raft_engine::Error::Io(_) => Fault::HostPoisoned(text),
        raft_engine::Error::Other(_) if text.contains("lock") => {
            Fault::HostPoisoned("locked: another process has this directory open".into())
        }
        raft_engine::Error::Other(_) | raft_engine::Error::InvalidArgument(_) => Fault::HostPoisoned(text),
        _ => Fault::LogCorrupt(text),
    }
}

/// Runs until the queue is closed or a write fails.
fn write_loop(engine: &Engine, queue: &Receiver<Job>, outcome: &Outcome) {
    let mut carried = None;
    while let Some(first) = carried.take().or_else(|| queue.recv().ok()) {
        let result = catch_unwind(AssertUnwindSafe(|| write_one(engine, first, queue, &mut carried)))
            .unwrap_or_else(|panic| Err(panic_text(&*panic)));
        let failed = result.is_err();
        outcome.report(result);
        if failed {
            return;
        }
    }
}

/// Writes `first` and what fits behind it from the queue; a job that must stand alone is carried over.
fn write_one(engine: &Engine, first: Job, queue: &Receiver<Job>, carried: &mut Option<Job>) -> Result<u64, String> {
    let mut batch = LogBatch::default();
    let mut sequence = first.sequence;
    let mut alone = stands_alone(&first);
    add_all(&mut batch, engine, first.ops)?;
    while !alone && batch.approximate_size() < MERGE_BYTES_MAX {
        let Ok(next) = queue.try_recv() else { break };
        if stands_alone(&next) {
            *carried = Some(next);
            break;
        }
        sequence = next.sequence;
        alone = false;
        add_all(&mut batch, engine, next.ops)?;
    }
    engine.write(&mut batch, true).map_err(|e| one_line(&e.to_string()))?;
    Ok(sequence)
}

/// A write that destroys a group is not merged with others, so that a group made anew is never cleaned with the old one.
fn stands_alone(job: &Job) -> bool {
    job.ops.iter().any(|op| matches!(op, Op::Destroy { .. }))
}

fn add_all(batch: &mut LogBatch, engine: &Engine, ops: Vec<Op>) -> Result<(), String> {
    for op in ops {
        add(batch, engine, op).map_err(|e| one_line(&e.to_string()))?;
    }
    Ok(())
}

fn add(batch: &mut LogBatch, engine: &Engine, op: Op) -> raft_engine::Result<()> {
    match op {
        Op::Identity { group, member, may_vote } => {
            batch.put(group, KEY_IDENTITY.to_vec(), encode_identity(member, may_vote))
        }
        Op::HardState { group, state } => batch.put_message(group, KEY_HARD_STATE.to_vec(), &state),
        Op::Snapshot { group, snapshot, drop_to } => {
            batch.add_command(group, Command::Compact { index: drop_to });
            batch.put_message(group, KEY_SNAPSHOT.to_vec(), &snapshot)
        }
        Op::Entries { group, entries } => batch.add_entries::<EntryOf>(group, &entries),
        Op::Destroy { group } => {
            // What the same write put before must go too: write it out first.
            engine.write(batch, true)?;
            batch.add_command(group, Command::Clean);
            engine.write(batch, true).map(|_| ())
        }
    }
}

/// Removes files that hold nothing live. raft-engine's hints (groups to compact) are not followed here: compaction is a
/// committed decision of each group's owner; a group that is never compacted is rewritten at the tenth hint.
fn purge_loop(engine: &Engine, stopped: &Receiver<()>) {
    while stopped.recv_timeout(PURGE_INTERVAL) == Err(RecvTimeoutError::Timeout) {
        let purged = catch_unwind(AssertUnwindSafe(|| engine.purge_expired_files()));
        if !matches!(purged, Ok(Ok(_))) {
            eprintln!("meshraft: purging old log files failed; the directory keeps growing until the host is reopened");
            return;
        }
    }
}
