//! Groups that sleep: a leader and followers that agree that nothing is left to do stop ticking, and their nodes exchange
//! one sign of life for all such groups instead of a heartbeat of each.
//!
//! Falling asleep: an idle leader asks in its heartbeats; a member that has exactly the leader's log, committed and applied,
//! and nothing going on sleeps and says so; when all have said so the leader sleeps. Waking: by any call or message but those
//! two; by the silence of the other node, for an election timeout; by another *life* (process) of that node. A follower
//! wakes as if its leader's last heartbeat had come with the last sign of life, so that elections come when they
//! would have, and a leader sends heartbeats at once. A sign names some of the groups that sleep under its receiver,
//! in turn; what it does not lead it *disclaims*, so that no follower sleeps on under a leader that is none any more.
//! States, messages and invariants: docs/design/groups.md. Sources: TiKV's hibernating regions, CockroachDB's quiescence.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, Bytes};
use raft::eraftpb::{Message, MessageType};
use raft::{ProgressState, StateRole};

use crate::frame::{Outgoing, CLASS_CONTROL};
use crate::group::Group;
use crate::log::Standing;

/// The group id under which nodes speak of all their sleeping groups: no group has it, and a host that knows no signs passes
/// them over like those of any group that it does not hold.
pub const SIGNS: u64 = 0;
/// Begins the context of a heartbeat, and of the answer that agrees. An older host echoes the question, which agrees to nothing.
const ASK: &[u8] = b"sleep?";
const AGREE: &[u8] = b"asleep";
/// Idle election timeouts before a leader asks: a stream that is written every second is better left awake.
const PATIENCE: u64 = 2;
/// Groups that one sign names.
const CLAIMS_MAX: usize = 32;

/// A question or an answer about sleep: where the speaker's log ends, and the life of its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word {
    index: u64,
    pub life: u64,
}

impl Word {
    /// What a message says about sleep, if anything.
    pub fn of(message: &Message) -> Option<Word> {
        let mark = match message.get_msg_type() {
            MessageType::MsgHeartbeat => ASK,
            MessageType::MsgHeartbeatResponse => AGREE,
            _ => return None,
        };
        let mut rest = message.context.strip_prefix(mark)?;
        (rest.len() == 16).then(|| Word { index: rest.get_u64(), life: rest.get_u64() })
    }

    fn context(self, mark: &[u8]) -> Bytes {
        [mark, &self.index.to_be_bytes(), &self.life.to_be_bytes()].concat().into()
    }
}

/// Why a group wakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Somebody here wants something of it.
    Call,
    Message,
    /// The node of its leader, or of a follower, is silent, is another process, or disclaims it.
    Lost,
}

/// One group's part.
#[derive(Debug, Default)]
pub struct Sleep {
    pub is_asleep: bool,
    /// The life of this host.
    life: u64,
    /// At a leader: ticks without anything to do.
    idle_ticks: u64,
    /// At a leader: who sleeps, and in which life of its host; at the others: under whom.
    agreed: BTreeMap<u64, u64>,
    /// Term and end of the log for which they said so.
    at: (u64, u64),
    /// At the others: who asked in the newest message, and what.
    asked: Option<(u64, Word)>,
}

impl Sleep {
    pub fn new(life: u64) -> Self {
        Sleep { life, ..Sleep::default() }
    }

    fn stir(&mut self) {
        self.idle_ticks = 0;
        self.agreed.clear();
    }

    /// Forgets who agreed to another state of the log.
    fn keep_to(&mut self, at: (u64, u64)) {
        if self.at != at {
            self.stir();
            self.at = at;
        }
    }
}

impl Group {
    /// Somebody here wants something of the group: what was said about sleep is past.
    pub fn disturb(&mut self) {
        self.sleep.stir();
        self.sleep.asked = None;
    }

    fn end_of_log(&self) -> (u64, u64) {
        (self.node.raft.term, self.node.raft.raft_log.last_index())
    }

    /// Whether nothing is left to do here, nor known to be elsewhere.
    fn is_idle(&self) -> bool {
        let raft = &self.node.raft;
        let last = raft.raft_log.last_index();
        self.settings.sleeps
            && self.standing == Standing::Full
            && [raft.raft_log.committed, raft.raft_log.persisted, self.applied].iter().all(|at| *at == last)
            && self.node.store().term_at(last) == Some(raft.term)
            && self.installing.is_none()
            && self.held.is_empty()
            && self.proposals.is_empty()
            && self.notices.is_empty()
            && self.reads.is_empty()
            && self.snapshots_sent.is_empty()
            && raft.pending_read_count() == 0
            && raft.lead_transferee.is_none()
            && !self.node.has_ready()
    }

