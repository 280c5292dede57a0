//! A file system under raft-engine's log that notes every change, so that what a crash after any of them leaves can be
//! written into another directory and opened there.
//!
//! Changes are made for real as well. A file's bytes and length are durable once it is synced, a name once the
//! directory is (POSIX). raft-engine syncs its directory beside this trait, in one place: right after it has synced the
//! header of a file that it has just made or reused (`rotate_imp`). So the first sync of such a file stands for the
//! directory's too, except for files made while the log is opened: for those raft-engine does not, and the log does
//! (`names_synced`).
//!
//! Left out: reads that fail; later changes that reach the disk before earlier ones, other than as `Kept` says.
//! Source: raft-engine 0.4.2, `file_pipe_log/pipe.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Error, Result, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use raft_engine::env::{DefaultFileSystem, FileSystem, Handle, Permission, WriteExt};

type RealHandle = <DefaultFileSystem as FileSystem>::Handle;
type RealFile = <DefaultFileSystem as FileSystem>::Writer;
type Image = BTreeMap<String, Vec<u8>>;

/// A known bug, planted to prove that the crash tests find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskMutant {
    /// The log does not make the name of its first file durable.
    FirstNameNotSynced,
    /// A sync says that it is done and does nothing.
    FsyncLies,
}

/// What a crash leaves of the changes that nothing has synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    Nothing,
    Everything,
    /// The older half, and the write after it torn in the middle.
    Half,
    /// Names only: files are there, and empty or as they were.
    Names,
    /// Bytes only.
    Bytes,
}

/// What goes wrong once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    Sync,
    NoSpace,
}

#[derive(Debug)]
enum Change {
    Create { name: String, file: usize },
    Rename { from: String, to: String },
    Remove { name: String },
    Write { file: usize, offset: usize, bytes: Vec<u8> },
    Truncate { file: usize, length: usize },
    Extend { file: usize, length: usize },
    SyncFile { file: usize },
    SyncNames,
}

impl Change {
    fn file(&self) -> Option<usize> {
        match self {
            Change::Write { file, .. } | Change::Truncate { file, .. } | Change::Extend { file, .. } => Some(*file),
            _ => None,
        }
    }
}

#[derive(Default)]
struct State {
    durable: Durable,
    changes: Vec<Change>,
    names: BTreeMap<String, usize>,
    files: usize,
    /// Made or renamed by a rotation and not synced since.
    rotated: BTreeSet<usize>,
    is_opening: bool,
    /// Which opening of the log this is about. What an engine of an earlier one does when it is let go at last, perhaps
    /// because a reader held on to it, happened after its crash and is none of this.
    incarnation: u64,
    mutant: Option<DiskMutant>,
    failure: Option<Failure>,
}

#[derive(Default, Clone)]
struct Durable {
    names: BTreeMap<String, usize>,
    contents: BTreeMap<usize, Vec<u8>>,
}

