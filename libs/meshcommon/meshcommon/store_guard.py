"""Who may be heard: the exchange of store ids and boot numbers between the nodes that share Raft groups.

A node says hello with the lineage of its store. The peer compares it with what it remembers, makes the new memory durable
and only then welcomes it. Before that no Raft frame goes to that peer, and none is taken from a node whose last hello was not
accepted. Hellos also tell what is known of others, so that a peer that was down meanwhile knows of it too. A node that is refused falls silent towards all until its shell has renounced the store (`reborn`); what to do
with its memberships is the shell's. Messages may be lost, doubled and reordered: hellos are repeated until answered.

What it cannot see: a boot number that only a node knows which is away, and what was confirmed after the last boot number that
was announced. Pure: time and randomness are passed in. Source: architecture §7; docs/design/stores.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from meshcommon.ids import NO_NODE, NodeId
from meshcommon.store_lineage import Lineage, Seen, Verdict, is_news, judge, seen_of
from meshwire.store_message import OTHERS_MAX, Ask, Hello, Refusal, StoreMessage, Welcome


@dataclass(frozen=True, slots=True)
class GuardTiming:
    """How the guard keeps time.

    Attributes:
        repeat_s: an unanswered hello is said again after this time; so is a question to a stranger.
        patience_s: a node that has just started speaks to nobody before all its peers have answered, but waits for those
            that are away no longer than this: one of them may know that its disk was rolled back.
    """

    repeat_s: float
    patience_s: float


@dataclass(frozen=True, slots=True)
class Objection:
    """A peer has seen what this node's store does not hold."""

    peer: NodeId
    seen: Seen
    verdict: Verdict

    @property
    def lost(self) -> tuple[int, ...]:
        """Stores that this node was once, as the peer knows."""
        return (*self.seen.renounced, self.seen.store_id)


@dataclass(frozen=True, slots=True)
class StoreMemory:
    """What a node remembers of its peers' stores.

    Attributes:
        seen: of each, from its last accepted hello.
        heard: what others have seen of it beyond that; its next hello has to go on from this too.
    """

    seen: Mapping[NodeId, Seen] = field(default_factory=dict)
    heard: Mapping[NodeId, Seen] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GuardReady:
    """What to do next, in this order.

    Attributes:
        to_send_now: messages that promise nothing.
        to_persist: the whole memory of the peers, if it changed.
        to_send_after_persist: messages that promise that the memory is durable, also that of an earlier `GuardReady`.
    """

    to_send_now: tuple[tuple[NodeId, StoreMessage], ...]
    to_persist: StoreMemory | None
    to_send_after_persist: tuple[tuple[NodeId, StoreMessage], ...]