    /// Whether this member leads an idle group all of whose members hold all of the log.
    fn leads_idle(&self) -> bool {
        let (own, last) = (self.member, self.node.raft.raft_log.last_index());
        self.is_leader()
            && self.is_idle()
            && self.node.raft.prs().iter().all(|(member, progress)| {
                let holds_all = progress.matched == last && progress.state != ProgressState::Snapshot;
                *member == own || (holds_all && self.peers.contains_key(member))
            })
    }

    fn is_drowsy(&self) -> bool {
        self.is_leader() && self.sleep.idle_ticks >= PATIENCE * self.settings.election_ticks as u64
    }

    /// At a leader, once a tick: counts idle ticks, and falls asleep when all members have.
    pub fn doze(&mut self) {
        self.sleep.keep_to(self.end_of_log());
        if !self.leads_idle() {
            self.sleep.stir();
            return;
        }
        self.sleep.idle_ticks += 1;
        let agreed = &self.sleep.agreed;
        let own = self.member;
        let is_agreed = self.node.raft.prs().iter().all(|(member, _)| *member == own || agreed.contains_key(member));
        self.sleep.is_asleep = self.is_drowsy() && is_agreed;
    }

    /// Asks the others in heartbeats that say nothing else.
    pub fn ask_to_sleep(&self, messages: &mut [Message]) {
        if !self.is_drowsy() || !self.leads_idle() {
            return;
        }
        let word = Word { index: self.node.raft.raft_log.last_index(), life: self.sleep.life };
        for message in messages.iter_mut() {
            let is_plain = message.get_msg_type() == MessageType::MsgHeartbeat && message.context.is_empty();
            if is_plain && message.commit == word.index {
                message.context = word.context(ASK);
            }
        }
    }

    /// Whether a sleeping group may take the message without waking: it is a repetition.
    pub fn sleeps_through(&self, message: &Message) -> bool {
        let raft = &self.node.raft;
        let Some(word) = Word::of(message) else { return false };
        let is_present = (message.term, word.index) == self.end_of_log();
        let is_its_part = match message.get_msg_type() {
            MessageType::MsgHeartbeat => message.from == raft.leader_id,
            _ => self.is_leader() && raft.prs().get(message.from).is_some(),
        };
        is_present && is_its_part
    }

    /// Takes what a message says about sleep, before raft-rs sees it.
    pub fn take_word(&mut self, message: &mut Message) {
        self.sleep.asked = None;
        let at = self.end_of_log();
        let word = Word::of(message);
        let present = word.filter(|word| (message.term, word.index) == at);
        if word.is_some() {
            message.context.clear();
        }
        match present {
            Some(word) if self.is_leader() => {
                self.sleep.keep_to(at);
                self.sleep.agreed.insert(message.from, word.life);
            }
            Some(word) => self.sleep.asked = Some((message.from, word)),
            None => {
                self.sleep.agreed.remove(&message.from);
            }
        }
    }

    /// At the others: falls asleep if it was asked to and nothing speaks against it, and says so in its answer.
    pub fn nod_off(&mut self, messages: &mut [Message]) {
        let Some((leader, word)) = self.sleep.asked.take() else { return };
        let raft = &self.node.raft;
        let follows = raft.state == StateRole::Follower && raft.leader_id == leader;
        if !follows || word.index != raft.raft_log.last_index() || !self.is_idle() {
            return;
        }
        let agreement = Word { life: self.sleep.life, ..word };
        let answers = |m: &Message| m.get_msg_type() == MessageType::MsgHeartbeatResponse && m.to == leader;
        for message in messages.iter_mut().filter(|m| answers(m) && m.context.is_empty()) {
            message.context = agreement.context(AGREE);
            self.sleep.is_asleep = true;
        }
        self.sleep.keep_to(self.end_of_log());
        self.sleep.agreed = BTreeMap::from([(leader, word.life)]);
    }

    /// Under whom, or with whom, a group that just fell asleep does: (node, its life).
    fn bedfellows(&self) -> Option<Vec<(u64, u64)>> {
        let with = |(member, life): (&u64, &u64)| self.peers.get(member).map(|node| (*node, *life));
        self.sleep.agreed.iter().map(with).collect()
    }

