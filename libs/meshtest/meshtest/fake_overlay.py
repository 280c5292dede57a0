"""An overlay in memory: several nodes on one event loop, with delay, loss and cuts.

It has the methods of the data plane's overlay, so that stream groups run on it unchanged. Packets between two nodes keep
their order within a class unless they are lost; requests are repeated until answered and executed once. Leaves out lanes,
routes and relays.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final

from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshwire.packet import MAX_PACKET_BYTES, Protocol, TrafficClass

PacketCallback = Callable[[NodeId, bytes | memoryview], None]
RequestHandler = Callable[[NodeId, bytes], Awaitable[bytes]]
ViewCallback = Callable[[Any, bool], None]

_REPEAT_S: Final = 0.05
_HEADER_BYTES: Final = 256


class FakeNetwork:
    """What lies between the nodes. `loss` is a probability per packet, `delay_s` one way."""

    def __init__(self, *, seed: int = 0, loss: float = 0.0, delay_s: float = 0.0) -> None:
        self.loss = loss
        self.delay_s = delay_s
        self.nodes: dict[NodeId, FakeOverlay] = {}
        self.cut_links: set[frozenset[NodeId]] = set()
        self._random = random.Random(seed)
        self._due: dict[tuple[NodeId, NodeId], float] = {}

    def cut(self, left: NodeId, right: NodeId) -> None:
        """Nothing passes between the two from now on."""
        self.cut_links.add(frozenset((left, right)))

    def isolate(self, node: NodeId) -> None:
        """Cuts a node off from all others."""
        for other in self.nodes:
            if other != node:
                self.cut(node, other)

    def heal(self) -> None:
        """Undoes every cut."""
        self.cut_links.clear()

    def is_open(self, left: NodeId, right: NodeId) -> bool:
        """Whether packets pass between the two, losses aside."""
        return left in self.nodes and right in self.nodes and frozenset((left, right)) not in self.cut_links

    def takes(self, source: NodeId, destination: NodeId) -> bool:
        """Whether one packet gets through now."""
        return self.is_open(source, destination) and self._random.random() >= self.loss

    def deliver(self, source: NodeId, destination: NodeId, protocol: Protocol, payload: bytes) -> None:
        """Carries one packet."""
        if not self.takes(source, destination):
            return
        loop = asyncio.get_running_loop()
        # Timers of equal time have no order among themselves, so each packet is a little later than the one before.
        due = max(loop.time() + self.delay_s, self._due.get((source, destination), 0.0) + 1e-6)
        self._due[source, destination] = due
        loop.call_at(due, self._arrive, source, destination, protocol, payload)

    def _arrive(self, source: NodeId, destination: NodeId, protocol: Protocol, payload: bytes) -> None:
        node = self.nodes.get(destination)
        if node is not None:
            node.arrive(source, protocol, payload)


class FakeOverlay:
    """One node's end of a FakeNetwork."""

    def __init__(self, network: FakeNetwork, node_id: NodeId) -> None:
        self._network = network
        self._node_id = node_id
        self._view: Any = None
        self._is_running = True
        self._view_callbacks: list[ViewCallback] = []
        self._packet_callbacks: dict[Protocol, PacketCallback] = {}
        self._handlers: dict[int, RequestHandler] = {}
        self._executing: set[asyncio.Task[bytes]] = set()
        network.nodes[node_id] = self

    @property
    def node_id(self) -> NodeId:
        """This node's id."""
        return self._node_id

    def view(self) -> Any:
        """The view that was set last."""
        return self._view

    def set_view(self, view: Any, is_running: bool = True) -> None:
        """Gives this node a view, as its control plane would."""
        self._view, self._is_running = view, is_running
        for callback in self._view_callbacks:
            callback(view, is_running)

    def on_view(self, callback: ViewCallback) -> None:
        """Calls back at once, then at each `set_view`."""
        self._view_callbacks.append(callback)
        callback(self._view, self._is_running)

    def on_packet(self, protocol: Protocol, callback: PacketCallback) -> None:
        """Binds the receiver of a protocol."""
        self._packet_callbacks[protocol] = callback

    def send(self, protocol: Protocol, cls: TrafficClass, destination: NodeId, payload: bytes, flow: int = 0) -> bool:
        """Sends a packet; False when there is no way or it is too large."""
        if not self.is_reachable(destination) or len(payload) > MAX_PACKET_BYTES - _HEADER_BYTES:
            return False
        self._network.deliver(self._node_id, destination, protocol, payload)
        return True

    def arrive(self, source: NodeId, protocol: Protocol, payload: bytes) -> None:
        """A packet came."""
        callback = self._packet_callbacks.get(protocol)
        if callback is not None:
            callback(source, payload)

    def queued_bytes(self, destination: NodeId) -> int:
        """Nothing ever queues here."""
        return 0

    def is_reachable(self, node: NodeId) -> bool:
        """Whether the link there is open."""
        return node == self._node_id or self._network.is_open(self._node_id, node)

    def serve(self, method: int, handler: RequestHandler) -> None:
        """Binds a handler."""
        self._handlers[method] = handler

    async def call(self, destination: NodeId, method: int, body: bytes, timeout_s: float) -> bytes:
        """A request, repeated until it is answered."""
        execution: asyncio.Task[bytes] | None = None
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    if execution is None and self._network.takes(self._node_id, destination):
                        execution = self._network.nodes[destination].execute(self._node_id, method, body)
                        await asyncio.sleep(self._network.delay_s)
                    if execution is not None:
                        await asyncio.wait((execution,))
                        if self._network.takes(destination, self._node_id):
                            await asyncio.sleep(self._network.delay_s)
                            return execution.result()
                    await asyncio.sleep(_REPEAT_S)
        except TimeoutError:
            code = ErrorCode.DEADLINE_EXCEEDED if self.is_reachable(destination) else ErrorCode.NO_PATH
            raise MeshError(code, f"Node {destination} did not answer in {timeout_s:g} s.") from None

    def execute(self, source: NodeId, method: int, body: bytes) -> asyncio.Task[bytes]:
        """Runs the handler of a request in a task that outlives its caller."""
        handler = self._handlers.get(method)
        if handler is None:
            raise MeshError(ErrorCode.INTERNAL, f"Node {self._node_id} serves no method {method}.")
        task = asyncio.ensure_future(handler(source, body))
        assert isinstance(task, asyncio.Task)
        self._executing.add(task)
        task.add_done_callback(self._executed)
        return task

    def _executed(self, task: asyncio.Task[bytes]) -> None:
        self._executing.discard(task)
        if not task.cancelled():
            task.exception()  # read, so that a caller that gave up leaves no warning

    async def close(self) -> None:
        """The node dies: it is gone from the network and its handlers end."""
        self._network.nodes.pop(self._node_id, None)
        for task in tuple(self._executing):
            task.cancel()
        await asyncio.gather(*self._executing, return_exceptions=True)
