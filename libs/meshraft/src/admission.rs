//! Checks of a message from a peer before raft-rs sees it.
//!
//! raft-rs trusts its caller. It accepts a wrong recipient, an unknown sender, a forged TimeoutNow, term 0 (which means
//! "local" and skips the term check) and term 2^64-1, and panics on other malformed messages.

use raft::eraftpb::{Message, MessageType};

use crate::errors::Fault;
use crate::snapshot;

/// A term further ahead than this is a forgery or damage: no group holds four billion elections.
const TERM_LEAP_MAX: u64 = 1 << 32;
/// Indexes and terms stay below it, so that sums of them cannot overflow.
const NUMBER_MAX: u64 = 1 << 62;

/// The receiver, as far as admission needs to know it.
pub struct Receiver {
    pub member: u64,
    pub term: u64,
    pub leader: u64,
}

/// Checks `message`, which came from node `peer`; `home` is the node where its sender lives, if that is known.
pub fn check(message: &Message, peer: u64, home: Option<u64>, receiver: &Receiver) -> Result<(), Fault> {
    let refuse = |why: String| Err(Fault::InvalidFrame(why));
    if message.to != receiver.member {
        return refuse(format!("it is for member {}, this is {}", message.to, receiver.member));
    }
    if message.from == 0 || message.from == receiver.member {
        return refuse(format!("member {} cannot be its sender", message.from));
    }
    if home.is_some_and(|home| home != peer) {
        return refuse(format!("member {} does not live on node {peer}", message.from));
    }
    check_numbers(message, receiver)?;
    check_type(message)
}

/// Whether a well-formed message must be ignored. Only the current leader may send TimeoutNow or a read response, and
/// raft-rs does not check that. Such messages are normal when the leadership changes, so they are no error.
pub fn is_stray(message: &Message, receiver: &Receiver) -> bool {
    let leaders_only = matches!(message.get_msg_type(), MessageType::MsgTimeoutNow | MessageType::MsgReadIndexResp);
    leaders_only && (message.from != receiver.leader || message.term != receiver.term)
}

fn check_numbers(message: &Message, receiver: &Receiver) -> Result<(), Fault> {
    let numbers = [
        message.term,
        message.index,
        message.log_term,
        message.commit,
        message.commit_term,
        message.reject_hint,
        message.request_snapshot,
    ];
    if numbers.iter().any(|n| *n > NUMBER_MAX) || message.term > receiver.term + TERM_LEAP_MAX {
        return Err(Fault::InvalidFrame(format!("absurd numbers at term {}", message.term)));
    }
    // Only a forwarded read carries no term; any other message of term 0 would pass as a local one.
    if (message.term == 0) != (message.get_msg_type() == MessageType::MsgReadIndex) {
        return Err(Fault::InvalidFrame("a message without a term".into()));
    }
    Ok(())
}

fn check_type(message: &Message) -> Result<(), Fault> {
    let refuse = |why: &str| Err(Fault::InvalidFrame(why.into()));
    match message.get_msg_type() {
        MessageType::MsgAppend => check_entries(message),
        MessageType::MsgSnapshot => check_snapshot(message),
        MessageType::MsgHeartbeat
        | MessageType::MsgHeartbeatResponse
        | MessageType::MsgAppendResponse
        | MessageType::MsgRequestVote
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse => {
            if message.entries.is_empty() {
                Ok(())
            } else {
                refuse("entries in a message that has none")
            }
        }
        MessageType::MsgReadIndex | MessageType::MsgReadIndexResp => {
            if message.entries.len() == 1 {
                Ok(())
            } else {
                refuse("a read without its context")
            }
        }
        MessageType::MsgTimeoutNow => Ok(()),
        // Local types, and proposals and transfers, which are made at the leader and never forwarded.
        other => refuse(&format!("{other:?} is not taken from a peer")),
    }
}

fn check_entries(message: &Message) -> Result<(), Fault> {
    let mut term = message.log_term;
    for (at, entry) in message.entries.iter().enumerate() {
        if entry.index != message.index + 1 + at as u64 || entry.term < term || entry.term > message.term {
            return Err(Fault::InvalidFrame(format!("entry {} is out of order", entry.index)));
        }
        term = entry.term;
    }
    Ok(())
}

fn check_snapshot(message: &Message) -> Result<(), Fault> {
    let meta = message.get_snapshot().get_metadata();
    let conf = meta.get_conf_state();
    let single = conf.voters_outgoing.is_empty() && conf.learners_next.is_empty() && !conf.auto_leave;
    let numbered = meta.index > 0 && meta.index < NUMBER_MAX && meta.term > 0 && meta.term <= message.term;
    let mut members: Vec<u64> = conf.voters.iter().chain(conf.learners.iter()).copied().collect();
    members.sort_unstable();
    let distinct = members.first() != Some(&0) && members.windows(2).all(|pair| pair[0] != pair[1]);
    if single && numbered && distinct && !conf.voters.is_empty() && snapshot::open(message.get_snapshot()).is_some() {
        Ok(())
    } else {
        Err(Fault::InvalidFrame("a snapshot that cannot be".into()))
    }
}
