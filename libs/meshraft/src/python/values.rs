//! Plain values that cross into Python.

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use crate::config::GroupSettings;
use crate::frame;
use crate::group::Group;
use crate::host::Output;
use crate::ready::{self, role_name};

#[pyclass(get_all, set_all, module = "meshraft")]
pub struct GroupConfig {
    pub election_ticks: usize,
    pub heartbeat_ticks: usize,
    pub max_bytes_per_append: u64,
    pub max_inflight_appends: usize,
    pub max_uncommitted_bytes: u64,
}

#[pymethods]
impl GroupConfig {
    #[new]
    #[pyo3(signature = (*, election_ticks=10, heartbeat_ticks=1, max_bytes_per_append=262_144, max_inflight_appends=16,
        max_uncommitted_bytes=67_108_864))]
    fn new(
        election_ticks: usize,
        heartbeat_ticks: usize,
        max_bytes_per_append: u64,
        max_inflight_appends: usize,
        max_uncommitted_bytes: u64,
    ) -> PyResult<Self> {
        let config = GroupConfig {
            election_ticks,
            heartbeat_ticks,
            max_bytes_per_append,
            max_inflight_appends,
            max_uncommitted_bytes,
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
        }
    }
}

#[pyclass(frozen, get_all, module = "meshraft")]
pub struct Committed {
    group: u64,
    index: u64,
    term: u64,
    kind: u8,
    data: Py<PyBytes>,
}

#[pyclass(frozen, get_all, module = "meshraft")]
pub struct Entry {
    index: u64,
    term: u64,
    kind: u8,
    data: Py<PyBytes>,
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

#[pyclass(frozen, get_all, module = "meshraft")]
pub struct Pump {
    frames: Py<PyList>,
    installed: Py<PyList>,
    committed: Py<PyList>,
    roles: Py<PyList>,
    reads: Py<PyList>,
    closed: Py<PyList>,
}

#[pyclass(frozen, get_all, module = "meshraft")]
pub struct Progress {
    member: u64,
    peer: u64,
    matched: u64,
    voter: bool,
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
    persisted: u64,
    voters: Vec<u64>,
    learners: Vec<u64>,
    progress: Py<PyList>,
}

impl Entry {
    pub fn new(py: Python<'_>, entry: &ready::Committed) -> Self {
        Entry { index: entry.index, term: entry.term, kind: entry.kind, data: bytes(py, &entry.data) }
    }
}

impl Installed {
    pub fn new(py: Python<'_>, value: &ready::Installed) -> Self {
        Installed { group: value.group, index: value.index, term: value.term, data: bytes(py, &value.data) }
    }
}

impl Pump {
    pub fn new(py: Python<'_>, output: Output) -> PyResult<Self> {
        let committed = |c: ready::Committed| {
            Py::new(
                py,
                Committed { group: c.group, index: c.index, term: c.term, kind: c.kind, data: bytes(py, &c.data) },
            )
        };
        let frame = |f: frame::Frame| Py::new(py, Frame { peer: f.peer, cls: f.class, data: bytes(py, &f.data) });
        let role =
            |r: ready::RoleChange| Py::new(py, Role { group: r.group, role: r.role, term: r.term, leader: r.leader });
        Ok(Pump {
            frames: list(py, output.frames, frame)?,
            installed: list(py, output.installed, |i| Py::new(py, Installed::new(py, &i)))?,
            committed: list(py, output.committed, committed)?,
            roles: list(py, output.roles, role)?,
            reads: PyList::new(py, output.reads)?.unbind(),
            closed: PyList::new(py, output.closed)?.unbind(),
        })
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
            persisted: log.persisted,
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
            voter: group.conf().voters.contains(&member),
            state: match found.map(|p| p.state) {
                Some(raft::ProgressState::Replicate) => "replicate",
                Some(raft::ProgressState::Snapshot) => "snapshot",
                _ => "probe",
            },
            quiet_ticks: if own { 0 } else { group.ticks - group.heard.get(&member).copied().unwrap_or(0) },
        }
    }
}

fn bytes(py: Python<'_>, data: &[u8]) -> Py<PyBytes> {
    PyBytes::new(py, data).unbind()
}

fn list<T, V>(py: Python<'_>, items: Vec<T>, make: impl Fn(T) -> PyResult<Py<V>>) -> PyResult<Py<PyList>> {
    let made = items.into_iter().map(make).collect::<PyResult<Vec<_>>>()?;
    Ok(PyList::new(py, made)?.unbind())
}

pub fn fill(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<GroupConfig>()?;
    module.add_class::<Committed>()?;
    module.add_class::<Entry>()?;
    module.add_class::<Installed>()?;
    module.add_class::<Role>()?;
    module.add_class::<Frame>()?;
    module.add_class::<Pump>()?;
    module.add_class::<Progress>()?;
    module.add_class::<GroupStatus>()
}
