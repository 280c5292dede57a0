//! The output of one turn of a group, and the kinds of entries.

use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType, Message};
use raft::StateRole;

use crate::conf;
use crate::frame::Outgoing;
use crate::log::Op;

pub const ENTRY_NORMAL: u8 = 0;
pub const ENTRY_EMPTY: u8 = 1;
pub const ENTRY_CONF_CHANGE: u8 = 2;

/// A write in progress, and the messages that wait for it.
pub struct PendingWrite {
    pub sequence: u64,
    pub ready: u64,
    pub term: u64,
    pub messages: Vec<Message>,
}

#[derive(Debug, Clone)]
pub struct Committed {
    pub group: u64,
    pub index: u64,
    pub term: u64,
    pub kind: u8,
    pub data: Bytes,
}

#[derive(Debug, Clone)]
pub struct Installed {
    pub group: u64,
    pub index: u64,
    pub term: u64,
    pub data: Bytes,
}

#[derive(Debug, Clone)]
pub struct RoleChange {
    pub group: u64,
    pub role: &'static str,
    pub term: u64,
    pub leader: u64,
}

/// Entries up to `last`, sent to a member.
pub struct Appended {
    pub peer: u64,
    pub member: u64,
    pub last: u64,
    pub bytes: u64,
}

/// The output of one turn of one group.
#[derive(Default)]
pub struct Turn {
    pub outgoing: Vec<Outgoing>,
    pub ops: Vec<Op>,
    pub committed: Vec<Committed>,
    pub installed: Option<Installed>,
    pub role: Option<RoleChange>,
    pub reads: Vec<(u64, u64, u64)>,
    /// Appends that were sent, for the bytes in flight.
    pub appends: Vec<Appended>,
    /// Members whose appends need a permit.
    pub permit_requests: Vec<u64>,
    pub messages: Vec<Message>,
    pub committed_bytes: usize,
}

pub fn kind_of(entry: &Entry) -> u8 {
    match entry.get_entry_type() {
        EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => ENTRY_CONF_CHANGE,
        EntryType::EntryNormal if entry.data.is_empty() && entry.context.is_empty() => ENTRY_EMPTY,
        EntryType::EntryNormal => ENTRY_NORMAL,
    }
}

/// An entry for the application: of a configuration change it sees the caller's context only.
pub fn as_committed(group: u64, entry: Entry) -> Committed {
    let kind = kind_of(&entry);
    let context = if kind == ENTRY_CONF_CHANGE { conf::decode(&entry).map(|(_, _, context)| context) } else { None };
    Committed { group, index: entry.index, term: entry.term, kind, data: context.unwrap_or(entry.data) }
}

pub fn role_name(state: StateRole, voter: bool) -> &'static str {
    match state {
        StateRole::Leader => "leader",
        StateRole::Candidate | StateRole::PreCandidate => "candidate",
        StateRole::Follower if voter => "follower",
        StateRole::Follower => "learner",
    }
}
