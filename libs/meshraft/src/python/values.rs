//! Plain values that cross into Python.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyList};

use crate::config::GroupSettings;
use crate::frame;
use crate::group::Group;
use crate::host::Output;
use crate::python::entries::{bytes, Committed, Entries};
use crate::turn::{self, role_name};

#[pyclass(get_all, set_all, module = "meshraft")]
pub struct GroupConfig {
    pub election_ticks: usize,
    pub heartbeat_ticks: usize,
    pub max_bytes_per_append: u64,
    pub max_inflight_appends: usize,
    pub max_uncommitted_bytes: u64,
    pub quiesces: bool,
}

#[pymethods]
impl GroupConfig {
    #[new]
    #[pyo3(signature = (*, election_ticks=10, heartbeat_ticks=1, max_bytes_per_append=262_144, max_inflight_appends=16,
        max_uncommitted_bytes=67_108_864, quiesces=false))]
    fn new(
        election_ticks: usize,
        heartbeat_ticks: usize,
        max_bytes_per_append: u64,
        max_inflight_appends: usize,
        max_uncommitted_bytes: u64,
        quiesces: bool,
    ) -> PyResult<Self> {
        let config = GroupConfig {
            election_ticks,
            heartbeat_ticks,
            max_bytes_per_append,
            max_inflight_appends,
            max_uncommitted_bytes,
            quiesces,
        };
        config.settings().check()?;
        Ok(config)
    }
}

impl GroupConfig {
    pub fn settings(&self) -> GroupSettings {
        GroupSettings {
            election_ticks: self.election_ticks,
            heartbeat_ticks: self.heartbeat_ticks,
            max_bytes_per_append: self.max_bytes_per_append,
            max_inflight_appends: self.max_inflight_appends,
            max_uncommitted_bytes: self.max_uncommitted_bytes,
            quiesces: self.quiesces,
        }
    }
}

#[pyclass(frozen, get_all, module = "meshraft")]
pub struct Installed {
    group: u64,
    index: u64,
    term: u64,
    data: Py<PyBytes>,
}

#[pyclass(frozen, get_all, module = "meshraft")]
pub struct Role {
    group: u64,
    role: &'static str,
    term: u64,
    leader: u64,
}

#[pyclass(frozen, get_all, module = "meshraft")]
pub struct Frame {
    peer: u64,
    cls: u8,
    data: Py<PyBytes>,
}

#[pyclass(frozen, module = "meshraft")]
pub struct Pump {
    #[pyo3(get)]
    frames: Py<PyList>,
    #[pyo3(get)]
    installed: Py<PyList>,
    #[pyo3(get)]
    entries: Py<Entries>,
    #[pyo3(get)]
    roles: Py<PyList>,
    #[pyo3(get)]
    reads: Py<PyList>,
    #[pyo3(get)]
    closed: Py<PyList>,
    /// The same as `entries`, made when it is asked for.
    committed: PyOnceLock<Py<PyList>>,
}

#[pyclass(frozen, get_all, module = "meshraft")]
pub struct Progress {
    member: u64,
    peer: u64,
    matched: u64,
    commit: u64,
    voter: bool,
    on_probation: bool,
    state: &'static str,
    quiet_ticks: u64,
}

#[pyclass(frozen, get_all, module = "meshraft")]
pub struct GroupStatus {
    group: u64,
    member: u64,
    role: &'static str,
    term: u64,
    leader: u64,
    leader_quiet_ticks: u64,
    commit: u64,
    applied: u64,
    first_index: u64,
    last_index: u64,
    last_term: u64,
    persisted: u64,
    conf_index: u64,
    member_state: &'static str,
    quiesced: bool,
    waits_for: Vec<u64>,
    voters: Vec<u64>,
    learners: Vec<u64>,
    progress: Py<PyList>,
}

impl Installed {
    pub fn new(py: Python<'_>, value: &turn::Installed) -> Self {
        Installed { group: value.group, index: value.index, term: value.term, data: bytes(py, &value.data) }
    }
}