    /// Wakes; `quiet` tells for how many ticks a node has given no sign of life.
    pub fn rouse(&mut self, cause: Cause, quiet: impl Fn(u64) -> u64) {
        if !std::mem::take(&mut self.sleep.is_asleep) {
            return;
        }
        let members: Vec<u64> = self.sleep.agreed.keys().copied().collect();
        let quiet_of = |member: &u64| self.peers.get(member).map_or(0, |node| quiet(*node));
        let silences: Vec<(u64, u64)> = members.iter().map(|member| (*member, quiet_of(member))).collect();
        self.sleep.stir();
        // The signs of a node stood in for the messages of its members.
        self.ticks += silences.iter().map(|(_, quiet)| *quiet).max().unwrap_or(0);
        for (member, quiet) in &silences {
            self.heard.insert(*member, self.ticks - quiet);
        }
        let raft = &mut self.node.raft;
        if raft.state == StateRole::Leader {
            // The quorum has a whole election timeout to answer.
            raft.election_elapsed = 0;
            self.node.ping();
            return;
        }
        let quiet = silences.first().map_or(0, |(_, quiet)| *quiet);
        self.leader_heard = self.ticks - quiet;
        raft.election_elapsed = (quiet as usize).min(self.settings.election_ticks);
        if cause != Cause::Lost {
            // Wakes the leader, which would else be found by an election that nobody needs, or never by a learner: what woke
            // this one may be an old message of a leader that sleeps.
            let mut knock = Message::default();
            knock.set_msg_type(MessageType::MsgHeartbeatResponse);
            (knock.from, knock.to, knock.term) = (self.member, raft.leader_id, raft.term);
            self.notices.push(knock);
        }
    }
}

/// Another node, as far as groups sleep with members there.
#[derive(Debug, Default)]
struct Neighbour {
    life: u64,
    /// Number of its newest sign in that life: a repetition is no sign of life.
    newest: u64,
    heard: u64,
    /// Ticks of silence after which its groups wake.
    patience: u64,
    /// Groups that are led here.
    led: BTreeSet<u64>,
    /// Groups that sleep under it, and the terms of its leaderships.
    followed: BTreeMap<u64, u64>,
    last_claim: u64,
}

impl Neighbour {
    fn is_empty(&self) -> bool {
        self.led.is_empty() && self.followed.is_empty()
    }

    fn sleepers(&self) -> Vec<u64> {
        self.led.iter().chain(self.followed.keys()).copied().collect()
    }

    /// The next groups to name, all in turn.
    fn claims(&mut self) -> Vec<(u64, u64)> {
        let after = self.followed.range(self.last_claim + 1..).chain(self.followed.range(..=self.last_claim));
        let claims: Vec<(u64, u64)> = after.take(CLAIMS_MAX).map(|(group, term)| (*group, *term)).collect();
        self.last_claim = claims.last().map_or(0, |(group, _)| *group);
        claims
    }
}

/// The sleeping groups of a host.
#[derive(Debug)]
pub struct Dormitory {
    pub life: u64,
    ticks: u64,
    neighbours: BTreeMap<u64, Neighbour>,
    /// Nodes with which each sleeping group sleeps, and the bytes that it keeps in memory.
    beds: BTreeMap<u64, (Vec<u64>, usize)>,
    pub tail_bytes: usize,
    /// Ticks between two signs of life.
    beat: u64,
}

impl Dormitory {
    pub fn new(life: u64) -> Self {
        Dormitory { life, ticks: 0, neighbours: BTreeMap::new(), beds: BTreeMap::new(), tail_bytes: 0, beat: 1 }
    }

    /// Takes a group that fell asleep; false if it must wake, because a node in question is not what it was.
    pub fn admit(&mut self, group: &Group) -> bool {
        let Some(with) = group.bedfellows() else { return false };
        let lives_on = |(node, life): &(u64, u64)| self.neighbours.get(node).is_some_and(|known| known.life == *life);
        if !with.iter().all(lives_on) {
            return false;
        }
        self.beat = group.settings.heartbeat_ticks as u64;
        let patience = group.settings.election_ticks as u64;
        for (node, _) in &with {
            let neighbour = self.neighbours.get_mut(node).expect("just looked at");
            if neighbour.is_empty() {
                (neighbour.heard, neighbour.patience) = (self.ticks, patience);
            }
            neighbour.patience = neighbour.patience.min(patience);
            if group.is_leader() {
                neighbour.led.insert(group.id);
            } else {
                neighbour.followed.insert(group.id, group.node.raft.term);
            }
        }
        let bytes = group.node.store().tail_bytes();
        self.tail_bytes += bytes;
        self.beds.insert(group.id, (with.into_iter().map(|(node, _)| node).collect(), bytes));
        true
    }

    /// Lets go of a group; whether it slept.
    pub fn leave(&mut self, group: u64) -> bool {
        let Some((nodes, bytes)) = self.beds.remove(&group) else { return false };
        self.tail_bytes -= bytes;
        for node in nodes {
            if let Some(neighbour) = self.neighbours.get_mut(&node) {
                neighbour.led.remove(&group);
                neighbour.followed.remove(&group);
            }
        }
        true
    }

