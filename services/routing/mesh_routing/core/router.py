"""The routing core of one node behind the usual verbs: database, flooding, origination, delay and computation.

Inputs: `configure` (who the node is, who the members are, what signs for it), `set_links` (what the data plane reports), `receive` (messages
of neighbours), `tick`. Outputs: `take_outgoing`, `table`. Leaves out sockets, disk and names of nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from mesh_routing.core.bhandari import link_disjoint_pair, node_disjoint_pair
from mesh_routing.core.config import RoutingConfig
from mesh_routing.core.flooding import Flooding
from mesh_routing.core.lsa_codec import decode_message, encode_message
from mesh_routing.core.lsa_signature import LsaSignatures
from mesh_routing.core.lsdb import Change, Lsdb
from mesh_routing.core.origination import LocalLink, Origination, first_sequence
from mesh_routing.core.path_cache import PathCache
from mesh_routing.core.protection import Protection, reach_of
from mesh_routing.core.route_table import Hysteresis, Path, RouteTable, find_paths, priced
from mesh_routing.core.route_work import RouteWork, Since
from mesh_routing.core.throttle import Throttle
from mesh_routing.core.topology_graph import TopologyGraph
from mesh_routing.core.view import View
from meshcommon.delegation import DelegatedSigner, Delegations
from meshcommon.ids import NO_NODE, NodeId
from meshwire.packet import TrafficClass


class OutMessage(NamedTuple):
    """Bytes for a direct neighbour."""

    peer: NodeId
    payload: bytes


@dataclass(slots=True)
class _Membership:
    """What exists only while the node is a member of one mesh in one epoch."""

    node_id: NodeId
    mesh_id: str
    mesh_epoch: int
    signatures: LsaSignatures
    flooding: Flooding
    origination: Origination
    signer: DelegatedSigner | None = None
    keys: Mapping[NodeId, bytes] = field(default_factory=dict)

    def is_of(self, view: View) -> bool:
        """Whether it is the membership that `view` tells of."""
        return (self.node_id, self.mesh_id, self.mesh_epoch) == (view.node_id, view.mesh_id, view.mesh_epoch)


class Router:
    """Routing of one node. `now` is monotonic seconds. Not thread-safe: one owner calls it."""

    def __init__(self, config: RoutingConfig, boot: int, rng: Random, delegations: Delegations) -> None:
        """`boot` is the number of this start of the service, raised durably each time; `delegations` checks what others signed."""
        self._config = config
        self._delegations = delegations
        self._boot = boot
        self._rng = rng
        self._lsdb = Lsdb(config.max_age_s)
        self._throttle = Throttle(config.throttle)
        self._member: _Membership | None = None
        self._links: dict[NodeId, LocalLink] = {}
        self._grace_until: float | None = None
        self._table = RouteTable()
        self._caches: dict[TrafficClass, tuple[TopologyGraph, PathCache]] = {}
        self._work: RouteWork | None = None
        self._step_at = 0.0
        self._resume_at = NO_NODE
        self._computed_at: tuple[TopologyGraph, int] | None = None
        self._protection = Protection()
        self._is_reach_new = True
        self.computations = 0

    @property
    def node_id(self) -> NodeId:
        """The local node, NO_NODE when not a member."""
        return NO_NODE if self._member is None else self._member.node_id

    @property
    def lsdb(self) -> Lsdb:
        """The database; read only."""
        return self._lsdb

    @property
    def flooding(self) -> Flooding | None:
        """The flooding of the present membership; read only."""
        return None if self._member is None else self._member.flooding

    @property
    def table(self) -> RouteTable:
        """The newest route table. Version 0: nothing was computed yet, what the data plane has stored is better."""
        return self._table

    def configure(self, view: View, signer: DelegatedSigner | None, now: float) -> None:
        """Takes identity and members. Another identity, mesh or epoch forgets everything that was advertised.

        Args:
            view: Who the node is, and who the members are.
            signer: Signs what this node advertises; None: it advertises nothing.
            now: Monotonic seconds.
        """
        if self._member is None or not self._member.is_of(view):
            self._reset(view, now)
        member = self._member
        if member is None:
            return
        self._lsdb.set_weights(view.weights)
        member.origination.set_weights(view.weights)
        members = frozenset(view.keys) | {member.node_id}
        keys = dict(view.keys)
        if signer is not None:
            keys.setdefault(member.node_id, signer.identity_key)
        member.signatures.set_keys(keys)
        before = self._lsdb.members
        self._lsdb.drop(origin for origin, key in member.keys.items() if keys.get(origin, key) != key)
        self._lsdb.set_members(members)
        member.flooding.members_changed()
        member.flooding.forget(sorted(before - members))
        is_other = signer is not None and (member.signer is None or member.signer.delegation != signer.delegation)
        member.signer, member.keys = signer, keys
        if is_other:
            # What goes with the former delegation is refused now, or before long.
            member.origination.repeat()
            self._originate(member, now)
        if before and members - before:
            member.flooding.exchange_again(now)

    def set_links(self, links: Iterable[LocalLink], now: float, *, is_fresh: bool) -> None:
        """Takes the links that are up now.

        Args:
            links: Every link that is up.
            now: Monotonic seconds.
            is_fresh: Messages may have been lost since the last call (a new connection to the data plane): exchange
                databases with every neighbour.
        """
        before = frozenset() if is_fresh else frozenset(self._links)
        self._links = {link.peer: link for link in links}
        if self._member is None:
            return
        self._member.origination.set_links(self._links.values())
        for peer in self._member.flooding.neighbours - self._links.keys():
            self._member.flooding.link_down(peer)
        # The own advertisement first, so that the digest that follows names it.
        self._originate(self._member, now)
        for peer in sorted(self._links.keys() - before):
            self._member.flooding.link_up(peer, now)

    def receive(self, peer: NodeId, payload: bytes, now: float) -> None:
        """Takes a message of the direct neighbour `peer`.

        Raises:
            WireError: It is malformed; drop and count it. Nothing has changed.
        """
        message = decode_message(payload)
        if self._member is None:
            return
        self._member.flooding.receive(peer, message, now)
        for event in self._member.flooding.take_events():
            self._member.origination.jump_past(event.sequence)
        self._originate(self._member, now)

    def tick(self, now: float) -> None:
        """Ages, refreshes, repeats, and computes when that is due. Call it after every input and at each deadline."""
        if self._member is None:
            return
        self._originate(self._member, now)
        self._member.flooding.forget(self._lsdb.purge(now))
        self._member.flooding.tick(now)
        change = self._lsdb.take_change()
        if change is Change.STRUCTURE:
            self._is_reach_new = True
            self._throttle.structure_changed(now)
        elif change is Change.METRICS:
            self._throttle.metrics_changed(now)
        if not self._is_starting(self._member, now) and self._throttle.take_due(now):
            self._compute(self._member, now)
        elif self._work is not None and now >= self._step_at:
            self._step(self._work, now)

    def next_deadline(self) -> float | None:
        """When `tick` must be called next, None: only after an input."""
        if self._member is None:
            return None
        times = (
            # Without a key nothing can be advertised, so nothing is due.
            None if self._member.signer is None else self._member.origination.next_deadline(),
            self._member.flooding.next_deadline(),
            self._lsdb.next_deadline(),
            # While starting, the computation waits for the grace or for a message.
            self._throttle.next_deadline() if self._grace_until is None else self._grace_until,
            None if self._work is None else self._step_at,
        )
        return min((time for time in times if time is not None), default=None)

    def take_outgoing(self) -> list[OutMessage]:
        """Messages to send now, in order."""
        if self._member is None:
            return []
        return [OutMessage(peer, encode_message(message)) for peer, message in self._member.flooding.take_outgoing()]

    @property
    def protection(self) -> Protection:
        """How many pairs of nodes have two paths, as of the last computation after a change of structure."""
        return self._protection

    @property
    def cache_hits(self) -> tuple[int, int]:
        """Questions for k paths that a cache answered, and those that were computed."""
        caches = [cache for _, cache in self._caches.values()]
        return sum(cache.hits for cache in caches), sum(cache.misses for cache in caches)

    def find_paths(
        self,
        source: NodeId,
        destination: NodeId,
        count: int = 0,
        traffic_class: TrafficClass = TrafficClass.CONTROL,
    ) -> tuple[Path, ...]:
        """Paths between any two nodes of the database that a packet can carry, for readers.

        Args:
            source: First node.
            destination: Last node, another one.
            count: How many of the shortest loopless ones; 0: the best one and its backup.
            traffic_class: Whose weights count.
        """
        graph, nodes_max = self._lsdb.graph(traffic_class), self._config.route_nodes_max
        if count:
            found = self._cache(traffic_class).paths(source, destination, count)
            short = [nodes for nodes in found if len(nodes) <= nodes_max]
            if short or not found:
                return priced(graph, short)
        paths = find_paths(graph, source, destination, nodes_max)
        # None of the shortest can be carried: the best that can is one path.
        return paths[:count] if count else paths

    def find_pair(
        self, source: NodeId, destination: NodeId, traffic_class: TrafficClass, *, by_node: bool
    ) -> tuple[Path, ...]:
        """The two paths that share no link (or no node but their ends) and cost least together; empty without two.

        A pair of which a packet cannot carry one is none.
        """
        graph = self._lsdb.graph(traffic_class)
        pair = (node_disjoint_pair if by_node else link_disjoint_pair)(graph, source, destination)
        if pair is None or max(map(len, pair)) > self._config.route_nodes_max:
            return ()
        return priced(graph, pair)

    def _cache(self, traffic_class: TrafficClass) -> PathCache:
        topology = self._lsdb.topology(traffic_class)
        known = self._caches.get(traffic_class)
        if known is None or known[0] is not topology:
            # Other weights: no path of before counts.
            known = self._caches[traffic_class] = topology, PathCache(topology)
        return known[1]

    def _reset(self, view: View, now: float) -> None:
        # The topology version goes on: readers compare it.
        self._lsdb.set_members(frozenset())
        self._throttle = Throttle(self._config.throttle)
        self._grace_until = None
        self._work = self._computed_at = None
        self._caches.clear()
        former, self._member = self._member, None
        if former is None or (former.node_id, former.mesh_id) != view.membership:
            # In another epoch of the same mesh the routes stand until new ones are computed.
            self._table = RouteTable(self._table.version + 1) if self._table.version else self._table
        if not view.is_member:
            return
        signatures = LsaSignatures(view.mesh_id, view.mesh_epoch, self._delegations)
        flooding = Flooding(self._config, view.node_id, self._lsdb, signatures)
        origination = Origination(self._config, view.node_id, first_sequence(self._boot, self._rng))
        self._lsdb.set_members(frozenset((view.node_id,)))
        self._member = _Membership(view.node_id, view.mesh_id, view.mesh_epoch, signatures, flooding, origination)
        self._grace_until = now + self._config.start_grace_s
        self.set_links(self._links.values(), now, is_fresh=True)

    def _originate(self, member: _Membership, now: float) -> None:
        if member.signer is None:
            return
        lsa = member.origination.take_due(now)
        if lsa is not None:
            member.flooding.flood_own(member.signatures.sign(lsa, member.signer), now)

    def _is_starting(self, member: _Membership, now: float) -> bool:
        if self._grace_until is not None:
            is_heard = bool(member.flooding.neighbours) and member.flooding.is_synchronised
            if is_heard or now >= self._grace_until:
                self._grace_until = None
        return self._grace_until is not None

    def _compute(self, member: _Membership, now: float) -> None:
        """Finds the best paths at once, and begins to look for the backups."""
        self.computations += 1
        config, topology = self._config, self._lsdb.topology(TrafficClass.CONTROL)
        keep = Hysteresis(self._table.routes, config.hysteresis_ratio, config.hysteresis_us)
        since, before = Since(), self._computed_at
        if before is not None and before[0] is topology:
            pending = frozenset[NodeId]() if self._work is None else self._work.pending
            since = Since(topology.since(before[1]), pending, self._resume_at)
        self._computed_at = topology, topology.position
        if self._is_reach_new:
            self._is_reach_new = False
            self._protection = reach_of(topology.edges).counts()
        work = self._work = RouteWork(topology.edges, member.node_id, config.route_nodes_max, keep, since)
        self._step(work, now)

    def _step(self, work: RouteWork, now: float) -> None:
        work.step()
        self._resume_at = work.resume_at
        if work.routes != self._table.routes or not self._table.version:
            self._table = RouteTable(self._table.version + 1, dict(work.routes))
        self._step_at = now if work.is_urgent else now + self._config.recheck_pause_s
        if work.is_done:
            self._work = None
