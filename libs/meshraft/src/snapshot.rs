//! The payload of a stored or sent snapshot: the member to node map, then the application's bytes.
//!
//! The map is part of the snapshot because a member that starts from it has not seen the entries with the nodes of the
//! members.
//!
//! Layout: version (1 byte, 1), count (u32), count × (member u64, node u64), application bytes. Network byte order.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use raft::eraftpb::{ConfState, Snapshot};

const VERSION: u8 = 1;

pub fn build(index: u64, term: u64, conf: &ConfState, peers: &BTreeMap<u64, u64>, data: &[u8]) -> Snapshot {
    let members: Vec<u64> = conf.voters.iter().chain(conf.learners.iter()).copied().collect();
    let known: Vec<(u64, u64)> = members.iter().filter_map(|m| peers.get(m).map(|p| (*m, *p))).collect();
    let mut payload = BytesMut::with_capacity(5 + known.len() * 16 + data.len());
    payload.put_u8(VERSION);
    payload.put_u32(known.len() as u32);
    for (member, peer) in known {
        payload.put_u64(member);
        payload.put_u64(peer);
    }
    payload.put_slice(data);
    let mut snapshot = Snapshot { data: payload.freeze(), ..Snapshot::default() };
    let meta = snapshot.mut_metadata();
    meta.index = index;
    meta.term = term;
    meta.set_conf_state(conf.clone());
    snapshot
}

/// The map and the application's bytes; none when the payload does not parse.
pub fn open(snapshot: &Snapshot) -> Option<(BTreeMap<u64, u64>, Bytes)> {
    let mut payload = snapshot.data.clone();
    if payload.remaining() < 5 || payload.get_u8() != VERSION {
        return None;
    }
    let count = payload.get_u32() as usize;
    if payload.remaining() / 16 < count {
        return None;
    }
    let mut peers = BTreeMap::new();
    for _ in 0..count {
        let member = payload.get_u64();
        peers.insert(member, payload.get_u64());
    }
    Some((peers, payload))
}
