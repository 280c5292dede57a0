//! The applied state of a group: what it needs to be opened at its applied index instead of at its snapshot (TiKV's
//! `RaftApplyState`).
//!
//! The application keeps these bytes beside its own state of the same index. They only save a replay: an applied state
//! that does not fit the stored log (it lost its end, was compacted past the index, or is another log) is refused, and
//! the group opens at an older one or at its snapshot. A committed index has one term for ever, so equal index and term
//! mean equal entries before them. Left out: a checksum, which the application's own file carries.
//!
//! Layout: version (1 byte, 1), index u64, term u64, count u32 × (member u64, node u64), count u32 × (index u64, size
//! u32, ConfState as protobuf). Network byte order.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use protobuf::Message as _;
use raft::eraftpb::ConfState;

use crate::conf::ConfAt;

const VERSION: u8 = 1;

pub struct AppliedState {
    pub index: u64,
    pub term: u64,
    pub peers: BTreeMap<u64, u64>,
    /// Configurations from the one at the snapshot on, as `Group::confs`.
    pub confs: Vec<ConfAt>,
}

pub fn encode(index: u64, term: u64, peers: &BTreeMap<u64, u64>, confs: &[ConfAt]) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(VERSION);
    out.put_u64(index);
    out.put_u64(term);
    out.put_u32(peers.len() as u32);
    for (member, peer) in peers {
        out.put_u64(*member);
        out.put_u64(*peer);
    }
    out.put_u32(confs.len() as u32);
    for at in confs {
        let conf = at.conf.write_to_bytes().expect("a configuration in memory encodes");
        out.put_u64(at.index);
        out.put_u32(conf.len() as u32);
        out.put_slice(&conf);
    }
    out.freeze()
}

/// None if the bytes do not parse.
pub fn decode(mut data: Bytes) -> Option<AppliedState> {
    if data.remaining() < 21 || data.get_u8() != VERSION {
        return None;
    }
    let (index, term) = (data.get_u64(), data.get_u64());
    let mut peers = BTreeMap::new();
    let count = data.get_u32() as usize;
    if data.remaining() / 16 < count {
        return None;
    }
    for _ in 0..count {
        let member = data.get_u64();
        peers.insert(member, data.get_u64());
    }
    if data.remaining() < 4 {
        return None;
    }
    let mut confs = Vec::new();
    for _ in 0..data.get_u32() {
        if data.remaining() < 12 {
            return None;
        }
        let (index, size) = (data.get_u64(), data.get_u32() as usize);
        if data.remaining() < size {
            return None;
        }
        let conf = ConfState::parse_from_carllerche_bytes(&data.split_to(size)).ok()?;
        confs.push(ConfAt { index, conf });
    }
    let ascends = confs.windows(2).all(|pair| pair[0].index < pair[1].index);
    let fits = confs.last().is_some_and(|last| last.index <= index);
    (ascends && fits && !data.has_remaining()).then_some(AppliedState { index, term, peers, confs })
}

impl AppliedState {
    /// Drops configurations before `start`, where the log was compacted. Says why the group cannot be opened here.
    /// `term` is the stored term at its index; None if the log does not hold it.
    pub fn fit(mut self, start: u64, commit: u64, term: Option<u64>) -> Result<Self, String> {
        let index = self.index;
        if index < start {
            return Err(format!("the snapshot is at {start}, the applied state at {index}"));
        }
        if index > commit {
            return Err(format!("the applied state is at {index}, the log knows only {commit} to be committed"));
        }
        if term != Some(self.term) {
            return Err(format!("entry {index} is not the one of term {} that was applied", self.term));
        }
        let Some(at) = self.confs.partition_point(|conf| conf.index <= start).checked_sub(1) else {
            return Err(format!("the applied state has no configuration at {start}"));
        };
        self.confs.drain(..at);
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Bytes {
        let conf = |voters: &[u64]| ConfState { voters: voters.to_vec(), ..ConfState::default() };
        let confs = [ConfAt { index: 1, conf: conf(&[11]) }, ConfAt { index: 5, conf: conf(&[11, 12]) }];
        encode(9, 3, &BTreeMap::from([(11, 1), (12, 2)]), &confs)
    }

    #[test]
    fn reads_what_it_wrote() {
        let read = decode(sample()).expect("it parses");
        assert_eq!((read.index, read.term, read.peers.len(), read.confs.len()), (9, 3, 2, 2));
        assert_eq!(read.confs[1].conf.voters, [11, 12]);
    }

    #[test]
    fn refuses_every_shortened_form_and_bytes_after_the_end() {
        let whole = sample();
        for size in 0..whole.len() {
            assert!(decode(whole.slice(..size)).is_none(), "{size} bytes were taken");
        }
        assert!(decode([&whole[..], b"x"].concat().into()).is_none());
    }

    #[test]
    fn fits_only_between_snapshot_and_commit_at_its_own_term() {
        let fit = |start, commit, term| decode(sample()).expect("it parses").fit(start, commit, term);
        assert_eq!(fit(1, 9, Some(3)).map(|b| b.confs.len()), Ok(2));
        assert_eq!(fit(5, 20, Some(3)).map(|b| b.confs.len()), Ok(1));
        assert!(fit(10, 20, Some(3)).is_err());
        assert!(fit(1, 8, Some(3)).is_err());
        assert!(fit(1, 9, Some(2)).is_err());
        assert!(fit(1, 9, None).is_err());
        assert!(fit(0, 9, Some(3)).is_err());
    }
}
