"""TopologyService: links and paths by name, out of the link-state database. Read only."""

from __future__ import annotations

import heapq
from typing import Any, Final

from mesh_routing.core.view import View
from mesh_routing.shell.driver import RoutingDriver
from meshapi.supervisor.v1 import topology_pb2, topology_pb2_grpc
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshcommon.peer_text import printable

NAMES_SHOWN_MAX: Final = 20


class TopologyService(topology_pb2_grpc.TopologyServiceServicer):
    """Serves ListLinks and ListPaths."""

    def __init__(self, driver: RoutingDriver) -> None:
        self._driver = driver

    async def ListLinks(  # noqa: N802 - the name is the proto's
        self, request: topology_pb2.ListLinksRequest, context: Any
    ) -> topology_pb2.ListLinksResponse:
        """See the proto. Errors: NOT_A_MEMBER."""
        view = self._view()
        lsdb = self._driver.router.lsdb
        links = [
            topology_pb2.Link(
                **{"from": view.name(row.origin)},
                to=view.name(row.link.peer),
                latency_us=row.link.latency_us,
                jitter_us=row.link.jitter_us,
                loss_ppm=row.link.loss_ppm or 0,
                cost=row.cost,
                is_two_way=row.is_two_way,
            )
            for row in lsdb.link_rows()
        ]
        links.sort(key=lambda link: (getattr(link, "from"), link.to))
        return topology_pb2.ListLinksResponse(links=links, topology_version=lsdb.version)

    async def ListPaths(  # noqa: N802 - the name is the proto's
        self, request: topology_pb2.ListPathsRequest, context: Any
    ) -> topology_pb2.ListPathsResponse:
        """See the proto. Errors: NOT_A_MEMBER, UNKNOWN_NODE, INVALID_ARGUMENT, NO_PATH."""
        view = self._view()
        start, end = getattr(request, "from"), request.to
        source, destination = _find(view, start), _find(view, end)
        if source == destination:
            raise MeshError(
                ErrorCode.INVALID_ARGUMENT,
                f"A path leads between two nodes, not from {start!r} to itself: name another.",
            )
        paths = self._driver.router.find_paths(source, destination)
        if not paths:
            raise MeshError(
                ErrorCode.NO_PATH,
                f"No path leads from {start!r} to {end!r} now: check the links of both with ListLinks.",
                {"from": start, "to": end},
            )
        return topology_pb2.ListPathsResponse(
            paths=[
                topology_pb2.TopologyPath(nodes=[view.name(node) for node in path.nodes], cost=path.cost)
                for path in paths
            ]
        )

    def _view(self) -> View:
        view = self._driver.view
        if not view.is_member:
            raise MeshError(
                ErrorCode.NOT_A_MEMBER, "This node is in no mesh, so it knows no topology: seed a mesh or join one."
            )
        return view


def _find(view: View, name: str) -> NodeId:
    node = view.find(name)
    if node is None:
        named = printable(name)
        # A mesh may have a thousand nodes: the first ones are enough to see a slip.
        known = ", ".join(heapq.nsmallest(NAMES_SHOWN_MAX, view.names.values()))
        more = f" and {len(view.names) - NAMES_SHOWN_MAX} more" if len(view.names) > NAMES_SHOWN_MAX else ""
        raise MeshError(
            ErrorCode.UNKNOWN_NODE,
            f"No node of this mesh is named {named!r}; its nodes are {known}{more}.",
            {"name": named},
        )
    return node
