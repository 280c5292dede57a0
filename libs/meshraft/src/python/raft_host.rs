//! `RaftHost`. Calls return without waiting for the disk, so the GIL is kept; only open, close and the
//! reading of a stored group or of entries through a `LogReader` may wait, and release it.

use std::collections::BTreeMap;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;

use bytes::Bytes;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::batches;
use crate::bootstrap::InitialMembers;
use crate::conf::Change;
use crate::config::GroupSettings;
use crate::engine_log::EngineLog;
use crate::errors::{panic_text, Fault};
use crate::host::Host;
use crate::python::batches::{contiguous, PublishRun};
use crate::python::disks::AnyDisk;
use crate::python::entries::Entry;
use crate::python::values::{GroupConfig, GroupStatus, Installed, Pump};
use crate::reader::Reads;

#[pyclass(frozen, module = "meshraft")]
pub struct LogReader(Arc<Reads>);

#[pymethods]
impl LogReader {
    fn entries(&self, py: Python<'_>, group: u64, low: u64, high: u64, max_bytes: u64) -> PyResult<Vec<Entry>> {
        let found = py.detach(|| self.0.entries(group, low, high, max_bytes))?;
        Ok(found.iter().map(|entry| Entry::new(py, entry)).collect())
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
    fn simulated(disk: AnyDisk<'_>, seed: u64) -> PyResult<Self> {
        Ok(RaftHost(Host::new(disk.attach()?, seed)))
    }

    fn fileno(&self) -> i32 {
        self.0.fileno()
    }

    fn damage(&self) -> Option<String> {
        self.0.damage()
    }

    fn retirement(&self) -> Option<String> {
        self.0.retirement()
    }

    fn forget_retirement(&mut self) -> PyResult<()> {
        Ok(self.call(Host::forget_retirement)?)
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
        let initial = InitialMembers { voters, learners, snapshot };
        Ok(self.call(|host| host.create_group(group, member, peers, &initial, settings(config)))?)
    }

    #[pyo3(signature = (group, member, peers, *, applied_state=None, config=None))]
    fn open_group(
        &mut self,
        py: Python<'_>,
        group: u64,
        member: u64,
        peers: BTreeMap<u64, u64>,
        applied_state: Option<&[u8]>,
        config: Option<&GroupConfig>,
    ) -> PyResult<Installed> {
        let settings = settings(config);
        let applied_state = applied_state.map(Bytes::copy_from_slice);
        let opened = py.detach(|| self.call(|host| host.open_group(group, member, peers, applied_state, settings)))?;
        Ok(Installed::new(py, &opened))
    }

    fn applied_state(&mut self, py: Python<'_>, group: u64) -> PyResult<Option<Py<PyBytes>>> {
        let made = self.call(|host| Ok(host.group(group)?.applied_state()))?;
        Ok(made.map(|data| PyBytes::new(py, &data).unbind()))
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

    fn is_quiesced(&self, group: u64) -> PyResult<bool> {
        Ok(self.0.group(group)?.quiescence.is_quiesced)
    }

    fn tick(&mut self) -> PyResult<()> {
        Ok(self.call(Host::tick)?)
    }

    fn step(&mut self, py: Python<'_>, peer: u64, frame: PyBuffer<u8>) -> PyResult<Vec<u64>> {
        let frame = Bytes::copy_from_slice(contiguous(py, &frame)?);
        Ok(self.call(|host| host.step(peer, frame))?)
    }

    fn propose(&mut self, group: u64, data: &[u8]) -> PyResult<(u64, u64)> {
        Ok(self.call(|host| host.propose(group, Bytes::copy_from_slice(data)))?)
    }

    fn propose_run(
        &mut self,
        py: Python<'_>,
        group: u64,
        stamp_ms: u64,
        run: &PublishRun,
    ) -> PyResult<(u64, u64, usize)> {
        let mut taken: Option<(u64, u64, usize)> = None;
        for batch in run.batches(py) {
            match (self.call(|host| host.propose(group, batches::entry(stamp_ms, batch))), taken) {
                (Ok((term, index)), None) => taken = Some((term, index, 1)),
                (Ok(_), Some((term, index, count))) => taken = Some((term, index, count + 1)),
                (Err(fault), None) => return Err(fault.into()),
                // What was taken stays taken; the rest would be refused alike.
                (Err(_), Some(_)) => break,
            }
        }
        taken.ok_or_else(|| PyValueError::new_err("the run is empty"))
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

    fn recover(&mut self, group: u64, survivors: BTreeMap<u64, u64>) -> PyResult<()> {
        Ok(self.call(|host| host.recover(group, &survivors))?)
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

    fn first_in_memory(&mut self, group: u64) -> PyResult<u64> {
        Ok(self.call(|host| host.first_in_memory(group))?)
    }

    fn reader(&self) -> LogReader {
        LogReader(self.0.reads())
    }

    fn compact(&mut self, group: u64, index: u64, snapshot: &[u8]) -> PyResult<()> {
        Ok(self.call(|host| host.compact(group, index, snapshot))?)
    }

    fn status(&self, py: Python<'_>, group: u64) -> PyResult<GroupStatus> {
        GroupStatus::new(py, self.0.group(group)?)
    }

    fn log_transfers(&self) -> Vec<(u64, u64, u64, usize)> {
        self.0.log_transfers()
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
    module.add_class::<LogReader>()?;
    module.add_class::<RaftHost>()
}
