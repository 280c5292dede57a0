//! The headers of the record batches that a data stream's entries carry: what a leader checks of a run of them, and
//! what a member needs to apply one. `meshwire` (`batch`, `entry`, `client`) is the reference for every layout here and
//! says in words what is wrong with bytes that are refused; this is the same for thousands a second, without an object
//! for each. It accepts exactly what the reference accepts, and like that never opens a body. Source: ADR 0011, ADR
//! 0014.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::turn::{Committed, ENTRY_NORMAL};

/// Bytes before a batch: in an entry its kind and stamp, in a PUBLISH the stream and the stage to wait for.
pub const LEAD_BYTES: usize = 9;
const HEADER_BYTES: usize = 86;
/// Magic, format and flags.
const BEGINNING: [u8; 4] = *b"MB\x02\x00";
const UNCOVERED_BYTES: usize = 8;
const UNSEALED: [u8; 33] = [0; 33];
const CODEC_NONE: u8 = 0;
const CODEC_ZSTD: u8 = 1;
const RECORD_BYTES: usize = 7;
const MAX_BODY_BYTES: usize = (1 << 20) + (16 << 10) + RECORD_BYTES;
const MAX_UNCOMPRESSED_BYTES: usize = 16 << 20;
const MAX_RECORDS: u32 = 65_536;
const BATCH_ENTRY: u8 = 1;

const MESSAGE_HEAD_BYTES: usize = 9;
const MAX_FRAME_BYTES: usize = 2 << 20;
const MAX_FRAME_MESSAGES: usize = 8192;
const PUBLISH: u8 = 3;
const PUBLISHED: u8 = 67;
const PUBLISHED_BYTES: u32 = 13;
const WAIT_COMMITTED: u8 = 1;
/// A longer run is split; a publisher's bound on unanswered batches is a multiple of this.
const RUN_BATCHES_MAX: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub producer: u64,
    pub epoch: u32,
    pub sequence: u64,
    pub count: u32,
}

