//! Linearizable reads of one group (ReadIndex; Ongaro's thesis §6.4): their contexts, and those that wait for the apply.

use raft::ReadState;

/// The reads of one incarnation of a group.
#[derive(Debug, Default)]
pub struct ReadIndex {
    count: u64,
    /// Reads that a quorum has confirmed and that wait for the applied index: (index, token).
    confirmed: Vec<(u64, u64)>,
}

impl ReadIndex {
    pub fn len(&self) -> usize {
        self.confirmed.len()
    }

    pub fn is_empty(&self) -> bool {
        self.confirmed.is_empty()
    }

    /// The context of a new read. raft-rs drops a read whose context it has already, so it is unique over members,
    /// tokens that are used again, and incarnations.
    pub fn context(&mut self, member: u64, token: u64, incarnation: u64) -> Vec<u8> {
        self.count += 1;
        [member, self.count, token, incarnation].map(u64::to_be_bytes).concat()
    }

    /// Takes reads that a quorum has confirmed. Those of an earlier incarnation are dropped: their tokens may be in use
    /// again.
    pub fn confirm(&mut self, states: Vec<ReadState>, own_incarnation: u64) {
        for state in states {
            let number = |part: Option<&[u8]>| part.and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
            let (token, incarnation) = (number(state.request_ctx.get(16..24)), number(state.request_ctx.get(24..32)));
            if incarnation == Some(own_incarnation) {
                self.confirmed.extend(token.map(|token| (state.index, token)));
            }
        }
    }

    pub fn is_due(&self, applied: u64) -> bool {
        self.confirmed.iter().any(|(index, _)| *index <= applied)
    }

    /// Takes the reads up to the applied index, in order: (index, token).
    pub fn take_due(&mut self, applied: u64) -> Vec<(u64, u64)> {
        let (due, rest) = std::mem::take(&mut self.confirmed).into_iter().partition(|(index, _)| *index <= applied);
        self.confirmed = rest;
        due
    }
}