    /// Notes that a sleeping group now keeps so many bytes in memory.
    pub fn keeps(&mut self, group: u64, bytes: usize) {
        if let Some((_, kept)) = self.beds.get_mut(&group) {
            self.tail_bytes = self.tail_bytes - *kept + bytes;
            *kept = bytes;
        }
    }

    /// Ticks since a node gave a sign of life.
    pub fn quiet(&self, node: u64) -> u64 {
        self.neighbours.get(&node).map_or(0, |neighbour| self.ticks - neighbour.heard)
    }

    /// Passes a tick; returns the groups that wake because a node is silent.
    pub fn tick(&mut self) -> Vec<u64> {
        self.ticks += 1;
        let ticks = self.ticks;
        let is_silent = |it: &&Neighbour| !it.is_empty() && ticks - it.heard >= it.patience;
        self.neighbours.values().filter(is_silent).flat_map(Neighbour::sleepers).collect()
    }

    /// The signs of life that are due: (node, message).
    pub fn signs(&mut self) -> Vec<(u64, Message)> {
        if self.ticks % self.beat != 0 {
            return Vec::new();
        }
        let (life, ticks) = (self.life, self.ticks);
        let due = self.neighbours.iter_mut().filter(|(_, neighbour)| !neighbour.is_empty());
        let signs = due.map(|(node, neighbour)| {
            let claims = neighbour.claims().into_iter().flat_map(|(group, term)| [group, term]);
            (*node, numbers(MessageType::MsgHeartbeat, [life, ticks].into_iter().chain(claims)))
        });
        signs.collect()
    }

    /// Learns a node's life; returns the groups that wake because it is another one.
    pub fn meet(&mut self, node: u64, life: u64) -> Vec<u64> {
        let neighbour = self.neighbours.entry(node).or_default();
        if neighbour.life == life {
            return Vec::new();
        }
        (neighbour.life, neighbour.newest) = (life, 0);
        neighbour.sleepers()
    }

    /// Takes a sign of life that is the newest of its sender.
    fn hear(&mut self, node: u64, number: u64) {
        if let Some(neighbour) = self.neighbours.get_mut(&node).filter(|neighbour| number > neighbour.newest) {
            (neighbour.newest, neighbour.heard) = (number, self.ticks);
        }
    }

    /// Whether the group sleeps under that node.
    fn is_under(&self, node: u64, group: u64) -> bool {
        self.neighbours.get(&node).is_some_and(|neighbour| neighbour.followed.contains_key(&group))
    }

    /// Takes what node `peer` says of all its sleeping groups. `leads` tells whether this host leads a group in a term.
    /// Returns the groups that wake, and the answer.
    pub fn listen(
        &mut self,
        peer: u64,
        message: &Message,
        leads: impl Fn(u64, u64) -> bool,
    ) -> Result<(Vec<u64>, Option<Message>), String> {
        let words: Vec<u64> = message.context.chunks_exact(8).map(|mut word| word.get_u64()).collect();
        let [life, number, rest @ ..] = &words[..] else { return Err("a sign of life is cut short".into()) };
        match message.get_msg_type() {
            MessageType::MsgHeartbeat if rest.len() <= 2 * CLAIMS_MAX => {
                let woken = self.meet(peer, *life);
                if woken.is_empty() {
                    self.hear(peer, *number);
                }
                let false_ones = rest.chunks_exact(2).filter(|claim| !leads(claim[0], claim[1])).map(|claim| claim[0]);
                let disclaimed: Vec<u64> = false_ones.collect();
                let answer = (!disclaimed.is_empty()).then(|| {
                    let head = [self.life, self.ticks].into_iter();
                    numbers(MessageType::MsgHeartbeatResponse, head.chain(disclaimed))
                });
                Ok((woken, answer))
            }
            MessageType::MsgHeartbeatResponse if rest.len() <= CLAIMS_MAX => {
                Ok((rest.iter().copied().filter(|group| self.is_under(peer, *group)).collect(), None))
            }
            _ => Err("no sign of life".into()),
        }
    }
}

fn numbers(kind: MessageType, numbers: impl Iterator<Item = u64>) -> Message {
    let mut message = Message::default();
    message.set_msg_type(kind);
    message.context = numbers.flat_map(u64::to_be_bytes).collect::<Vec<u8>>().into();
    message
}

/// Puts a sign of life, or its answer, on its way.
pub fn outgoing(peer: u64, message: Message) -> Outgoing {
    Outgoing { peer, class: CLASS_CONTROL, group: SIGNS, message }
}
