//! How a group quiesces and wakes; the rules are in `crate::quiescence`.

use std::collections::BTreeMap;

use raft::eraftpb::{Message, MessageType};
use raft::{ProgressState, StateRole};

use crate::group::Group;
use crate::log::MemberState;
use crate::quiescence::{
    QuiesceContext, QuiescedGroup, WakeCause, IDLE_ELECTION_TIMEOUTS, QUIESCE_REQUEST, QUIESCE_RESPONSE,
};

impl Group {
    /// What the host needs to know of this quiesced group; None if the node of a member that agreed is unknown.
    pub fn quiesced(&self) -> Option<QuiescedGroup> {
        Some(QuiescedGroup {
            id: self.id,
            nodes: self.agreed_nodes()?,
            is_leader: self.is_leader(),
            term: self.node.raft.term,
            heartbeat_ticks: self.settings.heartbeat_ticks as u64,
            election_ticks: self.settings.election_ticks as u64,
            tail_bytes: self.node.store().tail_bytes(),
        })
    }

    /// A call on the group: earlier agreements and requests are void.
    pub fn reset_quiescence(&mut self) {
        self.quiescence.reset();
        self.quiescence.request = None;
    }

    fn end_of_log(&self) -> (u64, u64) {
        (self.node.raft.term, self.node.raft.raft_log.last_index())
    }

    /// Whether this member has nothing to do and holds its log committed and applied.
    fn is_idle(&self) -> bool {
        let raft = &self.node.raft;
        let last = raft.raft_log.last_index();
        self.settings.quiesces
            && self.member_state == MemberState::Full
            && [raft.raft_log.committed, raft.raft_log.persisted, self.applied].iter().all(|at| *at == last)
            && self.node.store().term_at(last) == Some(raft.term)
            && self.installing.is_none()
            && self.pending_writes.is_empty()
            && self.proposals.is_empty()
            && self.own_messages.is_empty()
            && self.reads.is_empty()
            && self.sent_snapshots.is_empty()
            && raft.pending_read_count() == 0
            && raft.lead_transferee.is_none()
            && !self.node.has_ready()
    }

    /// Whether this member leads an idle group in which every member holds the whole log.
    fn leads_idle(&self) -> bool {
        let (own, last) = (self.member, self.node.raft.raft_log.last_index());
        self.is_leader()
            && self.is_idle()
            && self.node.raft.prs().iter().all(|(member, progress)| {
                let holds_all = progress.matched == last && progress.state != ProgressState::Snapshot;
                *member == own || (holds_all && self.peers.contains_key(member))
            })
    }

    fn should_quiesce(&self) -> bool {
        let idle_ticks_min = IDLE_ELECTION_TIMEOUTS * self.settings.election_ticks as u64;
        self.is_leader() && self.quiescence.idle_ticks >= idle_ticks_min
    }

    /// At the leader, once a tick: counts idle ticks, and quiesces when all members have.
    pub fn tick_quiescence(&mut self) {
        self.quiescence.reset_unless_at(self.end_of_log());
        if !self.leads_idle() {
            self.quiescence.reset();
            return;
        }
        self.quiescence.idle_ticks += 1;
        let agreed = &self.quiescence.agreed;
        let own = self.member;
        let is_agreed = self.node.raft.prs().iter().all(|(member, _)| *member == own || agreed.contains_key(member));
        self.quiescence.is_quiesced = self.should_quiesce() && is_agreed;
    }

    /// At the leader: turns heartbeats without a context into quiesce requests.
    pub fn request_quiescence(&self, messages: &mut [Message]) {
        if !self.should_quiesce() || !self.leads_idle() {
            return;
        }
        let context =
            QuiesceContext { index: self.node.raft.raft_log.last_index(), incarnation: self.quiescence.incarnation };
        for message in messages.iter_mut() {
            let is_plain = message.get_msg_type() == MessageType::MsgHeartbeat && message.context.is_empty();
            if is_plain && message.commit == context.index {
                message.context = context.encode(QUIESCE_REQUEST);
            }
        }
    }

