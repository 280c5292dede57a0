"""Fuzz targets of the data plane: frames on a lane after its handshake, overlay requests, frames of applications."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from data_plane_testing.stream_cluster import NAME, STREAM, A, Cluster, Site, cluster
from mesh_data.core import stream_requests
from mesh_data.core.handshake import LocalNode
from mesh_data.core.timing import OverlayTiming
from mesh_data.core.view import Node, NodeState, View
from mesh_data.shell.clients.client_listener import ClientListener
from mesh_data.shell.overlay.listener import PeerListener
from mesh_data.shell.overlay.overlay import Overlay
from mesh_data.shell.overlay.overlay_port import RequestHandler
from meshapi.overlay.v1 import lane_pb2
from meshcommon.errors import MeshError
from meshcommon.ids import NodeId
from meshcommon.overlay_calls import OverlayCalls
from meshcommon.requests import Outgoing, RequestLimits
from meshtest.delegated import delegated_signer
from meshwire import client, frame, packet, records, request
from meshwire.packet import Protocol, TrafficClass
from tests.attacks.lanes import RawLane, link_local, public_key, routed, stranger
from tests.attacks.raw_socket import Opcode, RawSocket, websocket, websocket_frame
from tests.fuzz.shell_targets import Attempt, ShellTarget, check_code
from tests.golden.samples import SAMPLES

_VICTIM, _PEER, _THIRD = 1, 2, 3
_MESH: Final = "5f0e7c1a-0000-4000-8000-000000000001"
_ALIVE_EVERY: Final = 25
_ANSWER_S: Final = 20.0
_REFUSED_S: Final = 0.2
_EXECUTED_S: Final = 0.2


def _key(node: int) -> bytes:
    return bytes((node,)) * 32


def _local(node: int) -> LocalNode:
    return LocalNode(NodeId(node), f"n{node}", delegated_signer(_key(node), _MESH, node), _MESH)


def _view() -> View:
    nodes = {
        NodeId(node): Node(NodeId(node), f"n{node}", public_key(_key(node)), "", NodeState.ACTIVE)
        for node in (_VICTIM, _PEER, _THIRD)
    }
    return View(1, _MESH, 0, nodes, {})


class _Lane:
    """A lane to the victim, made anew when the victim ends it. Without a `view` it is a stranger's."""

    def __init__(self, port: int, victim: asyncio.Task[None], local: LocalNode, view: View | None) -> None:
        self._port = port
        self._victim = victim
        self._local = local
        self._view = view
        self._stack = contextlib.AsyncExitStack()
        self._lane: RawLane | None = None
        self._count = 0

    async def attempt(self, data: bytes) -> None:
        """Sends one frame; now and then asks whether the victim still answers."""
        lane = self._lane or await self._open()
        await lane.send_frame(data)
        self._count += 1
        if self._count % _ALIVE_EVERY == 0 or lane.socket.writer.is_closing():
            await self._check_alive(lane.socket)
        assert not self._victim.done(), "the overlay has ended"

    async def _open(self) -> RawLane:
        """A lane after its handshake; strangers wait until there is room for one more of them."""
        while True:
            socket = await self._stack.enter_async_context(websocket(self._port, "mesh.v1"))
            lane = RawLane(socket, self._local, self._view)
            try:
                await lane.shake()
            except MeshError as error:
                if not error.retryable:
                    raise
                await self.close()
                await asyncio.sleep(_REFUSED_S)
                continue
            self._lane = lane
            return lane

    async def _check_alive(self, socket: RawSocket) -> None:
        await socket.send(websocket_frame(Opcode.PING, b"there?"))
        while True:
            received = await socket.receive(_ANSWER_S)
            if received is None or received[0] == Opcode.CLOSE:
                await self.close()
                return
            if received[0] == Opcode.PONG:
                return

    async def close(self) -> None:
        """Ends the lane that there is."""
        await self._stack.aclose()
        self._lane = None


@asynccontextmanager
async def _open_lane_frames(_directory: Path) -> AsyncIterator[Attempt]:
    async with _victim(_local(_PEER), _view()) as attempt:
        yield attempt


@asynccontextmanager
async def _open_stranger_frames(_directory: Path) -> AsyncIterator[Attempt]:
    async with _victim(stranger(), None) as attempt:
        yield attempt


