"""Reliable flooding: every advertisement reaches every node over any links that lose, double and reorder messages.

Hop by hop: a newer advertisement is acknowledged to the neighbour that sent it and passed to all others, repeated to
each until that one acknowledges it or shows by an advertisement or digest of its own that it holds it. When a link
comes up both ends send a digest of their database, repeated until a digest of the other end comes. A digest is answered
by what its sender lacks, and by a digest: promptly when the two databases differ, seldom when they are equal, so that
two equal ones fall silent.

Only what its origin signed is installed, acknowledged or passed on; the check costs, so it comes last, within
`flood_limits`, and only for what is newer than what is held. What fails is dropped and counted.

Leaves out the own advertisement's content (`origination`): an own one of an earlier incarnation that comes back,
validly signed, is reported by `take_events` and outbid by its origin. Advertisements of unknown origins, and those
beyond a limit, are not acknowledged, so that they come again. Sources: RFC 2328 §10.3–10.8 (exchange, here by digest
alone), §13.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mesh_routing.core.config import RoutingConfig
from mesh_routing.core.flood_limits import FloodLimits
from mesh_routing.core.lsa import Lsa, LsaKey, LsaMessage
from mesh_routing.core.lsa_codec import KEYS_MAX
from mesh_routing.core.lsa_signature import LsaSignatures
from mesh_routing.core.lsdb import Lsdb, Outcome
from meshcommon.ids import NodeId

MESSAGE_LINKS_MAX: Final = 1_024
"""Links (an advertisement counts as twelve more) in one message: about 30 KiB, so that control traffic stays prompt."""
_LSA_LINKS: Final = 12
"""What the head, the signature and the delegation of an advertisement count in a message, in links."""


class Outgoing(NamedTuple):
    """A message for a direct neighbour."""

    peer: NodeId
    message: LsaMessage


@dataclass(frozen=True, slots=True)
class OwnLsaMet:
    """A neighbour has an own advertisement with this sequence number that this incarnation did not make."""

    sequence: int


@dataclass(slots=True)
class FloodingCounters:
    """What happened since the start, for the metrics."""

    installed: int = 0
    duplicates: int = 0
    outdated: int = 0
    unknown_origins: int = 0
    retransmissions: int = 0
    bad_signatures: int = 0
    over_limit: int = 0
    strangers: int = 0


class Forgery(NamedTuple):
    """An advertisement that its origin did not sign, and the neighbour that sent it.

    `is_out_of_time`: its delegation is over or has not begun, so it is more likely that a clock is wrong.
    """

    peer: NodeId
    origin: NodeId
    is_out_of_time: bool


@dataclass(slots=True)
class _Repeat:
    """Something sent again at doubling intervals."""

    next_send: float
    interval_s: float
    sequence: int = 0


@dataclass(slots=True)
class _Neighbour:
    """State towards one neighbour."""

    unacknowledged: dict[NodeId, _Repeat] = field(default_factory=dict)
    send_now: set[NodeId] = field(default_factory=set)
    acks: set[LsaKey] = field(default_factory=set)
    digest: _Repeat | None = None
    is_digest_due: bool = False
    digest_sent_at: float = float("-inf")
    repeated_at: float = float("-inf")
    # None until its first digest: then the versions named there that are not here yet.
    missing: dict[NodeId, int] | None = None


class Flooding:
    """Floods the advertisements of `lsdb` to the neighbours. `now` is monotonic seconds."""

    def __init__(self, config: RoutingConfig, node_id: NodeId, lsdb: Lsdb, signatures: LsaSignatures) -> None:
        self._config = config
        self._node_id = node_id
        self._lsdb = lsdb
        self._signatures = signatures
        self._limits = FloodLimits()
        self._neighbours: dict[NodeId, _Neighbour] = {}
        # Members that spoke before the data plane reported their link: answered once, nothing is repeated to them.
        self._strangers: dict[NodeId, _Neighbour] = {}
        self._events: list[OwnLsaMet] = []
        self._now = 0.0
        self.counters = FloodingCounters()
        self.last_forgery: Forgery | None = None

    @property
    def neighbours(self) -> frozenset[NodeId]:
        """Neighbours whose link is up."""
        return frozenset(self._neighbours)

    @property
    def is_synchronised(self) -> bool:
        """Whether every neighbour's digest has come since its link is up, and all that it named."""
        return all(neighbour.missing is not None and not neighbour.missing for neighbour in self._neighbours.values())

    def link_up(self, peer: NodeId, now: float) -> None:
        """The link to `peer` came up, or either end lost what it knew of the other: exchanges databases."""
        self._now = now
        self._strangers.pop(peer, None)
        first = self._config.retransmit_first_s
        neighbour = _Neighbour(digest=_Repeat(now + first, first), is_digest_due=True)
        self._neighbours[peer] = neighbour
        # The neighbour has almost certainly not seen this one: sent at once it saves a round trip.
        self._send(neighbour, self._node_id)

    def link_down(self, peer: NodeId) -> None:
        """The link to `peer` went down."""
        self._neighbours.pop(peer, None)

    def exchange_again(self, now: float) -> None:
        """Asks every neighbour for what was refused so far: members have come."""
        for peer in self._neighbours:
            self.link_up(peer, now)

    def flood_own(self, lsa: Lsa, now: float) -> None:
        """Installs and floods the own, newest advertisement."""
        self._now = now
        if self._lsdb.offer(lsa, now) is Outcome.NEWER:
            self._flood(lsa, None)

    def members_changed(self) -> None:
        """The database has other members now."""
        self._limits.forget_all_but(self._lsdb.members)

    def forget(self, origins: Iterable[NodeId]) -> None:
        """Stops repeating advertisements that were dropped."""
        for neighbour in self._neighbours.values():
            for origin in origins:
                neighbour.unacknowledged.pop(origin, None)
                neighbour.send_now.discard(origin)
                if neighbour.missing is not None:
                    neighbour.missing.pop(origin, None)

    def receive(self, peer: NodeId, message: LsaMessage, now: float) -> None:
        """Takes a message from the direct neighbour `peer`."""
        self._now = now
        neighbour = self._neighbours.get(peer)
        if neighbour is None:
            if peer not in self._lsdb.members or not self._limits.may_hear_stranger(now):
                self.counters.strangers += 1
                return
            neighbour = self._strangers.setdefault(peer, _Neighbour())
        for lsa in message.lsas:
            self._receive_lsa(peer, neighbour, lsa)
        for key in message.acks:
            self._receive_ack(neighbour, key)
        if message.database is not None:
            self._receive_digest(neighbour, message.database)

    def tick(self, now: float) -> None:
        """Repeats what is due."""
        self._now = now
        for neighbour in self._neighbours.values():
            if neighbour.digest is not None and now >= neighbour.digest.next_send:
                self._postpone(neighbour.digest)
                neighbour.is_digest_due = True
                self.counters.retransmissions += 1
            for origin, repeat in neighbour.unacknowledged.items():
                if now >= repeat.next_send:
                    self._postpone(repeat)
                    neighbour.send_now.add(origin)
                    self.counters.retransmissions += 1

    def next_deadline(self) -> float | None:
        """When `tick` has something to do next."""
        times = [repeat.next_send for n in self._neighbours.values() for repeat in n.unacknowledged.values()]
        times += [n.digest.next_send for n in self._neighbours.values() if n.digest is not None]
        return min(times, default=None)

    def take_outgoing(self) -> list[Outgoing]:
        """Messages to send now, in order."""
        outgoing: list[Outgoing] = []
        for peer, neighbour in (*self._neighbours.items(), *self._strangers.items()):
            outgoing.extend(Outgoing(peer, message) for message in self._messages(neighbour))
        self._strangers.clear()
        return outgoing

    def take_events(self) -> list[OwnLsaMet]:
        """What the owner must act on."""
        events, self._events = self._events, []
        return events

    def _receive_lsa(self, peer: NodeId, neighbour: _Neighbour, lsa: Lsa) -> None:
        if lsa.origin == self._node_id and self._is_of_earlier_life(lsa):
            # Not acknowledged: the answer is a newer one, which replaces this one at the neighbour.
            if self._is_proved(peer, lsa):
                self._events.append(OwnLsaMet(lsa.sequence))
            return
        outcome = self._lsdb.assess(lsa, self._now)
        if outcome is Outcome.NEWER and not self._is_proved(peer, lsa):
            return
        self._lsdb.offer(lsa, self._now)
        if outcome is Outcome.UNKNOWN_ORIGIN:
            self.counters.unknown_origins += 1
            return
        if outcome is Outcome.OLDER:
            self.counters.outdated += 1
            self._send(neighbour, lsa.origin)
            return
        if outcome is Outcome.EXPIRED:
            return
        neighbour.acks.add(lsa.key)
        # Who sends a version holds it: an implied acknowledgement.
        self._receive_ack(neighbour, lsa.key)
        if outcome is Outcome.NEWER:
            self.counters.installed += 1
            self._limits.accepted(lsa.origin, self._now)
        else:
            self.counters.duplicates += 1
        if outcome is Outcome.OVERAGED:
            # Its sender would soon stop telling it on; it learns the younger age from our copy.
            self._send(neighbour, lsa.origin)
        elif outcome is not Outcome.DUPLICATE:
            # A much younger copy goes on like a new version: whoever has the aged one learns the age.
            self._flood(lsa, peer)

    def _is_proved(self, peer: NodeId, lsa: Lsa) -> bool:
        """Whether the origin signed `lsa`; False also when the limits leave no time to find out."""
        if not self._limits.may_check(peer, lsa.origin, self._now, self._signatures.checks_needed(lsa)):
            self.counters.over_limit += 1
            return False
        if self._signatures.is_valid(lsa):
            return True
        self.counters.bad_signatures += 1
        self.last_forgery = Forgery(peer, lsa.origin, self._signatures.is_out_of_time(lsa))
        return False

    def _is_of_earlier_life(self, lsa: Lsa) -> bool:
        own = self._lsdb.get(self._node_id)
        return own is None or lsa.is_newer_than(own) or (lsa.sequence == own.sequence and lsa.links != own.links)

    def _receive_ack(self, neighbour: _Neighbour, key: LsaKey) -> None:
        repeat = neighbour.unacknowledged.get(key.origin)
        if repeat is not None and repeat.sequence <= key.sequence:
            del neighbour.unacknowledged[key.origin]
            neighbour.send_now.discard(key.origin)

    def _receive_digest(self, neighbour: _Neighbour, database: tuple[LsaKey, ...]) -> None:
        there = dict(database)
        missing: dict[NodeId, int] = {}
        is_different = False
        for key in database:
            held = self._lsdb.get(key.origin)
            if key.origin not in self._lsdb.members or (held is not None and held.sequence >= key.sequence):
                continue
            is_different = True
            # An own one of an earlier incarnation is outbid when it comes itself: the number alone proves nothing.
            if key.origin != self._node_id:
                missing[key.origin] = key.sequence
        # What is under way already may wait for a late repetition; the neighbour can take it now. Not more often, or a
        # stream of empty digests would be answered by a stream of whole databases.
        may_repeat = self._now - neighbour.repeated_at >= self._config.retransmit_first_s / 2
        for key in self._lsdb.digest(self._now):
            if there.get(key.origin, 0) < key.sequence:
                is_different = True
                if may_repeat:
                    neighbour.unacknowledged.pop(key.origin, None)
                    neighbour.repeated_at = self._now
                self._send(neighbour, key.origin)
            else:
                self._receive_ack(neighbour, LsaKey(key.origin, there[key.origin]))
        neighbour.missing = missing
        neighbour.digest = None
        # Limited, so that two that differ do not answer each other as fast as the link allows, and two that are equal
        # not at all: the digest that came is then the answer to the one sent before.
        pause_s = self._config.retransmit_first_s / 2 if is_different else 2 * self._config.retransmit_max_s
        if self._now - neighbour.digest_sent_at >= pause_s:
            neighbour.is_digest_due = True

    def _flood(self, lsa: Lsa, sender: NodeId | None) -> None:
        for peer, neighbour in self._neighbours.items():
            if neighbour.missing is not None and neighbour.missing.get(lsa.origin, lsa.sequence + 1) <= lsa.sequence:
                del neighbour.missing[lsa.origin]
            if peer != sender:
                self._send(neighbour, lsa.origin)

    def _send(self, neighbour: _Neighbour, origin: NodeId) -> None:
        """Sends the newest advertisement of `origin` now and until acknowledged, unless that is under way."""
        lsa = self._lsdb.get(origin)
        repeat = neighbour.unacknowledged.get(origin)
        if lsa is None or (repeat is not None and repeat.sequence == lsa.sequence):
            return
        first = self._config.retransmit_first_s
        neighbour.unacknowledged[origin] = _Repeat(self._now + first, first, lsa.sequence)
        neighbour.send_now.add(origin)

    def _postpone(self, repeat: _Repeat) -> None:
        repeat.interval_s = min(repeat.interval_s * 2, self._config.retransmit_max_s)
        repeat.next_send = self._now + repeat.interval_s

    def _messages(self, neighbour: _Neighbour) -> list[LsaMessage]:
        """Everything due to one neighbour; the digest last, so that it is compared after the advertisements."""
        parts: list[list[Lsa]] = [[]]
        links = 0
        for origin in sorted(neighbour.send_now):
            lsa = self._lsdb.told(origin, self._now)
            if lsa is None:
                # It has become too old to be taken.
                neighbour.unacknowledged.pop(origin, None)
                continue
            if links + len(lsa.links) + _LSA_LINKS > MESSAGE_LINKS_MAX and parts[-1]:
                parts.append([])
                links = 0
            parts[-1].append(lsa)
            links += len(lsa.links) + _LSA_LINKS
        acks = sorted(neighbour.acks)
        database = self._lsdb.digest(self._now) if neighbour.is_digest_due else None
        if neighbour.is_digest_due:
            neighbour.digest_sent_at = self._now
        neighbour.send_now.clear()
        neighbour.acks.clear()
        neighbour.is_digest_due = False
        if not (parts[0] or acks or database is not None):
            return []
        messages = [LsaMessage(tuple(part)) for part in parts]
        messages[0] = LsaMessage(messages[0].lsas, tuple(acks[:KEYS_MAX]))
        # More are not lost: what is not acknowledged comes again.
        messages[-1] = LsaMessage(messages[-1].lsas, messages[-1].acks, database)
        return messages
