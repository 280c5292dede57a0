"""Lanes of a stranger: the product's own handshake over a connection made by hand, then whatever bytes the test wants.

The handshake is the real one, so that what comes after it is judged as what a node with a proven key says.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mesh_data.core.handshake import Handshake, LocalNode, PeerNode, Role, Standing, Terms
from mesh_data.core.membership_desk import membership_of
from mesh_data.core.view import View
from mesh_data.shell.overlay.lane_socket import SUBPROTOCOL
from meshapi.control.v1 import join_pb2
from meshapi.overlay.v1 import lane_pb2
from meshcommon.delegation import Delegations
from meshcommon.ids import NO_NODE
from meshcommon.requests import Requests
from meshtest.delegated import delegated_signer
from meshwire import frame
from meshwire.packet import VERSION, Packet, Protocol, TrafficClass, decode, encode
from meshwire.request import ErrorResponse, Request, Response
from tests.attacks.raw_socket import Opcode, RawSocket, websocket, websocket_frame

JOIN_METHOD: Final = 1
_TIMEOUT_S: Final = 15.0


def new_key() -> bytes:
    """A private key of a stranger."""
    return Ed25519PrivateKey.generate().private_bytes_raw()


def public_key(private_key: bytes) -> bytes:
    """Its public key."""
    return Ed25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


class LaneEndedError(AssertionError):
    """The node ended the lane instead of answering."""


class RawLane:
    """One lane. `peer` is set after `shake`."""

    def __init__(self, socket: RawSocket, local: LocalNode, view: View | None = None) -> None:
        """A member needs the `view` in which it finds the other's key."""
        self.socket = socket
        self.local = local
        self._view = view
        self.peer: PeerNode | None = None
        self._requests = Requests(first_id=secrets.randbits(62))

    async def shake(self) -> PeerNode:
        """Runs the handshake as the dialler; raises MeshError with the reason for which the node refuses."""
        deadline = time.monotonic() + _TIMEOUT_S
        terms = Terms(
            Delegations(time.time),
            view=self._view,
            certificate_seen=self.socket.certificate_seen,
            membership_revision=self._view.revision if self._view is not None else 0,
            membership_digest=membership_of(self._view).digest if self._view is not None else b"",
        )
        nonce, ephemeral_seed = secrets.token_bytes(32), secrets.token_bytes(32)
        handshake = Handshake(Role.DIALLER, self.local, terms, nonce, ephemeral_seed, deadline)
        await self._send_all(handshake)
        while not handshake.is_done:
            received = await self.receive_frame()
            assert received is not None, "the node hung up in the handshake without a reason"
            handshake.receive(received)
            await self._send_all(handshake)
        if handshake.peer is None:
            assert handshake.failure is not None
            raise handshake.failure
        self.peer = handshake.peer
        if handshake.peer.standing is Standing.BEHIND:
            # What is newer there does not matter here: the lane is in service once this is said.
            await self.send_control(lane_pb2.LaneControl(membership_known=lane_pb2.LaneMembershipKnown()))
        return handshake.peer

    async def _send_all(self, handshake: Handshake) -> None:
        for outgoing in handshake.take_outgoing():
            await self.send_frame(outgoing)

    async def send_frame(self, data: bytes) -> None:
        """One binary frame of the lane."""
        await self.socket.send(websocket_frame(Opcode.BINARY, data))

    async def receive_frame(self, timeout_s: float = _TIMEOUT_S) -> bytes | None:
        """The next binary frame; None when the connection is gone."""
        while (received := await self.socket.receive(timeout_s)) is not None:
            if received[0] == Opcode.BINARY:
                return received[1]
            if received[0] == Opcode.CLOSE:
                return None
        return None

    async def send_packets(self, *packets: Packet) -> None:
        """Packets in one frame."""
        await self.send_frame(frame.encode_packets([encode(packet) for packet in packets]))

    async def send_control(self, message: lane_pb2.LaneControl | bytes) -> None:
        """A message of the lane itself."""
        payload = message if isinstance(message, bytes) else message.SerializeToString()
        await self.send_packets(link_local(Protocol.LANE, payload, self._peer_id, self.local.node_id))

    async def ask(self, method: int, body: bytes, timeout_s: float = _TIMEOUT_S) -> Response:
        """A request of the join protocol to the neighbour; LaneEndedError when the lane ends instead."""
        loop = asyncio.get_running_loop()
        request = Request(method, int(timeout_s * 1000), body)
        _, outgoing = self._requests.start(0, request, loop.time() + timeout_s, loop.time(), 1)
        packet = link_local(Protocol.JOIN, outgoing.payload, 0, 0)
        await self.send_packets(packet)
        async with asyncio.timeout(timeout_s):
            while (received := await self.receive_frame()) is not None:
                for data in frame.decode_packets(received):
                    arrived = decode(data)
                    if arrived.protocol is Protocol.LANE:
                        await self._echo(bytes(arrived.payload))
                    if arrived.protocol is Protocol.JOIN:
                        taken = self._requests.receive(0, 1, bytes(arrived.payload))
                        if isinstance(taken, tuple):
                            return taken[1]
        raise LaneEndedError("the lane ended before the answer")

    async def _echo(self, payload: bytes) -> None:
        """Answers a beat: a lane that is silent for some hundred milliseconds is dead."""
        message = lane_pb2.LaneControl.FromString(payload)
        if message.WhichOneof("kind") == "beat":
            await self.send_control(lane_pb2.LaneControl(echo=message.beat))

    async def join(self, request: join_pb2.JoinRequest) -> join_pb2.JoinResponse | ErrorResponse:
        """Asks to be admitted."""
        response = await self.ask(JOIN_METHOD, request.SerializeToString())
        if isinstance(response, ErrorResponse):
            return response
        return join_pb2.JoinResponse.FromString(bytes(response.body))

    @property
    def _peer_id(self) -> int:
        return int(self.peer.node_id) if self.peer is not None else 0


def link_local(protocol: Protocol, payload: bytes, destination: int, source: int) -> Packet:
    """A packet to the direct neighbour."""
    return Packet(
        version=VERSION,
        cls=TrafficClass.CONTROL,
        protocol=protocol,
        flags=0,
        hop_limit=1,
        source=source,
        destination=destination,
        payload=payload,
    )


def routed(protocol: Protocol, payload: bytes, route: Sequence[int], position: int, flow: int = 0) -> Packet:
    """A packet on a source route, as if `route[position]` had just received it."""
    return Packet(
        version=VERSION,
        cls=TrafficClass.CONTROL,
        protocol=protocol,
        flags=0,
        hop_limit=8,
        source=route[0],
        destination=route[-1],
        flow=flow,
        message_id=secrets.randbits(62),
        route=tuple(route),
        position=position,
        payload=payload,
    )


@asynccontextmanager
async def lane(
    port: int, local: LocalNode, view: View | None = None, source: str = "127.0.0.1"
) -> AsyncIterator[RawLane]:
    """A lane from `source` to a peer port, after the handshake."""
    async with websocket(port, SUBPROTOCOL, source=source) as socket:
        found = RawLane(socket, local, view)
        await found.shake()
        yield found


def stranger(name: str = "stranger", key: bytes | None = None) -> LocalNode:
    """A node that is in no mesh."""
    return LocalNode(NO_NODE, name, delegated_signer(key or new_key()))