@asynccontextmanager
async def _victim(local: LocalNode, view: View | None) -> AsyncIterator[Attempt]:
    """A member with a listener, and a lane of `local` to it."""
    listener = PeerListener("127.0.0.1:0")
    overlay = Overlay(OverlayTiming(), {}, listener, allows_clear=True)
    overlay.configure(_local(_VICTIM), _view(), is_running=True)
    for protocol in (Protocol.SWIM, Protocol.JOIN, Protocol.LSA):
        overlay.bind(protocol, lambda _delivery: None)
    # Its rate of strangers' handshakes is not what is looked for here.
    listener.gate.remember("127.0.0.1")
    task = asyncio.create_task(overlay.run(), name="victim")
    lane = _Lane(listener.port, task, local, view)
    try:
        yield lane.attempt
    finally:
        await lane.close()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _lane_frames() -> tuple[bytes, ...]:
    beat = lane_pb2.LaneControl(beat=lane_pb2.LaneBeat(sequence=3, sent_at_us=4)).SerializeToString()
    bye = lane_pb2.LaneControl(bye=lane_pb2.LaneBye(reason="so long")).SerializeToString()
    body = b"\x00" + bytes(8) + request.encode_request(request.Request(1, 500, b"body"))
    packets = [
        link_local(Protocol.LANE, beat, _VICTIM, _PEER),
        link_local(Protocol.LANE, bye, _VICTIM, _PEER),
        link_local(Protocol.LSA, b"\x0a\x04\x08\x02\x10\x07", _VICTIM, _PEER),
        *(
            routed(protocol, body, (_PEER, _VICTIM), 1)
            for protocol in (Protocol.REQUEST, Protocol.SWIM, Protocol.ECHO, Protocol.PATH_ERROR, Protocol.RAFT_DSG)
        ),
        routed(Protocol.SWIM, b"through", (_PEER, _VICTIM, _THIRD), 1),
        routed(Protocol.PATH_ERROR, bytes(24), (_THIRD, _PEER, _VICTIM), 2),
    ]
    encoded = [packet.encode(item) for item in packets]
    samples = [sample.encoded for name, sample in SAMPLES.items() if name.startswith("frame_packets")]
    return (*(frame.encode_packets([item]) for item in encoded), frame.encode_packets(encoded), *samples)


def _stranger_frames() -> tuple[bytes, ...]:
    beat = lane_pb2.LaneControl(beat=lane_pb2.LaneBeat(sequence=3, sent_at_us=4)).SerializeToString()
    bye = lane_pb2.LaneControl(bye=lane_pb2.LaneBye(reason="so long")).SerializeToString()
    ask = b"\x00" + bytes(8) + request.encode_request(request.Request(1, 500, b"body"))
    packets = [
        link_local(Protocol.LANE, beat, 0, 0),
        link_local(Protocol.LANE, bye, 0, 0),
        link_local(Protocol.JOIN, ask, 0, 0),
        link_local(Protocol.LSA, b"\x0a\x04\x08\x02\x10\x07", _VICTIM, 0),
        routed(Protocol.JOIN, ask, (_PEER, _VICTIM), 1),
    ]
    return tuple(frame.encode_packets([packet.encode(item)]) for item in packets)


class _Requests:
    """The request layer of a member that holds the stream, with its real handlers."""

    def __init__(self, site: Site) -> None:
        self._answers: list[bytes] = []
        self.calls = OverlayCalls(
            "overlay_request",
            self._send,
            time.monotonic,
            1,
            request_class=TrafficClass.BULK,
            limits=RequestLimits(),
        )
        for method, handler in site.overlay._handlers.items():
            self._serve(method, handler)
        self._number = 0

    def _serve(self, method: int, handler: RequestHandler) -> None:
        self.calls.serve(method, lambda caller, body, _timeout_s: handler(caller.node, body))

    def _send(self, _cls: TrafficClass, outgoing: Outgoing) -> None:
        self._answers.append(outgoing.payload)

    async def attempt(self, data: bytes) -> None:
        """One payload: as it comes, and as the body of a request with a fresh id."""
        self.calls.receive(NodeId(_PEER), data)
        self._number += 1
        self.calls.receive(NodeId(_PEER), b"\x00" + self._number.to_bytes(8, "big") + data)
        loop = asyncio.get_running_loop()
        until = loop.time() + _EXECUTED_S
        while self.calls.executing and loop.time() < until:  # noqa: ASYNC110 - it tells nobody when it has none
            await asyncio.sleep(0.001)
        answers, self._answers = self._answers, []
        for answer in answers:
            if answer[0] == 1:
                response = request.decode_response(answer[9:])
                if isinstance(response, request.ErrorResponse):
                    check_code(response.code, response.message)


@asynccontextmanager
async def _formed(directory: Path) -> AsyncIterator[Cluster]:
    async with cluster(directory) as made:
        await made.formed()
        yield made


