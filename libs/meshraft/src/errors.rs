//! What can go wrong, once for the whole crate. `python/errors.rs` maps each variant to its exception.

use std::any::Any;
use std::fmt;

/// A failure that the caller is told about. Nothing was changed unless the variant says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    NotLeader(String),
    UnknownGroup(u64),
    GroupExists(u64),
    GroupPoisoned(u64, String),
    HostPoisoned(String),
    LogCorrupt(String),
    LogCompacted {
        group: u64,
        first: u64,
    },
    /// The group cannot be opened at that bookmark; it can be opened without.
    BookmarkRefused(String),
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
            Fault::GroupPoisoned(group, why) => {
                write!(f, "group {group} was closed after an internal failure ({why}); reopen it from disk")
            }
            Fault::HostPoisoned(why) => write!(f, "the log host is unusable: {why}"),
            Fault::LogCorrupt(why) => {
                write!(f, "the log on disk is damaged: {why}; rebuild this member from the others")
            }
            Fault::LogCompacted { group, first } => {
                write!(f, "group {group} has no entries below {first}; read from there or use the snapshot")
            }
            Fault::BookmarkRefused(why) => write!(f, "{why}; open the group at an older bookmark or without one"),
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
