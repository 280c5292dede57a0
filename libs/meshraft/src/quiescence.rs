//! Quiescence: the members of an idle group agree to stop ticking, and their nodes exchange one node heartbeat for all
//! quiesced groups instead of a heartbeat of each.
//!
//! Quiesce: an idle leader asks in its heartbeats. A member quiesces and says so in its response if it has exactly the
//! leader's log, committed and applied, and nothing in progress. The leader quiesces when all members have. Wake: any
//! call or message but those two wakes a group; so do an election timeout without a node heartbeat and another
//! *incarnation* (process) of the node. A follower wakes as if the last node heartbeat had been a heartbeat of its
//! leader, so an election comes when it would have come; a leader sends heartbeats at once. A node heartbeat *claims*
//! some of the groups that are quiesced under its receiver, in rotation. The response *disclaims* those that the
//! receiver does not lead, so no follower stays quiesced under a former leader.
//! States, messages and invariants: docs/design/groups.md. Sources: TiKV's hibernate regions, CockroachDB's quiescence.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, Bytes};
use raft::eraftpb::{Message, MessageType};

use crate::frame::{Outgoing, CLASS_CONTROL};

/// The group id of node heartbeats. No group has it, and a host that does not know node heartbeats ignores them like
/// messages of any group that it does not hold.
pub const NODE_HEARTBEAT_GROUP: u64 = 0;
/// Begins the context of a heartbeat that asks to quiesce, and of the response that agrees. A host that does not know
/// quiescence echoes the request, which is not an agreement.
pub const QUIESCE_REQUEST: &[u8] = b"sleep?";
pub const QUIESCE_RESPONSE: &[u8] = b"asleep";
/// Idle election timeouts before a leader asks: a stream that is written every second should stay awake.
pub const IDLE_ELECTION_TIMEOUTS: u64 = 2;
/// Groups that one node heartbeat claims.
const CLAIMS_MAX: usize = 32;

/// The context of a quiesce request or response: the sender's last log index, and the incarnation of its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuiesceContext {
    pub index: u64,
    pub incarnation: u64,
}

impl QuiesceContext {
    /// The context of a request or response; None for any other message.
    pub fn decode(message: &Message) -> Option<QuiesceContext> {
        let prefix = match message.get_msg_type() {
            MessageType::MsgHeartbeat => QUIESCE_REQUEST,
            MessageType::MsgHeartbeatResponse => QUIESCE_RESPONSE,
            _ => return None,
        };
        let mut rest = message.context.strip_prefix(prefix)?;
        (rest.len() == 16).then(|| QuiesceContext { index: rest.get_u64(), incarnation: rest.get_u64() })
    }

    pub fn encode(self, prefix: &[u8]) -> Bytes {
        [prefix, &self.index.to_be_bytes(), &self.incarnation.to_be_bytes()].concat().into()
    }
}

/// What the host needs to know of a group that has quiesced.
pub struct QuiescedGroup {
    pub id: u64,
    /// Nodes of the members that agreed (at a follower: of the leader), and their incarnations.
    pub nodes: Vec<(u64, u64)>,
    pub is_leader: bool,
    pub term: u64,
    pub heartbeat_ticks: u64,
    pub election_ticks: u64,
    pub tail_bytes: usize,
}

/// Why a group wakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WakeCause {
    /// A call of the application.
    Call,
    Message,
    /// The node of the leader or of a follower is silent, has another incarnation, or disclaims the group.
    NodeLost,
}

/// The quiescence of one group.
#[derive(Debug, Default)]
pub struct Quiescence {
    pub is_quiesced: bool,
    /// The incarnation of this host.
    pub incarnation: u64,
    /// At the leader: ticks without anything to do.
    pub idle_ticks: u64,
    /// At the leader: members that quiesced, and the incarnations of their hosts. At a follower: the leader and its
    /// host's.
    pub agreed: BTreeMap<u64, u64>,
    /// The (term, last log index) that `agreed` is about.
    pub agreed_at: (u64, u64),
    /// At a follower: the sender and the context of the request, if the newest message was one.
    pub request: Option<(u64, QuiesceContext)>,
}

impl Quiescence {
    pub fn new(incarnation: u64) -> Self {
        Quiescence { incarnation, ..Quiescence::default() }
    }