fn u32_at(data: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(data[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(data: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(data[at..at + 8].try_into().expect("eight bytes"))
}

/// The header of a batch as `meshwire.batch.decode_header` takes it, without its checksum.
fn header(data: &[u8]) -> Option<Header> {
    if data.len() < HEADER_BYTES || data[..4] != BEGINNING {
        return None;
    }
    let body_bytes = data.len() - HEADER_BYTES;
    let (count, first_ms, greatest_ms) = (u32_at(data, 8), u64_at(data, 12), u64_at(data, 20));
    let (codec, uncompressed_bytes) = (data[28], u32_at(data, 29) as usize);
    let found = Header { producer: u64_at(data, 66), epoch: u32_at(data, 74), sequence: u64_at(data, 78), count };
    // Suite, key version, salt and nonce: bodies are not sealed yet.
    let fits = data[33..66] == UNSEALED
        && (codec == CODEC_NONE && uncompressed_bytes == body_bytes || codec == CODEC_ZSTD)
        && body_bytes <= MAX_BODY_BYTES
        && uncompressed_bytes <= MAX_UNCOMPRESSED_BYTES
        && first_ms <= greatest_ms
        && i64::try_from(greatest_ms).is_ok()
        && (1..=MAX_RECORDS).contains(&count)
        && count as usize * RECORD_BYTES <= uncompressed_bytes
        && u128::from(found.sequence) + u128::from(count) <= 1 << 64;
    fits.then_some(found)
}

/// The header of a batch whose checksum fits: `meshwire.batch.decode_header` takes it with `verify`.
fn intact(data: &[u8]) -> Option<Header> {
    header(data).filter(|_| crc32c::crc32c(&data[UNCOVERED_BYTES..]) == u32_at(data, 4))
}

/// One batch of a frame: where it is, whom to answer, its records.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    pub at: usize,
    pub size: usize,
    pub correlation: u32,
    pub count: u32,
}

/// Batches of one producer to one stream whose sequences follow each other.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    pub stream: u64,
    pub first: Header,
    pub records: u64,
    pub places: Vec<Place>,
}

/// The runs of a client's frame; None when anything else is in it than intact batches of producers: then the reference
/// takes it message by message.
pub fn runs_of(frame: &[u8]) -> Option<Vec<Run>> {
    if frame.is_empty() || frame.len() > MAX_FRAME_BYTES {
        return None;
    }
    let mut runs: Vec<Run> = Vec::new();
    let (mut at, mut messages) = (0, 0);
    while at < frame.len() {
        if frame.len() - at < MESSAGE_HEAD_BYTES + LEAD_BYTES {
            return None;
        }
        let (length, correlation) = (u32_at(frame, at) as usize, u32_at(frame, at + 5));
        let body = at + MESSAGE_HEAD_BYTES;
        messages += 1;
        if frame[at + 4] != PUBLISH
            || length < LEAD_BYTES
            || length > frame.len() - body
            || messages > MAX_FRAME_MESSAGES
            || frame[body + 8] != WAIT_COMMITTED
        {
            return None;
        }
        let batch = &frame[body + LEAD_BYTES..body + length];
        let found = intact(batch).filter(|found| found.producer != 0)?;
        let place = Place { at: body + LEAD_BYTES, size: batch.len(), correlation, count: found.count };
        let stream = u64_at(frame, body);
        match runs.last_mut() {
            Some(run) if run.goes_on(stream, &found) => run.take(place),
            _ => {
                let mut run = Run { stream, first: found, records: 0, places: Vec::new() };
                run.take(place);
                runs.push(run);
            }
        }
        at = body + length;
    }
    Some(runs)
}

impl Run {
    fn goes_on(&self, stream: u64, next: &Header) -> bool {
        self.places.len() < RUN_BATCHES_MAX
            && (self.stream, self.first.producer, self.first.epoch) == (stream, next.producer, next.epoch)
            && self.first.sequence + self.records == next.sequence
    }

    /// A PUBLISHED for each of its batches, when the first record is at `offset` and the others follow.
    pub fn answers(&self, mut offset: u64) -> Vec<u8> {
        let mut data = Vec::with_capacity(self.places.len() * (MESSAGE_HEAD_BYTES + PUBLISHED_BYTES as usize));
        for place in &self.places {
            data.extend_from_slice(&PUBLISHED_BYTES.to_be_bytes());
            data.push(PUBLISHED);
            data.extend_from_slice(&place.correlation.to_be_bytes());
            data.extend_from_slice(&offset.to_be_bytes());
            data.extend_from_slice(&place.count.to_be_bytes());
            data.push(0);
            offset = offset.saturating_add(u64::from(place.count));
        }
        data
    }

    fn take(&mut self, place: Place) {
        self.records += u64::from(place.count);
        self.places.push(place);
    }
}

/// The entry that appends a batch.
pub fn entry(stamp_ms: u64, batch: &[u8]) -> Bytes {
    let mut data = Vec::with_capacity(LEAD_BYTES + batch.len());
    data.push(BATCH_ENTRY);
    data.extend_from_slice(&stamp_ms.to_be_bytes());
    data.extend_from_slice(batch);
    data.into()
}

/// Committed batches that change a stream's state like one: of one group, term, stamp and producer, in sequence.
pub struct Applied {
    pub last: u64,
    pub stamp_ms: u64,
    pub first: Header,
    pub records: u64,
    pub bytes: u64,
    pub chain: [u8; 32],
}

/// The run at the beginning of `entries`: it ends with the entry at `index_last`, or with the one that brings it to
/// `bytes_max`. None when the first entry is no batch.
pub fn committed_run(entries: &[Committed], chain: &[u8; 32], index_last: u64, bytes_max: u64) -> Option<Applied> {
    let start = entries.first()?;
    let (stamp_ms, first) = batch_of(start)?;
    let mut run = Applied { last: start.index, stamp_ms, first, records: 0, bytes: 0, chain: *chain };
    for entry in entries {
        let Some((stamp, next)) = batch_of(entry) else { break };
        if (entry.group, entry.term, stamp) != (start.group, start.term, stamp_ms) || !run.goes_on(&next) {
            break;
        }
        run.last = entry.index;
        run.records += u64::from(next.count);
        run.bytes += entry.data.len() as u64;
        run.chain = Sha256::new().chain_update(run.chain).chain_update(&entry.data).finalize().into();
        if entry.index >= index_last || run.bytes >= bytes_max {
            break;
        }
    }
    Some(run)
}

impl Applied {
    fn goes_on(&self, next: &Header) -> bool {
        (self.first.producer, self.first.epoch) == (next.producer, next.epoch)
            && (next.producer == 0 || self.first.sequence.checked_add(self.records) == Some(next.sequence))
    }
}

/// Records of a batch; 0 for another entry.
pub fn records_of(entry: &Committed) -> u32 {
    batch_of(entry).map_or(0, |(_, found)| found.count)
}

/// What applying an entry needs, as `meshwire.entry.peek_batch` takes it.
fn batch_of(entry: &Committed) -> Option<(u64, Header)> {
    let data = &entry.data[..];
    if entry.kind != ENTRY_NORMAL || data.len() < LEAD_BYTES || data[0] != BATCH_ENTRY {
        return None;
    }
    Some((u64_at(data, 1), header(&data[LEAD_BYTES..])?))
}
