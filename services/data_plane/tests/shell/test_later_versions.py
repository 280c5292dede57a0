"""A node whose software is too old for an entry of its group: it stands still, says so, does not lead, and goes on updated.

The later version is a kind of entry that only some of the nodes in this process know, by replacing the class of their state.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from data_plane_testing.stream_cluster import (
    NAME,
    STREAM,
    A,
    B,
    C,
    Cluster,
    Site,
    cluster,
    make_view,
    publish_values,
    read,
    read_stale,
    until,
)
from mesh_data.core import replica as replica_module
from mesh_data.core.stream_state import LaterEntry, Result, StreamState, Unchanged
from mesh_data.core.view import StreamPhase
from meshapi.supervisor.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshwire import entry as entry_module

LATER = bytes((200,)) + b"what a later version does"


class Updated(StreamState):
    """Knows the entry; it raises the time, which readers and snapshots see."""

    def apply(self, index: int, data: bytes) -> Result:
        try:
            return super().apply(index, data)
        except LaterEntry:
            self.applied_index = index
            self.time_ms += 1_000_000
            return Unchanged()


def update(site: Site) -> None:
    """From now on the node's replica is of the later version."""
    site.replica.state.__class__ = Updated


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Cluster]:
    """A group led by A with three records, of which B and C know the later version and A does not."""
    async with cluster(tmp_path) as made:
        await made.formed()
        await publish_values(made.sites[A], [b"0", b"1", b"2"])
        await made.converged()
        update(made.sites[B])
        update(made.sites[C])
        yield made


async def meet(made: Cluster, by: NodeId) -> None:
    """The node, which leads, proposes the later entry."""
    made.sites[by].groups.host().propose(int(STREAM), LATER)
    made.sites[by].groups.wake()


async def outdated(site: Site) -> MeshError:
    await until(lambda: site.replica.update_required is not None)
    assert site.replica.update_required is not None
    return site.replica.update_required


async def test_it_stands_still_gives_the_lead_away_and_says_so(three: Cluster) -> None:
    old = three.sites[A]
    before = old.replica.state.snapshot()
    await meet(three, by=A)
    error = await outdated(old)
    assert error.code is ErrorCode.UPDATE_REQUIRED
    await until(lambda: three.leaders() in ([B], [C]))
    await publish_values(three.sites[B], [b"3", b"4"])
    await until(lambda: three.sites[C].replica.next_offset == 5)
    assert old.replica.state.snapshot() == before
    assert "200" in error.message
    (shown,) = (await old.raft_api.ListReplicas(data_pb2.ListReplicasRequest(), None)).replicas
    assert shown.reason == error.message
    described = await old.api.DescribeStream(data_pb2.DescribeStreamRequest(stream=NAME, is_local=True), None)
    assert (described.reason, described.next_offset) == (error.message, 3)
    (warning,) = [text for text in old.readiness.warnings() if NAME in text]
    assert "UPDATE_REQUIRED" in warning
    assert old.groups.reports()[0].reason == error.message


async def test_it_can_be_read_as_far_as_it_came_and_others_answer_the_rest(three: Cluster) -> None:
    old = three.sites[A]
    await meet(three, by=A)
    await outdated(old)
    await until(lambda: three.leaders() in ([B], [C]))
    await publish_values(three.sites[A], [b"3", b"4"])  # its callers are served by the new leader
    assert (await read_stale(old))[0] == [b"0", b"1", b"2"]
    assert await read(old) == [b"0", b"1", b"2", b"3", b"4"]
    assert await read(old, records_max=5, follow=True) == [b"0", b"1", b"2", b"3", b"4"]


async def test_what_it_has_is_not_passed_off_as_new(three: Cluster) -> None:
    """A read point of its leader says that Raft handed everything out, not that it was applied."""
    old = three.sites[A]
    await meet(three, by=A)
    await outdated(old)
    await until(lambda: three.leaders() in ([B], [C]))
    await publish_values(three.sites[B], [b"3"])
    acknowledged = asyncio.get_running_loop().time()
    await asyncio.sleep(0.2)
    _, view = await read_stale(old)
    elapsed_ms = (asyncio.get_running_loop().time() - acknowledged) * 1000
    assert not view.HasField("age_ms_max") or view.age_ms_max >= elapsed_ms


async def test_where_all_are_too_old_they_refuse_publishes_and_exact_reads(three: Cluster) -> None:
    """Nobody else can lead: UPDATE_REQUIRED is what the callers get, not a promise that waiting helps."""
    old = three.sites[A]
    for other in (B, C):
        three.sites[other].replica.state.__class__ = StreamState
    await meet(three, by=A)
    for site in three.sites.values():
        await outdated(site)
    (answer,) = await publish_values(old, [b"late"])
    assert answer.error.code == ErrorCode.UPDATE_REQUIRED
    with pytest.raises(MeshError) as refused:
        await read(old)
    assert refused.value.code is ErrorCode.UPDATE_REQUIRED
    assert (await read_stale(old))[0] == [b"0", b"1", b"2"]


async def test_after_an_update_it_goes_on(three: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has written no checkpoint beyond where it stood, so the restarted node applies the entry and all behind it."""
    old = three.sites[A]
    await meet(three, by=A)
    await outdated(old)
    assert old.replica.take_checkpoint() is None
    await until(lambda: three.leaders() in ([B], [C]))
    await publish_values(three.sites[B], [b"3"])
    await three.stop(A)
    # As old as before: it stands still at the same entry.
    again = three.start(A, make_view(2, StreamPhase.ACTIVE))
    await until(lambda: again.groups.replica(STREAM) is not None)
    await outdated(again)
    assert again.replica.next_offset == 3
    await three.stop(A)
    monkeypatch.setattr(replica_module, "StreamState", Updated)
    updated = three.start(A, make_view(2, StreamPhase.ACTIVE))
    await until(lambda: updated.groups.replica(STREAM) is not None and updated.replica.next_offset == 4)
    await three.converged()
    assert updated.replica.update_required is None
    assert not [text for text in updated.readiness.warnings() if NAME in text]


async def test_a_kind_is_proposed_only_in_a_mesh_that_knows_it(three: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(entry_module.INTRODUCED, int(entry_module.EntryKind.INIT_PRODUCER), 2)
    with pytest.raises(MeshError) as refused:
        await three.sites[A].api.InitProducer(data_pb2.InitProducerRequest(stream=NAME), None)
    assert refused.value.code is ErrorCode.MESH_VERSION_TOO_LOW
    assert refused.value.details == {"needed": "2", "mesh_version": "1"}
