"""DataPlaneService: identity, view and routes from the site's control plane and routing, and group reports back.

Nothing here waits for the disk: what is taken is in force at once and kept by the state store behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from mesh_data.core.handshake import LocalNode
from mesh_data.core.view import PUBLIC_KEY_BYTES, view_from_proto
from mesh_data.shell.group_reports import Report
from mesh_data.shell.groups import Groups
from mesh_data.shell.overlay import Overlay
from mesh_data.shell.state_store import StateStore
from meshapi.data.v1 import data_pb2, data_pb2_grpc
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshcommon.logging import get_logger

_log = get_logger(__name__)


class Configurator:
    """Puts configurations and routes into force, from gRPC and from the disk."""

    def __init__(self, overlay: Overlay, store: StateStore) -> None:
        self._overlay = overlay
        self._store = store
        self._in_force: data_pb2.ConfigureRequest | None = None

    def restore(self) -> None:
        """Takes what the store kept. Raises MeshError: DATA_DIR_INCOMPLETE."""
        request, routes = self._store.load()
        if request is None:
            return
        self._apply(request)
        if routes is not None:
            try:
                self._overlay.push_routes(routes)
            except MeshError as error:
                # Routing sends the table anew; the direct links serve until then.
                _log.warning("routes_not_restored", reason=error.message)

    def configure(self, request: data_pb2.ConfigureRequest) -> int:
        """Takes a configuration; returns the revision in force.

        Raises:
            MeshError: INVALID_ARGUMENT or KEY_MISMATCH; nothing has changed.
        """
        if not request.HasField("identity"):
            view = self._overlay.view()
            if view is not None and not request.has_left:
                _log.warning("control_plane_knows_no_mesh", node_id=self._overlay.node_id, mesh_id=view.mesh_id)
                return view.revision
            if view is not None or self._overlay.node_id:
                _log.info("mesh_forgotten", node_id=self._overlay.node_id)
            self._in_force = None
            self._overlay.configure(None, None, is_running=False)
            self._store.keep_view(None)
            return 0
        view = self._overlay.view()
        is_same_mesh = view is not None and view.mesh_id == request.view.mesh_id
        if view is not None and is_same_mesh and request.view.revision < view.revision:
            # A control plane that restarted knows less until it hears from the others, which it does only through here.
            self._take_wish(request)
            return view.revision
        self._apply(request)
        self._store.keep_view(request)
        return int(request.view.revision)

    def _take_wish(self, request: data_pb2.ConfigureRequest) -> None:
        """Runs or rests as an older configuration of the same node asks, under the view in force."""
        kept = self._in_force
        if kept is None or kept.identity != request.identity or kept.is_running == request.is_running:
            return
        updated = data_pb2.ConfigureRequest()
        updated.CopyFrom(kept)
        updated.is_running = request.is_running
        self._apply(updated)
        self._store.keep_view(updated)

    def push_routes(self, push: data_pb2.PushRoutesRequest) -> int:
        """Takes a difference of the route table; returns the version in force. Raises INVALID_ARGUMENT."""
        if not self._overlay.node_id:
            raise MeshError(ErrorCode.NOT_A_MEMBER, "The data plane is in no mesh yet: configure it first.")
        version = self._overlay.push_routes(push)
        if version == push.version:
            self._store.keep_routes(self._overlay.core.forwarder.routes.whole())
        return version

    def _apply(self, request: data_pb2.ConfigureRequest) -> None:
        identity = request.identity
        view = view_from_proto(request.view)
        if not identity.node_id or len(identity.private_key) != PUBLIC_KEY_BYTES:
            raise MeshError(ErrorCode.INVALID_ARGUMENT, "The identity needs a node id and a private key of 32 bytes.")
        local = LocalNode(NodeId(identity.node_id), identity.name, identity.private_key, view.mesh_id, view.mesh_epoch)
        node = view.nodes.get(local.node_id)
        if node is not None and node.public_key != local.public_key:
            raise MeshError(
                ErrorCode.KEY_MISMATCH, "The identity's key is not the one that the view names for this node."
            )
        self._in_force = request
        self._overlay.configure(local, view, is_running=request.is_running)


class DataPlaneServicer(data_pb2_grpc.DataPlaneServiceServicer):
    """See data.proto."""

    def __init__(self, configurator: Configurator, groups: Groups) -> None:
        self._configurator = configurator
        self._groups = groups
        self._stopping = asyncio.Event()

    def close(self) -> None:
        """Ends every WatchGroups: the service stops and must not wait for callers that stay for ever."""
        self._stopping.set()

    async def Configure(  # noqa: N802
        self, request: data_pb2.ConfigureRequest, context: Any
    ) -> data_pb2.ConfigureResponse:
        """Replaces identity and view."""
        return data_pb2.ConfigureResponse(revision=self._configurator.configure(request))

    async def PushRoutes(  # noqa: N802
        self, request: data_pb2.PushRoutesRequest, context: Any
    ) -> data_pb2.PushRoutesResponse:
        """Applies a difference of the route table."""
        return data_pb2.PushRoutesResponse(version=self._configurator.push_routes(request))

    async def WatchGroups(  # noqa: N802
        self, request: data_pb2.WatchGroupsRequest, context: Any
    ) -> AsyncIterator[data_pb2.WatchGroupsResponse]:
        """Reports at once, then at each change."""
        while not self._stopping.is_set():
            # Taken first: a change between the reports and the wait must not be missed.
            changed = self._groups.reports_changed
            yield data_pb2.WatchGroupsResponse(groups=[_report(report) for report in self._groups.reports()])
            await _first_of(changed, self._stopping)


async def _first_of(*events: asyncio.Event) -> None:
    """Returns when one of the events is set."""
    waits = [asyncio.create_task(event.wait(), name="watch groups") for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


def _report(report: Report) -> data_pb2.GroupReport:
    return data_pb2.GroupReport(
        stream_id=report.stream_id,
        state=data_pb2.GroupState.ValueType(report.state),
        leader_node=report.leader_node,
        reason=report.reason,
        member_id=report.member_id,
        members_out=report.members_out,
        is_distrusted=report.is_distrusted,
    )
