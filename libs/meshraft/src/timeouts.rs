//! Election timeouts from the host's seed.
//!
//! raft-rs draws a timeout from a thread RNG at each reset, which no seed controls. So after every input the timeout is
//! overwritten with the value kept here, and a new one is drawn only when the term or the role was seen to change.
//! Comparing with the value set last would not do: a redraw that happens to equal it goes unseen and shifts the stream.

use raft::StateRole;

/// The timeout of one group, redrawn at each change of term or role.
pub struct Timeouts {
    state: u64,
    low: usize,
    high: usize,
    seen: Option<(u64, StateRole)>,
    current: usize,
}

impl Timeouts {
    /// `low..high` is the range in ticks that raft-rs accepts.
    pub fn new(seed: u64, group: u64, member: u64, low: usize, high: usize) -> Self {
        let mut state = seed;
        for part in [group, member] {
            state = mix(state ^ mix(part));
        }
        Timeouts { state, low, high, seen: None, current: low }
    }

    /// The timeout that must be in force at this term and role.
    pub fn at(&mut self, term: u64, role: StateRole) -> usize {
        if self.seen != Some((term, role)) {
            self.seen = Some((term, role));
            self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            self.current = self.low + (mix(self.state) % (self.high - self.low) as u64) as usize;
        }
        self.current
    }
}

/// SplitMix64's finaliser (Steele, Lea, Flood 2014): enough randomness to break ties, and no dependency.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
