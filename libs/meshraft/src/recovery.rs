//! Attested recovery: an operator names the members that survive, and all others are lost for good
//! (docs/design/recovery.md, "Attested recovery").
//!
//! Every survivor gets the same list. It takes the list for the configuration, whatever its log says, and goes on
//! probation. So the group has a leader again only when all survivors have granted, and the greatest (last term, last
//! index) wins. The term leaps, and messages of members that are not named are dropped. The leader then writes the
//! changes to the log. A restart before that forgets the attestation, and the operator repeats it.

use raft::eraftpb::{ConfChange, ConfChangeType, Entry};

use crate::conf::Change;

/// The leap of the term: more than the lost members can have led since, and few enough for `admission`.
pub const EPOCH: u64 = 1 << 24;

/// The survivors, and the changes that record them: lost members are removed, then each survivor becomes a voter.
#[derive(Debug)]
pub struct Attested {
    pub survivors: Vec<u64>,
    pub changes: Vec<Change>,
    /// The first term of the new epoch. Entries of earlier terms do not end the recovery.
    pub since: u64,
    /// (term, count): the leadership that proposes the changes, and how many it has proposed.
    pub writing: (u64, usize),
}

impl Attested {
    pub fn names(&self, member: u64) -> bool {
        self.survivors.contains(&member)
    }

    /// Whether an applied entry holds the last change.
    pub fn ends_with(&self, entry: &Entry, change: &ConfChange) -> bool {
        let is_vote = change.get_change_type() == ConfChangeType::AddNode;
        entry.term > self.since && is_vote && self.survivors.last() == Some(&change.node_id)
    }
}
