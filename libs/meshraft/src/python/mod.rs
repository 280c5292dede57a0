//! The Python API: classes and exceptions over the driver. Makes no decision of its own.

mod batches;
mod disks;
mod entries;
mod errors;
mod raft_host;
mod values;

use pyo3::prelude::*;

use crate::frame::{CLASS_BULK, CLASS_CONTROL};
use crate::turn::{ENTRY_CONF_CHANGE, ENTRY_EMPTY, ENTRY_NORMAL};

pub fn fill(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("ENTRY_NORMAL", ENTRY_NORMAL)?;
    module.add("ENTRY_EMPTY", ENTRY_EMPTY)?;
    module.add("ENTRY_CONF_CHANGE", ENTRY_CONF_CHANGE)?;
    module.add("CLASS_CONTROL", CLASS_CONTROL)?;
    module.add("CLASS_BULK", CLASS_BULK)?;
    batches::fill(module)?;
    entries::fill(module)?;
    errors::fill(module)?;
    values::fill(module)?;
    disks::fill(module)?;
    raft_host::fill(module)
}
