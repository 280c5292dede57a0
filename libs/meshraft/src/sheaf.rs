//! How the changes that share an fsync lie in the log.

use std::collections::BTreeMap;

use raft_engine::env::FileSystem;
use raft_engine::LogBatch;

use crate::engine_log::{self, Engine};
use crate::errors::one_line;
use crate::log::Op;

/// A group's part of a write is closed at this size, for those who read it back.
const BATCH_BYTES: usize = 1 << 20;
/// Parts below it share one batch.
const LITTLE_BYTES: usize = 16 << 10;

/// What one fsync makes durable, in batches that each hold one group, unless it is little. raft-engine reads a batch as a
/// whole to get at one entry: the entries of a hundred groups in one would be read a hundred times over when a follower is
/// brought up. What a crash leaves of it is a beginning of each group's changes, as with any unfinished write: those that
/// one job asked for stay together.
#[derive(Default)]
pub struct Sheaf {
    full: Vec<LogBatch>,
    full_bytes: usize,
    open: BTreeMap<u64, LogBatch>,
}

impl Sheaf {
    pub fn add<B: FileSystem>(&mut self, engine: &Engine<B>, ops: Vec<Op>) -> Result<(), String> {
        let mut touched = Vec::new();
        for op in ops {
            let group = op.group();
            engine_log::add(self.open.entry(group).or_default(), engine, op).map_err(|e| one_line(&e.to_string()))?;
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
        let mut little = LogBatch::default();
        for (_, mut batch) in self.open {
            if batch.approximate_size() < LITTLE_BYTES {
                little.merge(&mut batch).map_err(|e| one_line(&e.to_string()))?;
            } else {
                batches.push(batch);
            }
        }
        if !little.is_empty() {
            batches.push(little);
        }
        let last = batches.len().saturating_sub(1);
        for (at, mut batch) in batches.into_iter().enumerate() {
            engine.write(&mut batch, at == last).map_err(|e| one_line(&e.to_string()))?;
        }
        Ok(())
    }
}
