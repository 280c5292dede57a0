"""What the control plane tells this site's data plane, and what it hears of the local replicas of streams.

Leaves out packets (`OverlayAttachment`). Source: data.proto, overlay.proto; architecture §7 "Birth and death of a group".
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

import grpc
import grpc.aio

from mesh_control.core.confirmations import Report
from mesh_control.core.delegator import Delegator
from mesh_control.core.leaderless import LeaderlessStreams
from mesh_control.shell.changes import Changes
from mesh_control.shell.config_push import PUSH_TIMEOUT_S, RETRY_S, ConfigPush
from mesh_control.shell.local_node import LocalNode
from meshapi.data.v1 import data_pb2, data_pb2_grpc
from meshapi.overlay.v1 import overlay_pb2, overlay_pb2_grpc
from meshcommon.admin import Readiness
from meshcommon.barrier import barrier
from meshcommon.delegation import Grantor, Use
from meshcommon.grpc_client import call_metadata, mesh_error, site_error
from meshcommon.ids import MemberId, NodeId, StreamId
from meshcommon.logging import get_logger
from meshcommon.membership import Membership, Vouch

DIAL_TIMEOUT_S: Final = 10.0
SERVICE: Final = "data plane"

_STATES: Final = {
    data_pb2.GROUP_STATE_OPEN: "open",
    data_pb2.GROUP_STATE_DESTROYED: "destroyed",
    data_pb2.GROUP_STATE_SEALED: "sealed",
}
_log = get_logger(__name__)


class DataClient:
    """The data plane of this site."""

    def __init__(
        self, channel: grpc.aio.Channel, node: LocalNode, readiness: Readiness, leaderless: LeaderlessStreams
    ) -> None:
        self._data = data_pb2_grpc.DataPlaneServiceStub(channel)
        self._overlay = overlay_pb2_grpc.OverlayServiceStub(channel)
        self._node = node
        self._leaderless = leaderless
        self._delegator = Delegator(Use.LANES)
        self._joining = Delegator(Use.LANES)
        self._reports: dict[StreamId, Report] = {}
        self.reported = Changes()
        self.push = ConfigPush(SERVICE, channel, self._configure, self._version, node.changed, readiness)

    @property
    def reports(self) -> Mapping[StreamId, Report]:
        """What the local replicas said last; empty while the data plane is away."""
        return self._reports

    async def run(self) -> None:
        """Keeps the data plane configured and listens to its reports, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.push.run(), name="push to the data plane")
            group.create_task(self._watch_groups(), name="watch local groups")

    async def open_join_lane(self, address: str) -> overlay_pb2.OpenJoinLaneResponse:
        """Dials a member of the mesh to join.

        Raises:
            MeshError: ADDRESS_UNREACHABLE, WRONG_PROTOCOL and others of the data plane; UNAVAILABLE when it is away.
        """
        node = self._node
        try:
            grantor, key = Grantor(node.identity.public_key), await self._delegated_key()
            identity = self._joining.introduce(node.identity, node.name, grantor, key, node.now_s)
            request = overlay_pb2.OpenJoinLaneRequest(address=address, identity=identity)
            return await self._overlay.OpenJoinLane(request, timeout=DIAL_TIMEOUT_S, metadata=call_metadata())
        except grpc.aio.AioRpcError as error:
            raise site_error(error, SERVICE) from None

    async def close_join_lane(self, lane_id: int) -> None:
        """Closes the lane; when the data plane is away, it is closed already."""
        try:
            await self._overlay.CloseJoinLane(overlay_pb2.CloseJoinLaneRequest(lane_id=lane_id), timeout=PUSH_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            _log.info("join_lane_not_closed", reason=mesh_error(error, SERVICE).message)

    def _version(self) -> object:
        view = self._node.view()
        node = self._node
        return (
            node.node_id,
            view.mesh_id if view else "",
            view.revision if view else 0,
            node.is_running,
            node.is_leaving,
            self._delegator.renewals(node.now_s),
        )

    async def _configure(self) -> None:
        # Asked each time: the data plane may have another key by now.
        key, node = await self._delegated_key(), self._node
        view = node.view()
        request = data_pb2.ConfigureRequest(has_left=node.is_leaving)
        if view is not None:
            request.view.CopyFrom(view)
            request.is_running = node.is_running
            identity = self._delegator.introduce(node.identity, node.name, node.grantor, key, node.now_s)
            request.identity.CopyFrom(identity)
            if node.grantor.node_id:
                vouch = Vouch.signed(node.identity, node.grantor.node_id, view.revision, Membership.of_view(view))
                request.vouch.CopyFrom(vouch.to_proto())
        await self._data.Configure(request, timeout=PUSH_TIMEOUT_S)

    async def _delegated_key(self) -> tuple[bytes, int]:
        answer = await self._data.GetDelegatedKey(
            data_pb2.GetDelegatedKeyRequest(), timeout=PUSH_TIMEOUT_S, metadata=call_metadata()
        )
        return answer.public_key, answer.made_at_s

    async def _watch_groups(self) -> None:
        while True:
            try:
                async for response in self._data.WatchGroups(data_pb2.WatchGroupsRequest(), wait_for_ready=True):
                    with barrier("control_group_reports"):
                        self._take(_read_reports(response))
                        self.reported.notify()
            except grpc.aio.AioRpcError as error:
                _log.info("group_watch_ended", reason=mesh_error(error, SERVICE).message)
            self._take({})
            await asyncio.sleep(RETRY_S)

    def _take(self, reports: dict[StreamId, Report]) -> None:
        self._reports = reports
        self._leaderless.receive(reports, asyncio.get_running_loop().time(), datetime.now(UTC))


def _read_reports(response: data_pb2.WatchGroupsResponse) -> dict[StreamId, Report]:
    return {
        StreamId(item.stream_id): Report(
            _STATES.get(item.state, "other"),
            NodeId(item.leader_node),
            item.reason,
            MemberId(item.member_id),
            tuple(map(MemberId, item.members_out)),
            item.is_distrusted,
        )
        for item in response.groups
    }
