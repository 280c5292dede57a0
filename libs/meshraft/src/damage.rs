//! Looks for damage in the log files before raft-engine opens them.
//!
//! raft-engine silently cuts the last file at its first bad batch, takes a hole between files for the end of the log,
//! and drops a bad last payload of any file: acknowledged entries and votes go with it. Here every trace of damage is
//! found and reported; `quarantine` acts on it (Alagappan et al., FAST 2018).
//!
//! A crash can only tear what was being written: the batches of one fsync, a write group (`write_group`), of which
//! nothing was acknowledged. Each write group begins with a marker. A marker behind the damage proves that the damaged
//! group had been synced. Without one the damage is in the last group only, and the group may or may not have been
//! synced. A log without any marker before the damage was written by an older version and proves nothing.
//! Nothing behind the damage is trusted. Three things are no damage: zeros, preallocated bytes, and the former content
//! of a recycled file. The last is told from a batch by its head, if need be with one bit flipped back.
//!
//! Left out: payloads in older files, which are checked when they are read; in a recycled file, a last batch
//! whose head is damaged in more than one bit.
//!
//! File: magic, version (u64), alignment (u64), batches. Batch: length and compression (u64: length << 8 | type),
//! offset of the footer (u64), payload with CRC-32, footer with CRC-32 xor the file's number. Big endian, checksums
//! little. Source: raft-engine 0.4.2, `file_pipe_log/format.rs`, `log_batch.rs`.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::errors::Fault;

/// The key of the marker that begins a write group.
pub const MARKER_KEY: &[u8] = b"meshraft sync group";
pub const SUFFIX: &str = ".raftlog";
pub const REWRITE_SUFFIX: &str = ".rewrite";
/// The target size of a log file.
pub const FILE_BYTES: u64 = 64 << 20;
/// The same on the smallest disks.
pub const FILE_BYTES_MIN: u64 = 2 << 20;
const PAGE_BYTES: usize = 4096;
const FILE_HEAD_BYTES: u64 = (MAGIC.len() + 16) as u64;
const MAGIC: &[u8] = b"RAFT-LOG-FILE-HEADER-9986AB3E47F320B394C8E84916EB0ED5";
const VERSION: u64 = 2;
const HEAD_BYTES: u64 = 16;
const CHECKSUM_BYTES: u64 = 4;
/// A batch that holds only a marker is smaller.
const MARKER_BYTES_MAX: usize = 128;

/// Damage in the log, from which on nothing is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// What was found, for people.
    pub what: String,
    pub place: Place,
    /// Whether it is before the last write group, so that acknowledged writes were lost.
    pub is_earlier: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the log file of that number, at that byte; later files are not trusted either.
    At { number: u64, offset: u64 },
    /// Log files from that number on.
    From(u64),
    /// In a file of rewritten old batches: without it the rest is useless.
    Everything,
}

/// The first damage in the directory, where every full file has at least `full_bytes`. Refuses a directory that another
/// process holds.
pub fn find(directory: &Path, full_bytes: u64) -> Result<Option<Damage>, Fault> {
    if !directory.exists() {
        return Ok(None);
    }
    check_lock(directory)
        .and_then(|()| first_damage(directory, full_bytes))
        .map_err(|e| Fault::HostPoisoned(e.to_string()))
}

fn first_damage(directory: &Path, full_bytes: u64) -> io::Result<Option<Damage>> {
    let rewritten = numbered_files(directory, REWRITE_SUFFIX)?;
    for (at, (number, path)) in rewritten.iter().enumerate() {
        // A crash during a purge may leave a torn last batch. Its entries are still in the log files then.
        let found = if at + 1 < rewritten.len() {
            bad_end(path, *number, full_bytes)?
        } else {
            damage_before_the_end(&fs::read(path)?, *number)
        };
        if let Some(offset) = found {
            let what = format!("{} is damaged at byte {offset}", path.display());
            return Ok(Some(Damage { what, place: Place::Everything, is_earlier: true }));
        }
    }
    let files = numbered_files(directory, SUFFIX)?;
    let mut before: Option<u64> = None;
    for (at, (number, path)) in files.iter().enumerate() {
        if let Some(missing) = before.map(|before| before + 1).filter(|missing| missing != number) {
            let what = format!("file {missing} is missing in {}", directory.display());
            return Ok(Some(Damage { what, place: Place::From(*number), is_earlier: true }));
        }
        before = Some(*number);
        let found = if at + 1 < files.len() {
            bad_end(path, *number, full_bytes)?
        } else {
            bad_place(&fs::read(path)?, *number, full_bytes)
        };
        if let Some(offset) = found {
            let what = format!("{} is damaged at byte {offset}", path.display());
            let is_earlier = is_before_last_write_group(&files, at, offset)?;
            return Ok(Some(Damage { what, place: Place::At { number: *number, offset }, is_earlier }));
        }
    }
    Ok(None)
}

