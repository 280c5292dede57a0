"""Three nodes in one process over an overlay in memory: publish, read, lose a leader, restart, compact, come late."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from mesh_data.core.stream_snapshot import StreamConfig
from mesh_data.core.stream_timing import StreamTiming
from mesh_data.core.view import Member, Node, NodeState, Stream, StreamState, View
from mesh_data.shell.data_api import StreamsApi
from mesh_data.shell.groups import Groups, ReplicaState
from mesh_data.shell.replica import Replica
from mesh_data.shell.streams_catalogue import StreamsCatalogue
from mesh_data.shell.streams_serving import StreamsServing
from meshapi.supervisor.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import MemberId, NodeId, StreamId
from meshtest.fake_overlay import FakeNetwork, FakeOverlay

TIMING = StreamTiming(tick_s=0.02, election_ticks=10, heartbeat_ticks=2, publish_deadline_s=8.0, attempt_s=0.5)
STREAM = StreamId(1)
NAME = "demo/lines"
COMMITTED = data_pb2.PUBLISH_WAIT_COMMITTED
A, B, C, D = NodeId(1), NodeId(2), NodeId(3), NodeId(4)


def make_view(
    revision: int = 1, state: StreamState = StreamState.FORMING, members: Iterable[NodeId] = (A, B, C)
) -> View:
    nodes = {node: Node(node, f"n{node}", bytes(32), "", NodeState.ACTIVE) for node in (A, B, C, D)}
    stream = Stream(
        STREAM,
        NAME,
        tuple(Member(node, MemberId(10 + node), is_voter=True) for node in members),
        state,
        revision,
        64 * 1024 * 1024,
    )
    return View(revision, "mesh", 1, nodes, {STREAM: stream})


class Site:
    """The streams part of one data plane."""

    def __init__(self, network: FakeNetwork, node: NodeId, directory: Path) -> None:
        self.overlay = FakeOverlay(network, node)
        self.groups = Groups(
            self.overlay, directory / str(node), TIMING, seed=node, wall_clock_ms=lambda: int(time.time() * 1000)
        )
        self.catalogue = StreamsCatalogue(self.overlay, self.groups)
        self.serving = StreamsServing(self.catalogue)
        self.api = StreamsApi(self.catalogue)
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
        self.set_view(make_view(2, StreamState.ACTIVE))

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
    directory: Path, *, nodes: Iterable[NodeId] = (A, B, C), loss: float = 0.0, delay_s: float = 0.0
) -> AsyncIterator[Cluster]:
    made = Cluster(directory, FakeNetwork(seed=7, loss=loss, delay_s=delay_s))
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


def request(values: Iterable[bytes], producer: tuple[int, int, int] = (0, 0, 0)) -> data_pb2.PublishRequest:
    return data_pb2.PublishRequest(
        stream=NAME,
        wait=COMMITTED,
        records=[data_pb2.PublishRecord(value=value) for value in values],
        producer_id=producer[0],
        producer_epoch=producer[1],
        base_sequence=producer[2],
    )


async def publish(site: Site, requests: Iterable[data_pb2.PublishRequest]) -> list[data_pb2.PublishResponse]:
    async def stream() -> AsyncIterator[data_pb2.PublishRequest]:
        for item in requests:
            yield item

    return [response async for response in site.api.Publish(stream(), None)]


async def publish_values(site: Site, values: Iterable[bytes]) -> list[data_pb2.PublishResponse]:
    return await publish(site, [request([value]) for value in values])


async def read(site: Site, from_offset: int = 0, records_max: int = 0, *, follow: bool = False) -> list[bytes]:
    asked = data_pb2.ReadRequest(stream=NAME, from_offset=from_offset, records_max=records_max, follow=follow)
    values: list[bytes] = []
    async for response in site.api.Read(asked, None):
        assert response.records[0].offset == from_offset + len(values)
        values += [record.value for record in response.records]
    return values


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"record %d" % number for number in range(start, start + count)]


async def test_first_member_leads_and_every_member_reads_what_was_published(tmp_path: Path) -> None:
    async with cluster(tmp_path) as three:
        await three.formed()
        values = numbered(50)
        responses = await publish_values(three.sites[A], values)
        assert [response.base_offset for response in responses] == list(range(50))
        for site in three.sites.values():
            assert await read(site) == values
        await three.converged()
        assert {report.leader_node for site in three.sites.values() for report in site.groups.reports()} == {A}


async def test_any_node_publishes_in_order_and_reads_even_without_a_replica(tmp_path: Path) -> None:
    async with cluster(tmp_path, nodes=(A, B, C, D), delay_s=0.002) as four:
        await until(lambda: four.leaders() == [A])
        values = numbered(40)
        for at, node in enumerate((B, D)):
            responses = await publish_values(four.sites[node], values[at * 20 : at * 20 + 20])
            assert [response.base_offset for response in responses] == list(range(at * 20, at * 20 + 20))
        assert await read(four.sites[D]) == values
        assert await read(four.sites[D], from_offset=35, records_max=3) == values[35:38]
        described = await four.sites[D].api.DescribeStream(data_pb2.DescribeStreamRequest(stream=NAME), None)
        assert (described.next_offset, described.leader, len(described.members)) == (40, "n1", 3)


async def test_pipelined_producer_keeps_its_order_under_loss_and_nothing_is_doubled(tmp_path: Path) -> None:
    """C2: no duplicate, no gap, no reorder, although requests and answers are lost."""
    async with cluster(tmp_path, loss=0.1, delay_s=0.002) as three:
        await until(lambda: len(three.leaders()) == 1)
        site = three.sites[C]
        ready = await site.api.InitProducer(data_pb2.InitProducerRequest(stream=NAME, producer_name="p"), None)
        batches = [numbered(5, start) for start in range(0, 200, 5)]
        responses = await publish(
            site,
            [request(values, (ready.producer_id, ready.producer_epoch, at * 5)) for at, values in enumerate(batches)],
        )
        assert [response.error.code for response in responses] == [""] * 40
        assert [response.base_offset for response in responses] == list(range(0, 200, 5))
        assert await read(three.sites[A]) == numbered(200)
        three.network.loss = 0.0
        await three.converged()


async def test_leader_dies_and_a_producer_goes_on_exactly_once(tmp_path: Path) -> None:
    async with cluster(tmp_path, delay_s=0.001) as three:
        await three.formed()
        site = three.sites[B]
        ready = await site.api.InitProducer(data_pb2.InitProducerRequest(stream=NAME), None)

        async def requests() -> AsyncIterator[data_pb2.PublishRequest]:
            for number in range(300):
                if number == 100:
                    await three.stop(A)
                yield request([b"record %d" % number], (ready.producer_id, ready.producer_epoch, number))

        responses = [response async for response in site.api.Publish(requests(), None)]
        assert [response.error.code for response in responses] == [""] * 300
        assert [response.base_offset for response in responses] == list(range(300))
        assert await three.leader() in (B, C)
        three.start(A, make_view(2, StreamState.ACTIVE))
        await three.converged()
        assert await read(three.sites[A]) == numbered(300)


async def test_everything_restarts_with_the_same_hash_and_the_same_records(tmp_path: Path) -> None:
    async with cluster(tmp_path) as three:
        await three.formed()
        values = numbered(200)
        await publish(three.sites[A], [request(values)])
        chain = await three.converged()
        for node in (A, B, C):
            await three.stop(node)
        for node in (A, B, C):
            three.start(node, make_view(2, StreamState.ACTIVE))
        await until(lambda: len(three.leaders()) == 1)
        assert await three.converged() == chain
        assert await read(three.sites[B]) == values
        assert (await publish_values(three.sites[C], [b"more"]))[0].base_offset == 200


async def test_minority_answers_no_quorum_and_then_the_repetition_is_recognised(tmp_path: Path) -> None:
    async with cluster(tmp_path) as three:
        await three.formed()
        site = three.sites[A]
        ready = await site.api.InitProducer(data_pb2.InitProducerRequest(stream=NAME), None)
        sent = request([b"once"], (ready.producer_id, ready.producer_epoch, 0))
        three.network.isolate(A)
        (failed,) = await publish(site, [sent])
        assert failed.error.code in (ErrorCode.OUTCOME_UNKNOWN, ErrorCode.NO_QUORUM)
        assert failed.error.retryable
        three.network.heal()
        (answered,) = await publish(site, [sent])
        assert answered.error.code == ""
        (again,) = await publish(three.sites[C], [sent])
        assert (again.base_offset, again.is_duplicate) == (answered.base_offset, True)
        await three.converged()
        assert await read(three.sites[B]) == [b"once"]


async def test_named_producer_takes_over_and_fences_the_earlier_one(tmp_path: Path) -> None:
    async with cluster(tmp_path) as three:
        await three.formed()
        named = data_pb2.InitProducerRequest(stream=NAME, producer_name="outbox")
        first = await three.sites[A].api.InitProducer(named, None)
        await publish(three.sites[A], [request([b"x", b"y"], (first.producer_id, first.producer_epoch, 0))])
        second = await three.sites[B].api.InitProducer(named, None)
        assert (second.producer_id, second.producer_epoch) == (first.producer_id, first.producer_epoch + 1)
        assert (second.next_sequence, second.last_offset_next) == (2, 2)
        (old,) = await publish(three.sites[C], [request([b"z"], (first.producer_id, first.producer_epoch, 2))])
        assert old.error.code == ErrorCode.PRODUCER_FENCED
        (gap,) = await publish(three.sites[C], [request([b"z"], (second.producer_id, second.producer_epoch, 3))])
        assert (gap.error.code, gap.error.details["next_sequence"]) == (ErrorCode.SEQUENCE_GAP, "2")
        (unknown,) = await publish(three.sites[C], [request([b"z"], (999, 1, 0))])
        assert unknown.error.code == ErrorCode.PRODUCER_EXPIRED
        assert await read(three.sites[A]) == [b"x", b"y"]


async def test_follow_read_waits_and_gets_new_records_here_and_elsewhere(tmp_path: Path) -> None:
    async with cluster(tmp_path, nodes=(A, B, C, D)) as four:
        await until(lambda: len(four.leaders()) == 1)
        reads = [asyncio.create_task(read(four.sites[node], records_max=3, follow=True)) for node in (B, D)]
        for value in (b"one", b"two", b"three"):
            await publish_values(four.sites[A], [value])
        for task in reads:
            assert await asyncio.wait_for(task, 10) == [b"one", b"two", b"three"]


async def test_compaction_moves_the_floor_and_a_late_member_gets_the_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = classmethod(lambda cls, stream_id, cap: StreamConfig(stream_id, 64_000, 8_000))
    monkeypatch.setattr(StreamConfig, "of", small)
    async with cluster(tmp_path, nodes=(A, B)) as three:
        await until(lambda: three.leaders() == [A])
        value = b"v" * 1000
        await publish_values(three.sites[A], [value + b"%d" % number for number in range(300)])
        leader = three.sites[A].replica
        await until(lambda: leader.floor_offset > 0)
        assert leader.state.retained_bytes <= 64_000 + 8_000
        with pytest.raises(MeshError) as below:
            await read(three.sites[A], from_offset=0)
        assert below.value.code == ErrorCode.OFFSET_BELOW_FLOOR
        assert below.value.details["floor_offset"] == str(leader.floor_offset)
        late = three.start(C, make_view(2, StreamState.ACTIVE))
        three.set_view(make_view(2, StreamState.ACTIVE))
        await until(lambda: late.groups.replica(STREAM) is not None and late.replica.next_offset == 300)
        await three.converged()
        floor = max(site.replica.floor_offset for site in three.sites.values())
        expected = [value + b"%d" % number for number in range(floor, 300)]
        for site in three.sites.values():
            assert await read(site, from_offset=floor) == expected
        await three.stop(A)
        assert (await publish_values(three.sites[C], [b"after"]))[0].error.code == ""
        three.start(A, make_view(2, StreamState.ACTIVE))
        await three.converged()
        assert await read(three.sites[A], from_offset=floor) == [*expected, b"after"]


async def test_deleted_stream_is_destroyed_and_reported(tmp_path: Path) -> None:
    async with cluster(tmp_path) as three:
        await three.formed()
        await publish_values(three.sites[A], [b"gone"])
        three.set_view(make_view(3, StreamState.DELETING))
        await until(
            lambda: all(site.groups.reports()[0].state is ReplicaState.DESTROYED for site in three.sites.values())
        )
        (refused,) = await publish_values(three.sites[A], [b"late"])
        assert refused.error.code == ErrorCode.STREAM_NOT_FOUND
        await three.stop(B)
        restarted = three.start(B, make_view(3, StreamState.DELETING))
        await until(lambda: len(restarted.groups.reports()) == 1)
        assert restarted.groups.reports()[0].state is ReplicaState.DESTROYED


async def test_stopped_node_closes_its_groups_and_keeps_its_data(tmp_path: Path) -> None:
    async with cluster(tmp_path) as three:
        await three.formed()
        await publish_values(three.sites[A], [b"kept"])
        site = three.sites[C]
        site.overlay.set_view(make_view(2, StreamState.ACTIVE), is_running=False)
        await until(lambda: site.groups.replica(STREAM) is None)
        with pytest.raises(MeshError) as stopped:
            await read(site)
        assert stopped.value.code == ErrorCode.NODE_STOPPED
        site.overlay.set_view(make_view(2, StreamState.ACTIVE))
        await until(lambda: site.groups.replica(STREAM) is not None and site.replica.next_offset == 1)
        assert await read(site) == [b"kept"]


async def test_leaving_the_mesh_forgets_its_data_but_a_missing_view_at_start_does_not(tmp_path: Path) -> None:
    async with cluster(tmp_path) as three:
        await three.formed()
        await three.converged()
        directory = tmp_path / str(C)
        await three.stop(C)
        site = three.start(C, None)
        await asyncio.sleep(0)
        assert any(directory.rglob("*"))
        site.overlay.set_view(make_view(2, StreamState.ACTIVE))
        await until(lambda: site.groups.replica(STREAM) is not None)
        site.overlay.set_view(None)
        await until(lambda: not directory.exists())
        with pytest.raises(MeshError) as outside:
            await read(site)
        assert outside.value.code == ErrorCode.NOT_A_MEMBER


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (data_pb2.PublishRequest(stream=NAME, records=[data_pb2.PublishRecord(value=b"x")]), ErrorCode.WAIT_REQUIRED),
        (data_pb2.PublishRequest(stream=NAME, wait=COMMITTED), ErrorCode.EMPTY_BATCH),
        (
            data_pb2.PublishRequest(stream="no/such", wait=COMMITTED, records=[data_pb2.PublishRecord(value=b"x")]),
            ErrorCode.STREAM_NOT_FOUND,
        ),
        (
            data_pb2.PublishRequest(stream="Bad", wait=COMMITTED, records=[data_pb2.PublishRecord(value=b"x")]),
            ErrorCode.ILLEGAL_NAME,
        ),
        (request([bytes(1024 * 1024 + 1)]), ErrorCode.MESSAGE_TOO_LARGE),
        (request([bytes(1024 * 1024), b""]), ErrorCode.MESSAGE_TOO_LARGE),
        (
            data_pb2.PublishRequest(
                stream=NAME, wait=COMMITTED, records=[data_pb2.PublishRecord(value=b"", key=bytes(32 * 1024 + 1))]
            ),
            ErrorCode.MESSAGE_TOO_LARGE,
        ),
    ],
)
async def test_bad_batch_is_refused_in_its_place_and_the_call_goes_on(
    tmp_path: Path, bad: data_pb2.PublishRequest, code: ErrorCode
) -> None:
    async with cluster(tmp_path) as three:
        await three.formed()
        responses = await publish(three.sites[A], [bad, request([bytes(1024 * 1024)])])
        assert [response.error.code for response in responses] == [code, ""]
        if code == ErrorCode.MESSAGE_TOO_LARGE:
            assert int(responses[0].error.details["limit"]) > 0
        assert responses[1].base_offset == 0


async def test_reading_past_the_end_says_where_the_end_is(tmp_path: Path) -> None:
    async with cluster(tmp_path) as three:
        await three.formed()
        await publish_values(three.sites[A], numbered(3))
        for site in three.sites.values():
            assert await read(site, from_offset=3) == []
            with pytest.raises(MeshError) as past:
                await read(site, from_offset=4)
            assert (past.value.code, past.value.details["next_offset"]) == (ErrorCode.OFFSET_PAST_END, "3")


async def test_failed_disk_closes_groups_with_the_reason_and_others_go_on(tmp_path: Path) -> None:
    async with cluster(tmp_path) as three:
        await three.formed()
        site = three.sites[A]
        site.groups._fail_host("no space left on device")
        assert site.groups.reports()[0].state is ReplicaState.FAILED
        assert "no space left" in site.groups.reports()[0].reason
        # The node still publishes and reads through the others.
        (answered,) = await publish_values(site, [b"elsewhere"])
        assert answered.error.code == ""
        assert await read(site) == [b"elsewhere"]


async def test_view_of_another_revision_keeps_the_replica_and_updates_its_stream(tmp_path: Path) -> None:
    async with cluster(tmp_path) as three:
        await three.formed()
        before = three.sites[A].replica
        view = make_view(9, StreamState.ACTIVE)
        stream = replace(view.streams[STREAM], revision=9)
        three.set_view(replace(view, streams={STREAM: stream}))
        await until(lambda: three.sites[A].replica.stream.revision == 9)
        assert three.sites[A].replica is before
