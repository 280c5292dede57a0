//! The errors of the crate. `python/errors.rs` maps each variant to its exception.

use std::any::Any;
use std::fmt;

/// Why a group was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// The leader has confirmations of this member for entries that its disk does not hold.
    LostSyncedData,
    /// A record on the disk is not what was written.
    Corrupt,
    Panicked,
}

impl Closed {
    pub fn name(self) -> &'static str {
        match self {
            Closed::LostSyncedData => "lost_synced_data",
            Closed::Corrupt => "corrupt",
            Closed::Panicked => "panicked",
        }
    }
}

/// Why entries could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadError {
    /// They differ from what was written.
    Corrupt(String),
    Failed(String),
}

impl ReadError {
    pub fn closes(&self) -> Closed {
        match self {
            ReadError::Corrupt(_) => Closed::Corrupt,
            ReadError::Failed(_) => Closed::Panicked,
        }
    }
}

impl From<ReadError> for Fault {
    fn from(error: ReadError) -> Self {
        Fault::LogCorrupt(error.to_string())
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadError::Corrupt(why) => write!(f, "the log is damaged: {why}"),
            ReadError::Failed(why) => f.write_str(why),
        }
    }
}

/// An error that the caller gets. Nothing was changed unless the variant says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    NotLeader(String),
    UnknownGroup(u64),
    GroupExists(u64),
    GroupPoisoned(u64, String),
    /// The group is closed: see `Closed`.
    LostSyncedData(u64, String),
    HostPoisoned(String),
    LogCorrupt(String),
    LogCompacted {
        group: u64,
        first: u64,
    },
    /// The group cannot be opened at that applied state; it can be opened without one.
    AppliedStateRefused(String),
    InvalidFrame(String),
    Backpressure(String),
    /// The caller broke the contract of a call (a ValueError in Python).
    BadArgument(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::NotLeader(why) => write!(f, "{why}; ask the leader"),
            Fault::UnknownGroup(group) => write!(f, "group {group} is not open here; open or create it first"),
            Fault::GroupExists(group) => write!(f, "group {group} exists already; open it or destroy it first"),
            Fault::GroupPoisoned(group, why) | Fault::LostSyncedData(group, why) => {
                write!(f, "group {group} was closed after an internal failure ({why}); reopen it from disk")
            }
            Fault::HostPoisoned(why) => write!(f, "the log host is unusable: {why}"),
            Fault::LogCorrupt(why) => {
                write!(f, "the log on disk is damaged: {why}; rebuild this member from the others")
            }
            Fault::LogCompacted { group, first } => {
                write!(f, "group {group} has no entries below {first}; read from there or use the snapshot")
            }
            Fault::AppliedStateRefused(why) => {
                write!(f, "{why}; open the group at an older applied state or without one")
            }
            Fault::InvalidFrame(why) => write!(f, "the frame is invalid: {why}"),
            Fault::Backpressure(why) => write!(f, "{why}; retry after the next pump"),
            Fault::BadArgument(why) => f.write_str(why),
        }
    }
}

/// The text of a caught panic, on one line and short enough for a log record.
pub fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("panic without a message");
    one_line(text)
}

pub fn one_line(text: &str) -> String {
    text.lines().next().unwrap_or("").chars().take(300).collect()
}

/// Replaces the default panic hook by one line on stderr: panics are caught and become exceptions, a backtrace for each
/// would bury the log. Process-wide, installed once.
pub fn install_panic_hook() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            let place = info.location().map(|l| format!("{}:{}", l.file(), l.line())).unwrap_or_default();
            eprintln!("meshraft: caught panic at {place}: {}", panic_text(info.payload()));
        }));
    });
}