/// Whether damage at `offset` in the file `at` is before the last write group, or in a log without markers.
fn is_before_last_write_group(files: &[(u64, PathBuf)], at: usize, offset: u64) -> io::Result<bool> {
    for (number, path) in &files[at..] {
        let file = fs::read(path)?;
        let from = if *number == files[at].0 { offset as usize + 1 } else { 0 };
        if has_marker(file.get(from..).unwrap_or(&[]), *number) {
            return Ok(true);
        }
    }
    let mut is_empty = true;
    for (number, path) in files[..=at].iter().rev() {
        let file = fs::read(path)?;
        let until = if *number == files[at].0 { offset as usize } else { file.len() };
        if has_marker(&file[..until.min(file.len())], *number) {
            return Ok(false);
        }
        is_empty &= until <= FILE_HEAD_BYTES as usize;
    }
    Ok(!is_empty)
}

/// Whether there is an intact marker among these bytes.
fn has_marker(bytes: &[u8], number: u64) -> bool {
    let is_key = |at: &usize| bytes[*at] == MARKER_KEY[0] && bytes[*at..].starts_with(MARKER_KEY);
    (0..bytes.len()).filter(is_key).any(|key| {
        // A batch with a marker holds nothing else, so it begins not far before the key.
        (key.saturating_sub(MARKER_BYTES_MAX)..key).any(|start| {
            let rest = &bytes[start..bytes.len().min(start + MARKER_BYTES_MAX)];
            good_footer(rest, number).is_some_and(|head| (head.footer..head.length).contains(&((key - start) as u64)))
        })
    })
}

/// Refuses a directory that another process holds.
pub fn check_lock(directory: &Path) -> io::Result<()> {
    let Ok(lock) = File::open(directory.join("LOCK")) else { return Ok(()) };
    // SAFETY: the descriptor is open for the call; closing the file releases the lock for raft-engine to take.
    if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(());
    }
    Err(io::Error::other("locked: another process has this directory open"))
}

/// The files with that suffix by number.
pub fn numbered_files(directory: &Path, suffix: &str) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for file in fs::read_dir(directory)? {
        let path = file?.path();
        let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(suffix));
        files.extend(number.and_then(|digits| digits.parse().ok()).map(|number: u64| (number, path.clone())));
    }
    files.sort();
    Ok(files)
}

/// Where a finished file is bad: its header, a head on the way, or its last batch. Only heads are read up to that.
fn bad_end(path: &Path, number: u64, full_bytes: u64) -> io::Result<Option<u64>> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut header = [0u8; FILE_HEAD_BYTES as usize];
    if size < FILE_HEAD_BYTES || file.read_exact_at(&mut header, 0).is_err() || !good_header(&header) {
        return Ok(Some(0));
    }
    let mut at = FILE_HEAD_BYTES;
    let mut last = None;
    while at + HEAD_BYTES <= size {
        let mut head = [0u8; HEAD_BYTES as usize];
        file.read_exact_at(&mut head, at)?;
        let Some(batch) = Head::parse(&head, size - at) else { break };
        last = Some((at, batch.length));
        at += batch.length;
    }
    if let Some((begin, length)) = last {
        let mut bytes = vec![0u8; length as usize];
        file.read_exact_at(&mut bytes, begin)?;
        if good_batch(&bytes, number).is_none() {
            return Ok(Some(begin));
        }
    }
    let mut rest = vec![0u8; (size - at) as usize];
    file.read_exact_at(&mut rest, at)?;
    Ok(is_suspect(&rest, number, size >= full_bytes).then_some(at))
}

/// Where the last file is bad.
fn bad_place(file: &[u8], number: u64, full_bytes: u64) -> Option<u64> {
    damage_before_the_end(file, number).or_else(|| {
        let at = good_until(file, number);
        let rest = file.get(at..).unwrap_or(&[]);
        is_suspect(rest, number, file.len() as u64 >= full_bytes).then_some(at as u64)
    })
}

/// Whether a file begins with what we write: no checksum covers it.
fn good_header(file: &[u8]) -> bool {
    let rest = file.strip_prefix(MAGIC).and_then(|rest| rest.first_chunk::<16>());
    rest.is_some_and(|rest| rest[..8] == VERSION.to_be_bytes() && rest[8..] == [0; 8])
}

