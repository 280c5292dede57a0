"""Overlay cores that know different memberships, joined by lanes without a wire, for tests of how they settle."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from data_plane_testing.identities import MESH, delegations, entropy, local_node, public_key, seed_of, view_of
from mesh_data.core.handshake import PeerNode, Standing
from mesh_data.core.membership_desk import membership_of
from mesh_data.core.overlay import OverlayCore, OverlayEvent
from mesh_data.core.settlement import LaneUnsettled
from mesh_data.core.timing import OverlayTiming
from mesh_data.core.view import View
from meshcommon.ids import NodeId
from meshcommon.key_signer import KeySigner
from meshcommon.membership import Vouch
from meshwire.packet import Protocol, TrafficClass


def view(*ids: int, revision: int, voters: Iterable[int] = (1,)) -> View:
    base = view_of(*ids, revision=revision)
    return replace(base, nodes={n: replace(item, is_voter=n in set(voters)) for n, item in base.nodes.items()})


def vouch(node: int, of: View, revision: int | None = None, key: int | None = None) -> Vouch:
    signer = KeySigner(seed_of(key or node))
    return Vouch.signed(signer, NodeId(node), revision or of.revision, membership_of(of))


class Mesh:
    """Overlay cores whose frames arrive at once."""

    def __init__(self, **views: View) -> None:
        self.now = 100.0
        self.cores: dict[int, OverlayCore] = {}
        self.views: dict[int, View] = {}
        for name, known in views.items():
            node = int(name[1:])
            self.cores[node] = OverlayCore(OverlayTiming(), node << 40, entropy(node), delegations())
            self.tell(node, known)
        self.ends: dict[tuple[int, int], int] = {}
        self.events: dict[int, list[OverlayEvent]] = {node: [] for node in self.cores}
        self.delivered: dict[int, list[bytes]] = {node: [] for node in self.cores}
        self.lanes = 0

    def tell(self, node: int, known: View) -> None:
        """What the node's control plane says."""
        self.views[node] = known
        self.cores[node].configure(local_node(node), known, self.now, vouch=vouch(node, known))

    def peer(self, of: int, other: int, standing: Standing | None = None) -> PeerNode:
        """The other side as the handshake of `of` names it."""
        own, its = self.cores[of].membership, self.cores[other].membership
        if standing is None:
            standing = Standing.SAME
            if own.digest != its.digest:
                standing = Standing.BEHIND if its.revision > own.revision else Standing.AHEAD
        return PeerNode(NodeId(other), f"n{other}", MESH, public_key(other), 5, standing, its.revision, its.digest)

    def wire(self, dialler: int, listener: int) -> int:
        self.lanes += 1
        shown = {one: self.peer(one, other) for one, other in ((dialler, listener), (listener, dialler))}
        for one, other in ((dialler, listener), (listener, dialler)):
            self.ends[one, self.lanes] = other
            self.cores[one].open_lane(self.lanes, NodeId(other), one == dialler, False, self.now, shown=shown[one])
        return self.lanes

    def run(self, seconds: float = 0.2) -> None:
        end = self.now + seconds
        while self.now < end:
            for core in self.cores.values():
                if core.next_deadline() <= self.now:
                    core.tick(self.now, 0.0)
            while self._pass_frames():
                pass
            self.now += 0.05

    def _pass_frames(self) -> bool:
        passed = False
        for node, core in self.cores.items():
            self.events[node] += core.take_events()
            for lane in core.take_ready():
                while (frame := core.next_frame(lane)) is not None:
                    passed = True
                    other = self.ends[node, lane]
                    arrived = self.cores[other].receive(lane, frame, self.now)
                    self.delivered[other] += [bytes(item.payload) for item in arrived]
        return passed

    def send(self, source: int, destination: int, payload: bytes) -> None:
        self.cores[source].send(Protocol.ECHO, TrafficClass.CONTROL, NodeId(destination), payload, 0, self.now)

    def knows(self, node: int) -> set[int]:
        known = self.cores[node].membership.view
        return {int(item) for item in known.nodes} if known is not None else set()

    def is_up(self, node: int, peer: int) -> bool:
        return self.cores[node].is_link_up(NodeId(peer))

    def of(self, node: int, kind: type[Any]) -> list[Any]:
        return [event for event in self.events[node] if isinstance(event, kind)]

    def refusals(self, node: int) -> list[str]:
        return [event.error.message for event in self.of(node, LaneUnsettled)]
