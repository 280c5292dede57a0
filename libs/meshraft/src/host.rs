//! Many groups over one log: the driver, in plain Rust. The Python class over it is in `python`.
//!
//! Each call on a group runs under `catch_unwind`: raft-rs panics on what it takes for impossible and is half changed
//! then, so the group is dropped, told about once, and can be rebuilt from the log. The others go on.

mod feeding;
mod sleeping;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::AtomicU64;
use std::sync::Arc;

use bytes::Bytes;

use crate::birth::{self, Founders, Surroundings};
use crate::conf;
use crate::config::GroupSettings;
use crate::errors::{one_line, panic_text, Fault};
use crate::feed::Feed;
use crate::frame::{self, Frame, Outgoing};
use crate::group::{Group, KnownIds};
use crate::log::{Log, Op};
use crate::reader::Reads;
use crate::ready::{as_committed, Committed, Installed, RoleChange, Turn};
use crate::sim_log::{SimDisk, SimLog};
use crate::sleep::{Cause, Dormitory};

/// Entries kept in memory past need, over all groups.
const TAIL_BYTES_MAX: usize = 32 << 20;
/// Proposals that no quorum has yet, over all groups that are led here: a bound per group alone would let a hundred of
/// them take gigabytes. Past it a group gets its equal share, and one that waits for nothing may always propose, so that
/// neither slow groups nor greedy ones stop the others.
const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;

/// What one turn of the host produced.
#[derive(Default)]
pub struct Output {
    pub frames: Vec<Frame>,
    pub installed: Vec<Installed>,
    pub committed: Vec<Committed>,
    pub roles: Vec<RoleChange>,
    pub reads: Vec<(u64, u64, u64)>,
    pub closed: Vec<(u64, String)>,
}

pub struct Host {
    log: Box<dyn Log>,
    around: Surroundings,
    reads: Arc<Reads>,
    groups: BTreeMap<u64, Group>,
    /// Groups that are on the disk, or will be when what was submitted is.
    stored: BTreeSet<u64>,
    /// Groups dropped after a panic, until they are opened again.
    poisoned: BTreeMap<u64, String>,
    closed: Vec<(u64, String)>,
    dirty: BTreeSet<u64>,
    /// Groups that do not sleep: only these tick.
    awake: BTreeSet<u64>,
    dormitory: Dormitory,
    /// Signs of life, and answers to them, for the next pump.
    signs: Vec<Outgoing>,
    /// (write, group) pairs where the group waits for the write.
    waiting: BTreeSet<(u64, u64)>,
    /// Changes from outside the Ready loop, for the next write.
    ops: Vec<Op>,
    next_write: u64,
    seen_done: u64,
    /// What `UNCOMMITTED_BYTES_MAX` bounds, or more: counted anew only when it seems to be reached.
    uncommitted: u64,
    /// The equal part of it of each group that waits for a quorum, as of the last count.
    share: u64,
    feed: Feed,
    /// What `HELD_BYTES_MAX` bounds, as of the last pump.
    held: usize,
    takes_past_bound: bool,
    failure: Option<String>,
}

impl Host {
    pub fn new(log: Box<dyn Log>, seed: u64) -> Self {
        let around = Surroundings {
            seed,
            reader: log.reader(),
            releases_early: log.releases_early(),
            was_damaged: log.was_damaged(),
            opened: AtomicU64::new(1),
        };
        Host {
            stored: log.groups().into_iter().collect(),
            reads: Reads::new(around.reader.clone()),
            log,
            around,
            groups: BTreeMap::new(),
            poisoned: BTreeMap::new(),
            closed: Vec::new(),
            dirty: BTreeSet::new(),
            awake: BTreeSet::new(),
            dormitory: Dormitory::new(seed),
            signs: Vec::new(),
            waiting: BTreeSet::new(),
            ops: Vec::new(),
            next_write: 1,
            seen_done: 0,
            uncommitted: 0,
            share: UNCOMMITTED_BYTES_MAX,
            feed: Feed::default(),
            held: 0,
            takes_past_bound: true,
            failure: None,
        }
    }