impl Pump {
    pub fn new(py: Python<'_>, output: Output) -> PyResult<Self> {
        let frame = |f: frame::Frame| Py::new(py, Frame { peer: f.peer, cls: f.class, data: bytes(py, &f.data) });
        let role =
            |r: turn::RoleChange| Py::new(py, Role { group: r.group, role: r.role, term: r.term, leader: r.leader });
        Ok(Pump {
            frames: list(py, output.frames, frame)?,
            installed: list(py, output.installed, |i| Py::new(py, Installed::new(py, &i)))?,
            entries: Py::new(py, Entries::new(output.committed))?,
            roles: list(py, output.roles, role)?,
            reads: PyList::new(py, output.reads)?.unbind(),
            closed: PyList::new(py, output.closed.into_iter().map(|(id, reason, why)| (id, reason.name(), why)))?
                .unbind(),
            committed: PyOnceLock::new(),
        })
    }
}

#[pymethods]
impl Pump {
    #[getter]
    fn committed(&self, py: Python<'_>) -> PyResult<Py<PyList>> {
        let make = |entry: &turn::Committed| Py::new(py, Committed::new(py, entry));
        let made = self.committed.get_or_try_init(py, || list(py, self.entries.get().all().iter().collect(), make))?;
        Ok(made.clone_ref(py))
    }
}

impl GroupStatus {
    pub fn new(py: Python<'_>, group: &Group) -> PyResult<Self> {
        let raft = &group.node.raft;
        let (conf, log, store) = (group.conf(), &raft.raft_log, group.node.store());
        let mut voters = conf.voters.clone();
        let mut learners = conf.learners.clone();
        voters.sort_unstable();
        learners.sort_unstable();
        let mut members: Vec<u64> = Vec::new();
        if group.is_leader() {
            members.extend(voters.iter().chain(&learners));
            members.sort_unstable();
        }
        let progress = |member: u64| Py::new(py, Progress::new(group, member));
        Ok(GroupStatus {
            group: group.id,
            member: group.member,
            role: role_name(raft.state, group.is_voter()),
            term: raft.term,
            leader: raft.leader_id,
            leader_quiet_ticks: if group.is_leader() { 0 } else { group.ticks - group.leader_heard },
            commit: log.committed,
            applied: group.applied,
            first_index: store.first(),
            last_index: log.last_index() + group.proposals.len() as u64,
            last_term: log.last_term(),
            persisted: log.persisted,
            conf_index: group.confs.last().expect("the snapshot's configuration is always there").index,
            member_state: group.member_state.name(),
            quiesced: group.quiescence.is_quiesced,
            waits_for: group.waits_for(),
            voters,
            learners,
            progress: list(py, members, progress)?,
        })
    }
}

impl Progress {
    fn new(group: &Group, member: u64) -> Self {
        let found = group.node.raft.prs().get(member);
        let own = member == group.member;
        Progress {
            member,
            peer: group.peers.get(&member).copied().unwrap_or(0),
            matched: found.map_or(0, |p| p.matched),
            commit: found.map_or(0, |p| p.committed_index),
            voter: group.conf().voters.contains(&member),
            on_probation: group.probation_tracker.has(member, &group.node.raft),
            state: match found.map(|p| p.state) {
                Some(raft::ProgressState::Replicate) => "replicate",
                Some(raft::ProgressState::Snapshot) => "snapshot",
                _ => "probe",
            },
            quiet_ticks: if own { 0 } else { group.ticks - group.heard.get(&member).copied().unwrap_or(0) },
        }
    }
}

fn list<T, V>(py: Python<'_>, items: Vec<T>, make: impl Fn(T) -> PyResult<Py<V>>) -> PyResult<Py<PyList>> {
    let made = items.into_iter().map(make).collect::<PyResult<Vec<_>>>()?;
    Ok(PyList::new(py, made)?.unbind())
}

pub fn fill(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<GroupConfig>()?;
    module.add_class::<Installed>()?;
    module.add_class::<Role>()?;
    module.add_class::<Frame>()?;
    module.add_class::<Pump>()?;
    module.add_class::<Progress>()?;
    module.add_class::<GroupStatus>()
}
