"""The part of MeshDataService that looks at forwarding: ping through the overlay, lanes and routes."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any, Final

from mesh_data.core.echo import encode_echo, replied_id, reply_to
from mesh_data.core.forwarder import Delivery
from mesh_data.shell.overlay.overlay import Overlay
from meshapi.supervisor.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshcommon.peer_text import printable
from meshwire.packet import Protocol, TrafficClass

_PING_TIMEOUT_MS: Final = 2_000
_PING_TIMEOUT_MS_MAX: Final = 60_000
_PING_AGAIN_S: Final = 0.25


class ForwardingApi:
    """Mixin of the MeshDataService servicer."""

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay
        self._echoes: dict[int, asyncio.Future[float]] = {}
        overlay.bind(Protocol.ECHO, self._receive_echo)

    async def Ping(self, request: data_pb2.PingRequest, context: Any) -> data_pb2.PingResponse:  # noqa: N802
        """Round trip to a member through the overlay. Errors: UNKNOWN_NODE, NO_PATH, DEADLINE_EXCEEDED."""
        view = self._overlay.view()
        if view is None:
            raise MeshError(ErrorCode.NOT_A_MEMBER, "This node is in no mesh: seed it or let it join first.")
        node = view.node_named(request.node)
        if node is None:
            known = ", ".join(sorted(item.name for item in view.nodes.values()))
            raise MeshError(
                ErrorCode.UNKNOWN_NODE,
                f"No node {request.node!r} in this mesh: use one of {known}.",
                {"node": request.node},
            )
        timeout_ms = min(request.timeout_ms or _PING_TIMEOUT_MS, _PING_TIMEOUT_MS_MAX)
        path: tuple[NodeId, ...] | None = (node.node_id,)
        if node.node_id != self._overlay.node_id:
            path = self._overlay.path_to(node.node_id)
        if path is None:
            raise self._overlay.no_path(node.node_id)
        rtt_s = await self._echo(node.node_id, timeout_ms / 1000)
        return data_pb2.PingResponse(rtt_us=int(rtt_s * 1e6), path=[view.name_of(hop) for hop in path])

    async def GetForwarding(  # noqa: N802
        self, request: data_pb2.GetForwardingRequest, context: Any
    ) -> data_pb2.GetForwardingResponse:
        """Lanes that are up, and the path in use and its backup to every other node."""
        overlay, view = self._overlay, self._overlay.view()
        response = data_pb2.GetForwardingResponse(route_version=overlay.core.forwarder.paths.routes.version)
        if view is None:
            return response
        for peer in sorted(link.peer for link in overlay.core.links() if link.is_up):
            lane = overlay.core.control_lane(peer)
            if lane is not None:
                response.lanes.add(
                    peer=view.name_of(peer),
                    is_dialled=lane.is_dialled,
                    rtt_us=int((lane.srtt_s or 0.0) * 1e6),
                    up_s=overlay.uptime_s(lane.opened_at),
                )
        for peer, error in sorted(overlay.refused.failed_dials(view, overlay.core.links()).items()):
            response.failed_dials.add(peer=view.name_of(peer), code=error.code, reason=printable(error.message))
        for node_id in sorted(view.nodes):
            if node_id == overlay.node_id:
                continue
            response.routes.add(
                destination=view.name_of(node_id),
                path=[view.name_of(hop) for hop in overlay.path_to(node_id) or ()],
                backup=[view.name_of(hop) for hop in overlay.backup_to(node_id) or ()],
            )
        return response

    async def _echo(self, destination: NodeId, timeout_s: float) -> float:
        """Sends echoes until one is answered; returns that one's round trip in seconds."""
        answered: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        ids: list[int] = []
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    echo_id = secrets.randbits(64)
                    ids.append(echo_id)
                    self._echoes[echo_id] = answered
                    sent_at = time.monotonic()
                    self._overlay.send(Protocol.ECHO, TrafficClass.CONTROL, destination, encode_echo(echo_id))
                    done, _ = await asyncio.wait([answered], timeout=_PING_AGAIN_S)
                    if done:
                        return answered.result() - sent_at
        except TimeoutError:
            if self._overlay.path_to(destination) is None and destination != self._overlay.node_id:
                raise self._overlay.no_path(destination) from None
            raise MeshError(
                ErrorCode.DEADLINE_EXCEEDED, f"The node did not answer within {timeout_s * 1000:.0f} ms; try again."
            ) from None
        finally:
            for echo_id in ids:
                self._echoes.pop(echo_id, None)

    def _receive_echo(self, delivery: Delivery) -> None:
        reply = reply_to(delivery.payload)
        if reply is not None:
            self._overlay.send(Protocol.ECHO, TrafficClass.CONTROL, delivery.source, reply)
            return
        answered = self._echoes.get(replied_id(delivery.payload) or 0)
        if answered is not None and not answered.done():
            answered.set_result(time.monotonic())
