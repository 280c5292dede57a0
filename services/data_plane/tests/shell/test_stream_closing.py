"""What happens to what is under way when a replica stops leading, closes, or lags behind."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_plane_testing.lone_owner import LoneOwner
from data_plane_testing.stream_cluster import (
    NAME,
    A,
    B,
    C,
    D,
    cluster,
    make_view,
    numbered,
    publish_values,
    read,
    until,
)
from mesh_data.core import read_plan
from mesh_data.core.stream_requests import Fetched
from mesh_data.core.stream_state import Appended
from mesh_data.core.view import StreamPhase
from mesh_data.shell.groups.replica import Replica
from mesh_data.shell.streams import read_call
from meshapi.supervisor.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import MemberId
from meshraft import GroupConfig
from meshraft.driver import RaftDriver
from meshwire.batch import decode_header
from meshwire.records import Record, encode_batch


async def test_stop_does_not_call_what_was_proposed_refused(tmp_path: Path) -> None:
    """I2: a refusal "before anything was appended" would have a batch without a producer sent a second time."""
    async with cluster(tmp_path) as three:
        await three.formed()
        site = three.sites[A]
        three.network.isolate(A)
        sending = asyncio.create_task(publish_values(site, [b"once"]))
        await until(lambda: site.replica.has_pending)
        site.overlay.set_view(make_view(2, StreamPhase.ACTIVE), is_running=False)
        (answered,) = await sending
        assert answered.error.code == ErrorCode.OUTCOME_UNKNOWN
        assert not answered.error.retryable


async def test_proposal_cut_off_by_an_interlude_is_of_unknown_outcome() -> None:
    """Another member may still hold the entry and commit it, for instance after two more elections (Ongaro §5.4.2)."""
    numbers = iter([(1, 10), (3, 10)])
    host: Any = SimpleNamespace(propose=lambda group, data: next(numbers))
    stream = next(iter(make_view().streams.values()))
    driver = RaftDriver(host, lambda _frame: None)
    replica = Replica(driver, host, stream, MemberId(11), lambda: 0, GroupConfig(), owner=LoneOwner())
    batch = encode_batch([Record(b"x", None)], 0, 0, 0)
    replica.raft.role = "leader"
    first = replica.publish(batch, decode_header(batch))
    second = replica.publish(batch, decode_header(batch))
    answer = first.result()
    assert isinstance(answer, MeshError)
    assert answer.code == ErrorCode.OUTCOME_UNKNOWN
    assert not second.done()


async def test_batch_that_is_sent_again_while_it_waits_is_not_proposed_again(tmp_path: Path) -> None:
    """Or else the log grows by every repetition just when the quorum is slower than the publishers."""
    async with cluster(tmp_path) as three:
        await three.formed()
        site = three.sites[A]
        ready = await site.api.InitProducer(data_pb2.InitProducerRequest(stream=NAME), None)
        batch = encode_batch([Record(b"once")], ready.producer_id, ready.producer_epoch, 0)
        three.network.isolate(A)
        before = site.replica.status().last_index
        answers = [site.replica.publish(batch, decode_header(batch), is_request=True) for _ in range(3)]
        answers[0].cancel()  # its caller waits no longer; the others do
        assert site.replica.status().last_index == before + 1
        three.network.heal()
        first, second = await answers[1], await answers[2]
        assert first == second
        assert isinstance(first, Appended)
        assert (first.offset, first.count) == (0, 1)


async def test_leader_that_stops_hands_over_and_decides_what_it_took(tmp_path: Path) -> None:
    async with cluster(tmp_path, delay_s=0.005) as three:
        await three.formed()
        first = await three.leader()
        site = three.sites[first]
        sending = asyncio.create_task(publish_values(site, numbered(20)))
        await until(lambda: site.replica.has_pending)
        await site.groups.transfer_leaderships(5.0)
        assert not site.replica.is_leading
        assert not site.replica.has_pending
        responses = await sending
        assert [response.error.code for response in responses] == [""] * 20
        assert await three.leader() != first
        assert await read(site) == numbered(20)


async def test_leader_without_an_heir_does_not_wait(tmp_path: Path) -> None:
    async with cluster(tmp_path) as three:
        await three.formed()
        three.network.isolate(A)
        async with asyncio.timeout(5):
            await three.sites[A].groups.transfer_leaderships(60.0)


async def test_tombstone_that_the_catalogue_dropped_is_no_longer_reported(tmp_path: Path) -> None:
    """I6: or else every stream that was ever deleted would be reported for ever."""
    async with cluster(tmp_path) as three:
        await three.formed()
        three.set_view(make_view(3, StreamPhase.DELETING, is_sealed=True))
        groups = three.sites[A].groups
        await until(lambda: not groups.replica(next(iter(make_view().streams))))
        three.set_view(replace(make_view(4), streams={}))
        await until(lambda: groups.reports() == ())


async def test_failed_host_leaves_no_reader_behind(tmp_path: Path) -> None:
    """A failed host forgets its descriptor; the next socket of that number must not meet a reader of ours."""
    async with cluster(tmp_path) as three:
        await three.formed()
        groups = three.sites[A].groups
        loop = groups._loop
        assert loop is not None
        descriptor = loop._host.fileno()
        failed: Any = SimpleNamespace(fileno=lambda: -1, close=loop._host.close)
        loop._host = failed
        groups._fail_host("no space left on device")
        assert not asyncio.get_running_loop().remove_reader(descriptor)


async def test_read_to_the_confirmed_end_passes_over_a_member_that_lags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I13: what one member confirmed is read to its end, although the next one asked does not have it."""
    async with cluster(tmp_path, nodes=(A, B, C, D)) as four:
        await until(lambda: four.leaders() == [A])
        await until(lambda: all(four.sites[node].replica.is_formed for node in (A, B, C)))
        four.network.cut(C, A)
        four.network.cut(C, B)
        await publish_values(four.sites[A], numbered(3))
        reader = four.sites[D]
        stream = reader.catalogue.named("demo/lines")
        while reader.catalogue.other_member(stream) != C:
            reader.catalogue.hints.pass_over(stream)

        async def beginning(*_args: object, **_options: object) -> Fetched:
            return Fetched((), 3, 0, is_confirmed=True)

        monkeypatch.setattr(read_call, "_remote_end", beginning)
        monkeypatch.setattr(read_plan, "FOLLOW_WAIT_S", 0.1)
        async with asyncio.timeout(10):
            assert await read(reader) == numbered(3)
