//! Many Raft groups in one process over one log: TiKV's raft and raft-engine, driven from Python.
//!
//! No network and no clock of its own: the caller passes frames and ticks in, and gets frames, committed entries and
//! snapshots back. The disk is served by one log thread (`engine_log`), or simulated (`sim_log`); the driver (`host`,
//! `group`) is the same over both.
//!
//! Sources: Ongaro, "Consensus: Bridging Theory and Practice" (2014); raft-rs 0.7; raft-engine 0.4.

mod admission;
mod applied_state;
mod async_fetch;
mod batches;
mod bootstrap;
mod conf;
mod config;
mod damage;
mod disk_journal;
mod engine;
mod engine_disk;
mod engine_log;
mod engine_reader;
mod errors;
mod event_fd;
mod frame;
mod group;
mod host;
mod log;
mod log_files;
mod log_transfer;
mod probation;
mod python;
mod quarantine;
mod quiescence;
mod read_index;
mod reader;
mod recovery;
mod sent_snapshots;
mod sim_log;
mod snapshot;
mod store;
mod timeouts;
mod turn;
mod votes;
mod write_group;

use pyo3::prelude::*;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    errors::install_panic_hook();
    python::fill(module)
}
