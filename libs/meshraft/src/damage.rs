//! Looks for damage in the log files before raft-engine opens them.
//!
//! raft-engine cuts the last file at its first bad batch, takes a hole between files for the end of the past, and drops
//! a bad last payload of any file, all without a word: acknowledged entries and votes go with it. A crash can only tear
//! the batch that was being written, since each is synced before the next is begun. So a bad batch with a good one
//! behind it is damage, and the member must be rebuilt from the others (Alagappan et al., FAST 2018).
//!
//! Left out: the very last batch, where a torn write and damage look alike; payloads in older files, which are checked
//! when they are read.
//!
//! File: magic, version (u64), alignment (u64), batches. Batch: length and compression (u64: length << 8 | type), offset
//! of the footer (u64), payload with CRC-32, footer with CRC-32 xor the file's number. Big endian, checksums little.
//! Source: raft-engine 0.4.2, `file_pipe_log/format.rs`, `log_batch.rs`.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::errors::Fault;

const SUFFIX: &str = ".raftlog";
const FILE_HEAD_BYTES: u64 = (MAGIC.len() + 16) as u64;
const MAGIC: &[u8] = b"RAFT-LOG-FILE-HEADER-9986AB3E47F320B394C8E84916EB0ED5";
const HEAD_BYTES: u64 = 16;
const CHECKSUM_BYTES: u64 = 4;

/// Refuses a directory that another process holds, or whose files are damaged beyond a torn last write.
pub fn check(directory: &Path) -> Result<(), Fault> {
    let io = |e: io::Error| Fault::HostPoisoned(e.to_string());
    if !directory.exists() {
        return Ok(());
    }
    check_lock(directory).map_err(io)?;
    let files = log_files(directory).map_err(io)?;
    for pair in files.windows(2) {
        if pair[1].0 != pair[0].0 + 1 {
            return Err(Fault::LogCorrupt(format!("file {} is missing", pair[0].0 + 1)));
        }
    }
    let Some(((last, last_path), older)) = files.split_last() else { return Ok(()) };
    for (number, path) in older {
        if !ends_well(path, *number).map_err(io)? {
            return Err(Fault::LogCorrupt(format!("the last write in file {number} is damaged")));
        }
    }
    match damage_before_the_end(&fs::read(last_path).map_err(io)?, *last) {
        Some(offset) => {
            Err(Fault::LogCorrupt(format!("file {last} is damaged at byte {offset}, before its last write")))
        }
        None => Ok(()),
    }
}

fn check_lock(directory: &Path) -> io::Result<()> {
    let Ok(lock) = File::open(directory.join("LOCK")) else { return Ok(()) };
    // SAFETY: the descriptor is open for the call; closing the file releases the lock for raft-engine to take.
    if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(());
    }
    Err(io::Error::other("locked: another process has this directory open"))
}

/// The files of the log by number.
fn log_files(directory: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for file in fs::read_dir(directory)? {
        let path = file?.path();
        let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(SUFFIX));
        files.extend(number.and_then(|digits| digits.parse().ok()).map(|number: u64| (number, path.clone())));
    }
    files.sort();
    Ok(files)
}

/// Whether the last batch of a finished file is whole. Heads only are read up to it.
fn ends_well(path: &Path, number: u64) -> io::Result<bool> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut at = FILE_HEAD_BYTES;
    let mut last = None;
    while at + HEAD_BYTES <= size {
        let mut head = [0u8; HEAD_BYTES as usize];
        file.read_exact_at(&mut head, at)?;
        let Some(batch) = Head::parse(&head, size - at) else { break };
        last = Some((at, batch.length));
        at += batch.length;
    }
    let Some((at, length)) = last else { return Ok(true) };
    let mut bytes = vec![0u8; length as usize];
    file.read_exact_at(&mut bytes, at)?;
    Ok(good_batch(&bytes, number).is_some())
}

/// Where a bad batch is that has a good one behind it.
fn damage_before_the_end(file: &[u8], number: u64) -> Option<usize> {
    let mut at = FILE_HEAD_BYTES as usize;
    if file.starts_with(MAGIC) {
        while let Some(length) = file.get(at..).and_then(|rest| good_batch(rest, number)) {
            at += length as usize;
        }
    }
    let behind = (at + 1..file.len().saturating_sub(HEAD_BYTES as usize)).any(|start| {
        // Zeros, what a file is allocated with, are passed over cheaply.
        file[start..start + 8] != [0; 8] && good_footer(&file[start..], number).is_some()
    });
    (behind && at < file.len()).then_some(at)
}

struct Head {
    length: u64,
    footer: u64,
}

impl Head {
    fn parse(bytes: &[u8], room: u64) -> Option<Head> {
        let first = u64::from_be_bytes(bytes.get(..8)?.try_into().ok()?);
        let footer = u64::from_be_bytes(bytes.get(8..16)?.try_into().ok()?);
        let (length, compression) = (first >> 8, first & 0xFF);
        let fits = compression <= 1 && length <= room && footer >= HEAD_BYTES && footer + CHECKSUM_BYTES < length;
        fits.then_some(Head { length, footer })
    }
}

/// The length of the batch at the start of `bytes`, if all of it is good.
fn good_batch(bytes: &[u8], number: u64) -> Option<u64> {
    let head = good_footer(bytes, number)?;
    let payload = &bytes[HEAD_BYTES as usize..head.footer as usize];
    (payload.is_empty() || sealed(payload, 0)).then_some(head.length)
}

fn good_footer(bytes: &[u8], number: u64) -> Option<Head> {
    let head = Head::parse(bytes, bytes.len() as u64)?;
    sealed(&bytes[head.footer as usize..head.length as usize], number as u32).then_some(head)
}

/// Whether `bytes` end with their checksum, signed with `signature`.
fn sealed(bytes: &[u8], signature: u32) -> bool {
    match bytes.split_last_chunk::<4>() {
        Some((body, checksum)) => crc32fast::hash(body) == u32::from_le_bytes(*checksum) ^ signature,
        None => false,
    }
}