    pub fn fileno(&self) -> i32 {
        if self.failure.is_some() {
            -1
        } else {
            self.log.fileno()
        }
    }

    /// What was found damaged in the log when it was opened.
    pub fn damage(&self) -> Option<String> {
        self.log.damage()
    }

    pub fn stored_groups(&self) -> Result<Vec<u64>, Fault> {
        self.check()?;
        Ok(self.stored.iter().copied().collect())
    }

    pub fn create_group(
        &mut self,
        group: u64,
        member: u64,
        peers: BTreeMap<u64, u64>,
        founders: &Founders,
        settings: GroupSettings,
    ) -> Result<(), Fault> {
        self.check()?;
        if self.stored.contains(&group) {
            return Err(Fault::GroupExists(group));
        }
        let sequence = self.next_write;
        let around = &self.around;
        let (made, ops) = shielded(|| birth::create(around, group, member, peers, founders, settings, sequence))?;
        self.ops.extend(ops);
        self.stored.insert(group);
        self.adopt(made);
        self.waiting.insert((sequence, group));
        Ok(())
    }

    pub fn open_group(
        &mut self,
        group: u64,
        member: u64,
        peers: BTreeMap<u64, u64>,
        bookmark: Option<Bytes>,
        settings: GroupSettings,
    ) -> Result<Installed, Fault> {
        self.check()?;
        if self.groups.contains_key(&group) {
            return Err(Fault::GroupExists(group));
        }
        if !self.stored.contains(&group) {
            return Err(Fault::UnknownGroup(group));
        }
        self.submit()?;
        let (log, around, submitted) = (&self.log, &self.around, self.next_write - 1);
        let (mut made, installed) = shielded(|| {
            let stored = log.load(group, submitted)?.ok_or(Fault::UnknownGroup(group))?;
            birth::reopen(around, group, member, peers, bookmark, stored, settings)
        })?;
        if self.log.peek_completed() < submitted {
            // What was read may not be durable yet (a simulated disk never waits): say nothing until it is.
            birth::wait_for(&mut made, submitted);
            self.waiting.insert((submitted, group));
        }
        self.adopt(made);
        Ok(installed)
    }

    pub fn close_group(&mut self, group: u64) -> Result<(), Fault> {
        self.check()?;
        if self.poisoned.remove(&group).is_some() {
            return Ok(());
        }
        let mut closing = self.groups.remove(&group).ok_or(Fault::UnknownGroup(group))?;
        self.ops.extend(closing.parting_ops());
        self.forget(group);
        Ok(())
    }

    pub fn destroy_group(&mut self, group: u64) -> Result<(), Fault> {
        self.check()?;
        if !self.stored.remove(&group) {
            return Err(Fault::UnknownGroup(group));
        }
        self.groups.remove(&group);
        self.poisoned.remove(&group);
        self.forget(group);
        self.ops.push(Op::Destroy { group });
        Ok(())
    }

    /// Names the members anew, and where they live. Members of the configuration that are not named stay reachable.
    pub fn set_peers(&mut self, group: u64, peers: BTreeMap<u64, u64>, known: KnownIds) -> Result<(), Fault> {
        self.with(group, |g, _| {
            g.name(peers, known);
            Ok(())
        })
    }

    /// Says that each of these nodes has a member of the group: a lone voter in doubt that knows none there does not stand.
    pub fn know_nodes(&mut self, group: u64, nodes: Vec<u64>) -> Result<(), Fault> {
        self.with(group, |g, _| {
            g.nodes = nodes;
            Ok(())
        })
    }

