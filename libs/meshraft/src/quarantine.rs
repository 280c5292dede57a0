//! Quarantine of a damaged log: what lies before the damage stays in use, the rest is moved aside.
//!
//! The log up to the damage is a state that the host once had, so each group keeps what it had then. The files with the
//! damage stay beside the log (`*.damaged`) until there is newer damage. While they do, a group that is bootstrapped
//! here starts on probation, since the log may have lost its record. A file with the new member state of all groups is
//! durable before anything is moved. It is removed when the groups' records have that member state; if they are
//! retired, not before the owner has given the store up.
//!
//! Left out: what a member state means (docs/design/recovery.md).
//! Source: Alagappan et al., Protocol-Aware Recovery (FAST 2018), §3.3.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::damage::{numbered_files, Damage, Place, REWRITE_SUFFIX, SUFFIX};
use crate::log::MemberState;

/// The file with the new member state of all groups on one line, then what was found, for people.
const MEMBER_STATE_FILE: &str = "DAMAGED";
const QUARANTINE_SUFFIX: &str = "damaged";
const CUT_NAME: &str = "CUT";

/// Quarantines what is damaged and what follows it. Returns what was done, for people.
pub fn quarantine(directory: &Path, damage: &Damage) -> io::Result<String> {
    write_pending_member_state(directory, damage)?;
    for path in quarantined_files(directory)? {
        fs::remove_file(path)?;
    }
    let files = numbered_files(directory, SUFFIX)?;
    let from = match damage.place {
        Place::At { number, offset } => {
            // Last to first: a crash on the way leaves the damage to be found again.
            for (_, path) in files.iter().rev().take_while(|(other, _)| *other > number) {
                quarantine_file(path)?;
            }
            if let Some((_, path)) = files.iter().find(|(other, _)| *other == number) {
                quarantine_tail(path, offset)?;
            }
            format!("what follows in the log was put aside as *.{QUARANTINE_SUFFIX}")
        }
        Place::From(number) => {
            for (_, path) in files.iter().rev().take_while(|(other, _)| *other >= number) {
                quarantine_file(path)?;
            }
            format!("the files after it were put aside as *.{QUARANTINE_SUFFIX}")
        }
        Place::Everything => {
            for (_, path) in files.iter().rev().chain(&numbered_files(directory, REWRITE_SUFFIX)?) {
                quarantine_file(path)?;
            }
            format!("the whole log was put aside as *.{QUARANTINE_SUFFIX}")
        }
    };
    File::open(directory)?.sync_all()?;
    Ok(format!("{}; {from}", damage.what))
}

/// Whether the directory has quarantined files.
pub fn has_files(directory: &Path) -> io::Result<bool> {
    Ok(!quarantined_files(directory)?.is_empty())
}

/// The member state that all groups must be lowered to, and what was found. Retired if the file cannot be parsed.
pub fn pending_member_state(directory: &Path) -> io::Result<Option<(MemberState, String)>> {
    match fs::read_to_string(directory.join(MEMBER_STATE_FILE)) {
        Ok(text) => Ok(Some(match text.split_once('\n') {
            Some((name, what)) if name == MemberState::Probation.name() => (MemberState::Probation, what.into()),
            Some((_, what)) => (MemberState::Retired, what.into()),
            None => (MemberState::Retired, text),
        })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes the file: the records of all groups are durable.
pub fn clear_pending_member_state(directory: &Path) -> io::Result<()> {
    fs::remove_file(directory.join(MEMBER_STATE_FILE))?;
    File::open(directory)?.sync_all()
}

fn write_pending_member_state(directory: &Path, damage: &Damage) -> io::Result<()> {
    let path = directory.join(MEMBER_STATE_FILE);
    let was_retired =
        pending_member_state(directory)?.is_some_and(|(member_state, _)| member_state == MemberState::Retired);
    let member_state = if damage.is_earlier || was_retired { MemberState::Retired } else { MemberState::Probation };
    fs::write(&path, format!("{}\n{}", member_state.name(), damage.what))?;
    File::open(path)?.sync_all()?;
    File::open(directory)?.sync_all()
}

fn quarantined_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let paths: io::Result<Vec<PathBuf>> = fs::read_dir(directory)?.map(|file| Ok(file?.path())).collect();
    Ok(paths?.into_iter().filter(|path| path.extension().is_some_and(|suffix| suffix == QUARANTINE_SUFFIX)).collect())
}

fn quarantined_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(QUARANTINE_SUFFIX);
    name.into()
}

fn quarantine_file(path: &Path) -> io::Result<()> {
    fs::rename(path, quarantined_path(path))
}

/// Keeps the first `offset` bytes under the file's name, and quarantines a link to the whole file.
fn quarantine_tail(path: &Path, offset: u64) -> io::Result<()> {
    if offset == 0 {
        return quarantine_file(path);
    }
    let kept = path.with_file_name(CUT_NAME);
    let mut file = File::create(&kept)?;
    io::copy(&mut File::open(path)?.take(offset), &mut file)?;
    file.sync_all()?;
    fs::hard_link(path, quarantined_path(path))?;
    fs::rename(kept, path)
}
