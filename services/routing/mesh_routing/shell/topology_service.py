"""TopologyService: links and paths by name, out of the link-state database. Read only."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Any, Final

from mesh_routing.core.lsdb import LinkRow
from mesh_routing.core.protection import Pair, Protection, effect_of, reach_of, without_link, without_node
from mesh_routing.core.view import View
from mesh_routing.shell.driver import RoutingDriver
from meshapi.common.v1 import weights_pb2
from meshapi.supervisor.v1 import topology_pb2, topology_pb2_grpc
from meshcommon.cost_weights import read_class
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshcommon.peer_text import printable

NAMES_SHOWN_MAX: Final = 20
PATHS_MAX: Final = 16


class TopologyService(topology_pb2_grpc.TopologyServiceServicer):
    """Serves ListLinks, ListPaths and WhatIf."""

    def __init__(self, driver: RoutingDriver) -> None:
        self._driver = driver

    async def ListLinks(  # noqa: N802 - the name is the proto's
        self, request: topology_pb2.ListLinksRequest, context: Any
    ) -> topology_pb2.ListLinksResponse:
        """See the proto. Errors: NOT_A_MEMBER."""
        view = self._view()
        lsdb = self._driver.router.lsdb
        links = [_link(view, row) for row in lsdb.link_rows()]
        links.sort(key=lambda link: (getattr(link, "from"), link.to))
        return topology_pb2.ListLinksResponse(
            links=links, topology_version=lsdb.version, protection=_protection(self._driver.router.protection)
        )

    async def ListPaths(  # noqa: N802 - the name is the proto's
        self, request: topology_pb2.ListPathsRequest, context: Any
    ) -> topology_pb2.ListPathsResponse:
        """See the proto. Errors: NOT_A_MEMBER, UNKNOWN_NODE, INVALID_ARGUMENT, NO_PATH."""
        view, router = self._view(), self._driver.router
        start, end = getattr(request, "from"), request.to
        source, destination = _find(view, start), _find(view, end)
        if source == destination:
            raise MeshError(
                ErrorCode.INVALID_ARGUMENT,
                f"A path leads between two nodes, not from {start!r} to itself: name another.",
            )
        if request.count > PATHS_MAX:
            raise MeshError(
                ErrorCode.INVALID_ARGUMENT, f"At most {PATHS_MAX} paths are listed, not {request.count}: ask for fewer."
            )
        if request.disjoint not in topology_pb2.Disjointness.values():
            raise MeshError(
                ErrorCode.INVALID_ARGUMENT, "Two paths are disjoint by LINK or by NODE: name one of the two."
            )
        traffic_class = read_class(request.traffic_class or weights_pb2.TRAFFIC_CLASS_CONTROL)
        if request.disjoint:
            by_node = request.disjoint == topology_pb2.DISJOINTNESS_NODE
            paths = router.find_pair(source, destination, traffic_class, by_node=by_node)
        else:
            paths = router.find_paths(source, destination, request.count, traffic_class)
        if not paths:
            what = "No two disjoint paths lead" if request.disjoint else "No path leads"
            raise MeshError(
                ErrorCode.NO_PATH,
                f"{what} from {start!r} to {end!r} now: check the links of both with ListLinks.",
                {"from": start, "to": end},
            )
        return topology_pb2.ListPathsResponse(
            paths=[
                topology_pb2.TopologyPath(
                    nodes=[view.name(node) for node in path.nodes],
                    cost=path.cost,
                    terms=topology_pb2.CostTerms(**router.lsdb.terms(path.nodes, traffic_class)._asdict()),
                )
                for path in paths
            ]
        )

    async def WhatIf(  # noqa: N802 - the name is the proto's
        self, request: topology_pb2.WhatIfRequest, context: Any
    ) -> topology_pb2.WhatIfResponse:
        """See the proto. Errors: NOT_A_MEMBER, UNKNOWN_NODE, INVALID_ARGUMENT."""
        view, graph = self._view(), self._driver.router.lsdb.graph()
        if request.WhichOneof("event") == "stop":
            gone = _find(view, request.stop)
            before = {node: edges for node, edges in graph.items() if node != gone}
            effect = effect_of(reach_of(graph), without_node(graph, gone), before)
        elif request.WhichOneof("event") == "cut":
            one, other = _find(view, request.cut.one), _find(view, request.cut.other)
            if other not in graph.get(one, ()):
                raise MeshError(
                    ErrorCode.INVALID_ARGUMENT,
                    f"There is no link between {request.cut.one!r} and {request.cut.other!r} now: see ListLinks.",
                )
            effect = effect_of(reach_of(graph), without_link(graph, one, other), graph)
        else:
            raise MeshError(ErrorCode.INVALID_ARGUMENT, "Nothing happens: name a link to cut or a node to stop.")
        return topology_pb2.WhatIfResponse(
            before=_protection(effect.before),
            after=_protection(effect.after),
            lost=_pairs(view, effect.lost),
            lost_count=effect.lost_count,
            unprotected=_pairs(view, effect.unprotected),
            unprotected_count=effect.unprotected_count,
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


def _link(view: View, row: LinkRow) -> topology_pb2.Link:
    link = topology_pb2.Link(
        to=view.name(row.link.peer),
        latency_us=row.link.latency_us,
        jitter_us=row.link.jitter_us,
        loss_ppm=row.link.loss_ppm or 0,
        is_loss_measured=row.link.loss_ppm is not None,
        bandwidth_kbit=row.link.bandwidth_kbit,
        utilisation_permille=row.link.utilisation_permille,
        admin_cost=row.link.admin_cost,
        cost=row.cost,
        is_two_way=row.is_two_way,
    )
    # `from` is a keyword of Python.
    setattr(link, "from", view.name(row.origin))
    return link


def _protection(counts: Protection) -> topology_pb2.Protection:
    return topology_pb2.Protection(pairs=counts.pairs, connected=counts.connected, protected=counts.protected)


def _pairs(view: View, pairs: Iterable[Pair]) -> list[topology_pb2.NodePair]:
    named = sorted(tuple(sorted((view.name(one), view.name(other)))) for one, other in pairs)
    return [topology_pb2.NodePair(one=one, other=other) for one, other in named]
