"""Keys between this node and every other: agrees on sessions and finds the one that seals or opens a packet.

Purpose: each data plane makes an X25519 key at its start, the boot key, and keeps it in memory only. Two nodes that know
each other's boot keys have a session. A boot key is taken only from a signed answer to a fresh nonce of this node, so an
old recording installs nothing. Leaves out: sealing itself (`packet_session.py`), the bytes (`key_message.py`), and
the way to the peer (the forwarder's). Source: architecture §11 "Packets".

States of a peer: *unknown* → (want) *asked* → (answer) *session*. A session stays while the peer's boot key is the same. A
newer one replaces it, and the older is accepted for `PREVIOUS_S` more, for what was on its way. An ask is repeated, ever more
slowly, while something wants the session.

Invariant: the session of one pair of boot keys is one object with one set of counters, as long as this node has its boot key.
A forgotten session that came back would use nonces again: sessions of other pairs start beyond whatever it had used.
"""

from __future__ import annotations

import hmac
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from mesh_data.core.handshake import LocalNode
from mesh_data.core.identity import Identity
from mesh_data.core.key_agreement import EXCHANGE_KEY_BYTES, ExchangeKey
from mesh_data.core.key_message import NONCE_BYTES, Answer, Ask, decode_key_message
from mesh_data.core.packet_session import Boot, PacketSession, SealFault
from mesh_data.core.view import View
from meshcommon.delegation import Delegations
from meshcommon.ids import NodeId
from meshcommon.token_bucket import TokenBucket
from meshwire.packet import SealedPart, TrafficClass

ASK_FIRST_S: Final = 0.1
ASK_MAX_S: Final = 2.0
"""An unanswered ask is repeated after the first of these, then twice that, up to the second."""
WANT_S: Final = 2.0
"""How long an ask goes on after the last packet that wanted the session."""
NONCE_S: Final = 5.0
"""How long one nonce of this node may be answered."""
PREVIOUS_S: Final = 2.0
"""How long packets of a peer's previous boot are accepted."""
SESSIONS_MAX: Final = 4096
"""Cost: about 6 KiB each. Members have two at most, of their present and previous boot, and there are up to 1,000."""
SPARE_SESSIONS_MAX: Final = 64
"""Sessions beyond two for each known peer: of boots before the previous one, and of nodes that left the view."""
ANSWERS_PER_S, ANSWERS_BURST = 5.0, 10.0
"""Answers to one node by one way (`Way`); each costs a signature."""
NEIGHBOUR_PER_S, NEIGHBOUR_BURST = 100.0, 200.0
"""Signatures, and checks of them, that messages by one way may cost: a liar among the relays uses up its own."""
_BUCKETS_MAX: Final = 4096
Way: TypeAlias = tuple[NodeId, bool]
"""The neighbour that a message came through, and whether its whole way was this node's own way to its source.

An ask is not signed, so any member may send one in another's name through honest relays, but it cannot hide that it is on the
way. What came by the own way is counted apart: else a flood of such asks would keep two nodes from ever agreeing.
"""


class KeysPacket(NamedTuple):
    """Send `payload` of protocol KEYS to `destination`."""

    destination: NodeId
    payload: bytes


@dataclass(slots=True)
class _Peer:
    public_key: bytes
    boot_key: bytes = b""
    current: PacketSession | None = None
    previous: PacketSession | None = None
    previous_until: float = 0.0
    nonce: bytes = b""
    nonce_until: float = 0.0
    asked_at: float = float("-inf")
    wanted_until: float = float("-inf")
    interval_s: float = ASK_FIRST_S
    answered: bytes = b""
    answered_at: float = float("-inf")