    /// Whether a quiesced group may take the message without waking, because it repeats a request or a response.
    pub fn stays_quiesced(&self, message: &Message) -> bool {
        let raft = &self.node.raft;
        let Some(context) = QuiesceContext::decode(message) else { return false };
        let is_current = (message.term, context.index) == self.end_of_log();
        let is_from_its_sender = match message.get_msg_type() {
            MessageType::MsgHeartbeat => message.from == raft.leader_id,
            _ => self.is_leader() && raft.prs().get(message.from).is_some(),
        };
        is_current && is_from_its_sender
    }

    /// Takes a quiesce request or response out of a message before raft-rs sees it.
    pub fn take_quiesce_context(&mut self, message: &mut Message) {
        self.quiescence.request = None;
        let at = self.end_of_log();
        let context = QuiesceContext::decode(message);
        let current = context.filter(|context| (message.term, context.index) == at);
        if context.is_some() {
            message.context.clear();
        }
        match current {
            Some(context) if self.is_leader() => {
                self.quiescence.reset_unless_at(at);
                self.quiescence.agreed.insert(message.from, context.incarnation);
            }
            Some(context) => self.quiescence.request = Some((message.from, context)),
            None => {
                self.quiescence.agreed.remove(&message.from);
            }
        }
    }

    /// At a follower: quiesces if it was asked to and is idle, and says so in its heartbeat response.
    pub fn accept_quiescence(&mut self, messages: &mut [Message]) {
        let Some((leader, context)) = self.quiescence.request.take() else { return };
        let raft = &self.node.raft;
        let follows = raft.state == StateRole::Follower && raft.leader_id == leader;
        if !follows || context.index != raft.raft_log.last_index() || !self.is_idle() {
            return;
        }
        let own = QuiesceContext { incarnation: self.quiescence.incarnation, ..context };
        let is_response = |m: &Message| m.get_msg_type() == MessageType::MsgHeartbeatResponse && m.to == leader;
        for message in messages.iter_mut().filter(|m| is_response(m) && m.context.is_empty()) {
            message.context = own.encode(QUIESCE_RESPONSE);
            self.quiescence.is_quiesced = true;
        }
        self.quiescence.reset_unless_at(self.end_of_log());
        self.quiescence.agreed = BTreeMap::from([(leader, context.incarnation)]);
    }

    /// The nodes of the members that agreed, and their incarnations.
    fn agreed_nodes(&self) -> Option<Vec<(u64, u64)>> {
        let at_node = |(member, incarnation): (&u64, &u64)| self.peers.get(member).map(|node| (*node, *incarnation));
        self.quiescence.agreed.iter().map(at_node).collect()
    }

    /// Wakes the group. `silent_ticks` gives the ticks since a node's last heartbeat.
    pub fn wake(&mut self, cause: WakeCause, silent_ticks: impl Fn(u64) -> u64) {
        if !std::mem::take(&mut self.quiescence.is_quiesced) {
            return;
        }
        let members: Vec<u64> = self.quiescence.agreed.keys().copied().collect();
        let silent_of = |member: &u64| self.peers.get(member).map_or(0, |node| silent_ticks(*node));
        let silences: Vec<(u64, u64)> = members.iter().map(|member| (*member, silent_of(member))).collect();
        self.quiescence.reset();
        // Node heartbeats stood in for the messages of the members.
        self.ticks += silences.iter().map(|(_, silent)| *silent).max().unwrap_or(0);
        for (member, silent) in &silences {
            self.heard.insert(*member, self.ticks - silent);
        }
        let raft = &mut self.node.raft;
        if raft.state == StateRole::Leader {
            // The quorum has a whole election timeout to answer.
            raft.election_elapsed = 0;
            self.node.ping();
            return;
        }
        let silent = silences.first().map_or(0, |(_, silent)| *silent);
        self.leader_heard = self.ticks - silent;
        raft.election_elapsed = (silent as usize).min(self.settings.election_ticks);
        if cause != WakeCause::NodeLost {
            // This heartbeat response wakes the leader. Without it the group would hold a needless election, or a
            // learner would never find its leader: the message that woke it may be an old one of a quiesced leader.
            let mut response = Message::default();
            response.set_msg_type(MessageType::MsgHeartbeatResponse);
            (response.from, response.to, response.term) = (self.member, raft.leader_id, raft.term);
            self.own_messages.push(response);
        }
    }
}
