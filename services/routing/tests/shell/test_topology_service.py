"""TopologyService on a routing service and a fake data plane: links, paths, what-if, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from meshapi.common.v1 import weights_pb2
from meshapi.supervisor.v1 import topology_pb2
from meshcommon.errors import ErrorCode
from meshcommon.grpc_client import mesh_error
from tests.shell.test_with_data_plane import running_site, triangle


def _ask(start: str, end: str, **fields: Any) -> topology_pb2.ListPathsRequest:
    request = topology_pb2.ListPathsRequest(to=end, **fields)
    setattr(request, "from", start)
    return request


async def test_topology_by_name(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        await triangle(site)
        links = await site.topology.ListLinks(topology_pb2.ListLinksRequest())
        ends = [(getattr(link, "from"), link.to, link.is_two_way) for link in links.links]
        assert ends == [(left, right, True) for left in "abc" for right in "abc" if left != right]
        paths = await site.topology.ListPaths(_ask("b", "c"))
        assert [list(path.nodes) for path in paths.paths] == [["b", "c"], ["b", "a", "c"]]
        assert links.topology_version == site.driver.router.lsdb.version
        assert (links.protection.pairs, links.protection.protected) == (3, 3)
        assert not any(link.is_loss_measured or link.HasField("bandwidth_kbit") for link in links.links)


async def test_k_paths_by_class_with_their_terms(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        await triangle(site)
        for traffic_class in (0, weights_pb2.TRAFFIC_CLASS_BULK):
            answer = await site.topology.ListPaths(_ask("b", "c", count=9, traffic_class=traffic_class))
            assert [list(path.nodes) for path in answer.paths] == [["b", "c"], ["b", "a", "c"]]
            for path in answer.paths:
                terms = {field.name: getattr(path.terms, field.name) for field in path.terms.DESCRIPTOR.fields}
                assert sum(terms.values()) == path.cost
                assert terms["hops"] == 2_000 * (len(path.nodes) - 1)
        for disjoint in (topology_pb2.DISJOINTNESS_LINK, topology_pb2.DISJOINTNESS_NODE):
            answer = await site.topology.ListPaths(_ask("b", "c", disjoint=disjoint))
            assert [list(path.nodes) for path in answer.paths] == [["b", "c"], ["b", "a", "c"]]
        for wrong in ({"count": 17}, {"traffic_class": 9}, {"disjoint": 9}):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await site.topology.ListPaths(_ask("b", "c", **wrong))
            assert mesh_error(caught.value, "routing").code == ErrorCode.INVALID_ARGUMENT


async def test_what_if_names_the_pairs_that_suffer(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        await triangle(site)
        cut = topology_pb2.LinkEnds(one="c", other="a")
        answer = await site.topology.WhatIf(topology_pb2.WhatIfRequest(cut=cut))
        assert (answer.before.protected, answer.after.protected, answer.after.connected) == (3, 0, 3)
        named = [(pair.one, pair.other) for pair in answer.unprotected]
        assert named == [("a", "b"), ("a", "c"), ("b", "c")]
        assert (answer.lost_count, answer.unprotected_count) == (0, 3)
        answer = await site.topology.WhatIf(topology_pb2.WhatIfRequest(stop="a"))
        assert (answer.before.pairs, answer.after.connected, answer.unprotected_count) == (1, 1, 1)
        for request, code in (
            (topology_pb2.WhatIfRequest(), ErrorCode.INVALID_ARGUMENT),
            (topology_pb2.WhatIfRequest(stop="z"), ErrorCode.UNKNOWN_NODE),
            (topology_pb2.WhatIfRequest(cut=topology_pb2.LinkEnds(one="a", other="a")), ErrorCode.INVALID_ARGUMENT),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await site.topology.WhatIf(request)
            assert mesh_error(caught.value, "routing").code == code


@pytest.mark.parametrize(
    ("start", "end", "code"),
    [
        ("a", "z", ErrorCode.UNKNOWN_NODE),
        ("z", "a", ErrorCode.UNKNOWN_NODE),
        ("a", "c", ErrorCode.NO_PATH),
        ("a", "a", ErrorCode.INVALID_ARGUMENT),
    ],
)
async def test_topology_refuses(tmp_path: Path, start: str, end: str, code: ErrorCode) -> None:
    async with running_site(tmp_path) as site:
        await site.configure()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await site.topology.ListPaths(_ask(start, end))
        assert mesh_error(caught.value, "routing").code == code


async def test_topology_outside_a_mesh(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await site.topology.ListLinks(topology_pb2.ListLinksRequest())
        assert mesh_error(caught.value, "routing").code == ErrorCode.NOT_A_MEMBER