class Buckets:
    """Token buckets by key, of which those used longest ago are forgotten beyond a number."""

    def __init__(self, rate_per_s: float, burst: float) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._buckets: OrderedDict[Hashable, TokenBucket] = OrderedDict()

    def take(self, key: Hashable, now: float, count: int = 1) -> bool:
        """Takes `count` tokens of `key` if there are so many."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = TokenBucket(self._rate_per_s, self._burst, now)
            if len(self._buckets) > _BUCKETS_MAX:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(key)
        return bucket.take(now, count)


class PacketKeys:
    """Sessions of one node with all others. `now` is monotonic seconds."""

    def __init__(
        self, entropy: Callable[[int], bytes], delegations: Delegations, sessions_max: int = SESSIONS_MAX
    ) -> None:
        """`entropy(n)` must give n fresh random bytes; `delegations` checks what others signed."""
        self._entropy = entropy
        self._delegations = delegations
        self._sessions_max = sessions_max
        self._identity: Identity | None = None
        self._boot = ExchangeKey(entropy(EXCHANGE_KEY_BYTES))
        self._peers: dict[NodeId, _Peer] = {}
        self._sessions: OrderedDict[tuple[NodeId, bytes], PacketSession] = OrderedDict()
        self._used_counter = 0
        self._asking: set[NodeId] = set()
        self._answers = Buckets(ANSWERS_PER_S, ANSWERS_BURST)
        self._neighbours = Buckets(NEIGHBOUR_PER_S, NEIGHBOUR_BURST)
        self._outgoing: list[KeysPacket] = []
        self._ready: list[NodeId] = []

    @property
    def boot_key(self) -> bytes:
        """This node's public boot key."""
        return self._boot.public

    def configure(self, local: LocalNode | None, view: View | None) -> None:
        """Takes a new identity or view. Another identity is another boot: nothing of the old one is used again."""
        old = self._identity.local if self._identity is not None else None
        if local is None or view is None or local != old:
            self._peers.clear()
            self._sessions.clear()
            self._asking.clear()
            self._outgoing.clear()
            self._ready.clear()
            self._used_counter = 0
            self._boot = ExchangeKey(self._entropy(EXCHANGE_KEY_BYTES))
        self._identity = None
        if local is not None and view is not None:
            self._identity = Identity(local, view, self._delegations)
        nodes = view.nodes if view is not None else {}
        for node, peer in list(self._peers.items()):
            member = nodes.get(node)
            if member is None or member.public_key != peer.public_key:
                del self._peers[node]
                self._asking.discard(node)

    @property
    def identity(self) -> Identity | None:
        """This node and its view, None when it is no member."""
        return self._identity

    def session(self, peer: NodeId) -> PacketSession | None:
        """The session that seals packets to a peer, None while there is none."""
        state = self._peers.get(peer)
        return state.current if state is not None else None

    def want(self, peer: NodeId, now: float) -> None:
        """Something waits for a session with a peer, or a packet of it came under keys that are unknown here."""
        state = self._peer(peer)
        if state is None:
            return
        if now > state.wanted_until and now >= state.asked_at + state.interval_s:
            state.interval_s = ASK_FIRST_S
        state.wanted_until = now + WANT_S
        self._asking.add(peer)
        self._ask_if_due(peer, state, now)

    def link_up(self, peer: NodeId, now: float) -> None:
        """A link to a peer came up: it may have started again, so its boot key is asked for at once."""
        state = self._peer(peer)
        if state is not None:
            state.interval_s = ASK_FIRST_S
            state.asked_at = float("-inf")
            self.want(peer, now)

    def open(self, source: NodeId, cls: TrafficClass, part: SealedPart, now: float) -> bytes | SealFault:
        """The payload of a sealed packet when it is genuine and was not accepted before."""
        state = self._peers.get(source)
        if state is not None:
            session = state.current
            if session is not None and session.key_id == part.key_id:
                return session.open(cls, part)
            session = state.previous
            if session is not None and session.key_id == part.key_id and now < state.previous_until:
                return session.open(cls, part)
        self.want(source, now)
        return SealFault.NO_SESSION

    def receive(self, source: NodeId, via: Way, payload: bytes | memoryview, now: float) -> bool:
        """Takes a payload of protocol KEYS that came by `via`; False when it was not accepted."""
        message = decode_key_message(payload)
        state = self._peer(source)
        if message is None or state is None:
            return False
        if isinstance(message, Ask):
            # Asks in turn: who asks may have started again, and is about to send under keys that are new.
            return self._answer(source, via, message.nonce, self._nonce(state, now), now)
        return self._receive_answer(source, state, via, message, now)

    def tick(self, now: float) -> None:
        """Repeats asks."""
        for peer in list(self._asking):
            state = self._peers[peer]
            if now >= state.wanted_until:
                self._asking.discard(peer)
            else:
                self._ask_if_due(peer, state, now)

    def next_deadline(self) -> float:
        """When `tick` has something to do; infinity when nothing is asked for."""
        states = (self._peers[peer] for peer in self._asking)
        return min((min(state.asked_at + state.interval_s, state.wanted_until) for state in states), default=math.inf)

    def take_outgoing(self) -> list[KeysPacket]:
        """Messages to send, in order: before the packets of a session that they announce."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def take_ready(self) -> list[NodeId]:
        """Peers with a session that is new since the last call."""
        ready, self._ready = self._ready, []
        return ready

    def _peer(self, node: NodeId) -> _Peer | None:
        """State of another member; made when it is needed."""
        state = self._peers.get(node)
        if state is None and self._identity is not None and node != self._identity.node_id:
            member = self._identity.view.nodes.get(node)
            if member is not None:
                state = self._peers[node] = _Peer(member.public_key)
        return state

    def _nonce(self, state: _Peer, now: float) -> bytes:
        if now >= state.nonce_until or not state.nonce:
            state.nonce = self._entropy(NONCE_BYTES)
            state.nonce_until = now + NONCE_S
        return state.nonce

    def _ask_if_due(self, peer: NodeId, state: _Peer, now: float) -> None:
        if now < state.asked_at + state.interval_s:
            return
        is_first = state.asked_at == float("-inf")
        state.interval_s = ASK_FIRST_S if is_first else min(2 * state.interval_s, ASK_MAX_S)
        state.asked_at = now
        self._outgoing.append(KeysPacket(peer, Ask(self._nonce(state, now)).encode()))

    def _answer(self, asker: NodeId, via: Way, asked: bytes, own_nonce: bytes, now: float) -> bool:
        identity = self._identity
        if identity is None or not self._answers.take((via, asker), now) or not self._neighbours.take(via, now):
            return False
        state = self._peers[asker]
        state.answered, state.answered_at = asked, now
        answer = Answer.signed(identity, asker, asked, self._boot.public, own_nonce)
        self._outgoing.append(KeysPacket(asker, answer.encode()))
        return True

    def _receive_answer(self, source: NodeId, state: _Peer, via: Way, answer: Answer, now: float) -> bool:
        identity = self._identity
        is_asked = bool(state.nonce) and now < state.nonce_until and hmac.compare_digest(answer.asked, state.nonce)
        if identity is None or not is_asked:
            return False
        if not self._neighbours.take(via, now, identity.checks_needed(source, answer.delegation)):
            return False
        # What is not signed does not use up the nonce: else anybody on the way could.
        if not answer.is_from(source, identity):
            return False
        session = self._session(identity, source, answer.boot_key)
        if session is None:
            return False
        state.nonce = b""
        self._asking.discard(source)
        if session is not state.current:
            state.previous, state.previous_until = state.current, now + PREVIOUS_S
            state.current, state.boot_key = session, answer.boot_key
            state.interval_s = ASK_FIRST_S
        # When both ask at once, the nonce that comes with the answer has been answered already.
        is_answered = answer.own_nonce == state.answered and now < state.answered_at + WANT_S
        if answer.own_nonce and not is_answered:
            self._answer(source, via, answer.own_nonce, b"", now)
        self._ready.append(source)
        return True

    def _session(self, identity: Identity, peer: NodeId, boot_key: bytes) -> PacketSession | None:
        """The session with one boot of a peer: always the same one."""
        known = self._sessions.get((peer, boot_key))
        if known is not None:
            self._sessions.move_to_end((peer, boot_key))
            return known
        secret = self._boot.secret(boot_key)
        room = min(self._sessions_max, 2 * len(self._peers) + SPARE_SESSIONS_MAX)
        if secret is None or (len(self._sessions) >= room and not self._forget_one()):
            return None
        own = Boot(identity.node_id, self._boot.public)
        session = PacketSession(
            secret, identity.local.mesh_id, identity.local.mesh_epoch, own, Boot(peer, boot_key), self._used_counter
        )
        self._sessions[peer, boot_key] = session
        return session

    def _forget_one(self) -> bool:
        """Makes room by the oldest session that is not in use.

        Its replay windows are lost with it. That opens nothing: only a peer that signed another boot key since has such a
        session, and no node that keeps to the protocol comes back to an earlier boot key.
        """
        in_use = {id(session) for state in self._peers.values() for session in (state.current, state.previous)}
        oldest = next((key for key, session in self._sessions.items() if id(session) not in in_use), None)
        if oldest is None:
            return False
        self._used_counter = max(self._used_counter, self._sessions.pop(oldest).highest_counter)
        return True
