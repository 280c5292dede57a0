"""Other nodes that answer nonsense, or name each other as the leader: an error of that request, never of the node."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from data_plane_testing.stream_cluster import (
    NAME,
    STREAM,
    A,
    B,
    C,
    Cluster,
    D,
    Site,
    cluster,
    make_view,
    publish_values,
    read,
    until,
)
from mesh_data.core.stream_requests import Method
from mesh_data.core.view import StreamPhase
from mesh_data.shell.streams.stream_calls import describe_live
from meshapi.data.v1 import data_pb2 as private_pb2
from meshapi.supervisor.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId


@pytest.fixture
async def four(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Three members, and a node that has to ask them for everything."""
    async with cluster(tmp_path, nodes=(A, B, C, D)) as made:
        await until(lambda: made.leaders() == [A])
        made.set_view(make_view(2, StreamPhase.ACTIVE))
        await publish_values(made.sites[A], [b"0", b"1"])
        yield made


def serve(site: Site, method: Method, body: bytes) -> None:
    async def answer(_source: NodeId, _body: bytes) -> bytes:
        return body

    site.overlay.serve(method, answer)


@pytest.mark.parametrize("method", [Method.FETCH, Method.DESCRIBE, Method.INIT_PRODUCER])
@pytest.mark.parametrize("body", [b"\xff", b"\x0a\xff", bytes(300)], ids=["a byte", "cut short", "zeros"])
async def test_another_member_is_asked_instead(four: Cluster, method: Method, body: bytes) -> None:
    """Also when what is malformed comes from the one that leads: it may come right, and until then it is not believed."""
    site = four.sites[D]
    serve(four.sites[B], method, body)
    if method is Method.FETCH:
        assert await read(site) == [b"0", b"1"]
    elif method is Method.DESCRIBE:
        found = await site.api.DescribeStream(data_pb2.DescribeStreamRequest(stream=NAME), None)
        assert found.next_offset == 2
    else:
        init = data_pb2.InitProducerRequest(stream=NAME, producer_name="meter")
        assert (await site.api.InitProducer(init, None)).producer_epoch == 1


async def test_text_and_numbers_of_the_leader_are_made_safe(four: Cluster) -> None:
    site = four.sites[D]
    said = data_pb2.DescribeStreamResponse(
        stream="other/name", leader="\x1b[2J" + "n" * 5000, change="c" * 5000, next_offset=7, stream_id=99
    )
    for member in (A, B, C):
        serve(four.sites[member], Method.DESCRIBE, said.SerializeToString())
    found = await describe_live(site.catalogue, site.catalogue.named(NAME))
    assert (found.stream, found.stream_id, found.next_offset) == (NAME, STREAM, 7)
    assert len(found.leader) <= 200
    assert found.leader.isprintable()
    assert len(found.change) <= 200
    said.next_offset = 2**63
    for member in (A, B, C):
        serve(four.sites[member], Method.DESCRIBE, said.SerializeToString())
    with pytest.raises(MeshError) as refused:
        await describe_live(site.catalogue, site.catalogue.named(NAME))
    assert refused.value.code is ErrorCode.STREAM_UNAVAILABLE


@pytest.mark.parametrize(
    "piece",
    [
        private_pb2.VerifyLogResponse(index=1, entries=5, chain=bytes(32)),
        private_pb2.VerifyLogResponse(index=2**63, entries=5, chain=bytes(32)),
        private_pb2.VerifyLogResponse(index=3, entries=1, bytes=2**63, chain=bytes(32)),
        private_pb2.VerifyLogResponse(index=3, entries=1, chain=b"short"),
        None,
    ],
    ids=["no progress", "too far", "bytes", "chain", "nonsense"],
)
async def test_an_audit_ends_whatever_a_member_says(four: Cluster, piece: private_pb2.VerifyLogResponse | None) -> None:
    """A member that tells of a piece without progress would be asked for it for ever."""
    site = four.sites[D]
    serve(four.sites[B], Method.VERIFY_LOG, b"\xff" if piece is None else piece.SerializeToString())
    serve(
        four.sites[C], Method.CHAIN, private_pb2.ChainMarks(marks=[private_pb2.ChainMark(index=9)]).SerializeToString()
    )
    if piece is not None and piece.index == 1:
        # A later piece without progress: the first one is taken.
        asked = []

        async def again(_source: NodeId, body: bytes) -> bytes:
            asked.append(body)
            return private_pb2.VerifyLogResponse(index=2, entries=1, chain=bytes(32)).SerializeToString()

        four.sites[B].overlay.serve(Method.VERIFY_LOG, again)
    async with asyncio.timeout(20):
        audited = await site.raft_api.AuditStream(data_pb2.AuditStreamRequest(stream=NAME), None)
    problems = {member.node: member.problem for member in audited.members}
    assert "malformed response" in problems["n2"]
    assert "malformed response" in problems["n3"]
    assert problems["n1"] == ""


@pytest.mark.parametrize("hint", ["x", "²", "-1", "1" * 400, "", "99", "0x2"])
async def test_a_hint_that_names_no_member_is_ignored(four: Cluster, hint: str) -> None:
    catalogue = four.sites[D].catalogue
    stream = catalogue.named(NAME)
    error = MeshError(ErrorCode.NOT_LEADER, "Not here.", {"leader": hint})
    assert not catalogue.hints.learn(stream, B, error)
    assert catalogue.hints.learn(stream, B, MeshError(ErrorCode.NOT_LEADER, "Not here.", {"leader": str(C)}))


@pytest.mark.parametrize("what", ["describe", "publish"])
async def test_two_nodes_that_name_each_other_are_not_asked_in_a_tight_loop(four: Cluster, what: str) -> None:
    site = four.sites[D]
    asked: list[float] = []

    def naming(other: NodeId) -> Any:
        async def refuse(_source: NodeId, _body: bytes) -> bytes:
            asked.append(time.monotonic())
            raise MeshError(ErrorCode.NOT_LEADER, "Not here.", {"leader": str(other)})

        return refuse

    for method in (Method.DESCRIBE, Method.PUBLISH):
        four.sites[B].overlay.serve(method, naming(C))
        four.sites[C].overlay.serve(method, naming(B))
    stream = site.catalogue.named(NAME)
    site.catalogue.hints.learn(stream, A, MeshError(ErrorCode.NOT_LEADER, "", {"leader": str(B)}))
    calling: asyncio.Task[Any]
    if what == "describe":
        calling = asyncio.create_task(describe_live(site.catalogue, stream), name="describe")
    else:
        calling = asyncio.create_task(publish_values(site, [b"x"]), name="publish")
    await asyncio.wait((calling,), timeout=1.0)
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)
    # Two at once, then 50 ms of pause.
    assert 2 <= len(asked) <= 50
