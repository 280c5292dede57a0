//! Frames between nodes: Raft messages of many groups for one peer and class.
//!
//! Layout: version (1 byte, 1), then per message: group (u64), length (u32), an `eraftpb.Message`. Network byte order.
//! No checksum: the overlay below has one. Bounds are checked here, meaning in `admission`.

use bytes::{Buf, Bytes};
use protobuf::{CodedOutputStream, Message as _};
use raft::eraftpb::{Message, MessageType};

pub const CLASS_CONTROL: u8 = 0;
pub const CLASS_BULK: u8 = 1;

/// A frame is closed before it grows past this, unless one message alone is larger.
const FRAME_BYTES_MAX: usize = 1 << 20;
const VERSION: u8 = 1;
const MESSAGE_HEAD_BYTES: usize = 12;

/// One message and where it goes.
pub struct Outgoing {
    pub peer: u64,
    pub class: u8,
    pub group: u64,
    pub message: Message,
}

pub struct Frame {
    pub peer: u64,
    pub class: u8,
    pub data: Vec<u8>,
}

/// The class of a message. An append without entries follows the entries before it in the bulk class (`behind_bulk`).
/// If it overtook them it would be rejected as a gap, and the leader would fall back to probing.
pub fn class_of(message: &Message, behind_bulk: bool) -> u8 {
    match message.get_msg_type() {
        MessageType::MsgSnapshot => CLASS_BULK,
        MessageType::MsgAppend if behind_bulk || !message.entries.is_empty() => CLASS_BULK,
        _ => CLASS_CONTROL,
    }
}

/// Packs messages into frames, keeping their order per peer and class; control frames come first.
pub fn pack(messages: Vec<Outgoing>) -> Result<Vec<Frame>, String> {
    let mut open = std::collections::BTreeMap::<(u8, u64), Vec<Frame>>::new();
    for out in messages {
        let bytes = MESSAGE_HEAD_BYTES + out.message.compute_size() as usize;
        let frames = open.entry((out.class, out.peer)).or_default();
        if frames.last().is_none_or(|f| f.data.len() > 1 && f.data.len() + bytes > FRAME_BYTES_MAX) {
            frames.push(Frame { peer: out.peer, class: out.class, data: vec![VERSION] });
        }
        let data = &mut frames.last_mut().expect("a frame was just made sure of").data;
        data.reserve(bytes);
        data.extend_from_slice(&out.group.to_be_bytes());
        data.extend_from_slice(&((bytes - MESSAGE_HEAD_BYTES) as u32).to_be_bytes());
        let mut stream = CodedOutputStream::vec(data);
        // `compute_size` above left the cached sizes that this needs.
        out.message.write_to_with_cached_sizes(&mut stream).map_err(|e| e.to_string())?;
        stream.flush().map_err(|e| e.to_string())?;
    }
    Ok(open.into_values().flatten().collect())
}

/// Reads a frame: one result per message, then stops at the first that leaves no way to find the next.
pub struct Unpack {
    rest: Bytes,
    failed: bool,
}

impl Unpack {
    pub fn new(frame: Bytes) -> Result<Self, String> {
        let mut rest = frame;
        if rest.is_empty() || rest.get_u8() != VERSION {
            return Err("unknown frame version".into());
        }
        Ok(Unpack { rest, failed: false })
    }
}

impl Iterator for Unpack {
    type Item = Result<(u64, Message), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.rest.is_empty() {
            return None;
        }
        if self.rest.len() < MESSAGE_HEAD_BYTES {
            self.failed = true;
            return Some(Err("a message head is cut short".into()));
        }
        let group = self.rest.get_u64();
        let length = self.rest.get_u32() as usize;
        if length > self.rest.len() {
            self.failed = true;
            return Some(Err(format!("a message of {length} bytes is cut short")));
        }
        let body = self.rest.split_to(length);
        Some(match Message::parse_from_carllerche_bytes(&body) {
            Ok(message) => Ok((group, message)),
            Err(e) => Err(format!("a message does not parse: {e}")),
        })
    }
}
