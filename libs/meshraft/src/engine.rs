//! raft-engine as the log uses it: its types, how changes are encoded, and the marker of a write group.

use raft::eraftpb::Entry;
use raft_engine::env::FileSystem;
use raft_engine::{Command, LogBatch, MessageExt};

use crate::damage::MARKER_KEY;
use crate::errors::one_line;
use crate::log::{MemberState, Op};
use crate::log_files::LogFiles;

pub const KEY_IDENTITY: &[u8] = b"i";
pub const KEY_HARD_STATE: &[u8] = b"h";
pub const KEY_SNAPSHOT: &[u8] = b"s";

pub type Engine<B> = raft_engine::Engine<LogFiles<B>>;

pub struct EntryOf;

impl MessageExt for EntryOf {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

/// The Raft group id of the markers of write groups; real ids begin at 1.
pub const MARKER_GROUP: u64 = 0;

/// Writes the marker that begins a write group, and so ends the one before. The fsync comes with the group.
pub fn begin_write_group<B: FileSystem>(engine: &Engine<B>) -> Result<(), String> {
    let mut mark = LogBatch::default();
    mark.put(MARKER_GROUP, MARKER_KEY.to_vec(), Vec::new()).map_err(|e| one_line(&e.to_string()))?;
    engine.write(&mut mark, false).map(|_| ()).map_err(|e| one_line(&e.to_string()))
}

/// The member's id; a byte follows unless its member state is full.
pub fn encode_identity(member: u64, member_state: MemberState) -> Vec<u8> {
    let mut bytes = member.to_be_bytes().to_vec();
    match member_state {
        MemberState::Full => {}
        MemberState::Blank => bytes.push(0),
        MemberState::Probation => bytes.push(1),
        MemberState::Retired => bytes.push(2),
    }
    bytes
}

pub fn parse_identity(bytes: &[u8]) -> Option<(u64, MemberState)> {
    let (member, rest) = bytes.split_first_chunk::<8>()?;
    let member_state = match rest {
        [] => MemberState::Full,
        [0] => MemberState::Blank,
        [1] => MemberState::Probation,
        [2] => MemberState::Retired,
        _ => return None,
    };
    Some((u64::from_be_bytes(*member), member_state))
}

pub fn add<B: FileSystem>(batch: &mut LogBatch, engine: &Engine<B>, op: Op) -> Result<(), String> {
    let text = |e: raft_engine::Error| one_line(&e.to_string());
    match op {
        Op::Identity { group, member, member_state } => {
            batch.put(group, KEY_IDENTITY.to_vec(), encode_identity(member, member_state)).map_err(text)
        }
        Op::HardState { group, state } => batch.put_message(group, KEY_HARD_STATE.to_vec(), &state).map_err(text),
        Op::Snapshot { group, snapshot, drop_to } => {
            batch.add_command(group, Command::Compact { index: drop_to });
            batch.put_message(group, KEY_SNAPSHOT.to_vec(), &snapshot).map_err(text)
        }
        Op::Entries { group, entries } => batch.add_entries::<EntryOf>(group, &entries).map_err(text),
        Op::Destroy { group } => {
            // What the same write added before must be removed too, so it is written first.
            begin_write_group(engine)?;
            engine.write(batch, true).map_err(text)?;
            batch.add_command(group, Command::Clean);
            begin_write_group(engine)?;
            engine.write(batch, true).map(|_| ()).map_err(text)
        }
    }
}
