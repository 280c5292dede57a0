//! The files of raft-engine's log, numbered without a hole.
//!
//! raft-engine keeps a purged file under its old name for recycling, and at a stop renames such files from the last one
//! down. So a deletion, or a crash during a stop, leaves a hole between kept files and live ones, which `damage` takes
//! for a lost file. Here every lower file is renamed aside before a file is removed. Lower files hold nothing live,
//! because raft-engine purges from the front. Files that a crash leaves aside are removed at the next start.
//!
//! A crash may also leave a new file without its header. raft-engine would continue it in an older format whose batches
//! do not carry the number of their file, so damage could not be told from batches. Such a file is removed before the
//! log is opened.
//!
//! Left out: keeping files of rewritten batches, which raft-engine never does. Source: raft-engine 0.4.2,
//! `file_pipe_log/pipe.rs`.

use std::fs;
use std::io::Result;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft_engine::env::{FileSystem, Permission};

use crate::damage::{is_unbegun, numbered_files, REWRITE_SUFFIX, SUFFIX};

const ASIDE: &str = "aside";

/// Over the real file system, or one that simulates crashes of it.
pub struct LogFiles<B>(B);

impl<B: FileSystem> LogFiles<B> {
    /// For a directory that no process has open.
    pub fn of(directory: &Path, base: B) -> Result<Self> {
        if directory.exists() {
            for file in fs::read_dir(directory)? {
                let path = file?.path();
                if path.extension().is_some_and(|extension| extension == ASIDE) {
                    base.delete(path)?;
                }
            }
        }
        Ok(LogFiles(base))
    }

    /// From the lowest one up, so that there is never a hole.
    fn set_lower_ones_aside(&self, path: &Path) -> Result<()> {
        let Some(directory) = path.parent() else { return Ok(()) };
        let files = numbered_files(directory, SUFFIX)?;
        if files.iter().any(|(_, file)| file == path) {
            for (_, lower) in files.iter().take_while(|(_, file)| file != path) {
                self.0.rename(lower, &aside(lower))?;
            }
        }
        Ok(())
    }
}

impl<B: FileSystem> FileSystem for LogFiles<B> {
    type Handle = B::Handle;
    type Reader = B::Reader;
    type Writer = B::Writer;

    fn create<P: AsRef<Path>>(&self, path: P) -> Result<Self::Handle> {
        self.0.create(path)
    }

    fn open<P: AsRef<Path>>(&self, path: P, permission: Permission) -> Result<Self::Handle> {
        self.0.open(path, permission)
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> Result<()> {
        self.set_lower_ones_aside(path.as_ref())?;
        self.0.delete(where_it_is(path.as_ref()))
    }

    fn rename<P: AsRef<Path>>(&self, from: P, to: P) -> Result<()> {
        self.set_lower_ones_aside(from.as_ref())?;
        self.0.rename(where_it_is(from.as_ref()), to.as_ref().to_owned())
    }

    fn new_reader(&self, handle: Arc<Self::Handle>) -> Result<Self::Reader> {
        self.0.new_reader(handle)
    }

    fn new_writer(&self, handle: Arc<Self::Handle>) -> Result<Self::Writer> {
        self.0.new_writer(handle)
    }
}

/// Removes a file whose creation a crash interrupted, in a directory that no process has open. It is the last file, and
/// the one before was synced by then: if that is blank too it is damage, and stays to be found.
pub fn remove_unbegun(directory: &Path) -> Result<()> {
    for suffix in [SUFFIX, REWRITE_SUFFIX] {
        let files = numbered_files(directory, suffix)?;
        let mut newest = files.iter().rev().map(|(_, path)| path);
        let Some(last) = newest.next() else { continue };
        let is_damage = newest.next().map_or(Ok(false), |path| fs::read(path).map(|bytes| is_unbegun(&bytes)))?;
        if !is_damage && is_unbegun(&fs::read(last)?) {
            fs::remove_file(last)?;
        }
    }
    Ok(())
}

/// The present path of the file that raft-engine knows as `path`.
fn where_it_is(path: &Path) -> PathBuf {
    if path.exists() {
        path.to_owned()
    } else {
        aside(path)
    }
}

fn aside(path: &Path) -> PathBuf {
    path.with_extension(ASIDE)
}
