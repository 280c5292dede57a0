"""What the control plane tells this site's routing: who this node is, and the view."""

from __future__ import annotations

from typing import Final

import grpc.aio

from mesh_control.core.delegator import Delegator
from mesh_control.shell.config_push import PUSH_TIMEOUT_S, ConfigPush
from mesh_control.shell.local_node import LocalNode
from meshapi.routing.v1 import routing_pb2, routing_pb2_grpc
from meshcommon.admin import Readiness
from meshcommon.delegation import Use

SERVICE: Final = "routing"


class RoutingClient:
    """The routing of this site."""

    def __init__(self, channel: grpc.aio.Channel, node: LocalNode, readiness: Readiness) -> None:
        self._routing = routing_pb2_grpc.RoutingServiceStub(channel)
        self._node = node
        self._delegator = Delegator(Use.LINK_STATES)
        self.push = ConfigPush(SERVICE, channel, self._configure, self._version, node.changed, readiness)

    async def run(self) -> None:
        """Keeps routing configured, until cancelled."""
        await self.push.run()

    def _version(self) -> object:
        view = self._node.view()
        renewals = self._delegator.renewals(self._node.now_s)
        return (self._node.node_id, view.mesh_id if view else "", view.revision if view else 0, renewals)

    async def _configure(self) -> None:
        request = routing_pb2.ConfigureRequest()
        # Asked each time: routing may have another key by now.
        offered = await self._routing.GetDelegatedKey(routing_pb2.GetDelegatedKeyRequest(), timeout=PUSH_TIMEOUT_S)
        key = offered.public_key, offered.made_at_s
        node, view = self._node, self._node.view()
        if view is not None:
            request.node_id = node.node_id
            request.view.CopyFrom(view)
            identity = self._delegator.introduce(node.identity, node.name, node.grantor, key, node.now_s)
            request.identity.CopyFrom(identity)
        await self._routing.Configure(request, timeout=PUSH_TIMEOUT_S)