impl Durable {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Create { name, file } => {
                self.names.insert(name.clone(), *file);
            }
            Change::Rename { from, to } => {
                if let Some(file) = self.names.remove(from) {
                    self.names.insert(to.clone(), file);
                }
            }
            Change::Remove { name } => {
                self.names.remove(name);
            }
            Change::Write { file, offset, bytes } => self.write(*file, *offset, bytes),
            Change::Truncate { file, length } => self.contents.entry(*file).or_default().resize(*length, 0),
            Change::Extend { file, length } => {
                let content = self.contents.entry(*file).or_default();
                content.resize(content.len().max(*length), 0);
            }
            Change::SyncFile { .. } | Change::SyncNames => {}
        }
    }

    fn write(&mut self, file: usize, offset: usize, bytes: &[u8]) {
        let content = self.contents.entry(file).or_default();
        content.resize(content.len().max(offset + bytes.len()), 0);
        content[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn keep(&mut self, waiting: &[&Change], kept: Kept) {
        let half = waiting.len() / 2;
        for (at, change) in waiting.iter().enumerate() {
            let stays = match kept {
                Kept::Nothing => false,
                Kept::Everything => true,
                Kept::Half => at < half,
                Kept::Names => change.file().is_none(),
                Kept::Bytes => change.file().is_some(),
            };
            match change {
                change if stays => self.apply(change),
                Change::Write { file, offset, bytes } if kept == Kept::Half && at == half => {
                    self.write(*file, *offset, &bytes[..bytes.len() / 2]);
                }
                _ => {}
            }
        }
    }

    fn image(mut self) -> Image {
        let contents = &mut self.contents;
        self.names.into_iter().map(|(name, file)| (name, contents.remove(&file).unwrap_or_default())).collect()
    }
}

#[derive(Clone)]
pub struct Journal {
    state: Arc<Mutex<State>>,
    incarnation: u64,
}

impl Journal {
    pub fn new(mutant: Option<DiskMutant>) -> Self {
        Journal { state: Arc::new(Mutex::new(State { mutant, ..State::default() })), incarnation: 0 }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under this lock cannot leave it half changed in a way that matters more than the panic itself.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same for changes; none for an engine of an earlier incarnation.
    fn live(&self) -> Option<MutexGuard<'_, State>> {
        Some(self.lock()).filter(|state| state.incarnation == self.incarnation)
    }

    /// Takes what is in the directory for durable, forgets all that was noted before, and returns the file system for
    /// the engine of this incarnation.
    pub fn begin(&self, directory: &Path) -> Result<Journal> {
        let mut state = self.lock();
        let incarnation = state.incarnation + 1;
        *state =
            State { mutant: state.mutant, failure: state.failure, is_opening: true, incarnation, ..State::default() };
        let mut paths = fs::read_dir(directory)?.map(|file| Ok(file?.path())).collect::<Result<Vec<_>>>()?;
        paths.sort();
        for path in paths.iter().filter(|path| !path.ends_with("LOCK")) {
            let file = state.files;
            state.files += 1;
            state.names.insert(name_of(path), file);
            state.durable.contents.insert(file, fs::read(path)?);
        }
        state.durable.names = state.names.clone();
        Ok(Journal { state: self.state.clone(), incarnation })
    }

    /// The log has been opened and its directory synced. Names that were removed beside the log are gone for good.
    pub fn names_synced(&self, directory: &Path) {
        let mut state = self.lock();
        state.is_opening = false;
        let gone: Vec<String> = state.names.keys().filter(|name| !directory.join(name).exists()).cloned().collect();
        for name in gone {
            state.names.remove(&name);
            state.changes.push(Change::Remove { name });
        }
        if state.mutant != Some(DiskMutant::FirstNameNotSynced) {
            state.changes.push(Change::SyncNames);
        }
    }

    /// Changes noted since the log was opened last.
    pub fn steps(&self) -> usize {
        self.lock().changes.len()
    }

    /// The next operation of that kind fails.
    pub fn fail_next(&self, failure: Failure) {
        self.lock().failure = Some(failure);
    }

    /// Takes back a failure that has met no operation yet; returns whether there was one.
    pub fn cancel_failure(&self) -> bool {
        self.lock().failure.take().is_some()
    }

    /// What a crash after the first `steps` changes leaves, by name.
    pub fn image(&self, steps: usize, kept: Kept) -> Image {
        let state = self.lock();
        let mut durable = state.durable.clone();
        let mut waiting: Vec<&Change> = Vec::new();
        for change in state.changes.iter().take(steps) {
            let is_synced: &dyn Fn(&Change) -> bool = match change {
                Change::SyncFile { file } => &move |other: &Change| other.file() == Some(*file),
                Change::SyncNames => &|other: &Change| other.file().is_none(),
                other => {
                    waiting.push(other);
                    continue;
                }
            };
            waiting.retain(|other| {
                let synced = is_synced(other);
                if synced {
                    durable.apply(other);
                }
                !synced
            });
        }
        durable.keep(&waiting, kept);
        durable.image()
    }

    fn fails(&self, failure: Failure, code: i32) -> Result<()> {
        let Some(mut state) = self.live() else { return Ok(()) };
        if state.failure == Some(failure) {
            state.failure = None;
            return Err(Error::from_raw_os_error(code));
        }
        Ok(())
    }

    fn note(&self, change: Change) {
        if let Some(mut state) = self.live() {
            state.changes.push(change);
        }
    }

    fn note_sync(&self, file: usize) {
        let Some(mut state) = self.live() else { return };
        if state.mutant == Some(DiskMutant::FsyncLies) {
            return;
        }
        state.changes.push(Change::SyncFile { file });
        if state.rotated.remove(&file) {
            state.changes.push(Change::SyncNames);
        }
    }

    fn handle(&self, real: RealHandle, file: usize) -> NotedHandle {
        NotedHandle { real: Arc::new(real), file, journal: self.clone() }
    }
}

impl FileSystem for Journal {
    type Handle = NotedHandle;
    type Reader = <DefaultFileSystem as FileSystem>::Reader;
    type Writer = NotedWriter;

    fn create<P: AsRef<Path>>(&self, path: P) -> Result<NotedHandle> {
        let real = DefaultFileSystem.create(path.as_ref())?;
        let mut state = self.lock();
        let (name, file) = (name_of(path.as_ref()), state.files);
        state.files += 1;
        state.names.insert(name.clone(), file);
        state.changes.push(Change::Create { name, file });
        if !state.is_opening {
            state.rotated.insert(file);
        }
        drop(state);
        Ok(self.handle(real, file))
    }

    fn open<P: AsRef<Path>>(&self, path: P, permission: Permission) -> Result<NotedHandle> {
        let real = DefaultFileSystem.open(path.as_ref(), permission)?;
        let file = self.lock().names.get(&name_of(path.as_ref())).copied();
        let file = file.ok_or_else(|| Error::other(format!("{} was never noted", path.as_ref().display())))?;
        Ok(self.handle(real, file))
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> Result<()> {
        DefaultFileSystem.delete(path.as_ref())?;
        let name = name_of(path.as_ref());
        if let Some(mut state) = self.live() {
            state.names.remove(&name);
        }
        self.note(Change::Remove { name });
        Ok(())
    }

    fn rename<P: AsRef<Path>>(&self, from: P, to: P) -> Result<()> {
        DefaultFileSystem.rename(from.as_ref(), to.as_ref())?;
        let (from, to) = (name_of(from.as_ref()), name_of(to.as_ref()));
        let Some(mut state) = self.live() else { return Ok(()) };
        if let Some(file) = state.names.remove(&from) {
            state.names.insert(to.clone(), file);
            state.rotated.insert(file);
        }
        state.changes.push(Change::Rename { from, to });
        Ok(())
    }

    fn new_reader(&self, handle: Arc<NotedHandle>) -> Result<Self::Reader> {
        DefaultFileSystem.new_reader(handle.real.clone())
    }

    fn new_writer(&self, handle: Arc<NotedHandle>) -> Result<NotedWriter> {
        let real = DefaultFileSystem.new_writer(handle.real.clone())?;
        Ok(NotedWriter { real, at: 0, file: handle.file, journal: self.clone() })
    }
}

pub struct NotedHandle {
    real: Arc<RealHandle>,
    file: usize,
    journal: Journal,
}

impl Handle for NotedHandle {
    fn truncate(&self, offset: usize) -> Result<()> {
        self.real.truncate(offset)?;
        self.journal.note(Change::Truncate { file: self.file, length: offset });
        Ok(())
    }

    fn file_size(&self) -> Result<usize> {
        self.real.file_size()
    }

    /// Without a real sync: what a crash leaves is worked out from the notes.
    fn sync(&self) -> Result<()> {
        self.journal.fails(Failure::Sync, libc::EIO)?;
        self.journal.note_sync(self.file);
        Ok(())
    }
}

pub struct NotedWriter {
    real: RealFile,
    at: usize,
    file: usize,
    journal: Journal,
}

impl Seek for NotedWriter {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        let at = self.real.seek(to)?;
        self.at = at as usize;
        Ok(at)
    }
}

impl Write for NotedWriter {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.journal.fails(Failure::NoSpace, libc::ENOSPC)?;
        let count = self.real.write(bytes)?;
        self.journal.note(Change::Write { file: self.file, offset: self.at, bytes: bytes[..count].to_vec() });
        self.at += count;
        Ok(count)
    }

    fn flush(&mut self) -> Result<()> {
        self.real.flush()
    }
}

impl WriteExt for NotedWriter {
    fn truncate(&mut self, offset: usize) -> Result<()> {
        self.real.truncate(offset)?;
        self.at = offset;
        self.journal.note(Change::Truncate { file: self.file, length: offset });
        Ok(())
    }

    fn allocate(&mut self, offset: usize, size: usize) -> Result<()> {
        self.real.allocate(offset, size)?;
        self.journal.note(Change::Extend { file: self.file, length: offset + size });
        Ok(())
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
