//! The log on a real disk: raft-engine, one thread that writes and syncs, one that purges old files.
//!
//! The log thread drains its queue into one write group (up to `MERGE_BYTES_MAX`), so that one fsync serves all groups,
//! and signals an eventfd. A failed write or fsync is final: what reached the disk is unknown (fsyncgate), so the host
//! is poisoned and nothing is retried.
//!
//! Left out: damage in files, which `damage` looks for before raft-engine opens them, and `quarantine` moves aside.

use std::ffi::CString;
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use raft::eraftpb::{HardState, Snapshot};
use raft_engine::env::{DefaultFileSystem, FileSystem};
use raft_engine::{Config, LogBatch, ReadableSize, RecoveryMode};

use crate::bootstrap;
use crate::damage::{self, Damage, Place};
use crate::engine::{
    add, begin_write_group, parse_identity, Engine, KEY_HARD_STATE, KEY_IDENTITY, KEY_SNAPSHOT, MARKER_GROUP,
};
use crate::engine_reader::EngineReader;
use crate::errors::{one_line, panic_text, Fault, ReadError};
use crate::event_fd::EventFd;
use crate::log::{Fetch, Fetched, Log, LogReader, MemberState, Op, Stored};
use crate::log_files::{self, LogFiles};
use crate::quarantine;
use crate::write_group::WriteGroup;

/// Numbers the openings of logs in this process.
static OPENED: AtomicU64 = AtomicU64::new(1);

/// Bytes that one fsync makes durable at most.
const MERGE_BYTES_MAX: usize = 8 << 20;
/// Nothing is purged below it, and as much is kept in old files for recycling. The directory takes this, the live
/// entries, and what is written in a purge delay.
const PURGE_BYTES: u64 = 256 << 20;
const PURGE_BYTES_MIN: u64 = 8 << 20;
/// From a compaction to the purge: short enough to keep garbage small at full speed, long enough to merge a burst of
/// compactions into one purge.
const PURGE_DELAY: Duration = Duration::from_millis(250);
/// To the second purge, because a purge frees only files that an earlier one has emptied.
const PURGE_AGAIN: Duration = Duration::from_secs(10);

pub struct Job {
    pub sequence: u64,
    pub ops: Vec<Op>,
}

/// Results of the log threads.
pub struct Outcome {
    completed: AtomicU64,
    failure: Mutex<Option<String>>,
    advanced: Condvar,
    fetched: Mutex<Vec<Fetched>>,
    done: EventFd,
}

impl Outcome {
    pub fn fetched(&self) -> MutexGuard<'_, Vec<Fetched>> {
        self.fetched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn new() -> std::io::Result<Self> {
        Ok(Outcome {
            completed: AtomicU64::new(0),
            failure: Mutex::new(None),
            advanced: Condvar::new(),
            fetched: Mutex::default(),
            done: EventFd::new()?,
        })
    }

    pub fn completed(&self) -> u64 {
        self.completed.load(Ordering::Acquire)
    }

    pub fn failure(&self) -> MutexGuard<'_, Option<String>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, result: Result<u64, String>) {
        let mut failure = self.failure();
        match result {
            Ok(sequence) => self.completed.store(sequence, Ordering::Release),
            Err(why) => *failure = Some(why),
        }
        self.advanced.notify_all();
        self.done.signal();
    }
}

pub struct EngineLog {
    path: PathBuf,
    /// The damage that was found, and what was done about it.
    damage: Option<String>,
    retirement: Option<String>,
    was_damaged: bool,
    engine: Arc<Engine<DefaultFileSystem>>,
    log: u64,
    outcome: Arc<Outcome>,
    jobs: Option<Sender<Job>>,
    writer: Option<JoinHandle<()>>,
    fetcher: Option<(Sender<Fetch>, JoinHandle<()>)>,
    purger: Option<(Sender<()>, JoinHandle<()>)>,
}

