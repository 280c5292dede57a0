//! Runs of record batches: those of a client's frame, and those that were committed.

use std::sync::Mutex;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::batches::{self, Run};
use crate::python::values::Committed;
use crate::ready;

/// A client's batches; holds their frame, or a copy of its part when that is the smaller.
#[pyclass(frozen, module = "meshraft")]
pub struct PublishRun {
    frame: Py<PyBytes>,
    run: Run,
}

#[pymethods]
impl PublishRun {
    #[getter]
    fn stream(&self) -> u64 {
        self.run.stream
    }

    #[getter]
    fn producer_id(&self) -> u64 {
        self.run.first.producer
    }

    #[getter]
    fn producer_epoch(&self) -> u32 {
        self.run.first.epoch
    }

    #[getter]
    fn base_sequence(&self) -> u64 {
        self.run.first.sequence
    }

    #[getter]
    fn records(&self) -> u64 {
        self.run.records
    }

    #[getter]
    fn size_bytes(&self) -> usize {
        self.run.places.iter().map(|place| place.size).sum()
    }

    #[getter]
    fn counts(&self) -> Vec<u32> {
        self.run.places.iter().map(|place| place.count).collect()
    }

    #[getter]
    fn correlations(&self) -> Vec<u32> {
        self.run.places.iter().map(|place| place.correlation).collect()
    }

    fn __len__(&self) -> usize {
        self.run.places.len()
    }

    fn answers(&self, py: Python<'_>, offset: u64) -> Py<PyBytes> {
        PyBytes::new(py, &self.run.answers(offset)).unbind()
    }

    fn batch(&self, py: Python<'_>, number: usize) -> PyResult<Py<PyBytes>> {
        let batch = self.batches(py).nth(number).ok_or_else(|| PyIndexError::new_err("no such batch in the run"))?;
        Ok(PyBytes::new(py, batch).unbind())
    }
}

impl PublishRun {
    /// Its batches, in order.
    pub fn batches<'a>(&'a self, py: Python<'a>) -> impl Iterator<Item = &'a [u8]> + 'a {
        let frame = self.frame.as_bytes(py);
        self.run.places.iter().map(move |place| &frame[place.at..place.at + place.size])
    }
}

#[pyfunction]
fn publish_runs(py: Python<'_>, frame: Bound<'_, PyBytes>) -> Option<Vec<PublishRun>> {
    let data = frame.as_bytes();
    let found = batches::runs_of(data)?;
    let held = |mut run: Run| {
        let (first, last) = (run.places.first()?.at, run.places.last().map(|place| place.at + place.size)?);
        if 2 * (last - first) > data.len() {
            return Some(PublishRun { frame: frame.clone().unbind(), run });
        }
        run.places.iter_mut().for_each(|place| place.at -= first);
        Some(PublishRun { frame: PyBytes::new(py, &data[first..last]).unbind(), run })
    };
    found.into_iter().map(held).collect()
}

#[pyfunction]
fn is_sound_batch(py: Python<'_>, data: PyBuffer<u8>) -> PyResult<bool> {
    Ok(batches::sound(contiguous(py, &data)?).is_some())
}

/// The bytes of a buffer. They must not be used once Python code runs again, which might change them.
pub fn contiguous<'a>(py: Python<'a>, data: &'a PyBuffer<u8>) -> PyResult<&'a [u8]> {
    let cells = data.as_slice(py).ok_or_else(|| PyValueError::new_err("the bytes must be contiguous"))?;
    // SAFETY: the GIL is held, and its holder runs nothing that could write to them.
    Ok(unsafe { std::slice::from_raw_parts(cells.as_ptr().cast::<u8>(), cells.len()) })
}

/// What a turn committed, taken from the front: an entry, or a run of batches.
#[pyclass(frozen, module = "meshraft")]
pub struct Entries {
    items: Vec<ready::Committed>,
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
    pub fn new(items: Vec<ready::Committed>) -> Self {
        Entries { items, at: Mutex::new(0) }
    }

    pub fn all(&self) -> &[ready::Committed] {
        &self.items
    }

    fn rest(&self) -> &[ready::Committed] {
        self.items.get(*self.lock()..).unwrap_or_default()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, usize> {
        self.at.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

pub fn fill(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PublishRun>()?;
    module.add_class::<Entries>()?;
    module.add_function(wrap_pyfunction!(publish_runs, module)?)?;
    module.add_function(wrap_pyfunction!(is_sound_batch, module)?)
}
