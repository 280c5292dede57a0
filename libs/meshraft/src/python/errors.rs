//! Faults as Python exceptions, each with a stable `code`.

use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyType;

use crate::errors::Fault;

create_exception!(meshraft, RaftError, PyException, "Base of everything this module raises.");
create_exception!(meshraft, NotLeader, RaftError, "Proposal or transfer at a member that does not lead.");
create_exception!(meshraft, UnknownGroup, RaftError, "The group is not open in this host.");
create_exception!(meshraft, GroupExists, RaftError, "Create of a group that is open or on disk.");
create_exception!(meshraft, GroupPoisoned, RaftError, "The group was closed after a panic; reopen it from disk.");
create_exception!(meshraft, HostPoisoned, RaftError, "The log cannot be written; every group is closed.");
create_exception!(meshraft, LogCorrupt, RaftError, "The log on disk does not parse or has a hole.");
create_exception!(meshraft, LogCompacted, RaftError, "Entries below the first index were asked for.");
create_exception!(meshraft, AppliedStateRefused, RaftError, "The group cannot be opened at that applied state.");
create_exception!(meshraft, InvalidFrame, RaftError, "A frame is malformed, misdirected or of a forbidden type.");
create_exception!(meshraft, Backpressure, RaftError, "A bound is reached; retry after the next pump.");

impl From<Fault> for PyErr {
    fn from(fault: Fault) -> PyErr {
        let text = fault.to_string();
        match fault {
            Fault::NotLeader(_) => NotLeader::new_err(text),
            Fault::UnknownGroup(_) => UnknownGroup::new_err(text),
            Fault::GroupExists(_) => GroupExists::new_err(text),
            Fault::GroupPoisoned(..) | Fault::LostSyncedData(..) => GroupPoisoned::new_err(text),
            Fault::HostPoisoned(_) => HostPoisoned::new_err(text),
            Fault::LogCorrupt(_) => LogCorrupt::new_err(text),
            Fault::LogCompacted { .. } => LogCompacted::new_err(text),
            Fault::AppliedStateRefused(_) => AppliedStateRefused::new_err(text),
            Fault::InvalidFrame(_) => InvalidFrame::new_err(text),
            Fault::Backpressure(_) => Backpressure::new_err(text),
            Fault::BadArgument(_) => PyValueError::new_err(text),
        }
    }
}

pub fn fill(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let all: [(Bound<'_, PyType>, &str); 11] = [
        (py.get_type::<RaftError>(), "RAFT_ERROR"),
        (py.get_type::<NotLeader>(), "NOT_LEADER"),
        (py.get_type::<UnknownGroup>(), "UNKNOWN_GROUP"),
        (py.get_type::<GroupExists>(), "GROUP_EXISTS"),
        (py.get_type::<GroupPoisoned>(), "GROUP_POISONED"),
        (py.get_type::<HostPoisoned>(), "HOST_POISONED"),
        (py.get_type::<LogCorrupt>(), "LOG_CORRUPT"),
        (py.get_type::<LogCompacted>(), "LOG_COMPACTED"),
        (py.get_type::<AppliedStateRefused>(), "APPLIED_STATE_REFUSED"),
        (py.get_type::<InvalidFrame>(), "INVALID_FRAME"),
        (py.get_type::<Backpressure>(), "BACKPRESSURE"),
    ];
    for (class, code) in all {
        class.setattr("code", code)?;
        module.add(class.name()?, class)?;
    }
    Ok(())
}