impl EngineLog {
    /// Opens or creates the directory. `recycle` reuses old files; without it purges stall writes.
    pub fn open(path: &str, recycle: bool) -> Result<Self, Fault> {
        let directory = Path::new(path);
        let io = |e: std::io::Error| Fault::HostPoisoned(e.to_string());
        let purge_bytes = purge_threshold(directory)?;
        let file_bytes = damage::FILE_BYTES.min(purge_bytes / 4).max(damage::FILE_BYTES_MIN);
        let config = Config { enable_log_recycle: recycle, ..config(path, file_bytes, purge_bytes) };
        let Opened { engine, log, damage, retirement, was_damaged } =
            open_directory(&config, damage::FILE_BYTES_MIN, || Ok(DefaultFileSystem))?;
        let outcome = Arc::new(Outcome::new().map_err(io)?);
        let (jobs, queue) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        let (writing, reported, within) = (engine.clone(), outcome.clone(), directory.to_owned());
        let writer = Builder::new().name("meshraft-log".into()).spawn(move || {
            if !write_loop(&writing, &queue, &reported, &within) {
                // raft-engine syncs again when it is dropped, and a panic in that would end the whole process. The
                // directory stays locked until a restart, which is needed anyway.
                std::mem::forget(writing);
            }
        });
        let (fetch, fetches) = mpsc::channel();
        let (reading, reported) = (EngineReader::new(engine.clone(), log), outcome.clone());
        let fetcher =
            Builder::new().name("meshraft-fetch".into()).spawn(move || fetch_loop(&reading, &fetches, &reported));
        let purging = engine.clone();
        let purger = Builder::new().name("meshraft-purge".into()).spawn(move || purge_loop(&purging, &told));
        Ok(EngineLog {
            path: path.into(),
            damage,
            retirement,
            was_damaged,
            engine,
            log,
            outcome,
            jobs: Some(jobs),
            writer: Some(writer.map_err(io)?),
            fetcher: Some((fetch, fetcher.map_err(io)?)),
            purger: Some((tell, purger.map_err(io)?)),
        })
    }

