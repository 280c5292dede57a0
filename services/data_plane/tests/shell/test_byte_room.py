"""The budget of bytes that short work shares: first come, first served, whatever happens to those who wait."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mesh_data.core.stream_requests import StoredBatch
from mesh_data.shell.groups.replica import Replica
from mesh_data.shell.streams.byte_room import ByteCount, ByteRoom
from mesh_data.shell.streams.read_call import FETCH_COST_BYTES, fetch_local


async def turn() -> None:
    """Lets every task go on that can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def hold(room: ByteRoom, size_bytes: int, log: list[Any], name: object, until: asyncio.Event) -> None:
    async with room.hold(size_bytes):
        log.append(name)
        await until.wait()


async def test_whoever_finds_no_room_waits_for_its_turn() -> None:
    room, log, go = ByteRoom(100), list[Any](), asyncio.Event()
    sizes = {"a": 60, "b": 50, "c": 10, "d": 40}
    tasks = [asyncio.create_task(hold(room, size, log, name, go), name=name) for name, size in sizes.items()]
    await turn()
    assert log == ["a"]  # c would fit, and waits behind b all the same: else small ones would keep b out for ever
    assert (room.held_bytes, room.waiting) == (60, 3)
    go.set()
    await asyncio.gather(*tasks)
    assert log == ["a", "b", "c", "d"]
    assert (room.held_bytes, room.waiting) == (0, 0)


async def test_more_than_there_is_goes_alone() -> None:
    room, log, go = ByteRoom(100), list[Any](), asyncio.Event()
    tasks = [asyncio.create_task(hold(room, 1000, log, name, go), name="hold") for name in range(2)]
    await turn()
    assert (log, room.held_bytes) == ([0], 100)
    go.set()
    await asyncio.gather(*tasks)
    assert log == [0, 1]


@pytest.mark.parametrize("when", ["waiting", "admitted"])
async def test_one_that_goes_away_leaves_its_turn_to_the_next(when: str) -> None:
    room, log, go = ByteRoom(100), list[Any](), asyncio.Event()
    first = room.hold(100)
    await first.__aenter__()
    leaver = asyncio.create_task(hold(room, 100, log, "leaver", go), name="leaver")
    last = asyncio.create_task(hold(room, 100, log, "last", go), name="last")
    await turn()
    if when == "admitted":
        await first.__aexit__(None, None, None)  # it has its turn and does not know yet
    leaver.cancel()
    await turn()
    if when == "waiting":
        await first.__aexit__(None, None, None)
    go.set()
    await last
    assert log == ["last"]
    assert (room.held_bytes, room.waiting) == (0, 0)


async def test_readers_that_all_wake_at_once_read_a_few_at_a_time() -> None:
    """A commit wakes hundreds of followers: what they read at the same moment stays within the budget, and all get it."""
    room, reading, most = ByteRoom(8 * FETCH_COST_BYTES), 0, 0

    async def read(_offset: int, _bytes_max: int) -> list[StoredBatch]:
        nonlocal reading, most
        reading += 1
        most = max(most, reading)
        await asyncio.sleep(0.001)
        reading -= 1
        return [StoredBatch(0, 1, b"batch")]

    replica = SimpleNamespace(failure=None, update_required=None, next_offset=1, floor_offset=0, read=read)
    fetches = [fetch_local(room, cast(Replica, replica), 0, 1) for _ in range(500)]
    found = await asyncio.gather(*fetches)
    assert len(found) == 500
    assert most == 8


def test_the_share_of_one_shrinks_with_what_is_left() -> None:
    count = ByteCount(100)
    assert count.share_bytes(20) == 20
    count.used_bytes = 60
    assert count.share_bytes(20) == 10
    count.used_bytes = 120
    assert count.share_bytes(20) == 0
