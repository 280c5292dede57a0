//! `RaftHost` and `SimDisk`. Calls return without waiting for the disk, so the GIL is kept; only open, close and the
//! reading of a stored group may wait, and release it.

use std::collections::BTreeMap;
use std::panic::{catch_unwind, AssertUnwindSafe};

use bytes::Bytes;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::birth::Founders;
use crate::conf::Change;
use crate::config::GroupSettings;
use crate::engine_log::EngineLog;
use crate::errors::{panic_text, Fault};
use crate::host::Host;
use crate::python::values::{Entry, GroupConfig, GroupStatus, Installed, Pump};
use crate::sim_log;

#[pyclass(frozen, module = "meshraft")]
pub struct SimDisk(sim_log::SimDisk);

#[pymethods]
impl SimDisk {
    #[new]
    #[pyo3(signature = (*, mutant=None))]
    fn new(mutant: Option<&str>) -> PyResult<Self> {
        match mutant {
            None => Ok(SimDisk(sim_log::SimDisk::new(false))),
            Some("release_before_fsync") => Ok(SimDisk(sim_log::SimDisk::new(true))),
            Some(other) => Err(PyValueError::new_err(format!("unknown mutant {other:?}; use release_before_fsync"))),
        }
    }

    fn pending(&self) -> usize {
        self.0.pending()
    }

    #[pyo3(signature = (batches=None))]
    fn sync(&self, batches: Option<usize>) -> usize {
        self.0.sync(batches)
    }

    fn crash(&self) {
        self.0.crash();
    }
}

#[pyclass(module = "meshraft")]
pub struct RaftHost(Host);

impl RaftHost {
    /// Runs a call; a panic that no group stands for makes the host unusable.
    fn call<R>(&mut self, call: impl FnOnce(&mut Host) -> Result<R, Fault>) -> Result<R, Fault> {
        let host = &mut self.0;
        match catch_unwind(AssertUnwindSafe(|| call(host))) {
            Ok(result) => result,
            Err(panic) => Err(self.0.fail(panic_text(&*panic))),
        }
    }
}

#[pymethods]
impl RaftHost {
    #[staticmethod]
    #[pyo3(signature = (path, *, seed, recycle=true))]
    fn open(py: Python<'_>, path: &str, seed: u64, recycle: bool) -> PyResult<Self> {
        Ok(py.detach(|| EngineLog::open(path, recycle).map(|log| RaftHost(Host::new(Box::new(log), seed))))?)
    }

    #[staticmethod]
    #[pyo3(signature = (disk, *, seed))]
    fn simulated(disk: &SimDisk, seed: u64) -> Self {
        RaftHost(Host::new(Box::new(sim_log::SimLog::attach(&disk.0)), seed))
    }

    fn fileno(&self) -> i32 {
        self.0.fileno()
    }

    fn stored_groups(&mut self) -> PyResult<Vec<u64>> {
        Ok(self.call(|host| host.stored_groups())?)
    }

    #[pyo3(signature = (group, member, peers, *, voters, learners=Vec::new(), snapshot=Vec::new(), config=None))]
    #[allow(clippy::too_many_arguments)] // The signature is the contract with Python, keyword by keyword.
    fn create_group(
        &mut self,
        group: u64,
        member: u64,
        peers: BTreeMap<u64, u64>,
        voters: Vec<u64>,
        learners: Vec<u64>,
        snapshot: Vec<u8>,
        config: Option<&GroupConfig>,
    ) -> PyResult<()> {
        let founders = Founders { voters, learners, snapshot };
        Ok(self.call(|host| host.create_group(group, member, peers, &founders, settings(config)))?)
    }

    #[pyo3(signature = (group, member, peers, *, config=None))]
    fn open_group(
        &mut self,
        py: Python<'_>,
        group: u64,
        member: u64,
        peers: BTreeMap<u64, u64>,
        config: Option<&GroupConfig>,
    ) -> PyResult<Installed> {
        let settings = settings(config);
        let opened = py.detach(|| self.call(|host| host.open_group(group, member, peers, settings)))?;
        Ok(Installed::new(py, &opened))
    }

    fn close_group(&mut self, group: u64) -> PyResult<()> {
        Ok(self.call(|host| host.close_group(group))?)
    }

    fn destroy_group(&mut self, group: u64) -> PyResult<()> {
        Ok(self.call(|host| host.destroy_group(group))?)
    }

    fn set_peers(&mut self, group: u64, peers: BTreeMap<u64, u64>) -> PyResult<()> {
        Ok(self.call(|host| host.set_peers(group, peers))?)
    }

    fn tick(&mut self) -> PyResult<()> {
        Ok(self.call(Host::tick)?)
    }

    fn step(&mut self, peer: u64, frame: &[u8]) -> PyResult<Vec<u64>> {
        Ok(self.call(|host| host.step(peer, Bytes::copy_from_slice(frame)))?)
    }

    fn propose(&mut self, group: u64, data: &[u8]) -> PyResult<(u64, u64)> {
        Ok(self.call(|host| host.propose(group, data))?)
    }

    #[pyo3(signature = (group, change, member, peer, context=Vec::new()))]
    fn propose_conf_change(
        &mut self,
        group: u64,
        change: &str,
        member: u64,
        peer: u64,
        context: Vec<u8>,
    ) -> PyResult<(u64, u64)> {
        let change = Change::new(change, member, peer, context)?;
        Ok(self.call(|host| host.propose_conf_change(group, &change))?)
    }

    fn transfer_leader(&mut self, group: u64, member: u64) -> PyResult<()> {
        Ok(self.call(|host| host.transfer_leader(group, member))?)
    }

    fn campaign(&mut self, group: u64) -> PyResult<()> {
        Ok(self.call(|host| host.campaign(group))?)
    }

    fn read_index(&mut self, group: u64, token: u64) -> PyResult<()> {
        Ok(self.call(|host| host.read_index(group, token))?)
    }

    fn pump(&mut self, py: Python<'_>) -> PyResult<Pump> {
        let output = self.call(Host::pump)?;
        Pump::new(py, output)
    }

    fn has_work(&self) -> bool {
        self.0.has_work()
    }

    fn entries(&mut self, py: Python<'_>, group: u64, low: u64, high: u64, max_bytes: u64) -> PyResult<Vec<Entry>> {
        let found = self.call(|host| host.entries(group, low, high, max_bytes))?;
        Ok(found.iter().map(|entry| Entry::new(py, entry)).collect())
    }

    fn compact(&mut self, group: u64, index: u64, snapshot: &[u8]) -> PyResult<()> {
        Ok(self.call(|host| host.compact(group, index, snapshot))?)
    }

    fn status(&self, py: Python<'_>, group: u64) -> PyResult<GroupStatus> {
        GroupStatus::new(py, self.0.group(group)?)
    }

    fn disk_bytes(&mut self) -> PyResult<u64> {
        Ok(self.call(|host| host.disk_bytes())?)
    }

    fn close(&mut self, py: Python<'_>) -> PyResult<()> {
        Ok(py.detach(|| self.call(Host::close))?)
    }
}

fn settings(config: Option<&GroupConfig>) -> GroupSettings {
    config.map_or_else(GroupSettings::default, GroupConfig::settings)
}

pub fn fill(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<SimDisk>()?;
    module.add_class::<RaftHost>()
}
