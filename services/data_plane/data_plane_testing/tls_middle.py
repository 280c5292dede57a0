"""Two overlays with somebody in between who ends TLS and reads what passes, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from data_plane_testing.identities import public_key, view_of
from mesh_data.core.view import Node, NodeState, View
from mesh_data.shell.overlay.overlay import Overlay
from meshcommon.ids import NodeId
from meshtest.waiting import eventually


@asynccontextmanager
async def running(overlay: Overlay) -> AsyncIterator[Overlay]:
    task = asyncio.create_task(overlay.run(), name="overlay")
    try:
        yield overlay
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def view_with(address: str) -> View:
    """Node 1 listens there, node 2 nowhere."""
    plain = view_of(1, 2)
    nodes = {**plain.nodes, NodeId(1): Node(NodeId(1), "n1", public_key(1), address, NodeState.ACTIVE)}
    return View(plain.revision, plain.mesh_id, plain.mesh_epoch, nodes, {})


async def up(overlay: Overlay, peer: int) -> None:
    async def look() -> bool:
        return overlay.core.is_link_up(NodeId(peer))

    await eventually("the link", look, timeout_s=10, poll_s=0.01)


class Middle:
    """Accepts in front of a node, with TLS of its own or none, dials the node, and passes on what it reads."""

    def __init__(self, target: int, accepts: ssl.SSLContext | None, dials: ssl.SSLContext | None) -> None:
        self.read = bytearray()
        self.sent_back = bytearray()
        """What of it came from the node."""
        self.flip_next = False
        """Set to change a bit of what passes next."""
        self._target = target
        self._accepts = accepts
        self._dials = dials

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        """The port at which it waits for the victim."""
        pumps: list[asyncio.Task[None]] = []

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, back = await asyncio.open_connection("127.0.0.1", self._target, ssl=self._dials)
            pumps.append(asyncio.ensure_future(self._pump(reader, back, bytearray())))
            pumps.append(asyncio.ensure_future(self._pump(there, writer, self.sent_back)))

        server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=self._accepts)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray) -> None:
        try:
            while data := await reader.read(65_536):
                self.read += data
                kept += data
                if self.flip_next:
                    self.flip_next = False
                    data = data[:-1] + bytes((data[-1] ^ 1,))
                writer.write(data)
        finally:
            writer.close()
