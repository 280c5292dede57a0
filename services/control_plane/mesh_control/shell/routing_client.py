"""What the control plane tells this site's routing: who this node is, and the view."""

from __future__ import annotations

from typing import Final

import grpc.aio

from mesh_control.shell.config_push import PUSH_TIMEOUT_S, ConfigPush
from mesh_control.shell.local_node import LocalNode
from meshapi.routing.v1 import routing_pb2, routing_pb2_grpc
from meshcommon.admin import Readiness

SERVICE: Final = "routing"


class RoutingClient:
    """The routing of this site."""

    def __init__(self, channel: grpc.aio.Channel, node: LocalNode, readiness: Readiness) -> None:
        self._routing = routing_pb2_grpc.RoutingServiceStub(channel)
        self._node = node
        self.push = ConfigPush(SERVICE, channel, self._configure, self._version, node.changed, readiness)

    async def run(self) -> None:
        """Keeps routing configured, until cancelled."""
        await self.push.run()

    def _version(self) -> object:
        view = self._node.view()
        return (self._node.node_id, view.mesh_id if view else "", view.revision if view else 0)

    async def _configure(self) -> None:
        request = routing_pb2.ConfigureRequest()
        view = self._node.view()
        if view is not None:
            request.node_id = self._node.node_id
            request.view.CopyFrom(view)
        await self._routing.Configure(request, timeout=PUSH_TIMEOUT_S)
