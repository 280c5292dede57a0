"""Nodes with stream groups in one process, over an overlay in memory and real Raft logs: what the tests beside share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from mesh_data.core.disk_room import RoomLimits
from mesh_data.core.replica_report import ReplicaState
from mesh_data.core.stream_timing import StreamTiming
from mesh_data.core.view import Member, Node, NodeState, Retiring, Stream, StreamPhase, View
from mesh_data.shell.groups.groups import Groups
from mesh_data.shell.groups.replica import Replica
from mesh_data.shell.streams.data_api import StreamsApi
from mesh_data.shell.streams.raft_api import RaftApi
from mesh_data.shell.streams.raft_serving import RaftServing
from mesh_data.shell.streams.stream_budgets import StreamBudgets
from mesh_data.shell.streams.streams_catalogue import StreamsCatalogue
from mesh_data.shell.streams.streams_serving import StreamsServing
from meshapi.supervisor.v1 import data_pb2
from meshcommon.admin import Readiness
from meshcommon.ids import MemberId, NodeId, StreamId
from meshtest.fake_overlay import FakeNetwork, FakeOverlay
from meshwire.records import Record, encode_batch, iter_values

TIMING = StreamTiming(
    tick_s=0.02,
    election_ticks=10,
    heartbeat_ticks=2,
    publish_deadline_s=4.0,
    attempt_s=0.5,
    read_barrier_s=2.0,
    boot_raise_s=0.2,
)
STREAM = StreamId(1)
NAME = "demo/lines"
COMMITTED = data_pb2.PUBLISH_WAIT_COMMITTED
A, B, C, D = NodeId(1), NodeId(2), NodeId(3), NodeId(4)


def make_view(
    revision: int = 1,
    state: StreamPhase = StreamPhase.FORMING,
    members: Iterable[NodeId] = (A, B, C),
    *,
    retiring: Iterable[Retiring] = (),
    is_sealed: bool = False,
) -> View:
    """A view with one stream; the member id of a node is 10 more than its own."""
    nodes = {node: Node(node, f"n{node}", bytes(32), "", NodeState.ACTIVE) for node in (A, B, C, D)}
    stream = Stream(
        STREAM,
        NAME,
        tuple(Member(node, MemberId(10 + node), is_voter=True) for node in members),
        state,
        revision,
        64 * 1024 * 1024,
        tuple(retiring),
        is_sealed,
    )
    return View(revision, "mesh", 1, nodes, {STREAM: stream})


class Site:
    """The streams part of one data plane."""

    def __init__(self, network: FakeNetwork, node: NodeId, directory: Path) -> None:
        self.overlay = FakeOverlay(network, node)
        self.readiness = Readiness()
        self.groups = Groups(
            self.overlay,
            directory / str(node),
            TIMING,
            seed=node,
            wall_clock_ms=lambda: int(time.time() * 1000),
            readiness=self.readiness,
            room=RoomLimits(),
        )
        self.catalogue = StreamsCatalogue(self.overlay, self.groups)
        self.budgets = StreamBudgets()
        self.serving = StreamsServing(self.catalogue, self.budgets.read_room)
        self.raft_serving = RaftServing(self.catalogue)
        self.api = StreamsApi(self.catalogue, self.budgets)
        self.raft_api = RaftApi(self.catalogue)
        self._running = asyncio.create_task(self.groups.run(), name=f"groups of {node}")

    @property
    def replica(self) -> Replica:
        replica = self.groups.replica(STREAM)
        assert replica is not None
        return replica

    async def stop(self) -> None:
        await self.overlay.close()
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)


class Cluster:
    """Sites that can be stopped and started again on their directories."""

    def __init__(self, directory: Path, network: FakeNetwork) -> None:
        self.directory = directory
        self.network = network
        self.sites: dict[NodeId, Site] = {}

    def start(self, node: NodeId, view: View | None) -> Site:
        site = Site(self.network, node, self.directory)
        self.sites[node] = site
        site.overlay.set_view(view)
        return site

    async def stop(self, node: NodeId) -> None:
        await self.sites.pop(node).stop()

    def set_view(self, view: View) -> None:
        for site in self.sites.values():
            site.overlay.set_view(view)

    def leaders(self) -> list[NodeId]:
        return [
            node
            for node, site in self.sites.items()
            if (replica := site.groups.replica(STREAM)) is not None and replica.is_leading
        ]

    async def leader(self) -> NodeId:
        await until(lambda: len(self.leaders()) == 1)
        return self.leaders()[0]

    async def formed(self) -> None:
        """The group has formed and the catalogue says so."""
        await until(lambda: self.leaders() == [A])
        await until(lambda: all(site.groups.reports()[0].state is ReplicaState.OPEN for site in self.sites.values()))
        self.set_view(make_view(2, StreamPhase.ACTIVE))

    async def converged(self) -> bytes:
        """Waits until all members applied the same and returns the hash chain (I4)."""
        members = [site for node, site in self.sites.items() if node != D]
        await until(lambda: all(site.groups.replica(STREAM) is not None for site in members))
        replicas = [site.replica for site in members]
        await until(
            lambda: (
                len({item.state.applied_index for item in replicas}) == 1
                and not any(item.is_blank for item in replicas)
            )
        )
        assert len({item.state.chain for item in replicas}) == 1
        assert len({item.state.snapshot() for item in replicas}) == 1
        return replicas[0].state.chain


@asynccontextmanager
async def cluster(
    directory: Path, *, nodes: Iterable[NodeId] = (A, B, C), loss: float = 0.0, delay_s: float = 0.0, seed: int = 7
) -> AsyncIterator[Cluster]:
    made = Cluster(directory, FakeNetwork(seed=seed, loss=loss, delay_s=delay_s))
    try:
        for node in nodes:
            made.start(node, make_view())
        yield made
    finally:
        for node in tuple(made.sites):
            await made.stop(node)


async def until(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - the condition spans several nodes, no one event covers it
            await asyncio.sleep(0.01)


def request(values: Iterable[bytes], producer: tuple[int, int, int] = (0, 0, 0)) -> data_pb2.PublishBatchRequest:
    batch = encode_batch([Record(value) for value in values], *producer)
    return data_pb2.PublishBatchRequest(stream=NAME, wait=COMMITTED, batch=batch)


async def publish(site: Site, requests: Iterable[data_pb2.PublishBatchRequest]) -> list[data_pb2.PublishBatchResponse]:
    async def stream() -> AsyncIterator[data_pb2.PublishBatchRequest]:
        for item in requests:
            yield item

    return [response async for response in site.api.PublishBatch(stream(), None)]


async def publish_values(site: Site, values: Iterable[bytes]) -> list[data_pb2.PublishBatchResponse]:
    return await publish(site, [request([value]) for value in values])


def opened(response: data_pb2.ReadBatchesResponse, from_offset: int = 0) -> list[tuple[int, bytes]]:
    """Offset and value of each record of an answer from `from_offset` on."""
    return [
        (offset, value)
        for batch in response.batches
        for offset, value in enumerate(iter_values(batch.batch), batch.base_offset)
        if offset >= from_offset
    ]


async def read(site: Site, from_offset: int = 0, records_max: int = 0, *, follow: bool = False) -> list[bytes]:
    asked = data_pb2.ReadBatchesRequest(stream=NAME, from_offset=from_offset, records_max=records_max, follow=follow)
    values: list[bytes] = []
    async for response in site.api.ReadBatches(asked, None):
        records = opened(response, from_offset)
        assert [offset for offset, _ in records] == [from_offset + len(values) + at for at in range(len(records))]
        assert response.stream_id == STREAM
        values += [value for _, value in records]
    return values[:records_max] if records_max else values


async def read_stale(site: Site, from_offset: int = 0) -> tuple[list[bytes], data_pb2.ReplicaView]:
    """What the site's replica has, and how new that is."""
    asked = data_pb2.ReadBatchesRequest(
        stream=NAME, from_offset=from_offset, consistency=data_pb2.READ_CONSISTENCY_STALE_OK
    )
    first, *others = [response async for response in site.api.ReadBatches(asked, None)]
    assert not first.batches
    assert not any(response.HasField("view") for response in others)
    return [value for response in others for _, value in opened(response, from_offset)], first.view


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"record %d" % number for number in range(start, start + count)]
