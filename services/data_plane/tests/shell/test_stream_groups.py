"""Three nodes in one process over an overlay in memory: publish, read, lose a leader, restart, compact, come late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from data_plane_testing.stream_cluster import (
    COMMITTED,
    NAME,
    STREAM,
    A,
    B,
    C,
    D,
    cluster,
    make_view,
    numbered,
    publish,
    publish_values,
    read,
    request,
    until,
)
from mesh_data.core.replica_report import ReplicaState
from mesh_data.core.stream_snapshot import StreamConfig
from mesh_data.core.view import StreamPhase
from mesh_data.shell.groups.replica import Replica
from meshapi.supervisor.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import StreamId
from meshwire.batch import MAX_BATCH_BYTES, MAX_BODY_BYTES, Codec, assemble
from meshwire.packet import Protocol
from meshwire.records import Record, encode_batch


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

        async def requests() -> AsyncIterator[data_pb2.PublishBatchRequest]:
            for number in range(300):
                if number == 100:
                    await three.stop(A)
                yield request([b"record %d" % number], (ready.producer_id, ready.producer_epoch, number))

        responses = [response async for response in site.api.PublishBatch(requests(), None)]
        assert [response.error.code for response in responses] == [""] * 300
        assert [response.base_offset for response in responses] == list(range(300))
        assert await three.leader() in (B, C)
        three.start(A, make_view(2, StreamPhase.ACTIVE))
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
            three.start(node, make_view(2, StreamPhase.ACTIVE))
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
        late = three.start(C, make_view(2, StreamPhase.ACTIVE))
        three.set_view(make_view(2, StreamPhase.ACTIVE))
        await until(lambda: late.groups.replica(STREAM) is not None and late.replica.next_offset == 300)
        await three.converged()
        floor = max(site.replica.floor_offset for site in three.sites.values())
        expected = [value + b"%d" % number for number in range(floor, 300)]
        for site in three.sites.values():
            assert await read(site, from_offset=floor) == expected
        await three.stop(A)
        assert (await publish_values(three.sites[C], [b"after"]))[0].error.code == ""
        three.start(A, make_view(2, StreamPhase.ACTIVE))
        await three.converged()
        assert await read(three.sites[A], from_offset=floor) == [*expected, b"after"]


async def test_deleted_stream_is_destroyed_and_reported(tmp_path: Path) -> None:
    async with cluster(tmp_path) as three:
        await three.formed()
        await publish_values(three.sites[A], [b"gone"])
        three.set_view(make_view(3, StreamPhase.DELETING))
        await until(lambda: all(site.groups.reports()[0].state is ReplicaState.SEALED for site in three.sites.values()))
        three.set_view(make_view(4, StreamPhase.DELETING, is_sealed=True))
        await until(
            lambda: all(site.groups.reports()[0].state is ReplicaState.DESTROYED for site in three.sites.values())
        )
        (refused,) = await publish_values(three.sites[A], [b"late"])
        assert refused.error.code == ErrorCode.STREAM_NOT_FOUND
        await three.stop(B)
        restarted = three.start(B, make_view(4, StreamPhase.DELETING, is_sealed=True))
        await until(lambda: len(restarted.groups.reports()) == 1)
        assert restarted.groups.reports()[0].state is ReplicaState.DESTROYED


async def test_stopped_node_closes_its_groups_and_keeps_its_data(tmp_path: Path) -> None:
    async with cluster(tmp_path) as three:
        await three.formed()
        await publish_values(three.sites[A], [b"kept"])
        site = three.sites[C]
        site.overlay.set_view(make_view(2, StreamPhase.ACTIVE), is_running=False)
        await until(lambda: site.groups.replica(STREAM) is None)
        with pytest.raises(MeshError) as stopped:
            await read(site)
        assert stopped.value.code == ErrorCode.NODE_STOPPED
        site.overlay.set_view(make_view(2, StreamPhase.ACTIVE))
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
        site.overlay.set_view(make_view(2, StreamPhase.ACTIVE))
        await until(lambda: site.groups.replica(STREAM) is not None)
        site.overlay.set_view(None)
        await until(lambda: not directory.exists())
        with pytest.raises(MeshError) as outside:
            await read(site)
        assert outside.value.code == ErrorCode.NOT_A_MEMBER


GOOD = encode_batch([Record(b"x")])


def changed(**fields: object) -> data_pb2.PublishBatchRequest:
    wanted: dict[str, object] = {"stream": NAME, "wait": COMMITTED, "batch": GOOD}
    return data_pb2.PublishBatchRequest(**{**wanted, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (changed(wait=0), ErrorCode.WAIT_REQUIRED),
        (changed(stream="no/such"), ErrorCode.STREAM_NOT_FOUND),
        (changed(stream="Bad"), ErrorCode.ILLEGAL_NAME),
        (changed(batch=b""), ErrorCode.INVALID_ARGUMENT),
        (changed(batch=GOOD[:-1] + b"y"), ErrorCode.INVALID_ARGUMENT),
        (changed(batch=GOOD[:2] + b"\x01" + GOOD[3:]), ErrorCode.INVALID_ARGUMENT),
        (changed(batch=GOOD[:29] + b"\x7f" + GOOD[30:]), ErrorCode.MESSAGE_TOO_LARGE),
        (changed(batch=GOOD + bytes(MAX_BATCH_BYTES)), ErrorCode.MESSAGE_TOO_LARGE),
    ],
    ids=["wait", "stream", "name", "empty", "checksum", "format of before", "announced size", "size"],
)
async def test_bad_batch_is_refused_in_its_place_and_the_call_goes_on(
    tmp_path: Path, bad: data_pb2.PublishBatchRequest, code: ErrorCode
) -> None:
    async with cluster(tmp_path) as three:
        await three.formed()
        responses = await publish(three.sites[A], [bad, request([bytes(1024 * 1024)])])
        assert [response.error.code for response in responses] == [code, ""]
        assert responses[1].base_offset == 0


async def test_records_are_the_gateways_matter(tmp_path: Path) -> None:
    async with cluster(tmp_path) as three:
        await three.formed()
        api = three.sites[A].api
        for call in (api.Publish, api.Read):
            with pytest.raises(MeshError) as refusal:
                call(None, None)
            assert refusal.value.mapping.grpc == "UNIMPLEMENTED"


async def test_a_batch_passes_as_it_is_whatever_it_holds(tmp_path: Path) -> None:
    """Also one whose body no reader can open, and a compressed one: nobody on the way looks inside."""
    lying = assemble(bytes(40), record_count=5, uncompressed_bytes=40, producer_id=0)
    nonsense = assemble(b"no frame", record_count=2, uncompressed_bytes=1000, codec=Codec.ZSTD)
    packed = encode_batch([Record(b"v" * 500, b"k", (("traceparent", b"00-1"),))], codec=Codec.ZSTD)
    largest = assemble(bytes(MAX_BODY_BYTES), record_count=1, uncompressed_bytes=MAX_BODY_BYTES)
    async with cluster(tmp_path) as four:
        await four.formed()
        four.start(D, make_view(2, StreamPhase.ACTIVE))
        batches = [lying, nonsense, packed, largest]
        answers = await publish(four.sites[A], [changed(batch=batch) for batch in batches[:3]])
        answers += await publish(four.sites[D], [changed(batch=largest)])
        assert [(answer.base_offset, answer.count) for answer in answers] == [(0, 5), (5, 2), (7, 1), (8, 1)]
        for site in four.sites.values():
            asked = data_pb2.ReadBatchesRequest(stream=NAME)
            found = [item async for response in site.api.ReadBatches(asked, None) for item in response.batches]
            assert [item.base_offset for item in found] == [0, 5, 7, 8]
            assert [item.batch for item in found] == batches


async def test_a_read_of_so_many_records_ends_with_the_batch_that_brings_them(tmp_path: Path) -> None:
    async with cluster(tmp_path) as three:
        await three.formed()
        await publish(three.sites[A], [request(numbered(4, start=4 * at)) for at in range(3)])
        for records_max, offsets in ((1, [0]), (4, [0]), (5, [0, 4]), (12, [0, 4, 8]), (99, [0, 4, 8])):
            asked = data_pb2.ReadBatchesRequest(stream=NAME, records_max=records_max)
            responses = [response async for response in three.sites[C].api.ReadBatches(asked, None)]
            assert [item.base_offset for response in responses for item in response.batches] == offsets


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
        assert any("no space left" in reason for reason in site.readiness.reasons())
        # The node still publishes and reads through the others.
        (answered,) = await publish_values(site, [b"elsewhere"])
        assert answered.error.code == ""
        assert await read(site) == [b"elsewhere"]


async def test_entry_that_cannot_be_applied_closes_its_group_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tmp_path) as three:
        await three.formed()
        view = make_view(3, StreamPhase.ACTIVE)
        other = replace(view.streams[STREAM], stream_id=StreamId(2), name="demo/other", state=StreamPhase.FORMING)
        three.set_view(replace(view, streams={STREAM: view.streams[STREAM], StreamId(2): other}))
        site = three.sites[A]

        def sound() -> Replica | None:
            replica = site.groups.replica(StreamId(2))
            return replica if replica is not None and replica.is_leading and replica.is_formed else None

        await until(lambda: sound() is not None)

        def bug(*_: object) -> None:
            raise ZeroDivisionError("planted")

        monkeypatch.setattr(site.replica.core, "apply_run", bug)
        failing = asyncio.gather(*(publish_values(site, [b"%d" % number]) for number in range(3)))
        asked = request([b"goes on"])
        asked.stream = "demo/other"
        answers = await publish(site, [asked])
        assert [(answer.error.code, answer.base_offset) for answer in answers] == [("", 0)]
        await until(lambda: site.groups.reports()[0].state is ReplicaState.FAILED)
        assert "ZeroDivisionError" in site.groups.reports()[0].reason
        assert site.groups.reports()[1].state is ReplicaState.OPEN
        assert REGISTRY.get_sample_value("mesh_unexpected_errors_total", {"where": "stream_apply"}) == 1
        # What was committed here and not applied may not be called committed; the other members go on with the stream.
        told = {answer.error.code for answered in await failing for answer in answered}
        assert told <= {ErrorCode.OUTCOME_UNKNOWN, ErrorCode.STORAGE_FAILED}
        assert [answer.error.code for answer in await publish_values(site, [b"later"])] == [""]


async def test_view_of_another_revision_keeps_the_replica_and_updates_its_stream(tmp_path: Path) -> None:
    async with cluster(tmp_path) as three:
        await three.formed()
        before = three.sites[A].replica
        view = make_view(9, StreamPhase.ACTIVE)
        stream = replace(view.streams[STREAM], revision=9)
        three.set_view(replace(view, streams={STREAM: stream}))
        await until(lambda: three.sites[A].replica.stream.revision == 9)
        assert three.sites[A].replica is before


async def test_old_repetitions_of_interleaved_producers_get_their_first_offsets(tmp_path: Path) -> None:
    """More batches than runs are remembered: the offsets are looked up in the log."""
    async with cluster(tmp_path) as three:
        await three.formed()
        site = three.sites[A]
        ready = [await site.api.InitProducer(data_pb2.InitProducerRequest(stream=NAME), None) for _ in range(2)]
        sent = [
            request([b"%d of %d" % (number, item.producer_id)] * 2, (item.producer_id, item.producer_epoch, number * 2))
            for number in range(60)
            for item in ready
        ]
        first = await publish(site, sent)
        again = await publish(three.sites[B], sent)
        assert [response.error.code for response in again] == [""] * 120
        assert [response.base_offset for response in again] == [response.base_offset for response in first]
        assert {response.is_duplicate for response in again} == {True}
        assert len(await read(site)) == 240


async def test_more_than_the_credit_is_held_back_and_still_answered_in_order(tmp_path: Path) -> None:
    async with cluster(tmp_path) as three:
        await three.formed()
        for node in (A, B):
            start = three.sites[A].replica.next_offset
            responses = await publish_values(three.sites[node], [bytes(1_000_000)] * 8)
            assert [response.base_offset for response in responses] == list(range(start, start + 8))
            assert responses[0].credit_bytes >= 1_000_000


async def test_shutting_down_ends_calls_that_would_stay(tmp_path: Path) -> None:
    async with cluster(tmp_path) as three:
        await three.formed()
        site = three.sites[B]
        never = asyncio.Event()

        async def requests() -> AsyncIterator[data_pb2.PublishBatchRequest]:
            yield request([b"one"])
            await never.wait()

        async def publish_for_ever() -> list[data_pb2.PublishBatchResponse]:
            return [response async for response in site.api.PublishBatch(requests(), None)]

        calls = [asyncio.create_task(publish_for_ever()), asyncio.create_task(read(site, follow=True))]
        await until(lambda: site.replica.next_offset == 1)
        site.api.close()
        for error in await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10):
            assert isinstance(error, MeshError)
            assert error.code == ErrorCode.UNAVAILABLE


async def test_member_cut_off_refuses_to_claim_an_end(tmp_path: Path) -> None:
    async with cluster(tmp_path) as three:
        await three.formed()
        await publish_values(three.sites[A], numbered(3))
        await three.converged()
        three.network.isolate(C)
        await publish_values(three.sites[A], numbered(2, start=3))
        site = three.sites[C]
        for from_offset in (0, 4):
            with pytest.raises(MeshError) as unknown:
                await read(site, from_offset=from_offset)
            assert unknown.value.code == ErrorCode.STREAM_UNAVAILABLE
            assert unknown.value.retryable
        described = await site.api.DescribeStream(data_pb2.DescribeStreamRequest(stream=NAME), None)
        assert (described.next_offset, list(described.members)) == (3, [])
        three.network.heal()
        assert await read(site, from_offset=4) == numbered(1, start=4)


async def test_describe_of_the_local_replica_and_of_none(tmp_path: Path) -> None:
    async with cluster(tmp_path, nodes=(A, B, C, D)) as four:
        await until(lambda: four.leaders() == [A])
        await publish_values(four.sites[A], numbered(3))
        await four.converged()
        local = data_pb2.DescribeStreamRequest(stream=NAME, is_local=True)
        described = [await four.sites[node].api.DescribeStream(local, None) for node in (A, B, C)]
        assert len({(item.applied_index, item.state_hash) for item in described}) == 1
        assert len(described[0].state_hash) == 32
        with pytest.raises(MeshError) as elsewhere:
            await four.sites[D].api.DescribeStream(local, None)
        assert elsewhere.value.code == ErrorCode.UNKNOWN_GROUP


async def test_init_producer_refuses_a_long_name_and_gives_up_without_a_quorum(tmp_path: Path) -> None:
    async with cluster(tmp_path) as three:
        await three.formed()
        api = three.sites[B].api
        with pytest.raises(MeshError) as long_name:
            await api.InitProducer(data_pb2.InitProducerRequest(stream=NAME, producer_name="n" * 256), None)
        assert long_name.value.code == ErrorCode.INVALID_ARGUMENT
        three.network.isolate(B)
        with pytest.raises(MeshError) as alone:
            await api.InitProducer(data_pb2.InitProducerRequest(stream=NAME), None)
        assert alone.value.code == ErrorCode.NO_QUORUM


async def test_log_that_cannot_be_opened_fails_the_groups_and_not_the_process(tmp_path: Path) -> None:
    (tmp_path / str(C)).write_text("a file where the directory should be")
    async with cluster(tmp_path) as three:
        await until(lambda: three.leaders() == [A])
        site = three.sites[C]
        await until(lambda: site.groups.failure != "")
        assert site.groups.replica(STREAM) is None
        (answered,) = await publish_values(site, [b"through the others"])
        assert answered.error.code == ""
        assert await read(site) == [b"through the others"]


async def test_follower_that_wins_the_birth_hands_over_to_the_first_member(tmp_path: Path) -> None:
    async with cluster(tmp_path, nodes=(B, C)) as three:
        assert await three.leader() in (B, C)
        three.start(A, make_view())
        await until(lambda: three.leaders() == [A])


async def test_packets_of_garbage_are_counted_and_harmless(tmp_path: Path) -> None:
    async with cluster(tmp_path) as three:
        await three.formed()
        for payload in (b"", b"\x00", b"\x00garbage", b"\x01short", b"\x07"):
            three.network.deliver(B, A, Protocol.RAFT_DSG, payload)
        assert (await publish_values(three.sites[A], [b"fine"]))[0].error.code == ""
        assert three.leaders() == [A]


async def test_full_way_holds_sources_back_until_it_drains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(tmp_path, nodes=(A, B, C, D)) as four:
        await until(lambda: four.leaders() == [A])
        queued = {"bytes": 100 * 1024 * 1024}
        for site in four.sites.values():
            monkeypatch.setattr(site.overlay, "queued_bytes", lambda _node: queued["bytes"])
        publishing = asyncio.create_task(publish_values(four.sites[D], numbered(2)))
        assert (await publish_values(four.sites[A], [b"local"]))[0].base_offset == 0
        assert not publishing.done()
        queued["bytes"] = 0
        assert [response.base_offset for response in await publishing] == [1, 2]
        queued["bytes"] = 100 * 1024 * 1024
        reading = asyncio.create_task(read(four.sites[D]))
        await asyncio.wait((reading,), timeout=0.2)
        assert not reading.done()
        queued["bytes"] = 0
        assert await reading == [b"local", *numbered(2)]
