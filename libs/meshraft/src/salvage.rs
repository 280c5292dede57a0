//! What is done about a damaged log: what lies before the damage is kept, the rest is put aside, every group is in doubt.
//!
//! The log up to the damage is a state that the host once had, so each group keeps what it had then. The files that held
//! the damage stay beside the log (`*.damaged`) until there is newer damage; while they do, a group that is founded here
//! is in doubt too, since the log may have lost its record. A mark that is durable before anything is
//! moved stays until the groups are known to be in doubt on the disk, so a crash on the way loses no doubt.
//!
//! Left out: how a group gets out of doubt (`doubt`).
//! Source: Alagappan et al., Protocol-Aware Recovery (FAST 2018), §3.3.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::damage::{numbered_files, Damage, Place, REWRITE_SUFFIX, SUFFIX};

/// There while groups may have lost what was synced and are not all marked so.
const MARK: &str = "IN_DOUBT";
const ASIDE_SUFFIX: &str = "damaged";
const CUT_NAME: &str = "CUT";

/// Puts aside what is damaged and what follows it. Returns what was done, for people.
pub fn put_aside(directory: &Path, damage: &Damage) -> io::Result<String> {
    mark(directory, &damage.what)?;
    for path in files_aside(directory)? {
        fs::remove_file(path)?;
    }
    let files = numbered_files(directory, SUFFIX)?;
    let from = match damage.place {
        Place::At { number, offset } => {
            // Last to first: a crash on the way leaves the damage to be found again.
            for (_, path) in files.iter().rev().take_while(|(other, _)| *other > number) {
                move_aside(path)?;
            }
            if let Some((_, path)) = files.iter().find(|(other, _)| *other == number) {
                cut(path, offset)?;
            }
            format!("what follows in the log was put aside as *.{ASIDE_SUFFIX}")
        }
        Place::From(number) => {
            for (_, path) in files.iter().rev().take_while(|(other, _)| *other >= number) {
                move_aside(path)?;
            }
            format!("the files after it were put aside as *.{ASIDE_SUFFIX}")
        }
        Place::Everything => {
            for (_, path) in files.iter().rev().chain(&numbered_files(directory, REWRITE_SUFFIX)?) {
                move_aside(path)?;
            }
            format!("the whole log was put aside as *.{ASIDE_SUFFIX}")
        }
    };
    File::open(directory)?.sync_all()?;
    Ok(format!("{}; {from}", damage.what))
}

/// Whether there is something put aside.
pub fn keeps_aside(directory: &Path) -> io::Result<bool> {
    Ok(!files_aside(directory)?.is_empty())
}

/// Whether groups may have lost what was synced, and what was seen of it.
pub fn marked(directory: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(directory.join(MARK)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Every group is in doubt on the disk: the mark may go.
pub fn unmark(directory: &Path) -> io::Result<()> {
    fs::remove_file(directory.join(MARK))?;
    File::open(directory)?.sync_all()
}

fn mark(directory: &Path, what: &str) -> io::Result<()> {
    let path = directory.join(MARK);
    fs::write(&path, what)?;
    File::open(path)?.sync_all()?;
    File::open(directory)?.sync_all()
}

fn files_aside(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let paths: io::Result<Vec<PathBuf>> = fs::read_dir(directory)?.map(|file| Ok(file?.path())).collect();
    Ok(paths?.into_iter().filter(|path| path.extension().is_some_and(|suffix| suffix == ASIDE_SUFFIX)).collect())
}

fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ASIDE_SUFFIX);
    name.into()
}

fn move_aside(path: &Path) -> io::Result<()> {
    fs::rename(path, aside(path))
}

/// Leaves the first `offset` bytes under the name and the whole file aside.
fn cut(path: &Path, offset: u64) -> io::Result<()> {
    if offset == 0 {
        return move_aside(path);
    }
    let kept = path.with_file_name(CUT_NAME);
    let mut file = File::create(&kept)?;
    io::copy(&mut File::open(path)?.take(offset), &mut file)?;
    file.sync_all()?;
    fs::hard_link(path, aside(path))?;
    fs::rename(kept, path)
}