    pub fn reset(&mut self) {
        self.idle_ticks = 0;
        self.agreed.clear();
    }

    /// Drops agreements about another state of the log.
    pub fn reset_unless_at(&mut self, at: (u64, u64)) {
        if self.agreed_at != at {
            self.reset();
            self.agreed_at = at;
        }
    }
}

/// Another node with members of groups that are quiesced here.
#[derive(Debug, Default)]
struct Node {
    incarnation: u64,
    /// Number of its newest heartbeat in that incarnation: a repeated one does not count.
    last_number: u64,
    heard_at: u64,
    /// Ticks of silence after which its groups wake.
    timeout_ticks: u64,
    /// Quiesced groups that this host leads.
    led: BTreeSet<u64>,
    /// Quiesced groups that the node leads, and its terms.
    followed: BTreeMap<u64, u64>,
    last_claim: u64,
}

impl Node {
    fn is_empty(&self) -> bool {
        self.led.is_empty() && self.followed.is_empty()
    }

    fn groups(&self) -> Vec<u64> {
        self.led.iter().chain(self.followed.keys()).copied().collect()
    }

    /// The next groups to claim, in rotation.
    fn claims(&mut self) -> Vec<(u64, u64)> {
        let after = self.followed.range(self.last_claim + 1..).chain(self.followed.range(..=self.last_claim));
        let claims: Vec<(u64, u64)> = after.take(CLAIMS_MAX).map(|(group, term)| (*group, *term)).collect();
        self.last_claim = claims.last().map_or(0, |(group, _)| *group);
        claims
    }
}

/// The quiesced groups of a host.
#[derive(Debug)]
pub struct QuiescedGroups {
    pub incarnation: u64,
    ticks: u64,
    nodes: BTreeMap<u64, Node>,
    /// The nodes of each group's members, and the bytes that the group keeps in memory.
    groups: BTreeMap<u64, (Vec<u64>, usize)>,
    pub tail_bytes: usize,
    /// Ticks between two node heartbeats.
    heartbeat_ticks: u64,
}

impl QuiescedGroups {
    pub fn new(incarnation: u64) -> Self {
        let (nodes, groups) = (BTreeMap::new(), BTreeMap::new());
        QuiescedGroups { incarnation, ticks: 0, nodes, groups, tail_bytes: 0, heartbeat_ticks: 1 }
    }

    /// Adds a group; false if it must wake because one of its nodes has another incarnation by now.
    pub fn insert(&mut self, group: QuiescedGroup) -> bool {
        let is_same = |(node, incarnation): &(u64, u64)| {
            self.nodes.get(node).is_some_and(|known| known.incarnation == *incarnation)
        };
        if !group.nodes.iter().all(is_same) {
            return false;
        }
        self.heartbeat_ticks = group.heartbeat_ticks;
        for (id, _) in &group.nodes {
            let node = self.nodes.get_mut(id).expect("its incarnation was just compared");
            if node.is_empty() {
                (node.heard_at, node.timeout_ticks) = (self.ticks, group.election_ticks);
            }
            node.timeout_ticks = node.timeout_ticks.min(group.election_ticks);
            if group.is_leader {
                node.led.insert(group.id);
            } else {
                node.followed.insert(group.id, group.term);
            }
        }
        self.tail_bytes += group.tail_bytes;
        let nodes = group.nodes.into_iter().map(|(node, _)| node).collect();
        self.groups.insert(group.id, (nodes, group.tail_bytes));
        true
    }

    /// Removes a group; returns whether it was quiesced.
    pub fn remove(&mut self, group: u64) -> bool {
        let Some((nodes, bytes)) = self.groups.remove(&group) else { return false };
        self.tail_bytes -= bytes;
        for id in nodes {
            if let Some(node) = self.nodes.get_mut(&id) {
                node.led.remove(&group);
                node.followed.remove(&group);
            }
        }
        true
    }

    /// Sets the bytes that a quiesced group keeps in memory.
    pub fn set_tail_bytes(&mut self, group: u64, bytes: usize) {
        if let Some((_, kept)) = self.groups.get_mut(&group) {
            self.tail_bytes = self.tail_bytes - *kept + bytes;
            *kept = bytes;
        }
    }

