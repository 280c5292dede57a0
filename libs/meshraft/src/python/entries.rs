//! Committed entries as Python values: one by one, or in runs of record batches.

use std::sync::Mutex;

use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::batches;
use crate::turn;

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

impl Committed {
    pub fn new(py: Python<'_>, value: &turn::Committed) -> Self {
        let data = bytes(py, &value.data);
        Committed { group: value.group, index: value.index, term: value.term, kind: value.kind, data }
    }
}

impl Entry {
    pub fn new(py: Python<'_>, entry: &turn::Committed) -> Self {
        Entry { index: entry.index, term: entry.term, kind: entry.kind, data: bytes(py, &entry.data) }
    }
}

/// The committed entries of a turn, to be taken from the front: an entry, or a run of batches.
#[pyclass(frozen, module = "meshraft")]
pub struct Entries {
    items: Vec<turn::Committed>,
    at: Mutex<usize>,
}

/// (first index, last index, term, stamp, producer, epoch, sequence, records, bytes, chain)
type RunFields = (u64, u64, u64, u64, u64, u32, u64, u64, u64, Py<PyBytes>);

#[pymethods]
impl Entries {
    #[getter]
    fn group(&self) -> Option<u64> {
        self.rest().first().map(|entry| entry.group)
    }

    #[getter]
    fn index(&self) -> Option<u64> {
        self.rest().first().map(|entry| entry.index)
    }

    fn take(&self, py: Python<'_>) -> PyResult<Committed> {
        let entry = self.rest().first().ok_or_else(|| PyIndexError::new_err("every entry was taken"))?;
        self.skip(1);
        Ok(Committed::new(py, entry))
    }

    fn skip(&self, count: usize) {
        *self.lock() += count;
    }

    fn counts(&self, count: usize) -> Vec<u32> {
        self.rest().iter().take(count).map(batches::records_of).collect()
    }

    fn run(&self, py: Python<'_>, chain: &[u8], index_last: u64, bytes_max: u64) -> PyResult<Option<RunFields>> {
        let chain = chain.try_into().map_err(|_| PyValueError::new_err("the chain is no SHA-256 digest"))?;
        let rest = self.rest();
        let Some(run) = batches::committed_run(rest, &chain, index_last, bytes_max) else { return Ok(None) };
        let (index, term, first) = (rest[0].index, rest[0].term, run.first);
        let chain = PyBytes::new(py, &run.chain).unbind();
        Ok(Some((
            index,
            run.last,
            term,
            run.stamp_ms,
            first.producer,
            first.epoch,
            first.sequence,
            run.records,
            run.bytes,
            chain,
        )))
    }
}

impl Entries {
    pub fn new(items: Vec<turn::Committed>) -> Self {
        Entries { items, at: Mutex::new(0) }
    }

    pub fn all(&self) -> &[turn::Committed] {
        &self.items
    }

    fn rest(&self) -> &[turn::Committed] {
        self.items.get(*self.lock()..).unwrap_or_default()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, usize> {
        self.at.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

pub fn bytes(py: Python<'_>, data: &[u8]) -> Py<PyBytes> {
    PyBytes::new(py, data).unbind()
}

pub fn fill(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Committed>()?;
    module.add_class::<Entry>()?;
    module.add_class::<Entries>()
}
