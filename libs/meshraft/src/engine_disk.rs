//! The real log without threads, over a file system that simulates crashes: for tests and simulations.
//!
//! The same functions write, purge, find damage and open as in `engine_log`; here they run when the test says so, over
//! `disk_journal`. A crash writes what it leaves into a new directory, in which the next host opens the log.
//!
//! Left out: a crash in the middle of `quarantine`, which works on real files before the log is opened.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use raft_engine::Config;

use crate::disk_journal::{DiskMutant, Failure, Journal, Kept};
use crate::engine_log::{self, Job, Opened, Outcome};
use crate::engine_reader::{apart, EngineReader};
use crate::errors::{Fault, ReadError};
use crate::log::{Fetch, Fetched, Log, LogReader, Op, Stored};
use crate::quarantine;

/// Small, so that a short run fills, recycles and removes many files.
const FILE_BYTES: u64 = 8 << 10;
const PURGE_BYTES: u64 = 32 << 10;

struct Running {
    opened: Opened<Journal>,
    outcome: Outcome,
    jobs: Sender<Job>,
    queue: Receiver<Job>,
    carried: Option<Job>,
    waiting: VecDeque<Job>,
    /// Reads for followers, done after the writes of a sync.
    fetches: Vec<Fetch>,
}

struct State {
    root: PathBuf,
    /// The incarnation of the log. Each has its own directory, and a host of an earlier one is detached.
    incarnation: u64,
    journal: Journal,
    running: Option<Running>,
}

impl State {
    fn directory(&self) -> PathBuf {
        self.root.join(self.incarnation.to_string())
    }

    /// Writes out the oldest `count` jobs.
    fn write(&mut self, count: usize) -> usize {
        let directory = self.directory();
        let Some(running) = &mut self.running else { return 0 };
        let count = count.min(running.waiting.len());
        for job in running.waiting.drain(..count) {
            let _ = running.jobs.send(job); // the other end is in the same structure
        }
        while let Some(first) = running.carried.take().or_else(|| running.queue.try_recv().ok()) {
            let Running { opened, outcome, queue, carried, .. } = running;
            if !engine_log::write_and_report(&opened.engine, first, queue, carried, outcome, &directory) {
                break;
            }
        }
        let reader = EngineReader::new(running.opened.engine.clone(), running.opened.log);
        let fetches = std::mem::take(&mut running.fetches);
        let count = count + fetches.len();
        fetches.into_iter().for_each(|fetch| engine_log::fetch_one(&reader, fetch, &running.outcome));
        count
    }

    fn crash(&mut self, kept: Kept) -> std::io::Result<()> {
        let Some(running) = self.running.take() else { return Ok(()) };
        let (before, steps) = (self.directory(), self.journal.steps());
        self.incarnation += 1;
        write_image(&self.journal, steps, kept, &self.directory())?;
        if running.outcome.failure().is_some() {
            std::mem::forget(running); // as the log thread does: dropped, raft-engine would sync once more
        }
        fs::remove_dir_all(before)
    }
}

fn write_image(journal: &Journal, steps: usize, kept: Kept, directory: &Path) -> std::io::Result<()> {
    fs::create_dir_all(directory)?;
    journal.image(steps, kept).iter().try_for_each(|(name, bytes)| fs::write(directory.join(name), bytes))
}

/// The disk itself; it outlives the hosts on it.
#[derive(Clone)]
pub struct EngineDisk(Arc<Mutex<State>>);

