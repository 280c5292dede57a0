//! Many Raft groups in one process over one log: TiKV's raft and raft-engine, driven from Python.
//!
//! Sans-IO towards the network and the clock: the caller feeds frames and ticks, and gets frames, committed entries and
//! snapshots back. The disk is served by one log thread (`engine_log`), or simulated (`sim_log`); the driver (`host`,
//! `group`, `ready`) is the same over both.
//!
//! Sources: Ongaro, "Consensus: Bridging Theory and Practice" (2014); raft-rs 0.7; raft-engine 0.4.

mod admission;
mod batches;
mod birth;
mod bookmark;
mod canvass;
mod conf;
mod config;
mod damage;
mod disk_journal;
mod doubt;
mod electorate;
mod engine_disk;
mod engine_log;
mod engine_reader;
mod errors;
mod feed;
mod feeding;
mod frame;
mod grants;
mod group;
mod host;
mod log;
mod log_files;
mod python;
mod reader;
mod ready;
mod salvage;
mod sheaf;
mod sim_log;
mod sleep;
mod snapshot;
mod store;
mod timeouts;
mod wake;

use pyo3::prelude::*;

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    errors::install_panic_hook();
    python::fill(module)
}
