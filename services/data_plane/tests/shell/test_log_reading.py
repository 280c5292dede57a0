"""Reading old entries while the loop goes on: nothing waits for the disk, and what happens meanwhile is safe."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from data_plane_testing.stream_cluster import (
    STREAM,
    A,
    Cluster,
    cluster,
    make_view,
    numbered,
    publish_values,
    read,
    until,
)
from mesh_data.core.stream_requests import Fetched
from mesh_data.core.stream_snapshot import StreamConfig
from mesh_data.core.view import StreamPhase
from mesh_data.shell.groups.entry_reader import THREADS, EntryReader
from mesh_data.shell.groups.replica import Replica
from mesh_data.shell.streams import read_call
from meshcommon.errors import ErrorCode, MeshError
from meshraft import Entry, LogReader

RECORDS = 64
VALUES = [b"%04d" % number * 250 for number in range(RECORDS)]


class SlowLog:
    """Stands before the log's reader: each read waits until it is let go, as on a slow disk."""

    def __init__(self, log: LogReader) -> None:
        self.log = log
        self.waiting = 0
        self.most_waiting = 0
        self.go = threading.Event()
        self._lock = threading.Lock()

    def entries(self, group: int, low: int, high: int, max_bytes: int) -> list[Entry]:
        # Read first: what is compacted or closed afterwards must be noticed by whoever asked.
        with self._lock:
            self.waiting += 1
            self.most_waiting = max(self.most_waiting, self.waiting)
        found = self.log.entries(group, low, high, max_bytes)
        assert self.go.wait(20)
        with self._lock:
            self.waiting -= 1
        return found


@asynccontextmanager
async def restarted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Cluster, Replica, SlowLog]]:
    """Three members with records that are on A's disk and no longer in its memory; A reads from a slow disk."""
    async with cluster(tmp_path) as three:
        await three.formed()
        await publish_values(three.sites[A], VALUES)
        await three.converged()
        await three.stop(A)
        slow: list[SlowLog] = []
        original = EntryReader.__init__

        def begin(reader: EntryReader, host: Any) -> None:
            original(reader, host)
            slow.append(SlowLog(reader._log))
            reader._log = slow[0]  # type: ignore[assignment]

        monkeypatch.setattr(EntryReader, "__init__", begin)
        site = three.start(A, make_view(2, StreamPhase.ACTIVE))
        await until(lambda: site.groups.replica(STREAM) is not None)
        await three.converged()
        try:
            yield three, site.replica, slow[0]
        finally:
            slow[0].go.set()


async def test_the_loop_goes_on_while_old_entries_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with restarted(tmp_path, monkeypatch) as (three, replica, slow):
        reading = [asyncio.create_task(replica.read(0, 1)) for _ in range(3 * THREADS)]
        await until(lambda: slow.waiting == THREADS)
        # Elections, publishing and reading what is recent go on meanwhile, also here.
        more = [*(VALUES * 2), b"new"]
        assert (await publish_values(three.sites[A], more))[-1].base_offset == 3 * RECORDS
        await until(lambda: replica.next_offset == 3 * RECORDS + 1)
        assert bytes((await replica.read(3 * RECORDS, 1))[0].batch).endswith(b"new")
        assert not any(task.done() for task in reading)
        slow.go.set()
        for batches in await asyncio.gather(*reading):
            assert [item.base_offset for item in batches] == [0]
        assert slow.most_waiting == THREADS
        assert await read(three.sites[A]) == VALUES + more


async def test_compaction_under_a_read_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the index knows of refused batches goes with the compaction: the entries read before must not be used."""
    small = classmethod(lambda cls, stream_id, cap: StreamConfig(stream_id, 100_000, 10_000))
    monkeypatch.setattr(StreamConfig, "of", small)
    async with restarted(tmp_path, monkeypatch) as (three, replica, slow):
        assert replica.floor_offset == 0
        reading = asyncio.create_task(replica.read(0, 1))
        await until(lambda: slow.waiting == 1)
        await publish_values(three.sites[A], VALUES)
        await until(lambda: replica.floor_offset > 0)
        slow.go.set()
        with pytest.raises(MeshError) as refused:
            await reading
        assert refused.value.code == ErrorCode.OFFSET_BELOW_FLOOR


@pytest.mark.parametrize("how", ["stopped", "deleted"])
async def test_a_read_under_way_when_its_group_closes_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    async with restarted(tmp_path, monkeypatch) as (three, replica, slow):
        reading = [asyncio.create_task(replica.read(0, 1 << 20)) for _ in range(2 * THREADS)]
        await until(lambda: slow.waiting == THREADS)
        if how == "stopped":
            three.sites[A].overlay.set_view(make_view(2, StreamPhase.ACTIVE), is_running=False)
        else:
            three.set_view(make_view(3, StreamPhase.DELETING, is_sealed=True))
        await until(lambda: not replica.is_open)
        slow.go.set()
        # Those that had their entries may use them; those that come later find the group gone.
        ended = await asyncio.gather(*reading, return_exceptions=True)
        expected = ErrorCode.NODE_STOPPED if how == "stopped" else ErrorCode.STREAM_NOT_FOUND
        assert all(isinstance(item, list) for item in ended[:THREADS])
        assert [item.code for item in ended[THREADS:] if isinstance(item, MeshError)] == [expected] * THREADS


async def test_stopping_the_data_plane_ends_reads_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with restarted(tmp_path, monkeypatch) as (three, replica, slow):
        reading = [asyncio.create_task(replica.read(0, 1 << 20)) for _ in range(2 * THREADS)]
        await until(lambda: slow.waiting == THREADS)
        slow.go.set()
        await three.stop(A)
        ended = await asyncio.gather(*reading, return_exceptions=True)
        assert all(isinstance(item, list | MeshError) for item in ended), ended


async def test_batches_that_come_between_the_end_and_the_records_leave_no_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I3: a read ends where the leader confirmed the end; what was committed meanwhile is not there in part."""
    async with cluster(tmp_path) as three:
        await three.formed()
        site = three.sites[A]
        await publish_values(site, numbered(3))
        fetch_local = read_call.fetch_local

        async def fetch_after_more(*arguments: Any) -> Fetched:
            if site.replica.next_offset == 3:
                for value in (b"fourth", b"fifth", b"sixth"):
                    await publish_values(site, [value])
            return await fetch_local(*arguments)

        monkeypatch.setattr(read_call, "fetch_local", fetch_after_more)
        assert await read(site) == numbered(3)
        assert await read(site) == [*numbered(3), b"fourth", b"fifth", b"sixth"]