impl EngineDisk {
    /// Keeps its files in directories below `root`.
    pub fn new(root: &str, mutant: Option<DiskMutant>) -> Self {
        EngineDisk(Arc::new(Mutex::new(State {
            root: root.into(),
            incarnation: 0,
            journal: Journal::new(mutant),
            running: None,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn pending(&self) -> usize {
        self.lock().running.as_ref().map_or(0, |running| running.waiting.len() + running.fetches.len())
    }

    pub fn sync(&self, writes: Option<usize>) -> usize {
        self.lock().write(writes.unwrap_or(usize::MAX))
    }

    /// What the purge thread does after a purge delay; false when it failed.
    pub fn purge(&self) -> bool {
        self.lock().running.as_ref().is_none_or(|running| {
            let (log, engine) = (running.opened.log, &*running.opened.engine);
            apart(log, || engine_log::purge(engine))
        })
    }

    pub fn steps(&self) -> usize {
        self.lock().journal.steps()
    }

    pub fn fail_next(&self, failure: Failure) {
        self.lock().journal.fail_next(failure);
    }

    pub fn cancel_failure(&self) -> bool {
        self.lock().journal.cancel_failure()
    }

    pub fn crash(&self, kept: Kept) -> std::io::Result<()> {
        self.lock().crash(kept)
    }

    /// The directory of the present incarnation, or after a crash the one with the files that it left.
    pub fn directory(&self) -> PathBuf {
        self.lock().directory()
    }

    /// Writes what a crash after `steps` changes would leave below another root, for a disk of its own.
    pub fn image(&self, root: &Path, steps: usize, kept: Kept) -> std::io::Result<()> {
        write_image(&self.lock().journal, steps, kept, &root.join("0"))
    }
}

pub struct SteppedLog {
    disk: EngineDisk,
    incarnation: u64,
}

impl SteppedLog {
    /// Opens the log and detaches any earlier host; its unsynced writes are lost.
    pub fn attach(disk: &EngineDisk) -> Result<Self, Fault> {
        let io = |e: std::io::Error| Fault::HostPoisoned(e.to_string());
        let mut state = disk.lock();
        state.crash(Kept::Nothing).map_err(io)?;
        let directory = state.directory();
        fs::create_dir_all(&directory).map_err(io)?;
        let config = Config {
            enable_log_recycle: true,
            recovery_threads: 1, // so that equal runs note equal changes
            ..engine_log::config(&directory.to_string_lossy(), FILE_BYTES, PURGE_BYTES)
        };
        let journal = state.journal.clone();
        let opened = engine_log::open_directory(&config, FILE_BYTES, || journal.begin(&directory))?;
        journal.names_synced(&directory);
        let (jobs, queue) = mpsc::channel();
        let outcome = Outcome::new().map_err(io)?;
        state.running = Some(Running {
            opened,
            outcome,
            jobs,
            queue,
            carried: None,
            waiting: VecDeque::new(),
            fetches: Vec::new(),
        });
        Ok(SteppedLog { disk: disk.clone(), incarnation: state.incarnation })
    }

    fn with<R>(&self, call: impl FnOnce(&mut Running) -> R) -> Result<R, String> {
        let mut state = self.disk.lock();
        let is_attached = state.incarnation == self.incarnation;
        match state.running.as_mut().filter(|_| is_attached) {
            Some(running) => Ok(call(running)),
            None => Err("the simulated disk crashed or has another host".into()),
        }
    }
}

struct Detached;

impl LogReader for Detached {
    fn entries(&self, _: u64, _: u64, _: u64, _: u64) -> Result<Vec<raft::eraftpb::Entry>, ReadError> {
        Err(ReadError::Failed("the simulated disk crashed or has another host".into()))
    }
}

impl Log for SteppedLog {
    fn reader(&self) -> Arc<dyn LogReader> {
        self.with(|Running { opened, .. }| {
            Arc::new(EngineReader::new(opened.engine.clone(), opened.log)) as Arc<dyn LogReader>
        })
        .unwrap_or_else(|_| Arc::new(Detached))
    }

    fn submit(&mut self, sequence: u64, ops: Vec<Op>) -> Result<(), String> {
        self.with(|running| running.waiting.push_back(Job { sequence, ops }))
    }

    fn completed(&mut self) -> Result<u64, String> {
        self.with(|running| match running.outcome.failure().as_ref() {
            Some(why) => Err(why.clone()),
            None => Ok(running.outcome.completed()),
        })?
    }

    fn peek_completed(&self) -> u64 {
        self.with(|running| running.outcome.completed()).unwrap_or(0)
    }

    fn fetch(&mut self, fetch: Fetch) {
        let _ = self.with(|running| running.fetches.push(fetch));
    }

    fn take_fetched(&mut self) -> Vec<Fetched> {
        self.with(|running| std::mem::take(&mut *running.outcome.fetched())).unwrap_or_default()
    }

    fn has_fetched(&self) -> bool {
        self.with(|running| !running.outcome.fetched().is_empty()).unwrap_or(false)
    }

    fn load(&self, group: u64, _submitted: u64) -> Result<Option<Stored>, Fault> {
        self.disk.sync(None);
        self.with(|running| {
            let failure = running.outcome.failure().clone();
            failure.map_or_else(
                || engine_log::load_group(&running.opened.engine, group),
                |why| Err(Fault::HostPoisoned(why)),
            )
        })
        .map_err(Fault::HostPoisoned)?
    }

    fn groups(&self) -> Vec<u64> {
        self.with(|running| engine_log::stored_groups(&running.opened.engine)).unwrap_or_default()
    }

    fn fileno(&self) -> i32 {
        -1
    }

    fn disk_bytes(&self) -> u64 {
        0
    }

    fn damage(&self) -> Option<String> {
        self.with(|running| running.opened.damage.clone()).ok().flatten()
    }

    fn retirement(&self) -> Option<String> {
        self.with(|running| running.opened.retirement.clone()).ok().flatten()
    }

    fn forget_retirement(&mut self) -> Result<(), String> {
        let directory = self.disk.directory();
        let had = self.with(|running| running.opened.retirement.take())?;
        had.map_or(Ok(()), |_| quarantine::clear_pending_member_state(&directory).map_err(|e| e.to_string()))
    }

    fn was_damaged(&self) -> bool {
        self.with(|running| running.opened.was_damaged).unwrap_or(false)
    }

    fn close(&mut self) -> Result<(), String> {
        self.disk.sync(None);
        self.with(|running| running.outcome.failure().clone().map_or(Ok(()), Err))??;
        // raft-engine renames files when it is dropped: that is noted too, and a crash may come in between.
        self.disk.lock().running = None;
        Ok(())
    }
}
