"""DataPlaneService: identity, view and routes from the site's control plane and routing, and group reports back.

Nothing here waits for the disk: what is taken is in force at once and kept by the state store behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from mesh_data.core.handshake import LocalNode
from mesh_data.core.replica_report import Report
from mesh_data.core.view import view_from_proto
from mesh_data.shell.groups.groups import Groups
from mesh_data.shell.overlay.overlay import Overlay
from mesh_data.shell.state_store import StateStore
from meshapi.data.v1 import data_pb2, data_pb2_grpc
from meshcommon.delegated_keys import DelegatedKeys
from meshcommon.delegation import DelegatedSigner, Use
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshcommon.logging import get_logger
from meshcommon.membership import Vouch

_log = get_logger(__name__)


class Configurator:
    """Puts configurations and routes into force, from gRPC and from the disk."""

    def __init__(self, overlay: Overlay, store: StateStore, keys: DelegatedKeys) -> None:
        """`keys` are this service's own."""
        self._overlay = overlay
        self._store = store
        self._keys = keys
        self._in_force: data_pb2.ConfigureRequest | None = None

    def restore(self) -> None:
        """Takes what the store kept. Raises MeshError: DATA_DIR_INCOMPLETE.

        What was kept for another key of this service cannot be used, and goes: the control plane sends it again. So does
        what an earlier version kept, in which the seed of the identity key lies.
        """
        request, routes = self._store.load()
        if request is None:
            return
        try:
            self._apply(request)
        except MeshError as error:
            _log.warning("view_not_restored", code=error.code, reason=error.message)
            self._store.keep_view(None)
            return
        if routes is not None:
            try:
                self._overlay.push_routes(routes)
            except MeshError as error:
                # Routing sends the table anew; the direct links serve until then.
                _log.warning("routes_not_restored", reason=error.message)

    def configure(self, request: data_pb2.ConfigureRequest) -> int:
        """Takes a configuration; returns the revision in force.

        Raises:
            MeshError: INVALID_ARGUMENT (also a delegation for another key) or KEY_MISMATCH; nothing has changed.
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
        # What is not known here is not kept: an earlier version would send the seed of the identity key.
        request.DiscardUnknownFields()
        view = self._overlay.view()
        is_same_mesh = view is not None and view.mesh_id == request.view.mesh_id
        if view is not None and is_same_mesh and request.view.revision < view.revision:
            # A control plane that restarted knows less until it hears from the others, which it does only through here.
            self._take_wish_and_delegation(request)
            return view.revision
        self._apply(request)
        self._store.keep_view(request)
        return int(request.view.revision)

    def _take_wish_and_delegation(self, request: data_pb2.ConfigureRequest) -> None:
        """Runs or rests as an older configuration of the same node asks, and as long as it allows, under the view in force.

        Without the delegation a node that was away for a day could open no lane to hear the newer view by.
        """
        kept = self._in_force
        if kept is None or _node(kept) != _node(request):
            return
        updated = data_pb2.ConfigureRequest()
        updated.CopyFrom(kept)
        updated.is_running = request.is_running
        if kept.view.mesh_epoch == request.view.mesh_epoch:
            updated.identity.CopyFrom(request.identity)
        if updated == kept:
            return
        self._apply(updated)
        self._store.keep_view(updated)

    def push_routes(self, push: data_pb2.PushRoutesRequest) -> int:
        """Takes a difference of the route table; returns the version in force. Raises INVALID_ARGUMENT."""
        if not self._overlay.node_id:
            raise MeshError(ErrorCode.NOT_A_MEMBER, "The data plane is in no mesh yet: configure it first.")
        version = self._overlay.push_routes(push)
        if version == push.version:
            self._store.keep_routes(self._overlay.core.forwarder.paths.routes.whole())
        return version

    def _apply(self, request: data_pb2.ConfigureRequest) -> None:
        identity = request.identity
        view = view_from_proto(request.view)
        if not identity.node_id:
            raise MeshError(ErrorCode.INVALID_ARGUMENT, "The identity needs a node id.")
        signer = DelegatedSigner.from_proto(identity, self._keys.find, Use.LANES, view.mesh_id, view.mesh_epoch)
        local = LocalNode(NodeId(identity.node_id), identity.name, signer, view.mesh_id, view.mesh_epoch)
        node = view.nodes.get(local.node_id)
        if node is not None and node.public_key != local.public_key:
            raise MeshError(
                ErrorCode.KEY_MISMATCH, "The identity's key is not the one that the view names for this node."
            )
        self._in_force = request
        vouch = Vouch.from_proto(request.vouch) if request.HasField("vouch") else None
        self._overlay.configure(local, view, is_running=request.is_running, vouch=vouch)


class DataPlaneServicer(data_pb2_grpc.DataPlaneServiceServicer):
    """See data.proto."""

    def __init__(self, configurator: Configurator, groups: Groups, keys: DelegatedKeys) -> None:
        """`keys` are this service's own."""
        self._keys = keys
        self._offering = asyncio.Lock()
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

    async def GetDelegatedKey(  # noqa: N802
        self, request: data_pb2.GetDelegatedKeyRequest, context: Any
    ) -> data_pb2.GetDelegatedKeyResponse:
        """The key of this service, another one every half day. Errors: DATA_DIR_UNWRITABLE."""
        async with self._offering:
            public_key, made_at_s = await asyncio.to_thread(self._keys.offer)
        return data_pb2.GetDelegatedKeyResponse(public_key=public_key, made_at_s=made_at_s)

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


def _node(request: data_pb2.ConfigureRequest) -> tuple[int, bytes]:
    """Which node, by id and identity key."""
    return request.identity.node_id, request.identity.public_key


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
