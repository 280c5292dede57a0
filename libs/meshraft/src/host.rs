//! The driver: many groups over one log, in plain Rust. The Python class over it is in `python`.
//!
//! Each call on a group runs under `catch_unwind`. raft-rs panics on input that it takes for impossible and is half
//! changed then, so the group is closed, reported once, and can be reopened from the log. The other groups go on.

mod log_transfer;
mod quiescence;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::AtomicU64;
use std::sync::Arc;

use bytes::Bytes;

use crate::bootstrap::{self, HostContext, InitialMembers};
use crate::conf;
use crate::config::GroupSettings;
use crate::errors::{one_line, panic_text, Closed, Fault};
use crate::frame::{self, Frame, Outgoing};
use crate::group::Group;
use crate::log::{Log, Op};
use crate::log_transfer::LogTransfer;
use crate::quiescence::{QuiescedGroups, WakeCause};
use crate::reader::Reads;
use crate::sim_log::{SimDisk, SimLog};
use crate::turn::{as_committed, Committed, Installed, RoleChange, Turn};

/// Cached entries over all groups.
const TAIL_BYTES_MAX: usize = 32 << 20;
/// Uncommitted proposals over all groups that are led here: a bound per group alone would let a hundred groups take
/// gigabytes. Past it a group gets its equal share, and a group without uncommitted proposals may always propose, so no
/// group stops the others.
const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;

/// What one turn of the host produced.
#[derive(Default)]
pub struct Output {
    pub frames: Vec<Frame>,
    pub installed: Vec<Installed>,
    pub committed: Vec<Committed>,
    pub roles: Vec<RoleChange>,
    pub reads: Vec<(u64, u64, u64)>,
    pub closed: Vec<(u64, Closed, String)>,
}

pub struct Host {
    log: Box<dyn Log>,
    context: HostContext,
    reads: Arc<Reads>,
    groups: BTreeMap<u64, Group>,
    /// Groups in the log, those of submitted writes included.
    stored: BTreeSet<u64>,
    /// Groups closed after a panic, until they are opened again.
    poisoned: BTreeMap<u64, String>,
    closed: Vec<(u64, Closed, String)>,
    dirty: BTreeSet<u64>,
    /// Groups that are not quiesced: only these tick.
    awake: BTreeSet<u64>,
    quiesced: QuiescedGroups,
    /// Node heartbeats and their responses, for the next pump.
    node_heartbeats: Vec<Outgoing>,
    /// (write, group) pairs where the group waits for the write.
    waiting: BTreeSet<(u64, u64)>,
    /// Changes from outside the Ready loop, for the next write.
    ops: Vec<Op>,
    next_write: u64,
    seen_done: u64,
    /// An upper estimate of what `UNCOMMITTED_BYTES_MAX` bounds; it is counted again only when it reaches the bound.
    uncommitted: u64,
    /// The equal share of each group with uncommitted proposals, as of the last count.
    share: u64,
    transfer: LogTransfer,
    /// What `UNAPPLIED_BYTES_MAX` bounds, as of the last pump.
    tail_bytes: usize,
    may_exceed_tail_bytes: bool,
    failure: Option<String>,
}

