//! Ticks and messages of a host some of whose groups are quiesced (`crate::quiescence`).

use std::panic::{catch_unwind, AssertUnwindSafe};

use raft::eraftpb::Message;

use super::Host;
use crate::errors::{panic_text, Fault};
use crate::quiescence::{self, QuiesceContext, WakeCause};

impl Host {
    pub fn tick(&mut self) -> Result<(), Fault> {
        self.check()?;
        let mut lost = self.quiesced.tick();
        lost.retain(|group| !self.is_ignored(*group, 0));
        self.wake_all(lost);
        let mut broken = Vec::new();
        let mut quiesced = Vec::new();
        for id in &self.awake {
            let Some(group) = self.groups.get_mut(id) else { continue };
            match catch_unwind(AssertUnwindSafe(|| group.tick())) {
                Ok(()) => {
                    if group.quiescence.is_quiesced {
                        quiesced.push(*id);
                    }
                    if group.has_work() {
                        self.dirty.insert(*id);
                    }
                }
                Err(panic) => broken.push((*id, group.panic_reason(), panic_text(&*panic))),
            }
        }
        broken.into_iter().for_each(|(id, reason, why)| self.poison(id, reason, why));
        quiesced.into_iter().for_each(|id| self.quiesce(id));
        self.tick_log_transfer();
        self.node_heartbeats.clear();
        let due = self.quiesced.heartbeats();
        self.node_heartbeats.extend(due.into_iter().map(|(peer, message)| quiescence::outgoing(peer, message)));
        Ok(())
    }

    /// Steps one message of a frame.
    pub(super) fn step_one(&mut self, peer: u64, group: u64, message: Message) -> Result<(), Fault> {
        if group == quiescence::NODE_HEARTBEAT_GROUP {
            return self.step_node_heartbeat(peer, &message);
        }
        if self.is_ignored(group, message.from) {
            return Ok(());
        }
        if let Some(context) = QuiesceContext::decode(&message) {
            let woken = self.quiesced.observe_incarnation(peer, context.incarnation);
            self.wake_all(woken);
        }
        if self.groups.get(&group).is_some_and(|g| !g.stays_quiesced(&message)) {
            self.wake(group, WakeCause::Message);
        }
        self.reach(group, |g, _| g.step(peer, message))
    }

    fn step_node_heartbeat(&mut self, peer: u64, message: &Message) -> Result<(), Fault> {
        let groups = &self.groups;
        let leads = |group, term| groups.get(&group).is_some_and(|g| g.is_leader() && g.node.raft.term == term);
        let (mut woken, response) = self.quiesced.step(peer, message, leads).map_err(Fault::InvalidFrame)?;
        woken.retain(|group| !self.is_ignored(*group, 0));
        self.wake_all(woken);
        self.node_heartbeats.extend(response.map(|response| quiescence::outgoing(peer, response)));
        Ok(())
    }

    /// Whether a quiesced group ignores `from` because it is not its leader (a planted bug).
    fn is_ignored(&self, group: u64, from: u64) -> bool {
        self.log.hears_only_leader_while_quiesced()
            && self
                .groups
                .get(&group)
                .is_some_and(|g| g.quiescence.is_quiesced && !g.is_leader() && g.node.raft.leader_id != from)
    }

    /// Stops ticking a group that has quiesced, or wakes it if a node that agreed was restarted meanwhile.
    pub(super) fn quiesce(&mut self, id: u64) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        if group.quiesced().is_some_and(|group| self.quiesced.insert(group)) {
            self.awake.remove(&id);
        } else {
            group.wake(WakeCause::NodeLost, |_| 0);
            self.dirty.insert(id);
        }
    }

    /// Wakes a group if it is quiesced.
    pub(super) fn wake(&mut self, id: u64, cause: WakeCause) {
        if !self.quiesced.remove(id) {
            return;
        }
        self.awake.insert(id);
        self.dirty.insert(id);
        if let Some(group) = self.groups.get_mut(&id) {
            group.wake(cause, |node| self.quiesced.silent_ticks(node));
        }
    }

    fn wake_all(&mut self, groups: Vec<u64>) {
        groups.into_iter().for_each(|id| self.wake(id, WakeCause::NodeLost));
    }
}
