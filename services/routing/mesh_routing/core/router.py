"""The routing core of one node behind the usual verbs: database, flooding, origination, delay and computation.

Inputs: `configure` (who the node is, who the members are, what signs for it), `set_links` (what the data plane reports), `receive` (messages
of neighbours), `tick`. Outputs: `take_outgoing`, `table`. Leaves out sockets, disk and names of nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from mesh_routing.core.config import RoutingConfig
from mesh_routing.core.flooding import Flooding
from mesh_routing.core.lsa_codec import decode_message, encode_message
from mesh_routing.core.lsa_signature import LsaSignatures
from mesh_routing.core.lsdb import Change, Lsdb
from mesh_routing.core.origination import LocalLink, Origination, first_sequence
from mesh_routing.core.route_table import Hysteresis, Path, RouteTable, compute_routes, find_paths
from mesh_routing.core.throttle import Throttle
from mesh_routing.core.view import View
from meshcommon.delegation import DelegatedSigner, Delegations
from meshcommon.ids import NO_NODE, NodeId


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
            # Without a key nothing can be advertised, so nothing is due.
            None if self._member.signer is None else self._member.origination.next_deadline(),
            self._member.flooding.next_deadline(),
            self._lsdb.next_deadline(),
            # While starting, the computation waits for the grace or for a message.
            self._throttle.next_deadline() if self._grace_until is None else self._grace_until,
        )
        return min((time for time in times if time is not None), default=None)

    def take_outgoing(self) -> list[OutMessage]:
        """Messages to send now, in order."""
        if self._member is None:
            return []
        return [OutMessage(peer, encode_message(message)) for peer, message in self._member.flooding.take_outgoing()]

    def find_paths(self, source: NodeId, destination: NodeId) -> tuple[Path, ...]:
        """Best path and backup between any two nodes of the database, for readers."""
        return find_paths(self._lsdb.graph(), source, destination, self._config.route_nodes_max)

    def _reset(self, view: View, now: float) -> None:
        # The topology version goes on: readers compare it.
        self._lsdb.set_members(frozenset())
        self._throttle = Throttle(self._config.throttle)
        self._grace_until = None
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

    def _compute(self, member: _Membership) -> None:
        self.computations += 1
        config = self._config
        keep = Hysteresis(self._table.routes, config.hysteresis_ratio, config.hysteresis_us)
        routes = compute_routes(self._lsdb.graph(), member.node_id, config.route_nodes_max, keep)
        if routes != self._table.routes or not self._table.version:
            self._table = RouteTable(self._table.version + 1, routes)
