//! The Python face: classes and exceptions over the driver. Holds no decision of its own.

mod batches;
mod disks;
mod errors;
mod raft_host;
mod values;

use pyo3::prelude::*;

use crate::frame::{CLASS_BULK, CLASS_CONTROL};
use crate::ready::{KIND_CONF, KIND_EMPTY, KIND_NORMAL};

pub fn fill(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("KIND_NORMAL", KIND_NORMAL)?;
    module.add("KIND_EMPTY", KIND_EMPTY)?;
    module.add("KIND_CONF", KIND_CONF)?;
    module.add("CLASS_CONTROL", CLASS_CONTROL)?;
    module.add("CLASS_BULK", CLASS_BULK)?;
    batches::fill(module)?;
    errors::fill(module)?;
    values::fill(module)?;
    disks::fill(module)?;
    raft_host::fill(module)
}
