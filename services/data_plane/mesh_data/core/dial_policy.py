"""Who dials whom, and when.

Purpose: keep one lane to every member that can be dialled, without both sides dialling for ever. Leaves out: dialling.
Source: architecture §5 "Lane", "Detection" (a restarted node reconnects by itself, backoff cap 2 s).

Rules: every ACTIVE member with an address is dialled unless a lane to it is up. When both sides can be dialled, the one
with the larger node id dials at once and the other only after `yield_s` without a lane, except right after its start: then
the other side may be deep in its backoff. After a failure the delay bound doubles, and the delay is drawn from all of it
(full jitter), so that the nodes of a healed mesh do not dial in step. An address that is none (an old state may hold one) is
never dialled; `undiallable` names its node.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from mesh_data.core.timing import OverlayTiming
from mesh_data.core.view import NodeState, View
from meshcommon.address import is_peer_address, parse_peer_address
from meshcommon.errors import MeshError
from meshcommon.ids import NodeId

_DOUBLINGS_MAX = 16


@dataclass(frozen=True, slots=True)
class Dial:
    """Dial `address`; `peer` is expected there."""

    peer: NodeId
    address: str


@dataclass(slots=True)
class _Target:
    address: str
    due: float
    failures: int = 0
    is_up: bool = False
    is_dialling: bool = False


class DialPolicy:
    """Dialling state of one node. `now` is monotonic seconds."""

    def __init__(self, overrides: dict[str, str], timing: OverlayTiming, rng: Random) -> None:
        """`overrides` maps node names to addresses that replace the advertised ones, for this node only."""
        self._overrides = overrides
        self._timing = timing
        self._rng = rng
        self._targets: dict[NodeId, _Target] = {}
        self._yields_to: set[NodeId] = set()
        self._parsed: dict[str, str | None] = {}
        self.undiallable: dict[NodeId, str] = {}
        """Nodes that would be dialled, if what they advertise were an address."""

    def configure(self, view: View | None, local: NodeId, up: set[NodeId], now: float) -> None:
        """Takes a new view (None: dial nobody) and the neighbours to which a lane is up."""
        wanted: dict[NodeId, str] = {}
        self._yields_to.clear()
        self.undiallable = {}
        parsed, self._parsed = self._parsed, {}
        if view is not None:
            me = view.nodes.get(local)
            is_diallable = me is not None and is_peer_address(me.peer_address)
            for node in view.nodes.values():
                address = self._overrides.get(node.name, node.peer_address)
                # A stopped node dials us when it starts, unless it cannot: then we must, or it would stay alone.
                is_expected = node.state is not NodeState.STOPPED or not is_diallable
                if node.node_id == local or not is_expected or not address:
                    continue
                # Views come often and addresses rarely change: each is parsed once.
                canonical = parsed[address] if address in parsed else _canonical(address)
                self._parsed[address] = canonical
                if canonical is None:
                    self.undiallable[node.node_id] = address
                    continue
                wanted[node.node_id] = canonical
                if is_diallable and local < node.node_id:
                    self._yields_to.add(node.node_id)
        for gone in self._targets.keys() - wanted.keys():
            del self._targets[gone]
        for peer, address in wanted.items():
            target = self._targets.setdefault(peer, _Target(address, now, is_up=peer in up))
            if target.address != address:
                target.address, target.failures, target.due = address, 0, now

    def take_due(self, now: float) -> list[Dial]:
        """Attempts to start now; each must end in `failed` or `link_up`."""
        due = []
        for peer, target in self._targets.items():
            if not target.is_up and not target.is_dialling and target.due <= now:
                target.is_dialling = True
                due.append(Dial(peer, target.address))
        return due

    def next_deadline(self) -> float | None:
        """When `take_due` has something next."""
        waiting = [item.due for item in self._targets.values() if not item.is_up and not item.is_dialling]
        return min(waiting, default=None)

    def failed(self, peer: NodeId, now: float) -> None:
        """An attempt ended without a lane."""
        target = self._targets.get(peer)
        if target is None:
            return
        target.is_dialling = False
        bound = self._timing.dial_first_s * 2 ** min(target.failures, _DOUBLINGS_MAX)
        target.failures += 1
        target.due = now + self._rng.uniform(0.0, min(bound, self._timing.dial_max_s))

    def link_up(self, peer: NodeId) -> None:
        """A lane to `peer` is up, whoever dialled it."""
        target = self._targets.get(peer)
        if target is not None:
            target.is_up, target.failures = True, 0

    def attempt_ended(self, peer: NodeId) -> None:
        """An attempt that led to a lane is over."""
        target = self._targets.get(peer)
        if target is not None:
            target.is_dialling = False

    def link_down(self, peer: NodeId, now: float) -> None:
        """The last lane to `peer` is gone."""
        target = self._targets.get(peer)
        if target is None:
            return
        target.is_up = False
        if peer in self._yields_to:
            target.due = now + self._timing.yield_s
        else:
            target.due = now + self._rng.uniform(0.0, self._timing.dial_first_s)


def _canonical(address: str) -> str | None:
    """The address as it is dialled, None when it is none."""
    try:
        return str(parse_peer_address(address))
    except MeshError:
        return None