/// Whether a file has not even its whole header: what is there of it, and zeros.
pub fn is_unbegun(file: &[u8]) -> bool {
    let header = [MAGIC, &VERSION.to_be_bytes(), &[0; 8]].concat();
    let begin = file.iter().zip(&header).take_while(|(byte, expected)| byte == expected).count();
    begin < header.len() && file[begin..].iter().all(|byte| *byte == 0)
}

/// How far the batches of a file are good; 0 when not even its header is.
fn good_until(file: &[u8], number: u64) -> usize {
    if !good_header(file) {
        return 0;
    }
    let mut at = FILE_HEAD_BYTES as usize;
    while let Some(length) = file.get(at..).and_then(|rest| good_batch(rest, number)) {
        at += length as usize;
    }
    at
}

/// Where a bad batch is that has a good one behind it.
fn damage_before_the_end(file: &[u8], number: u64) -> Option<u64> {
    let at = good_until(file, number);
    let behind = (at + 1..file.len().saturating_sub(HEAD_BYTES as usize)).any(|start| {
        // Zeros are passed over cheaply.
        file[start..start + 8] != [0; 8] && good_footer(&file[start..], number).is_some()
    });
    (behind && at < file.len()).then_some(at as u64)
}

/// Whether what follows the last good batch may be a batch that was synced.
fn is_suspect(rest: &[u8], number: u64, is_full: bool) -> bool {
    let is_blank = rest.iter().all(|byte| *byte == 0);
    // One that is used again was full before, up to its very end.
    let end = &rest[rest.len().saturating_sub(PAGE_BYTES)..];
    if is_blank || !is_full || end.iter().all(|byte| *byte == 0) {
        return !is_blank;
    }
    match Head::parse(rest, rest.len() as u64) {
        Some(head) => !head.is_former(rest, number),
        None => mends(rest, number),
    }
}

/// Whether one flipped bit makes a batch's head of what it begins with.
fn mends(rest: &[u8], number: u64) -> bool {
    let Some(head) = rest.first_chunk::<{ HEAD_BYTES as usize }>() else { return false };
    (0..8 * head.len()).any(|bit| {
        let mut mended = *head;
        mended[bit / 8] ^= 1 << (bit % 8);
        Head::parse(&mended, rest.len() as u64).is_some_and(|head| head.is_sealed(rest, number))
    })
}

struct Head {
    length: u64,
    footer: u64,
}

impl Head {
    /// We never compress, and no checksum covers the head: another kind would be read as what it is not.
    fn parse(bytes: &[u8], room: u64) -> Option<Head> {
        let first = u64::from_be_bytes(bytes.get(..8)?.try_into().ok()?);
        let footer = u64::from_be_bytes(bytes.get(8..16)?.try_into().ok()?);
        let (length, compression) = (first >> 8, first & 0xFF);
        let fits = compression == 0 && length <= room && footer >= HEAD_BYTES && footer + CHECKSUM_BYTES < length;
        fits.then_some(Head { length, footer })
    }

    /// Whether the footer of the batch at the start of `bytes` is good.
    fn is_sealed(&self, bytes: &[u8], number: u64) -> bool {
        self.seal(bytes) == Some(number as u32)
    }

    /// Whether it is a batch of the file's earlier use under a smaller number. One that a flipped bit in the checksum
    /// would turn into this number is not believed.
    fn is_former(&self, bytes: &[u8], number: u64) -> bool {
        self.seal(bytes)
            .is_some_and(|seal| u64::from(seal) < number && seal > 0 && !(u64::from(seal) ^ number).is_power_of_two())
    }

    fn seal(&self, bytes: &[u8]) -> Option<u32> {
        signature(&bytes[self.footer as usize..self.length as usize])
    }
}

/// The length of the batch at the start of `bytes`, if all of it is good.
fn good_batch(bytes: &[u8], number: u64) -> Option<u64> {
    let head = good_footer(bytes, number)?;
    let payload = &bytes[HEAD_BYTES as usize..head.footer as usize];
    (payload.is_empty() || signature(payload) == Some(0)).then_some(head.length)
}

fn good_footer(bytes: &[u8], number: u64) -> Option<Head> {
    let head = Head::parse(bytes, bytes.len() as u64)?;
    head.is_sealed(bytes, number).then_some(head)
}

/// What the checksum at the end of `bytes` was signed with.
fn signature(bytes: &[u8]) -> Option<u32> {
    let (body, checksum) = bytes.split_last_chunk::<4>()?;
    Some(crc32fast::hash(body) ^ u32::from_le_bytes(*checksum))
}