    /// Ticks since the last heartbeat of a node.
    pub fn silent_ticks(&self, node: u64) -> u64 {
        self.nodes.get(&node).map_or(0, |node| self.ticks - node.heard_at)
    }

    /// Advances the clock by a tick; returns the groups that wake because a node is silent.
    pub fn tick(&mut self) -> Vec<u64> {
        self.ticks += 1;
        let ticks = self.ticks;
        let is_silent = |node: &&Node| !node.is_empty() && ticks - node.heard_at >= node.timeout_ticks;
        self.nodes.values().filter(is_silent).flat_map(Node::groups).collect()
    }

    /// The node heartbeats that are due: (node, message).
    pub fn heartbeats(&mut self) -> Vec<(u64, Message)> {
        if self.ticks % self.heartbeat_ticks != 0 {
            return Vec::new();
        }
        let (incarnation, ticks) = (self.incarnation, self.ticks);
        let due = self.nodes.iter_mut().filter(|(_, node)| !node.is_empty());
        let heartbeats = due.map(|(id, node)| {
            let claims = node.claims().into_iter().flat_map(|(group, term)| [group, term]);
            (*id, node_message(MessageType::MsgHeartbeat, [incarnation, ticks].into_iter().chain(claims)))
        });
        heartbeats.collect()
    }

    /// Notes a node's incarnation; returns the groups that wake because it is a new one.
    pub fn observe_incarnation(&mut self, node: u64, incarnation: u64) -> Vec<u64> {
        let node = self.nodes.entry(node).or_default();
        if node.incarnation == incarnation {
            return Vec::new();
        }
        (node.incarnation, node.last_number) = (incarnation, 0);
        node.groups()
    }

    /// Takes a node heartbeat, unless it is a repetition.
    fn record_heartbeat(&mut self, node: u64, number: u64) {
        if let Some(node) = self.nodes.get_mut(&node).filter(|node| number > node.last_number) {
            (node.last_number, node.heard_at) = (number, self.ticks);
        }
    }

    /// Whether the group is quiesced under that node's leadership.
    fn follows(&self, node: u64, group: u64) -> bool {
        self.nodes.get(&node).is_some_and(|node| node.followed.contains_key(&group))
    }

    /// Takes a node heartbeat of node `peer`, or a response. `leads` says whether this host leads a group in a term.
    /// Returns the groups that wake, and the response.
    pub fn step(
        &mut self,
        peer: u64,
        message: &Message,
        leads: impl Fn(u64, u64) -> bool,
    ) -> Result<(Vec<u64>, Option<Message>), String> {
        let numbers: Vec<u64> = message.context.chunks_exact(8).map(|mut number| number.get_u64()).collect();
        let [incarnation, number, rest @ ..] = &numbers[..] else { return Err("a node heartbeat is cut short".into()) };
        match message.get_msg_type() {
            MessageType::MsgHeartbeat if rest.len() <= 2 * CLAIMS_MAX => {
                let woken = self.observe_incarnation(peer, *incarnation);
                if woken.is_empty() {
                    self.record_heartbeat(peer, *number);
                }
                let is_false = |claim: &&[u64]| !leads(claim[0], claim[1]);
                let disclaimed: Vec<u64> = rest.chunks_exact(2).filter(is_false).map(|claim| claim[0]).collect();
                let response = (!disclaimed.is_empty()).then(|| {
                    let head = [self.incarnation, self.ticks].into_iter();
                    node_message(MessageType::MsgHeartbeatResponse, head.chain(disclaimed))
                });
                Ok((woken, response))
            }
            MessageType::MsgHeartbeatResponse if rest.len() <= CLAIMS_MAX => {
                Ok((rest.iter().copied().filter(|group| self.follows(peer, *group)).collect(), None))
            }
            _ => Err("neither a node heartbeat nor its response".into()),
        }
    }
}

fn node_message(kind: MessageType, numbers: impl Iterator<Item = u64>) -> Message {
    let mut message = Message::default();
    message.set_msg_type(kind);
    message.context = numbers.flat_map(u64::to_be_bytes).collect::<Vec<u8>>().into();
    message
}

/// Addresses a node heartbeat, or its response.
pub fn outgoing(peer: u64, message: Message) -> Outgoing {
    Outgoing { peer, class: CLASS_CONTROL, group: NODE_HEARTBEAT_GROUP, message }
}
