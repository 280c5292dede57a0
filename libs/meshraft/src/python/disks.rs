//! The disks of simulations: `SimDisk`, a model of the log, and `EngineDisk`, the real log over simulated files.

use std::path::{Path, PathBuf};

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;

use crate::disk_journal::{DiskMutant, Failure, Kept};
use crate::engine_disk;
use crate::errors::Fault;
use crate::log::Log;
use crate::sim_log;

#[pyclass(frozen, module = "meshraft")]
pub struct SimDisk(sim_log::SimDisk);

#[pymethods]
impl SimDisk {
    #[new]
    #[pyo3(signature = (*, mutant=None, keeps_history=false))]
    fn new(mutant: Option<&str>, keeps_history: bool) -> PyResult<Self> {
        let planted = mutant.and_then(sim_log::Mutant::named);
        if let Some(unknown) = mutant.filter(|_| planted.is_none()) {
            let known = sim_log::Mutant::names().join(", ");
            return Err(PyValueError::new_err(format!("unknown mutant {unknown:?}; use one of {known}")));
        }
        Ok(SimDisk(sim_log::SimDisk::new(planted, keeps_history)))
    }

    fn pending(&self) -> usize {
        self.0.pending()
    }

    #[pyo3(signature = (batches=None))]
    fn sync(&self, batches: Option<usize>) -> usize {
        self.0.sync(batches)
    }

    fn copy(&self) -> Self {
        SimDisk(self.0.copy())
    }

    fn crash(&self) {
        self.0.crash();
    }

    #[pyo3(signature = (groups, *, as_one=false))]
    fn cut(&self, groups: usize, as_one: bool) -> PyResult<()> {
        if self.0.cut(groups, as_one) {
            return Ok(());
        }
        Err(PyValueError::new_err("only a disk that keeps its history can be cut"))
    }
}

#[pyclass(frozen, module = "meshraft")]
pub struct EngineDisk(engine_disk::EngineDisk);

#[pymethods]
impl EngineDisk {
    #[new]
    #[pyo3(signature = (root, *, mutant=None))]
    fn new(root: &str, mutant: Option<&str>) -> PyResult<Self> {
        let planted = match mutant {
            None => None,
            Some("first_name_not_synced") => Some(DiskMutant::FirstNameNotSynced),
            Some("fsync_lies") => Some(DiskMutant::FsyncLies),
            Some(unknown) => return Err(PyValueError::new_err(format!("unknown mutant {unknown:?}"))),
        };
        Ok(EngineDisk(engine_disk::EngineDisk::new(root, planted)))
    }

    fn pending(&self) -> usize {
        self.0.pending()
    }

    #[pyo3(signature = (batches=None))]
    fn sync(&self, batches: Option<usize>) -> usize {
        self.0.sync(batches)
    }

    fn purge(&self) -> bool {
        self.0.purge()
    }

    fn steps(&self) -> usize {
        self.0.steps()
    }

    fn fail_next(&self, operation: &str) -> PyResult<()> {
        match operation {
            "sync" => self.0.fail_next(Failure::Sync),
            "write" => self.0.fail_next(Failure::NoSpace),
            unknown => return Err(PyValueError::new_err(format!("unknown operation {unknown:?}"))),
        }
        Ok(())
    }

    fn cancel_failure(&self) -> bool {
        self.0.cancel_failure()
    }

    #[pyo3(signature = (kept="nothing"))]
    fn crash(&self, kept: &str) -> PyResult<()> {
        self.0.crash(parse_kept(kept)?).map_err(|e| PyOSError::new_err(e.to_string()))
    }

    fn directory(&self) -> PathBuf {
        self.0.directory()
    }

    fn image(&self, root: &str, steps: usize, kept: &str) -> PyResult<()> {
        self.0.image(Path::new(root), steps, parse_kept(kept)?).map_err(|e| PyOSError::new_err(e.to_string()))
    }
}

fn parse_kept(name: &str) -> PyResult<Kept> {
    Ok(match name {
        "nothing" => Kept::Nothing,
        "everything" => Kept::Everything,
        "half" => Kept::Half,
        "names" => Kept::Names,
        "bytes" => Kept::Bytes,
        unknown => return Err(PyValueError::new_err(format!("unknown part {unknown:?}"))),
    })
}

/// What a simulated host can run on.
#[derive(FromPyObject)]
pub enum AnyDisk<'py> {
    Sim(PyRef<'py, SimDisk>),
    Engine(PyRef<'py, EngineDisk>),
}

impl AnyDisk<'_> {
    pub fn attach(&self) -> Result<Box<dyn Log>, Fault> {
        Ok(match self {
            AnyDisk::Sim(disk) => Box::new(sim_log::SimLog::attach(&disk.0)),
            AnyDisk::Engine(disk) => Box::new(engine_disk::SteppedLog::attach(&disk.0)?),
        })
    }
}

pub fn fill(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<SimDisk>()?;
    module.add_class::<EngineDisk>()
}
