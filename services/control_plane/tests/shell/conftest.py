"""Several control planes in one event loop, over an overlay in memory that loses what it is told to lose.

Real meshraft hosts over real directories, real timers with a fast preset; no sockets, no data plane. A crash ends a
node's tasks where they are and opens its directory again later.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from mesh_control.core.leaderless import LeaderlessStreams
from mesh_control.core.model import JoinPolicy
from mesh_control.core.timing import Timing
from mesh_control.core.versions import MESH_VERSION
from mesh_control.shell.ca_desk import CaDesk
from mesh_control.shell.ca_files import CA_DIR
from mesh_control.shell.ca_watch import CaWatch
from mesh_control.shell.join_service import JoinService
from mesh_control.shell.lifecycle import Lifecycle
from mesh_control.shell.local_node import LocalNode
from mesh_control.shell.mesh_service import MeshService
from mesh_control.shell.node_certificates import NodeCertificates
from mesh_control.shell.peer_calls import PeerCalls
from mesh_control.shell.proposer import Proposer
from mesh_control.shell.renewal import Renewal
from mesh_control.shell.site_issuer import ISSUER_KEY, SiteIssuer
from mesh_control.shell.standing_check import StandingCheck
from mesh_control.shell.token_desk import TokenDesk
from mesh_control.shell.version_watch import VersionWatch
from meshapi.overlay.v1 import overlay_pb2
from meshcommon.admin import Readiness
from meshcommon.datadir import DataDir
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshwire.packet import Protocol, TrafficClass

# Answers to heartbeats wait for the disk, which the machine shares: less than two seconds of silence is no sign here.
TIMING = Timing(
    tick_s=0.02,
    election_ticks=10,
    heartbeat_ticks=2,
    unreachable_after_s=2.0,
    proposal_deadline_s=10.0,
    stream_forms_within_s=3.0,
)
DELAY_S = 0.001


class OneNode:
    """One control plane, and the data plane and overlay as it sees them."""

    def __init__(self, mesh: SmallMesh, name: str) -> None:
        self.mesh = mesh
        self.name = name
        self.peer_address = f"ws://{name}:1"
        self.host = f"host of {name}"
        self.data_dir = DataDir.open(mesh.directory / name, "control", name, kept=(ISSUER_KEY, CA_DIR))
        rng = random.Random(f"{mesh.seed}/{name}/{self.data_dir.marker.boot}")
        self.node = LocalNode(
            name,
            self.peer_address,
            self.data_dir,
            mesh.timing,
            self._send_raft,
            mesh.now_ms,
            seed=rng.getrandbits(63),
            supported=mesh.supported.get(name, MESH_VERSION),
        )
        self.calls = PeerCalls(self, first_id=rng.getrandbits(62))
        self.proposer = Proposer(self.node, self.calls, rng)
        self.issuer = SiteIssuer.load_or_make(self.data_dir.path, name)
        self.certificates = NodeCertificates(self.node, self.calls, self.issuer, rng)
        JoinService(self.node, self.calls, self.proposer, self.certificates)
        self.lifecycle = Lifecycle(self.node, self, self.calls, self.proposer, ())
        self.readiness = Readiness()
        self.standing = StandingCheck(self.node, self, self.calls, rng, ask_after_s=mesh.ask_after_s)
        self.renewal = Renewal(self.node, self.calls, self.readiness, rng)
        leaderless = LeaderlessStreams(self.node.timing.leaderless_after_s)
        self.tokens = TokenDesk(self.node, self.proposer, secrets.token_bytes)
        self.ca = CaDesk(self.node, self.proposer)
        self.ca_watch = CaWatch(self.node, self.certificates, self.proposer, self.readiness)
        self.service = MeshService(
            self.node, self.lifecycle, (self.tokens, self.ca), self.proposer, self.readiness, leaderless
        )
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts its tasks."""
        self._task = asyncio.create_task(self._run(), name=f"node {self.name}")

    async def end(self) -> None:
        """Ends its tasks where they are: what was not on disk is lost."""
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self.data_dir.close()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.node.run(), name="replica")
            group.create_task(self.calls.run(), name="calls")
            group.create_task(self.lifecycle.run(), name="lifecycle")
            group.create_task(self.renewal.run(), name="renewal")
            group.create_task(self.standing.run(), name="standing")
            group.create_task(self.certificates.run(), name="node certificates")
            group.create_task(self.ca_watch.run(), name="ca watch")
            group.create_task(VersionWatch(self.node, self.readiness).run(), name="version watch")

    def _send_raft(self, peer: NodeId, frame_class: int, data: bytes) -> None:
        self.send(Protocol.RAFT_MCG, TrafficClass(frame_class * 2), peer, data)

    def send(
        self, protocol: Protocol, traffic_class: TrafficClass, destination: NodeId, payload: bytes, lane_id: int = 0
    ) -> None:
        """The overlay's way out."""
        self.mesh.carry(self, protocol, destination, payload, lane_id)

    def receive(self, packet: overlay_pb2.InPacket) -> None:
        """The overlay's way in."""
        if packet.protocol == Protocol.RAFT_MCG:
            self.node.receive_raft(NodeId(packet.source), packet.payload)
        else:
            self.calls.receive_packet(packet)

    async def open_join_lane(self, address: str) -> overlay_pb2.OpenJoinLaneResponse:
        """The data plane's part of joining."""
        return self.mesh.open_join_lane(self, address)

    async def close_join_lane(self, lane_id: int) -> None:
        """Closes it."""
        self.mesh.lanes.pop(lane_id, None)


