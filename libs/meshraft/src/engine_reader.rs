//! Reading of entries from raft-engine's log.

use std::cell::Cell;
use std::sync::Arc;

use raft::eraftpb::Entry;
use raft_engine::env::FileSystem;

use crate::engine::{Engine, EntryOf};
use crate::errors::{one_line, ReadError};
use crate::log::LogReader;

const READ_ATTEMPTS: u32 = 3;

thread_local! {
    /// The log that this thread reads.
    static READ_HERE: Cell<u64> = const { Cell::new(0) };
}

/// raft-engine caches the last block of a thread by its place in the log, but not by the log. A thread that reads two
/// logs could get a block of the wrong one. So a thread reads one log only, and a new thread reads any other: for a
/// second mesh in one process, and for all logs of a simulation but one.
pub fn apart<R: Send>(log: u64, read: impl FnOnce() -> R + Send) -> R {
    if READ_HERE.get() == 0 {
        READ_HERE.set(log);
    }
    if READ_HERE.get() == log {
        return read();
    }
    std::thread::scope(|scope| match scope.spawn(read).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

pub struct EngineReader<B: FileSystem> {
    engine: Arc<Engine<B>>,
    log: u64,
}

impl<B: FileSystem> LogReader for EngineReader<B> {
    fn entries(&self, group: u64, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, ReadError> {
        apart(self.log, || self.read(group, low, high, max_bytes))
    }
}

impl<B: FileSystem> EngineReader<B> {
    /// `log` is the number of its opening.
    pub fn new(engine: Arc<Engine<B>>, log: u64) -> Self {
        EngineReader { engine, log }
    }

    fn read(&self, group: u64, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, ReadError> {
        let limit = usize::try_from(max_bytes).ok().filter(|bytes| *bytes < u32::MAX as usize);
        let mut attempts = 1;
        loop {
            let mut found = Vec::new();
            match self.engine.fetch_entries_to::<EntryOf>(group, low, high, limit, &mut found) {
                Ok(_) => return Ok(found),
                // The purge may move an entry and reuse its file between the look-up and the read: look it up again.
                Err(_) if attempts < READ_ATTEMPTS => attempts += 1,
                Err(raft_engine::Error::Corruption(why)) => return Err(ReadError::Corrupt(one_line(&why))),
                Err(error) => return Err(ReadError::Failed(one_line(&error.to_string()))),
            }
        }
    }
}
