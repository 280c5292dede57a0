//! Ticks and messages of a host, some of whose groups sleep (`sleep`).

use std::panic::{catch_unwind, AssertUnwindSafe};

use raft::eraftpb::Message;

use super::Host;
use crate::errors::{panic_text, Fault};
use crate::sleep::{self, Cause, Word};

impl Host {
    pub fn tick(&mut self) -> Result<(), Fault> {
        self.check()?;
        let mut lost = self.dormitory.tick();
        lost.retain(|group| !self.is_deaf(*group, 0));
        self.rouse_all(lost);
        let mut broken = Vec::new();
        let mut asleep = Vec::new();
        for id in &self.awake {
            let Some(group) = self.groups.get_mut(id) else { continue };
            match catch_unwind(AssertUnwindSafe(|| group.tick())) {
                Ok(()) => {
                    if group.sleep.is_asleep {
                        asleep.push(*id);
                    }
                    if group.has_work() {
                        self.dirty.insert(*id);
                    }
                }
                Err(panic) => broken.push((*id, panic_text(&*panic))),
            }
        }
        broken.into_iter().for_each(|(id, why)| self.poison(id, why));
        asleep.into_iter().for_each(|id| self.put_to_sleep(id));
        self.tick_feed();
        self.signs.clear();
        let signs = self.dormitory.signs();
        self.signs.extend(signs.into_iter().map(|(peer, message)| sleep::outgoing(peer, message)));
        Ok(())
    }

    /// Feeds one message of a frame.
    pub(super) fn step_one(&mut self, peer: u64, group: u64, message: Message) -> Result<(), Fault> {
        if group == sleep::SIGNS {
            return self.hear_sign(peer, &message);
        }
        if self.is_deaf(group, message.from) {
            return Ok(());
        }
        if let Some(word) = Word::of(&message) {
            let others = self.dormitory.meet(peer, word.life);
            self.rouse_all(others);
        }
        if self.groups.get(&group).is_some_and(|g| !g.sleeps_through(&message)) {
            self.rouse(group, Cause::Message);
        }
        self.reach(group, |g, _| g.step(peer, message))
    }

    fn hear_sign(&mut self, peer: u64, message: &Message) -> Result<(), Fault> {
        let groups = &self.groups;
        let leads = |group, term| groups.get(&group).is_some_and(|g| g.is_leader() && g.node.raft.term == term);
        let (mut woken, answer) = self.dormitory.listen(peer, message, leads).map_err(Fault::InvalidFrame)?;
        woken.retain(|group| !self.is_deaf(*group, 0));
        self.rouse_all(woken);
        self.signs.extend(answer.map(|answer| sleep::outgoing(peer, answer)));
        Ok(())
    }

    /// Whether a sleeping group passes over what `from` says, its leader excepted (a planted bug).
    fn is_deaf(&self, group: u64, from: u64) -> bool {
        self.log.has_deaf_sleepers()
            && self
                .groups
                .get(&group)
                .is_some_and(|g| g.sleep.is_asleep && !g.is_leader() && g.node.raft.leader_id != from)
    }

    /// Lets a group that fell asleep be, or wakes it if that cannot be any more.
    pub(super) fn put_to_sleep(&mut self, id: u64) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        if self.dormitory.admit(group) {
            self.awake.remove(&id);
        } else {
            group.rouse(Cause::Lost, |_| 0);
            self.dirty.insert(id);
        }
    }

    /// Wakes a group if it sleeps.
    pub(super) fn rouse(&mut self, id: u64, cause: Cause) {
        if !self.dormitory.leave(id) {
            return;
        }
        self.awake.insert(id);
        self.dirty.insert(id);
        if let Some(group) = self.groups.get_mut(&id) {
            group.rouse(cause, |node| self.dormitory.quiet(node));
        }
    }

    fn rouse_all(&mut self, groups: Vec<u64>) {
        groups.into_iter().for_each(|id| self.rouse(id, Cause::Lost));
    }
}