class SmallMesh:
    """The nodes and the overlay between them."""

    def __init__(self, directory: Path, timing: Timing = TIMING, seed: int = 1) -> None:
        self.directory = directory
        self.timing = timing
        self.seed = seed
        self.loss = 0.0
        self.clock_ahead_ms = 0
        self.ask_after_s = 5.0
        self.supported: dict[str, int] = {}
        self.cut_off: set[str] = set()
        self.nodes: dict[str, OneNode] = {}
        self.lanes: dict[int, tuple[OneNode, str]] = {}
        self._rng = random.Random(seed)
        self._next_lane = 1000

    def now_ms(self) -> int:
        """Wall clock."""
        return time.time_ns() // 1_000_000 + self.clock_ahead_ms

    def start(self, name: str) -> OneNode:
        """Starts a node, for the first time or again."""
        node = OneNode(self, name)
        self.nodes[name] = node
        node.start()
        return node

    async def crash(self, name: str) -> None:
        """Ends a node without telling anyone."""
        await self.nodes.pop(name).end()

    async def restart(self, name: str) -> OneNode:
        """Crashes and starts a node."""
        await self.crash(name)
        return self.start(name)

    async def grow(self, *names: str, policy: JoinPolicy = JoinPolicy.OPEN) -> list[OneNode]:
        """Seeds a mesh on the first node and joins the others by it. OPEN: most tests are about something else."""
        nodes = [self.start(name) for name in names]
        await nodes[0].lifecycle.seed("small", policy)
        for node in nodes[1:]:
            token = "" if policy is JoinPolicy.OPEN else (await nodes[0].tokens.issue())[0]
            await node.lifecycle.join(nodes[0].peer_address, "", token, trust_first=not token)
        return nodes

    def leader(self) -> OneNode | None:
        """The running node that leads with the highest term, if any."""
        leading = [
            (mcg.leader_view().term, node)
            for node in self.nodes.values()
            if (mcg := node.node.mcg) is not None and mcg.leader_view().is_leader
        ]
        return max(leading, key=lambda item: item[0])[1] if leading else None

    def carry(self, sender: OneNode, protocol: Protocol, destination: NodeId, payload: bytes, lane_id: int) -> None:
        """Takes a packet from `sender` towards its destination, if it is not lost."""
        if self._rng.random() < self.loss:
            return
        packet = overlay_pb2.InPacket(protocol=protocol, payload=payload)
        if destination:
            receiver = next((node for node in self.nodes.values() if node.node.node_id == destination), None)
            packet.source = sender.node.node_id
            is_cut = sender.name in self.cut_off or (receiver is not None and receiver.name in self.cut_off)
            if is_cut or not packet.source or not sender.node.is_running:
                return
        else:
            joiner, listener = self.lanes.get(lane_id, (sender, ""))
            receiver = self.nodes.get(listener) if sender is joiner else joiner
            packet.source = 0 if sender is joiner else sender.node.node_id
            packet.lane_id = lane_id
            if not packet.source:
                packet.lane_public_key, packet.lane_host = sender.node.identity.public_key, sender.host
        if receiver is not None:
            asyncio.get_running_loop().call_later(DELAY_S, self._deliver, receiver.name, packet)

    def open_join_lane(self, joiner: OneNode, address: str) -> overlay_pb2.OpenJoinLaneResponse:
        """A lane from a node that is not yet a member to the one at `address`."""
        listener = next((node for node in self.nodes.values() if node.peer_address == address), None)
        if listener is None or listener.name in self.cut_off:
            raise MeshError(ErrorCode.ADDRESS_UNREACHABLE, f"Nothing answers at {address}.")
        view = listener.node.view()
        self._next_lane += 1
        self.lanes[self._next_lane] = (joiner, listener.name)
        return overlay_pb2.OpenJoinLaneResponse(
            lane_id=self._next_lane,
            mesh_id=view.mesh_id if view else "",
            node_id=listener.node.node_id,
            name=listener.name,
        )

    async def eventually(self, condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
        """Waits until `condition` holds; fails at the deadline."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not condition():
            assert asyncio.get_running_loop().time() < deadline, "the condition did not become true in time"
            await asyncio.sleep(0.01)

    def _deliver(self, name: str, packet: overlay_pb2.InPacket) -> None:
        if (receiver := self.nodes.get(name)) is not None:
            receiver.receive(packet)


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[SmallMesh]:
    """An empty mesh, whose nodes are all ended after the test."""
    small = SmallMesh(tmp_path)
    try:
        yield small
    finally:
        for name in list(small.nodes):
            await small.crash(name)
