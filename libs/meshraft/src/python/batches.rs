//! Runs of record batches in a client's frame.

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::batches::{self, Run};

/// A client's batches. Holds their frame, or a copy of the run if that is the smaller part of it.
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

/// The bytes of a buffer. They must not be used once Python code runs again, because it might change them.
pub fn contiguous<'a>(py: Python<'a>, data: &'a PyBuffer<u8>) -> PyResult<&'a [u8]> {
    let cells = data.as_slice(py).ok_or_else(|| PyValueError::new_err("the bytes must be contiguous"))?;
    // SAFETY: the GIL is held, and its holder runs nothing that could write to them.
    Ok(unsafe { std::slice::from_raw_parts(cells.as_ptr().cast::<u8>(), cells.len()) })
}

pub fn fill(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PublishRun>()?;
    module.add_function(wrap_pyfunction!(publish_runs, module)?)
}
