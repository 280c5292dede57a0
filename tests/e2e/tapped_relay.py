"""A relay that keeps everything it is handed, between two real data planes that reach each other only through it.

Nodes 1 and 3 are processes that only dial; node 2 is the product's own overlay in this process. TLS ends at it, as at every
relay, so what it keeps is what an attacker who owns a relay can read. Leaves out control planes: what they would tell is told
here. Their keys are delegated as ever.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mesh_data.core.handshake import LocalNode
from mesh_data.core.timing import PRESETS
from mesh_data.core.view import view_from_proto
from mesh_data.shell.overlay.forwarding_api import ForwardingApi
from mesh_data.shell.overlay.listener import PeerListener
from mesh_data.shell.overlay.overlay import Overlay
from meshapi.common.v1 import view_pb2
from meshapi.data.v1 import data_pb2
from meshcommon.boot_certificate import BootCertificate
from meshcommon.ids import NodeId
from meshcommon.key_signer import KeySigner
from meshtest.delegated import delegated_signer, local_identity
from meshtest.waiting import eventually
from meshwire import frame
from meshwire.packet import FLAG_SEALED, TrafficClass, forwarding_view, sealed_part
from tests.bench.mesh_nodes import MeshNode

ENDS: Final = (1, 3)
RELAY: Final = NodeId(2)
NODES: Final = (1, 2, 3)
MESH_ID: Final = "00000000-0000-4000-8000-00000000be7e"


def _seed(node: int) -> bytes:
    return bytes((node,)) * 32


@dataclass(frozen=True, slots=True)
class Sealed:
    """One sealed packet that was kept: who sealed it, under which key and counter, and the ciphertext."""

    source: int
    destination: int
    key_id: int
    cls: TrafficClass
    counter: int
    ciphertext: bytes


@dataclass(slots=True)
class Tap:
    """Frames in the order in which they came."""

    frames: list[bytes] = field(default_factory=list)

    def sealed(self) -> list[Sealed]:
        """Every sealed packet in them."""
        found = []
        for data in (bytes(packet) for kept in self.frames for packet in frame.decode_packets(kept)):
            seen = forwarding_view(data)
            if seen.flags & FLAG_SEALED:
                part = sealed_part(data, len(seen.route))
                found.append(
                    Sealed(seen.source, seen.destination, part.key_id, seen.cls, part.counter, bytes(part.sealed))
                )
        return found


class TappedOverlay(Overlay):
    """An overlay that keeps each frame before it does its work with it."""

    def __init__(self, listener: PeerListener, tap: Tap) -> None:
        super().__init__(PRESETS["lan"], {}, listener)
        self._tap = tap

    def _receive(self, lane_id: int, frame: bytes) -> None:
        self._tap.frames.append(frame)
        super()._receive(lane_id, frame)


class Relayed:
    """The mesh around the relay."""

    def __init__(self, overlay: TappedOverlay, address: str, tap: Tap) -> None:
        self.overlay = overlay
        self.tap = tap
        self._address = address
        self._revision = 0
        self._streams: list[view_pb2.StreamView] = []

    def _view(self) -> view_pb2.MeshView:
        view = view_pb2.MeshView(
            revision=self._revision,
            mesh_id=MESH_ID,
            status=view_pb2.MESH_STATUS_HEALTHY,
            streams=self._streams,
        )
        for node in NODES:
            view.nodes.add(
                node_id=node,
                name=f"n{node}",
                public_key=KeySigner(_seed(node)).public_key,
                peer_address=self._address if node == RELAY else "",
                state=view_pb2.NODE_STATE_ACTIVE,
            )
        return view

    async def configure(self, nodes: Mapping[int, MeshNode]) -> None:
        """Tells the relay and these nodes what is so now, and that packets from end to end go through the relay."""
        self._revision += 1
        view = self._view()
        local = LocalNode(RELAY, f"n{RELAY}", delegated_signer(_seed(RELAY), MESH_ID, RELAY), MESH_ID)
        self.overlay.configure(local, view_from_proto(view), is_running=True)
        for number, node in nodes.items():
            key = (await node.data.GetDelegatedKey(data_pb2.GetDelegatedKeyRequest(), timeout=10)).public_key
            identity = local_identity(_seed(number), key, f"n{number}", MESH_ID, number)
            request = data_pb2.ConfigureRequest(identity=identity, view=view, is_running=True)
            await node.data.Configure(request, timeout=10)
            far = ENDS[1 - ENDS.index(number)]
            route = data_pb2.Route(destination=far, paths=[data_pb2.Path(nodes=[number, RELAY, far])])
            await node.data.PushRoutes(data_pb2.PushRoutesRequest(version=self._revision, changed=[route]), timeout=10)

    async def create(self, name: str, nodes: Mapping[int, MeshNode]) -> None:
        """A stream whose members are both ends."""
        members = [view_pb2.StreamMember(node_id=node, member_id=10 + node, is_voter=True) for node in ENDS]
        stream = view_pb2.StreamView(
            stream_id=1,
            name=name,
            members=members,
            state=view_pb2.STREAM_STATE_FORMING,
            revision=1,
            retained_bytes_max=1 << 28,
        )
        self._streams.append(stream)
        await self.configure(nodes)

    async def linked(self, ends: Sequence[int] = ENDS) -> None:
        """Waits until these ends have a lane to the relay."""

        async def are_up() -> bool:
            return {link.peer for link in self.overlay.core.links() if link.is_up} >= set(ends)

        await eventually(f"nodes {list(ends)} have lanes to the relay", are_up)


@asynccontextmanager
async def running_relay() -> AsyncIterator[Relayed]:
    """The relay alone; it listens."""
    listener = PeerListener("127.0.0.1:0", BootCertificate())
    tap = Tap()
    overlay = TappedOverlay(listener, tap)
    ForwardingApi(overlay)  # answers pings
    running = asyncio.create_task(overlay.run(), name="tapped relay")
    await asyncio.sleep(0)
    try:
        yield Relayed(overlay, f"wss://127.0.0.1:{listener.port}", tap)
    finally:
        await overlay.say_goodbye()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


@asynccontextmanager
async def running_ends(directory: Path, numbers: Sequence[int] = ENDS) -> AsyncIterator[dict[int, MeshNode]]:
    """The data plane processes; ended afterwards."""
    nodes = {number: MeshNode(directory, number, is_tls=True) for number in numbers}
    async with AsyncExitStack() as stack:
        for node in nodes.values():
            stack.push_async_callback(end, node)
        await asyncio.gather(*(node.start() for node in nodes.values()))
        yield nodes


async def end(node: MeshNode) -> None:
    """Ends a node for good."""
    await node.channel.close(None)
    await node.stop()
