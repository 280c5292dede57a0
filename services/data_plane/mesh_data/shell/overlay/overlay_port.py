"""What the rest of the data plane may ask of the overlay, as an interface.

Purpose: stream groups and the public API are written and tested against this, not against sockets. `shell/overlay/overlay.py` is
the implementation. All methods are called on the event loop's thread; callbacks run there too and must return quickly.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol as Interface
from typing import TypeAlias

from mesh_data.core.view import View
from meshcommon.ids import NodeId
from meshwire.packet import Protocol, TrafficClass

ViewCallback: TypeAlias = Callable[[View | None, bool], None]
"""Called with the view (None: the node is in no mesh) and whether the node should run."""
PacketCallback: TypeAlias = Callable[[NodeId, bytes | memoryview], None]
"""Called with the source node and the payload, which shares memory with the frame it came in."""
RequestHandler: TypeAlias = Callable[[NodeId, bytes], Awaitable[bytes]]
"""Executes an overlay request from a node; raises MeshError to refuse it."""


class OverlayPort(Interface):
    """The overlay as its users see it."""

    @property
    def node_id(self) -> NodeId:
        """This node's id; 0 when it is in no mesh."""
        ...

    def view(self) -> View | None:
        """The MeshView in force."""
        ...

    def on_view(self, callback: ViewCallback) -> None:
        """Calls back at once with the present view, then at each change."""
        ...

    def on_packet(self, protocol: Protocol, callback: PacketCallback) -> None:
        """Binds the one receiver of a protocol's packets; a later one replaces it."""
        ...

    def send(self, protocol: Protocol, cls: TrafficClass, destination: NodeId, payload: bytes, flow: int = 0) -> bool:
        """Sends a packet, best effort: it may be lost, doubled, or reordered between classes. To itself it is local.

        Returns:
            False when it was dropped here: no route, queue full, or too large (each counted).
        """
        ...

    def queued_bytes(self, destination: NodeId) -> int:
        """Bulk bytes waiting on the first hop towards `destination`; 0 when there is no route."""
        ...

    def is_reachable(self, node: NodeId) -> bool:
        """Whether a route or a direct link leads there now; true for this node itself."""
        ...

    async def call(self, destination: NodeId, method: int, body: bytes, timeout_s: float) -> bytes:
        """An overlay request: repeated until answered, executed once while the answer is remembered.

        Raises:
            MeshError: what the other side raised; NO_PATH when at the deadline there was no route; else
                DEADLINE_EXCEEDED.
        """
        ...

    def serve(self, method: int, handler: RequestHandler) -> None:
        """Binds the handler of an overlay request method."""
        ...
