//! Layout of one write group: the batches that one fsync makes durable.

use std::collections::BTreeMap;

use raft_engine::env::FileSystem;
use raft_engine::LogBatch;

use crate::engine::{self, begin_write_group, Engine};
use crate::errors::one_line;
use crate::log::Op;

/// A batch is closed at this size, so that reading one entry of it stays cheap.
const BATCH_BYTES: usize = 1 << 20;
/// Smaller batches of several groups are merged.
const SMALL_BATCH_BYTES: usize = 16 << 10;

/// The changes of one fsync, in batches of one group each; small batches are merged. raft-engine reads a whole batch to
/// get at one entry: if the entries of a hundred groups shared a batch, it would be read a hundred times while a
/// follower catches up. A crash leaves a prefix of each group's changes, as with any unfinished write; the changes of
/// one job stay together.
#[derive(Default)]
pub struct WriteGroup {
    full: Vec<LogBatch>,
    full_bytes: usize,
    open: BTreeMap<u64, LogBatch>,
}

impl WriteGroup {
    pub fn add<B: FileSystem>(&mut self, engine: &Engine<B>, ops: Vec<Op>) -> Result<(), String> {
        let mut touched = Vec::new();
        for op in ops {
            let group = op.group();
            engine::add(self.open.entry(group).or_default(), engine, op)?;
            if touched.last() != Some(&group) {
                touched.push(group);
            }
        }
        for group in touched {
            if self.open.get(&group).is_some_and(|batch| batch.approximate_size() >= BATCH_BYTES) {
                let batch = self.open.remove(&group).expect("just seen");
                self.full_bytes += batch.approximate_size();
                self.full.push(batch);
            }
        }
        Ok(())
    }

    pub fn bytes(&self) -> usize {
        self.full_bytes + self.open.values().map(LogBatch::approximate_size).sum::<usize>()
    }

    pub fn write<B: FileSystem>(self, engine: &Engine<B>) -> Result<(), String> {
        let mut batches = self.full;
        let mut small = LogBatch::default();
        for (_, mut batch) in self.open {
            if batch.approximate_size() < SMALL_BATCH_BYTES {
                small.merge(&mut batch).map_err(|e| one_line(&e.to_string()))?;
            } else {
                batches.push(batch);
            }
        }
        if !small.is_empty() {
            batches.push(small);
        }
        begin_write_group(engine)?;
        let last = batches.len().saturating_sub(1);
        for (at, mut batch) in batches.into_iter().enumerate() {
            engine.write(&mut batch, at == last).map_err(|e| one_line(&e.to_string()))?;
        }
        Ok(())
    }
}