    /// Waits until write `sequence` is durable.
    fn wait_for(&self, sequence: u64) -> Result<(), Fault> {
        let mut failure = self.outcome.failure();
        while self.outcome.completed() < sequence {
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
        Arc::new(EngineReader::new(self.engine.clone(), self.log))
    }

    fn submit(&mut self, sequence: u64, ops: Vec<Op>) -> Result<(), String> {
        let jobs = self.jobs.as_ref().ok_or("the log is closed")?;
        let drops = ops.iter().any(|op| matches!(op, Op::Snapshot { .. } | Op::Destroy { .. }));
        if let Some((tell, _)) = self.purger.as_ref().filter(|_| drops) {
            let _ = tell.send(());
        }
        jobs.send(Job { sequence, ops })
            .map_err(|_| self.outcome.failure().clone().unwrap_or("the log thread ended".into()))
    }

    fn completed(&mut self) -> Result<u64, String> {
        self.outcome.done.clear();
        match self.outcome.failure().as_ref() {
            Some(why) => Err(why.clone()),
            None => Ok(self.outcome.completed()),
        }
    }

    fn peek_completed(&self) -> u64 {
        self.outcome.completed()
    }

    fn fetch(&mut self, fetch: Fetch) {
        if let Some((queue, _)) = &self.fetcher {
            let _ = queue.send(fetch);
        }
    }

    fn take_fetched(&mut self) -> Vec<Fetched> {
        std::mem::take(&mut *self.outcome.fetched())
    }

    fn has_fetched(&self) -> bool {
        !self.outcome.fetched().is_empty()
    }

    fn load(&self, group: u64, submitted: u64) -> Result<Option<Stored>, Fault> {
        self.wait_for(submitted)?;
        load_group(&self.engine, group)
    }

    fn groups(&self) -> Vec<u64> {
        stored_groups(&self.engine)
    }

    fn fileno(&self) -> i32 {
        self.outcome.done.fileno()
    }

    fn damage(&self) -> Option<String> {
        self.damage.clone()
    }

    fn retirement(&self) -> Option<String> {
        self.retirement.clone()
    }

    fn forget_retirement(&mut self) -> Result<(), String> {
        if self.retirement.take().is_some() {
            quarantine::clear_pending_member_state(Path::new(&self.path)).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    fn was_damaged(&self) -> bool {
        self.was_damaged
    }

    fn disk_bytes(&self) -> u64 {
        let Ok(files) = fs::read_dir(&self.path) else { return 0 };
        files.flatten().filter_map(|file| file.metadata().ok()).map(|meta| meta.blocks() * 512).sum()
    }

    fn close(&mut self) -> Result<(), String> {
        drop(self.jobs.take());
        if let Some((tell, purger)) = self.purger.take() {
            drop(tell);
            let _ = purger.join();
        }
        if let Some((queue, fetcher)) = self.fetcher.take() {
            drop(queue);
            let _ = fetcher.join();
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

/// The stored state of one group.
pub fn load_group<B: FileSystem>(engine: &Engine<B>, group: u64) -> Result<Option<Stored>, Fault> {
    let Some(identity) = engine.get(group, KEY_IDENTITY) else { return Ok(None) };
    let broken = |what: &str| Fault::LogCorrupt(format!("group {group}: its {what} does not parse"));
    let (member, member_state) = parse_identity(&identity).ok_or_else(|| broken("identity"))?;
    let hard: Option<HardState> = engine.get_message(group, KEY_HARD_STATE).map_err(|_| broken("hard state"))?;
    let snapshot: Option<Snapshot> = engine.get_message(group, KEY_SNAPSHOT).map_err(|_| broken("snapshot"))?;
    let span = engine.first_index(group).zip(engine.last_index(group));
    let (hard, snapshot) = (hard.unwrap_or_default(), snapshot.unwrap_or_default());
    Ok(Some(Stored { member, member_state, hard, snapshot, span }))
}

pub fn stored_groups<B: FileSystem>(engine: &Engine<B>) -> Vec<u64> {
    let mut groups = engine.raft_groups();
    groups.retain(|group| engine.get(*group, KEY_IDENTITY).is_some());
    groups.sort_unstable();
    groups
}

/// raft-engine's settings for a directory: the file size, and the bytes below which nothing is purged.
pub fn config(path: &str, file_bytes: u64, purge_bytes: u64) -> Config {
    Config {
        dir: path.to_owned(),
        recovery_mode: RecoveryMode::TolerateTailCorruption,
        batch_compression_threshold: ReadableSize(0),
        target_file_size: ReadableSize(file_bytes),
        purge_threshold: ReadableSize(purge_bytes),
        ..Config::default()
    }
}

/// An opened log, and damage that was found.
pub struct Opened<B: FileSystem> {
    pub engine: Arc<Engine<B>>,
    /// Number of this opening, from 1 on.
    pub log: u64,
    /// What was found damaged, and what was done about it.
    pub damage: Option<String>,
    /// Why all memberships are retired, until the owner has given the store up.
    pub retirement: Option<String>,
    pub was_damaged: bool,
}

/// Opens the log over the file system that `base` makes. When raft-engine refuses the files they are quarantined and it
/// is opened again. Every full file has at least `full_bytes`.
pub fn open_directory<B: FileSystem>(
    config: &Config,
    full_bytes: u64,
    base: impl Fn() -> std::io::Result<B>,
) -> Result<Opened<B>, Fault> {
    let directory = Path::new(&config.dir);
    let io = |e: std::io::Error| Fault::HostPoisoned(e.to_string());
    let mut damage = None;
    if directory.exists() {
        damage::check_lock(directory).and_then(|()| log_files::remove_unbegun(directory)).map_err(io)?;
    }
    if let Some(found) = damage::find(directory, full_bytes)? {
        damage = Some(quarantine::quarantine(directory, &found).map_err(io)?);
    }
    let engine = match open_engine(config, base().map_err(io)?) {
        Err(Fault::LogCorrupt(what)) => {
            // Damage that only raft-engine finds, or that makes the log before it useless.
            let found = Damage {
                what: format!("the log in {} does not fit together ({what})", config.dir),
                place: Place::Everything,
                is_earlier: true,
            };
            damage = Some(quarantine::quarantine(directory, &found).map_err(io)?);
            open_engine(config, base().map_err(io)?)?
        }
        opened => opened?,
    };
    let mut retirement = None;
    if let Some((member_state, seen)) = quarantine::pending_member_state(directory).map_err(io)? {
        lower_member_states(&engine, member_state).map_err(Fault::HostPoisoned)?;
        if member_state == MemberState::Retired {
            // The file stays until the owner has given the store up.
            retirement = Some(seen);
        } else {
            quarantine::clear_pending_member_state(directory).map_err(io)?;
            damage.get_or_insert(seen);
        }
    }
    sync_names(directory).map_err(io)?;
    let was_damaged = quarantine::has_files(directory).map_err(io)?;
    let log = OPENED.fetch_add(1, Ordering::Relaxed);
    Ok(Opened { engine: Arc::new(engine), log, damage, retirement, was_damaged })
}

fn open_engine<B: FileSystem>(config: &Config, base: B) -> Result<Engine<B>, Fault> {
    let files = LogFiles::of(Path::new(&config.dir), base).map_err(|e| Fault::HostPoisoned(e.to_string()))?;
    catch_unwind(AssertUnwindSafe(|| Engine::open_with_file_system(config.clone(), Arc::new(files))))
        .map_err(|panic| Fault::LogCorrupt(panic_text(&*panic)))?
        .map_err(open_fault)
}

/// Writes the member state of all members after damage. A group whose records do not fit together is dropped: a rewrite
/// of older files may have lost its snapshot and kept the entries after it. No entry is read, so a transient read error
/// costs no group.
fn lower_member_states<B: FileSystem>(engine: &Engine<B>, member_state: MemberState) -> Result<(), String> {
    let mut batch = LogBatch::default();
    for group in engine.raft_groups().into_iter().filter(|group| *group != MARKER_GROUP) {
        let stored = load_group(engine, group).ok().flatten();
        let fitting = stored.filter(|stored| bootstrap::check_stored(group, stored).is_ok());
        let op = match fitting {
            Some(stored) if stored.member_state == MemberState::Retired => continue,
            Some(stored) => Op::Identity { group, member: stored.member, member_state },
            None => Op::Destroy { group },
        };
        add(&mut batch, engine, op)?;
    }
    begin_write_group(engine)?;
    engine.write(&mut batch, true).map(|_| ()).map_err(|e| one_line(&e.to_string()))
}

/// The purge threshold: less on a small file system, where old files must make room.
fn purge_threshold(directory: &Path) -> Result<u64, Fault> {
    let io = |e: std::io::Error| Fault::HostPoisoned(e.to_string());
    fs::create_dir_all(directory).map_err(io)?;
    let name = CString::new(directory.as_os_str().as_bytes()).map_err(|e| Fault::HostPoisoned(e.to_string()))?;
    let mut found = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the name ends with a zero and the structure is only read when the call has filled it.
    if unsafe { libc::statvfs(name.as_ptr(), found.as_mut_ptr()) } != 0 {
        return Err(io(std::io::Error::last_os_error()));
    }
    // SAFETY: as above.
    let found = unsafe { found.assume_init() };
    Ok(PURGE_BYTES.min(found.f_blocks * found.f_frsize / 32).max(PURGE_BYTES_MIN))
}

/// Makes the names of the directory and of its first file durable. raft-engine does that only for later files, so a
/// power cut could remove the first one with synced entries.
fn sync_names(directory: &Path) -> std::io::Result<()> {
    let directory = directory.canonicalize()?;
    directory.ancestors().take(3).try_for_each(|path| File::open(path)?.sync_all())
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

/// Runs until the queue is closed or a write fails. Returns whether all writes succeeded.
fn write_loop<B: FileSystem>(engine: &Engine<B>, queue: &Receiver<Job>, outcome: &Outcome, directory: &Path) -> bool {
    let mut carried = None;
    while let Some(first) = carried.take().or_else(|| queue.recv().ok()) {
        if !write_and_report(engine, first, queue, &mut carried, outcome, directory) {
            return false;
        }
    }
    true
}

/// Reads old entries for followers, one read at a time, so that reads do not starve the log's writes.
fn fetch_loop<B: FileSystem>(reader: &EngineReader<B>, queue: &Receiver<Fetch>, outcome: &Outcome) {
    while let Ok(fetch) = queue.recv() {
        fetch_one(reader, fetch, outcome);
    }
}

/// Does one read and reports it.
pub fn fetch_one<B: FileSystem>(reader: &EngineReader<B>, fetch: Fetch, outcome: &Outcome) {
    let Fetch { group, low, high, max_bytes, .. } = fetch;
    let entries = catch_unwind(AssertUnwindSafe(|| reader.entries(group, low, high, max_bytes)))
        .unwrap_or_else(|panic| Err(ReadError::Failed(panic_text(&*panic))));
    outcome.fetched().push(Fetched { fetch, entries });
    outcome.done.signal();
}

/// Does one write and reports it. Returns whether it succeeded.
pub fn write_and_report<B: FileSystem>(
    engine: &Engine<B>,
    first: Job,
    queue: &Receiver<Job>,
    carried: &mut Option<Job>,
    outcome: &Outcome,
    directory: &Path,
) -> bool {
    let result = catch_unwind(AssertUnwindSafe(|| write_one(engine, first, queue, carried)))
        .unwrap_or_else(|panic| Err(panic_text(&*panic)))
        .map_err(|why| format!("{} cannot be written: {why}", written_file(directory)));
    let is_good = result.is_ok();
    outcome.report(result);
    is_good
}

/// The file that is being written, for error texts.
fn written_file(directory: &Path) -> String {
    let newest = damage::numbered_files(directory, damage::SUFFIX).ok().and_then(|files| files.last().cloned());
    newest.map_or(directory.display().to_string(), |(_, path)| path.display().to_string())
}

/// Writes `first` and the next jobs of the queue as one write group. A job that must be written alone is carried over.
fn write_one<B: FileSystem>(
    engine: &Engine<B>,
    first: Job,
    queue: &Receiver<Job>,
    carried: &mut Option<Job>,
) -> Result<u64, String> {
    let mut write_group = WriteGroup::default();
    let mut sequence = first.sequence;
    let alone = stands_alone(&first);
    write_group.add(engine, first.ops)?;
    while !alone && write_group.bytes() < MERGE_BYTES_MAX {
        let Ok(next) = queue.try_recv() else { break };
        if stands_alone(&next) {
            *carried = Some(next);
            break;
        }
        sequence = next.sequence;
        write_group.add(engine, next.ops)?;
    }
    write_group.write(engine)?;
    Ok(sequence)
}

/// Whether a job destroys a group. It is written alone, so that a new group under the same id is not cleaned with it.
fn stands_alone(job: &Job) -> bool {
    job.ops.iter().any(|op| matches!(op, Op::Destroy { .. }))
}

/// Removes files without live entries; returns whether that succeeded. raft-engine's hints (groups to compact) are
/// ignored: compaction is a committed decision of each group's owner. Entries of a group that is never compacted are
/// rewritten at the tenth hint.
pub fn purge<B: FileSystem>(engine: &Engine<B>) -> bool {
    matches!(catch_unwind(AssertUnwindSafe(|| engine.purge_expired_files())), Ok(Ok(_)))
}

/// Purges after the log dropped entries. More purges would free nothing, and raft-engine would only rewrite live
/// entries sooner, because it counts purges.
fn purge_loop<B: FileSystem>(engine: &Engine<B>, told: &Receiver<()>) {
    let mut again = Some(PURGE_AGAIN); // for what an earlier incarnation of the host left
    loop {
        let heard = match again {
            Some(limit) => told.recv_timeout(limit),
            None => told.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        again = match heard {
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => None,
            Ok(()) if gather(told) => Some(PURGE_AGAIN),
            Ok(()) => return,
        };
        if !purge(engine) {
            eprintln!("meshraft: purging old log files failed; the directory keeps growing until the host is reopened");
            return;
        }
    }
}

/// Waits for a purge delay; false when the log closes.
fn gather(told: &Receiver<()>) -> bool {
    let until = Instant::now() + PURGE_DELAY;
    loop {
        match told.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
}