@asynccontextmanager
async def _open_requests(directory: Path) -> AsyncIterator[Attempt]:
    async with _formed(directory) as made:
        requests = _Requests(made.sites[A])
        running = asyncio.create_task(requests.calls.run(), name="overlay requests")
        await asyncio.sleep(0)
        try:
            yield requests.attempt
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def _request_bodies() -> tuple[bytes, ...]:
    one = records.encode_batch([records.Record(b"value", b"key")], 0, 0, 0)
    stream = int(STREAM).to_bytes(8, "big")
    bodies = {
        stream_requests.Method.PUBLISH: stream + one,
        stream_requests.Method.INIT_PRODUCER: stream + b"name",
        stream_requests.Method.FETCH: stream + bytes(8) + (4096).to_bytes(4, "big") + bytes(4),
        stream_requests.Method.DESCRIBE: stream,
        stream_requests.Method.TRANSFER: stream + (1).to_bytes(8, "big"),
        stream_requests.Method.CHAIN: stream,
        stream_requests.Method.VERIFY_LOG: stream + b"\x18\x02",
    }
    return tuple(request.encode_request(request.Request(int(method), 500, body)) for method, body in bodies.items())


class _Application:
    """An application's connection, made anew when the node ends it."""

    def __init__(self, port: int, serving: asyncio.Task[None]) -> None:
        self._port = port
        self._serving = serving
        self._stack = contextlib.AsyncExitStack()
        self._socket: RawSocket | None = None

    async def attempt(self, data: bytes) -> None:
        """One frame, then a question that has to be answered unless the connection ends."""
        if self._socket is None:
            self._socket = await self._stack.enter_async_context(websocket(self._port, client.SUBPROTOCOL))
        question = client.encode_message(
            client.Kind.DESCRIBE, 0xFFFFFFFF, client.encode_describe(client.Describe(NAME))
        )
        await self._socket.send(websocket_frame(Opcode.BINARY, data) + websocket_frame(Opcode.BINARY, question))
        while True:
            received = await self._socket.receive(_ANSWER_S)
            if received is None or received[0] == Opcode.CLOSE:
                await self.close()
                break
            if received[0] == Opcode.BINARY and self._is_answered(received[1]):
                break
        assert not self._serving.done(), "the listener has ended"

    @staticmethod
    def _is_answered(payload: bytes) -> bool:
        is_answered = False
        for kind, correlation, body in client.decode_messages(payload):
            if kind == client.Kind.ERROR:
                response = request.decode_response(body)
                assert isinstance(response, request.ErrorResponse)
                check_code(response.code, response.message)
            is_answered = is_answered or correlation == 0xFFFFFFFF
        return is_answered

    async def close(self) -> None:
        """Ends the connection that there is."""
        await self._stack.aclose()
        self._socket = None


@asynccontextmanager
async def _open_client_frames(directory: Path) -> AsyncIterator[Attempt]:
    async with _formed(directory) as made:
        listener = ClientListener("127.0.0.1:0", made.sites[A].catalogue, made.sites[A].budgets)
        serving = asyncio.create_task(listener.run(), name="clients")
        application = _Application(listener.port, serving)
        try:
            yield application.attempt
        finally:
            await application.close()
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


def _client_frames() -> tuple[bytes, ...]:
    one = records.encode_batch([records.Record(b"value", b"key")], 0, 0, 0)
    kinds = client.Kind
    parts = [
        client.encode_message(kinds.DESCRIBE, 1, client.encode_describe(client.Describe(NAME))),
        client.encode_message(kinds.INIT_PRODUCER, 2, client.encode_init_producer(client.InitProducer(NAME, "p"))),
        client.encode_publish(3, int(STREAM), one, client.WAIT_COMMITTED),
        client.encode_message(kinds.READ, 4, client.encode_read(client.Read(NAME, 0, 65_536, False))),
        client.encode_message(kinds.READ, 5, client.encode_read(client.Read(NAME, 0, 65_536, True))),
        client.encode_message(kinds.CREDIT, 5, client.encode_credit(4096)),
        client.encode_message(kinds.CANCEL, 5, b""),
    ]
    samples = [sample.encoded for name, sample in SAMPLES.items() if name.startswith("client_")]
    return (*parts, b"".join(parts), *samples)


OVERLAY_TARGETS: Final = (
    ShellTarget("lane_frames", _open_lane_frames, _lane_frames()),
    ShellTarget("stranger_frames", _open_stranger_frames, _stranger_frames()),
    ShellTarget("overlay_requests", _open_requests, _request_bodies()),
    ShellTarget("client_frames", _open_client_frames, _client_frames()),
)