    /// Feeds a frame; returns the groups in it that are not here. Good messages are taken even beside a bad one.
    pub fn step(&mut self, peer: u64, data: Bytes) -> Result<Vec<u64>, Fault> {
        self.check()?;
        let mut unknown = BTreeSet::new();
        let mut invalid = None;
        for part in frame::Unpack::new(data).map_err(Fault::InvalidFrame)? {
            let (group, message) = match part {
                Ok(part) => part,
                Err(why) => {
                    invalid = invalid.or(Some(why));
                    continue;
                }
            };
            if self.is_too_much(&message) {
                continue;
            }
            match self.step_one(peer, group, message) {
                Err(Fault::UnknownGroup(group)) => {
                    unknown.insert(group);
                }
                Err(Fault::InvalidFrame(why)) => invalid = invalid.or(Some(format!("group {group}: {why}"))),
                // Poisoned: told by the next pump.
                Ok(()) | Err(_) => {}
            }
        }
        match invalid {
            Some(why) => Err(Fault::InvalidFrame(why)),
            None => Ok(unknown.into_iter().collect()),
        }
    }

    pub fn propose(&mut self, group: u64, data: Bytes) -> Result<(u64, u64), Fault> {
        let bytes = data.len() as u64;
        if self.uncommitted + bytes > UNCOMMITTED_BYTES_MAX {
            let of_groups = self.groups.values().map(Group::uncommitted_bytes).filter(|bytes| *bytes > 0);
            let (sum, sharers) = of_groups.fold((0, 1), |(sum, groups), bytes| (sum + bytes, groups + 1));
            (self.uncommitted, self.share) = (sum, UNCOMMITTED_BYTES_MAX / sharers);
        }
        let (waiting, share) = (self.uncommitted, self.share);
        let taken = self.with(group, |g, _| {
            let own = g.uncommitted_bytes();
            if waiting + bytes > UNCOMMITTED_BYTES_MAX && own > 0 && own + bytes > share {
                return Err(Fault::Backpressure(format!(
                    "{waiting} bytes of this host's groups are not committed yet"
                )));
            }
            g.propose(data)
        })?;
        self.uncommitted += bytes;
        Ok(taken)
    }

    pub fn propose_conf_change(&mut self, group: u64, change: &conf::Change) -> Result<(u64, u64), Fault> {
        self.with(group, |g, _| g.propose_conf_change(change))
    }

    pub fn transfer_leader(&mut self, group: u64, member: u64) -> Result<(), Fault> {
        self.with(group, |g, _| g.transfer_leader(member))
    }

    pub fn campaign(&mut self, group: u64) -> Result<(), Fault> {
        self.with(group, |g, _| g.campaign())
    }

    pub fn read_index(&mut self, group: u64, token: u64) -> Result<(), Fault> {
        self.with(group, |g, _| g.read_index(token))
    }

    pub fn compact(&mut self, group: u64, index: u64, snapshot: &[u8]) -> Result<(), Fault> {
        self.with(group, |g, ops| g.compact(index, snapshot, ops))
    }

