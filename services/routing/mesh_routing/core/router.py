"""The routing core of one node behind the usual verbs: database, flooding, origination, delay and computation.

Inputs: `configure` (who the node is, who the members are), `set_links` (what the data plane reports), `receive` (messages
of neighbours), `tick`. Outputs: `take_outgoing`, `table`. Leaves out sockets, disk and names of nodes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from mesh_routing.core.config import RoutingConfig
from mesh_routing.core.flooding import Flooding
from mesh_routing.core.lsa_codec import decode_message, encode_message
from mesh_routing.core.lsdb import Change, Lsdb
from mesh_routing.core.origination import LocalLink, Origination, first_sequence
from mesh_routing.core.route_table import Path, RouteTable, compute_routes, find_paths
from mesh_routing.core.throttle import Throttle
from meshcommon.ids import NO_NODE, NodeId


class OutMessage(NamedTuple):
    """Bytes for a direct neighbour."""

    peer: NodeId
    payload: bytes


@dataclass(slots=True)
class _Membership:
    """What exists only while the node is a member."""

    node_id: NodeId
    flooding: Flooding
    origination: Origination


class Router:
    """Routing of one node. `now` is monotonic seconds. Not thread-safe: one owner calls it."""

    def __init__(self, config: RoutingConfig, boot: int, rng: Random) -> None:
        """`boot` is the number of this start of the service, raised durably each time."""
        self._config = config
        self._boot = boot
        self._rng = rng
        self._lsdb = Lsdb(config.max_age_s, config.weights)
        self._throttle = Throttle(config.throttle)
        self._member: _Membership | None = None
        self._links: dict[NodeId, LocalLink] = {}
        self._grace_until: float | None = None
        self._table = RouteTable()
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

    def configure(self, node_id: NodeId, members: frozenset[NodeId], now: float) -> None:
        """Takes identity and members. Another identity, or none, forgets everything."""
        if node_id != self.node_id:
            self._reset(node_id, now)
        if self._member is None:
            return
        members |= {node_id}
        before = self._lsdb.members
        gone = sorted(before - members)
        self._lsdb.set_members(members)
        self._member.flooding.forget(gone)
        if before and members - before:
            self._member.flooding.exchange_again(now)

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
            self._throttle.structure_changed(now)
        elif change is Change.METRICS:
            self._throttle.metrics_changed(now)
        if not self._is_starting(self._member, now) and self._throttle.take_due(now):
            self._compute(self._member)

    def next_deadline(self) -> float | None:
        """When `tick` must be called next, None: only after an input."""
        if self._member is None:
            return None
        times = (
            self._member.origination.next_deadline(),
            self._member.flooding.next_deadline(),
            self._lsdb.next_deadline(),
            # While starting, the computation waits for the grace or for a message.
            self._throttle.next_deadline() if self._grace_until is None else self._grace_until,
        )
        return min(time for time in times if time is not None)

    def take_outgoing(self) -> list[OutMessage]:
        """Messages to send now, in order."""
        if self._member is None:
            return []
        return [OutMessage(peer, encode_message(message)) for peer, message in self._member.flooding.take_outgoing()]

    def find_paths(self, source: NodeId, destination: NodeId) -> tuple[Path, ...]:
        """Best path and backup between any two nodes of the database, for readers."""
        return find_paths(self._lsdb.graph(), source, destination, self._config.route_nodes_max)

    def _reset(self, node_id: NodeId, now: float) -> None:
        # The topology version goes on: readers compare it.
        self._lsdb.set_members(frozenset())
        self._throttle = Throttle(self._config.throttle)
        self._grace_until = None
        self._table = RouteTable(self._table.version + 1) if self._table.version else self._table
        self._member = None
        if node_id == NO_NODE:
            return
        flooding = Flooding(self._config, node_id, self._lsdb)
        origination = Origination(self._config, node_id, first_sequence(self._boot, self._rng))
        self._lsdb.set_members(frozenset((node_id,)))
        self._member = _Membership(node_id, flooding, origination)
        self._grace_until = now + self._config.start_grace_s
        self.set_links(self._links.values(), now, is_fresh=True)

    def _originate(self, member: _Membership, now: float) -> None:
        lsa = member.origination.take_due(now)
        if lsa is not None:
            member.flooding.flood_own(lsa, now)

    def _is_starting(self, member: _Membership, now: float) -> bool:
        if self._grace_until is not None:
            is_heard = bool(member.flooding.neighbours) and member.flooding.is_synchronised
            if is_heard or now >= self._grace_until:
                self._grace_until = None
        return self._grace_until is not None

    def _compute(self, member: _Membership) -> None:
        self.computations += 1
        routes = compute_routes(self._lsdb.graph(), member.node_id, self._config.route_nodes_max)
        if routes != self._table.routes or not self._table.version:
            self._table = RouteTable(self._table.version + 1, routes)