impl Host {
    pub fn new(log: Box<dyn Log>, seed: u64) -> Self {
        let context = HostContext {
            seed,
            reader: log.reader(),
            releases_early: log.releases_early(),
            was_damaged: log.was_damaged(),
            opened: AtomicU64::new(1),
        };
        Host {
            stored: log.groups().into_iter().collect(),
            reads: Reads::new(context.reader.clone()),
            log,
            context,
            groups: BTreeMap::new(),
            poisoned: BTreeMap::new(),
            closed: Vec::new(),
            dirty: BTreeSet::new(),
            awake: BTreeSet::new(),
            quiesced: QuiescedGroups::new(seed),
            node_heartbeats: Vec::new(),
            waiting: BTreeSet::new(),
            ops: Vec::new(),
            next_write: 1,
            seen_done: 0,
            uncommitted: 0,
            share: UNCOMMITTED_BYTES_MAX,
            transfer: LogTransfer::default(),
            tail_bytes: 0,
            may_exceed_tail_bytes: true,
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

    /// The damage that was found when the log was opened.
    pub fn damage(&self) -> Option<String> {
        self.log.damage()
    }

    /// Why all memberships in the log are retired. The owner must give the store up.
    pub fn retirement(&self) -> Option<String> {
        self.log.retirement()
    }

    /// The owner has given the store up, durably: `retirement` returns None from now on.
    pub fn forget_retirement(&mut self) -> Result<(), Fault> {
        self.check()?;
        self.log.forget_retirement().map_err(Fault::HostPoisoned)
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
        initial: &InitialMembers,
        settings: GroupSettings,
    ) -> Result<(), Fault> {
        self.check()?;
        if self.stored.contains(&group) {
            return Err(Fault::GroupExists(group));
        }
        let sequence = self.next_write;
        let context = &self.context;
        let (new_group, ops) =
            shielded(|| bootstrap::bootstrap(context, group, member, peers, initial, settings, sequence))?;
        self.ops.extend(ops);
        self.stored.insert(group);
        self.add_group(new_group);
        self.waiting.insert((sequence, group));
        Ok(())
    }

    pub fn open_group(
        &mut self,
        group: u64,
        member: u64,
        peers: BTreeMap<u64, u64>,
        applied_state: Option<Bytes>,
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
        let (log, context, submitted) = (&self.log, &self.context, self.next_write - 1);
        let (mut new_group, installed) = shielded(|| {
            let stored = log.load(group, submitted)?.ok_or(Fault::UnknownGroup(group))?;
            bootstrap::reopen(context, group, member, peers, applied_state, stored, settings)
        })?;
        if self.log.peek_completed() < submitted {
            // What was read may not be durable yet, because a simulated disk never waits. Until it is no message is
            // sent.
            bootstrap::hold_until_durable(&mut new_group, submitted);
            self.waiting.insert((submitted, group));
        }
        self.add_group(new_group);
        Ok(installed)
    }

    pub fn close_group(&mut self, group: u64) -> Result<(), Fault> {
        self.check()?;
        if self.poisoned.remove(&group).is_some() {
            return Ok(());
        }
        let mut closing = self.groups.remove(&group).ok_or(Fault::UnknownGroup(group))?;
        self.ops.extend(closing.closing_ops());
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

    /// Sets the nodes of members. Members of the configuration that are not named keep theirs.
    pub fn set_peers(&mut self, group: u64, peers: BTreeMap<u64, u64>) -> Result<(), Fault> {
        self.with(group, |g, _| {
            g.set_peers(peers);
            Ok(())
        })
    }

    /// Steps a frame; returns the groups in it that are not open here. Valid messages are taken even beside an invalid
    /// one.
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
            if self.exceeds_tail_bytes(&message) {
                continue;
            }
            match self.step_one(peer, group, message) {
                Err(Fault::UnknownGroup(group)) => {
                    unknown.insert(group);
                }
                Err(Fault::InvalidFrame(why)) => invalid = invalid.or(Some(format!("group {group}: {why}"))),
                // A poisoned group is reported by the next pump.
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

    /// Attested recovery: the group goes on with these members alone.
    pub fn recover(&mut self, group: u64, survivors: &BTreeMap<u64, u64>) -> Result<(), Fault> {
        self.with(group, |g, _| g.recover(survivors))
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
        let found = shielded(|| Ok(g.node.store().read(low, high, max_bytes)?))?;
        Ok(found.into_iter().map(|entry| as_committed(group, entry)).collect())
    }

    pub fn group(&self, group: u64) -> Result<&Group, Fault> {
        self.check()?;
        self.groups.get(&group).ok_or_else(|| self.absent(group))
    }

    pub fn has_work(&self) -> bool {
        self.failure.is_none()
            && (!self.dirty.is_empty()
                || !self.node_heartbeats.is_empty()
                || !self.ops.is_empty()
                || !self.closed.is_empty()
                || self.transfer.can_grant()
                || self.log.has_fetched()
                || self.log.peek_completed() > self.seen_done)
    }

    /// Reads of this host's groups from other threads.
    pub fn reads(&self) -> Arc<Reads> {
        self.reads.clone()
    }

    /// The first index that `entries` serves from memory.
    pub fn first_in_memory(&self, group: u64) -> Result<u64, Fault> {
        Ok(self.group(group)?.node.store().tail_first())
    }

    /// Runs one turn of every dirty group, submits one write, and packs one set of frames.
    pub fn pump(&mut self) -> Result<Output, Fault> {
        self.check()?;
        let done = self.log.completed().map_err(|why| self.fail(why))?;
        self.seen_done = done;
        let still = self.waiting.split_off(&(done + 1, 0));
        let settled = std::mem::replace(&mut self.waiting, still);
        self.dirty.extend(settled.into_iter().map(|(_, group)| group));
        self.log.take_fetched().into_iter().for_each(|fetched| self.supply_fetched(fetched));
        self.grant_permits();
        let mut output = Output::default();
        let mut outgoing = std::mem::take(&mut self.node_heartbeats);
        for id in std::mem::take(&mut self.dirty) {
            let turn = self.turn(id, done);
            self.record_turn(id, &turn);
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

    /// Entries in flight to other nodes: see `LogTransfer::stats`.
    pub fn log_transfers(&self) -> Vec<(u64, u64, u64, usize)> {
        self.transfer.stats()
    }

    pub fn disk_bytes(&self) -> Result<u64, Fault> {
        self.check()?;
        Ok(self.log.disk_bytes())
    }

    /// Writes what is queued and closes the log. A host that failed before is closed without an error.
    pub fn close(&mut self) -> Result<(), Fault> {
        let failed = self.failure.is_some();
        let closing: Vec<Op> = self.groups.values_mut().flat_map(Group::closing_ops).collect();
        self.ops.extend(closing);
        let flushed = if failed { Ok(()) } else { self.submit() };
        let closed = self.log.close();
        self.groups.clear();
        self.reads.close();
        // The lock on the directory is released with the last reference to the log, so an empty log replaces it.
        let nothing = SimLog::attach(&SimDisk::default());
        self.context.reader = nothing.reader();
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
        match catch_unwind(AssertUnwindSafe(|| {
            group.set_blocked(self.transfer.full_nodes());
            group.run(done, sequence)
        })) {
            Ok(turn) => {
                log_transfer::request_permits(group, &turn.permit_requests, &mut self.transfer);
                if group.has_work() {
                    self.dirty.insert(id);
                }
                if let Some(oldest) = group.pending_writes.front() {
                    self.waiting.insert((oldest.sequence, id));
                }
                if group.quiescence.is_quiesced && self.awake.contains(&id) {
                    self.quiesce(id);
                }
                turn
            }
            Err(panic) => {
                let reason = group.panic_reason();
                self.poison(id, reason, panic_text(&*panic));
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

    fn add_group(&mut self, group: Group) {
        self.poisoned.remove(&group.id);
        self.dirty.insert(group.id);
        self.awake.insert(group.id);
        self.reads.opened(group.id, group.span.clone());
        self.groups.insert(group.id, group);
    }

    /// Wakes a group and runs a call on it.
    fn with<R>(
        &mut self,
        id: u64,
        call: impl FnOnce(&mut Group, &mut Vec<Op>) -> Result<R, Fault>,
    ) -> Result<R, Fault> {
        self.wake(id, WakeCause::Call);
        self.reach(id, |group, ops| {
            group.reset_quiescence();
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
        let (ops, transfer) = (&mut self.ops, &mut self.transfer);
        let mut permit_requests = Vec::new();
        let called = catch_unwind(AssertUnwindSafe(|| {
            group.set_blocked(transfer.full_nodes());
            let result = call(group, ops);
            group.send_deferred(&mut permit_requests);
            result
        }));
        match called {
            Ok(Err(Fault::LostSyncedData(_, why))) => {
                self.poison(id, Closed::LostSyncedData, why.clone());
                Err(Fault::LostSyncedData(id, why))
            }
            Ok(result) => {
                log_transfer::request_permits(group, &permit_requests, transfer);
                if group.has_work() {
                    self.dirty.insert(id);
                }
                result
            }
            Err(panic) => {
                let (reason, why) = (group.panic_reason(), panic_text(&*panic));
                self.poison(id, reason, why.clone());
                Err(Fault::GroupPoisoned(id, why))
            }
        }
    }

    fn poison(&mut self, id: u64, reason: Closed, why: String) {
        self.groups.remove(&id);
        self.forget(id);
        self.closed.push((id, reason, why.clone()));
        self.poisoned.insert(id, why);
    }

    fn forget(&mut self, id: u64) {
        self.reads.closed(id);
        self.transfer.remove_group(id);
        self.dirty.remove(&id);
        self.awake.remove(&id);
        self.quiesced.remove(id);
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

    /// Drops cached entries that the log can serve when the host holds too many.
    fn trim_tails(&mut self) {
        let tail = |id: &u64| self.groups.get(id).map_or(0, |g| g.node.store().tail_bytes());
        let mut held = self.quiesced.tail_bytes + self.awake.iter().map(tail).sum::<usize>();
        self.tail_bytes = held;
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
            self.quiesced.set_tail_bytes(group.id, store.tail_bytes());
        }
        self.tail_bytes = held;
    }
}

/// Runs a call that touches no open group. A panic means that the stored state is corrupt.
fn shielded<R>(call: impl FnOnce() -> Result<R, Fault>) -> Result<R, Fault> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| Err(Fault::LogCorrupt(panic_text(&*panic))))
}