class StoreGuard:
    """One node's side of the exchange, for one log directory. One thread only."""

    def __init__(self, own: Lineage, memory: StoreMemory, timing: GuardTiming, now: float) -> None:
        """`own` is durable already, like `memory`."""
        self.own = own
        self._timing = timing
        self._seen, self._heard = dict(memory.seen), dict(memory.heard)
        self._peers: dict[NodeId, float] = {}
        """Nodes that this one wants to speak to, and when it says hello again; never once it is welcome."""
        self._welcomed_by: set[NodeId] = set()
        self._refused: set[NodeId] = set()
        self._asked: dict[NodeId, float] = {}
        self._objection: Objection | None = None
        self._silent_until = now + timing.patience_s
        self._is_memory_new = False
        self._now: list[tuple[NodeId, StoreMessage]] = []
        self._later: list[tuple[NodeId, StoreMessage]] = []

    # What the shell asks

    def may_send(self, peer: NodeId, now: float) -> bool:
        """Whether Raft frames may go to `peer`; if not, this node is going to say hello to it."""
        if peer in self._welcomed_by and self._objection is None and self._has_waited(now):
            return True
        self._peers.setdefault(peer, now)
        return False

    def may_take(self, peer: NodeId, now: float) -> bool:
        """Whether a Raft frame of `peer` may be taken; if not, it is asked who it is."""
        if self._objection is None and peer in self._seen and peer not in self._refused:
            return True
        if self._asked.get(peer, -math.inf) + self._timing.repeat_s <= now:
            self._asked[peer] = now
            self._now.append((peer, Ask()))
        return False

    @property
    def objection(self) -> Objection | None:
        """Why this node has fallen silent; None while nobody objects."""
        return self._objection

    @property
    def acquainted(self) -> AbstractSet[NodeId]:
        """Nodes that this one speaks to or has heard."""
        return self._seen.keys() | self._peers.keys()

    # What happens

    def follow(self, peers: AbstractSet[NodeId], members: AbstractSet[NodeId], now: float) -> None:
        """Groups are shared with `peers`; the mesh has `members`, as far as is known here.

        Ids of nodes only rise and are not used again: who has a lower one than some member, and is none, is gone for good. A
        higher one may be that of a newcomer of which this node has not heard yet, or not again since its restart.
        """
        for peer in peers:
            self._peers.setdefault(peer, now)
        newest = max(members, default=NO_NODE)
        known = self._seen.keys() | self._heard.keys() | self._peers.keys() | self._asked.keys()
        for gone in {node for node in known if node < newest and node not in members}:
            self._is_memory_new = self._is_memory_new or gone in self._seen or gone in self._heard
            self._seen.pop(gone, None)
            self._heard.pop(gone, None)
            self._peers.pop(gone, None)
            self._asked.pop(gone, None)
            self._welcomed_by.discard(gone)
            self._refused.discard(gone)

    def receive(self, source: NodeId, message: StoreMessage, now: float) -> None:
        """A message from a node, whose identity the overlay has proved."""
        match message:
            case Hello(lineage, others):
                self._hear(source, lineage, now)
                if source not in self._refused:
                    self._learn(source, others)
            case Welcome(incarnation_id):
                if incarnation_id == self.own.present.incarnation_id:
                    self._welcomed_by.add(source)
                    self._peers[source] = math.inf
            case Refusal(seen, lineage):
                # Who was set back itself remembers what is long past: it is not believed, and learns that from its own hello.
                if self._is_accepted(source, lineage, now):
                    self._refused_by(source, seen, now)
            case Ask():
                self._greet(source, now)

    def tick(self, now: float) -> None:
        """Says the hellos that are due."""
        for peer, due in tuple(self._peers.items()):
            if due <= now:
                self._greet(peer, now)

    def raised(self, own: Lineage, now: float) -> None:
        """The boot number of this incarnation was raised, durably; the peers learn it and go on listening."""
        self.own = own
        for peer in tuple(self._peers):
            self._greet(peer, now)

    def reborn(self, own: Lineage, now: float) -> None:
        """The store was renounced, durably: the node introduces itself anew."""
        self.own = own
        self._objection = None
        self._welcomed_by.clear()
        self._silent_until = now + self._timing.patience_s
        for peer in tuple(self._peers):
            self._greet(peer, now)

    def next_deadline(self) -> float:
        """When `tick` has something to do; infinity when nothing is due."""
        if self._objection is not None:
            return math.inf
        return min(self._peers.values(), default=math.inf)

    def take_ready(self) -> GuardReady:
        """What has come up since the last call."""
        memory = StoreMemory(dict(self._seen), dict(self._heard)) if self._is_memory_new else None
        ready = GuardReady(tuple(self._now), memory, tuple(self._later))
        self._now, self._later, self._is_memory_new = [], [], False
        return ready

    # Inside

    def _has_waited(self, now: float) -> bool:
        if self._silent_until > now and self._peers.keys() <= self._welcomed_by:
            self._silent_until = now
        return self._silent_until <= now

    def _greet(self, peer: NodeId, now: float) -> None:
        if self._objection is not None:
            return
        known = self._seen | self._heard
        others = tuple((int(node), known[node]) for node in sorted(known) if node != peer)[:OTHERS_MAX]
        self._now.append((peer, Hello(self.own, others)))
        self._peers[peer] = now + self._timing.repeat_s

    def _hear(self, source: NodeId, lineage: Lineage, now: float) -> None:
        contradiction = self._contradiction(source, lineage)
        if self._is_accepted(source, lineage, now):
            self._later.append((source, Welcome(lineage.present.incarnation_id)))
        elif contradiction is not None:
            self._now.append((source, Refusal(contradiction, self.own)))

    def _is_accepted(self, source: NodeId, lineage: Lineage, now: float) -> bool:
        seen = self._seen.get(source)
        verdict = judge(self._contradiction(source, lineage), lineage)
        if verdict is not Verdict.GOES_ON:
            # It may be an old message that was overtaken: the other side knows, and says hello once more then.
            if verdict is not Verdict.OVERTAKEN:
                self._refused.add(source)
            return False
        self._refused.discard(source)
        self._is_memory_new = self._heard.pop(source, None) is not None or self._is_memory_new
        if seen != seen_of(lineage):
            self._seen[source] = seen_of(lineage)
            self._is_memory_new = True
            if seen is None or seen.incarnation_id != lineage.present.incarnation_id:
                # It starts anew and may have forgotten this node too.
                self._greet(source, now)
        return True

    def _contradiction(self, source: NodeId, lineage: Lineage) -> Seen | None:
        """What speaks against a lineage, of all that is known of its store."""
        known = (self._seen.get(source), self._heard.get(source))
        return next((seen for seen in known if judge(seen, lineage) is not Verdict.GOES_ON), None)

    def _learn(self, source: NodeId, others: Iterable[tuple[int, Seen]]) -> None:
        for number, told in others:
            node = NodeId(number)
            is_known = node != source and node in self.acquainted
            if is_known and is_news(told, self._heard.get(node, self._seen.get(node))):
                self._heard[node] = told
                self._is_memory_new = True

    def _refused_by(self, source: NodeId, seen: Seen, now: float) -> None:
        verdict = judge(seen, self.own)
        if verdict is Verdict.GOES_ON:
            self._greet(source, now)
        elif self._objection is None:
            self._objection = Objection(source, seen, verdict)
