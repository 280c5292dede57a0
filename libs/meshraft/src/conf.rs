//! Configuration changes: single steps only, each with the node of its member.

use bytes::{Buf, Bytes};
use protobuf::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeType, ConfState, Entry};

use crate::errors::Fault;

/// The configuration from an index on.
#[derive(Debug, Clone)]
pub struct ConfAt {
    pub index: u64,
    pub conf: ConfState,
}

/// A change as the caller names it.
#[derive(Debug)]
pub struct Change {
    pub kind: ConfChangeType,
    pub member: u64,
    pub peer: u64,
    pub context: Vec<u8>,
}

impl Change {
    pub fn new(kind: &str, member: u64, peer: u64, context: Vec<u8>) -> Result<Self, Fault> {
        let kind = match kind {
            "add_voter" => ConfChangeType::AddNode,
            "add_learner" => ConfChangeType::AddLearnerNode,
            "remove" => ConfChangeType::RemoveNode,
            other => {
                let known = "add_voter, add_learner or remove";
                return Err(Fault::BadArgument(format!("unknown change {other:?}; use {known}")));
            }
        };
        if member == 0 {
            return Err(Fault::BadArgument("member ids begin at 1".into()));
        }
        Ok(Change { kind, member, peer, context })
    }

    /// Refuses a change that would leave the group without a voter or remove its leader: raft-rs panics when a leader
    /// that is no member commits.
    pub fn check(&self, own: u64, conf: &ConfState) -> Result<(), Fault> {
        if self.kind == ConfChangeType::AddNode {
            return Ok(());
        }
        if self.member == own {
            return Err(Fault::BadArgument(
                "a leader cannot remove or demote itself; transfer the leadership first".into(),
            ));
        }
        if conf.voters == [self.member] {
            return Err(Fault::BadArgument("the last voter cannot be removed or demoted".into()));
        }
        Ok(())
    }

    pub fn encode(&self) -> ConfChange {
        let mut context = self.peer.to_be_bytes().to_vec();
        context.extend_from_slice(&self.context);
        let mut change = ConfChange::default();
        change.set_change_type(self.kind);
        change.node_id = self.member;
        change.context = context.into();
        change
    }
}

/// A change read back from an entry: itself, the node of its member, and the caller's context.
pub fn decode(entry: &Entry) -> Option<(ConfChange, u64, Bytes)> {
    let change = ConfChange::parse_from_carllerche_bytes(&entry.data).ok()?;
    let mut context = change.context.clone();
    if context.remaining() < 8 {
        return None;
    }
    let peer = context.get_u64();
    Some((change, peer, context))
}