    /// Entries `low..high` as (index, term, kind, data), up to the applied index.
    pub fn entries(&self, group: u64, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Committed>, Fault> {
        let g = self.group(group)?;
        let first = g.node.store().first();
        if low < first {
            return Err(Fault::LogCompacted { group, first });
        }
        let high = high.min(g.applied + 1);
        if low >= high {
            return Ok(Vec::new());
        }
        let found = shielded(|| g.node.store().read(low, high, max_bytes).map_err(Fault::LogCorrupt))?;
        Ok(found.into_iter().map(|entry| as_committed(group, entry)).collect())
    }

    pub fn group(&self, group: u64) -> Result<&Group, Fault> {
        self.check()?;
        self.groups.get(&group).ok_or_else(|| self.absent(group))
    }

    pub fn has_work(&self) -> bool {
        self.failure.is_none()
            && (!self.dirty.is_empty()
                || !self.signs.is_empty()
                || !self.ops.is_empty()
                || !self.closed.is_empty()
                || self.feed.has_next()
                || self.log.has_fetched()
                || self.log.peek_completed() > self.seen_done)
    }

    /// What reads this host's groups from other threads.
    pub fn reads(&self) -> Arc<Reads> {
        self.reads.clone()
    }

    /// The first index that `entries` serves from memory.
    pub fn first_in_memory(&self, group: u64) -> Result<u64, Fault> {
        Ok(self.group(group)?.node.store().tail_first())
    }

    /// One turn of every group that has something to do, one write, one set of frames.
    pub fn pump(&mut self) -> Result<Output, Fault> {
        self.check()?;
        let done = self.log.completed().map_err(|why| self.fail(why))?;
        self.seen_done = done;
        let still = self.waiting.split_off(&(done + 1, 0));
        let settled = std::mem::replace(&mut self.waiting, still);
        self.dirty.extend(settled.into_iter().map(|(_, group)| group));
        self.log.take_fetched().into_iter().for_each(|fetched| self.hand_over(fetched));
        self.give_tickets();
        let mut output = Output::default();
        let mut outgoing = std::mem::take(&mut self.signs);
        for id in std::mem::take(&mut self.dirty) {
            let turn = self.turn(id, done);
            self.count(id, &turn);
            outgoing.extend(turn.outgoing);
            self.ops.extend(turn.ops);
            output.installed.extend(turn.installed);
            output.committed.extend(turn.committed);
            output.roles.extend(turn.role);
            output.reads.extend(turn.reads);
        }
        self.submit()?;
        self.trim_tails();
        output.frames = frame::pack(outgoing).map_err(|why| self.fail(why))?;
        output.closed = std::mem::take(&mut self.closed);
        Ok(output)
    }

    /// What is on its way to other nodes, see `Feed::figures`.
    pub fn feeding(&self) -> Vec<(u64, u64, u64, usize)> {
        self.feed.figures()
    }

    pub fn disk_bytes(&self) -> Result<u64, Fault> {
        self.check()?;
        Ok(self.log.disk_bytes())
    }

    /// Writes out what is queued and closes the log. A host that failed before is closed without a word.
    pub fn close(&mut self) -> Result<(), Fault> {
        let failed = self.failure.is_some();
        let parting: Vec<Op> = self.groups.values_mut().flat_map(Group::parting_ops).collect();
        self.ops.extend(parting);
        let flushed = if failed { Ok(()) } else { self.submit() };
        let closed = self.log.close();
        self.groups.clear();
        self.reads.close();
        // The lock on the directory goes with the last reference to the log: let an empty one stand in for it.
        let nothing = SimLog::attach(&SimDisk::default());
        self.around.reader = nothing.reader();
        self.log = Box::new(nothing);
        self.failure.get_or_insert_with(|| "closed".into());
        flushed?;
        closed.map_err(Fault::HostPoisoned).or_else(|fault| if failed { Ok(()) } else { Err(fault) })
    }

    /// Marks the host unusable and drops its groups.
    pub fn fail(&mut self, why: String) -> Fault {
        let why = one_line(&why);
        self.failure.get_or_insert_with(|| why.clone());
        self.groups.clear();
        self.reads.closed_all();
        self.dirty.clear();
        Fault::HostPoisoned(why)
    }

    fn turn(&mut self, id: u64, done: u64) -> Turn {
        let Some(group) = self.groups.get_mut(&id) else { return Turn::default() };
        let sequence = self.next_write;
        match catch_unwind(AssertUnwindSafe(|| group.run(done, sequence))) {
            Ok(turn) => {
                feeding::note_asks(group, &mut self.feed);
                if group.has_work() {
                    self.dirty.insert(id);
                }
                if let Some(oldest) = group.held.front() {
                    self.waiting.insert((oldest.sequence, id));
                }
                if group.sleep.is_asleep && self.awake.contains(&id) {
                    self.put_to_sleep(id);
                }
                turn
            }
            Err(panic) => {
                self.poison(id, panic_text(&*panic));
                Turn::default()
            }
        }
    }

    fn submit(&mut self) -> Result<(), Fault> {
        if self.ops.is_empty() {
            return Ok(());
        }
        let ops = std::mem::take(&mut self.ops);
        self.log.submit(self.next_write, ops).map_err(|why| self.fail(why))?;
        self.next_write += 1;
        Ok(())
    }

    fn adopt(&mut self, group: Group) {
        self.poisoned.remove(&group.id);
        self.dirty.insert(group.id);
        self.awake.insert(group.id);
        self.reads.opened(group.id, group.span.clone());
        self.groups.insert(group.id, group);
    }

    /// Runs a call on a group, awake.
    fn with<R>(
        &mut self,
        id: u64,
        call: impl FnOnce(&mut Group, &mut Vec<Op>) -> Result<R, Fault>,
    ) -> Result<R, Fault> {
        self.rouse(id, Cause::Call);
        self.reach(id, |group, ops| {
            group.disturb();
            call(group, ops)
        })
    }

    fn reach<R>(
        &mut self,
        id: u64,
        call: impl FnOnce(&mut Group, &mut Vec<Op>) -> Result<R, Fault>,
    ) -> Result<R, Fault> {
        self.check()?;
        let Some(group) = self.groups.get_mut(&id) else { return Err(self.absent(id)) };
        let (ops, feed) = (&mut self.ops, &mut self.feed);
        let called = catch_unwind(AssertUnwindSafe(|| {
            if !feed.shut().is_empty() || group.is_shutting_out() {
                group.shut_out(feed.shut());
            }
            call(group, ops)
        }));
        match called {
            Ok(result) => {
                if group.has_work() {
                    self.dirty.insert(id);
                }
                feeding::note_asks(group, feed);
                result
            }
            Err(panic) => {
                let why = panic_text(&*panic);
                self.poison(id, why.clone());
                Err(Fault::GroupPoisoned(id, why))
            }
        }
    }

    fn poison(&mut self, id: u64, why: String) {
        self.groups.remove(&id);
        self.forget(id);
        self.closed.push((id, why.clone()));
        self.poisoned.insert(id, why);
    }

    fn forget(&mut self, id: u64) {
        self.reads.closed(id);
        self.feed.forget(id);
        self.dirty.remove(&id);
        self.awake.remove(&id);
        self.dormitory.leave(id);
        self.waiting.retain(|(_, group)| *group != id);
    }

    fn absent(&self, id: u64) -> Fault {
        match self.poisoned.get(&id) {
            Some(why) => Fault::GroupPoisoned(id, why.clone()),
            None => Fault::UnknownGroup(id),
        }
    }

    fn check(&self) -> Result<(), Fault> {
        match &self.failure {
            Some(why) => Err(Fault::HostPoisoned(why.clone())),
            None => Ok(()),
        }
    }

    /// Lets go of cached entries that the log can serve when the host holds too many.
    fn trim_tails(&mut self) {
        let tail = |id: &u64| self.groups.get(id).map_or(0, |g| g.node.store().tail_bytes());
        let mut held = self.dormitory.tail_bytes + self.awake.iter().map(tail).sum::<usize>();
        self.held = held;
        if held <= TAIL_BYTES_MAX {
            return;
        }
        for group in self.groups.values_mut() {
            if held <= TAIL_BYTES_MAX {
                break;
            }
            let applied = group.applied;
            let store = group.node.mut_store();
            held -= store.tail_bytes();
            store.trim(applied);
            held += store.tail_bytes();
            self.dormitory.keeps(group.id, store.tail_bytes());
        }
        self.held = held;
    }
}

/// Runs what touches no open group; a panic in it means that what was read makes no sense.
fn shielded<R>(call: impl FnOnce() -> Result<R, Fault>) -> Result<R, Fault> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| Err(Fault::LogCorrupt(panic_text(&*panic))))
}
