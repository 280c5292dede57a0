"""Restarting a replica from its checkpoint: the same state as replaying everything, whatever crashed or was damaged."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from data_plane_testing.lone_owner import LoneOwner
from data_plane_testing.stream_cluster import NAME, STREAM, A, B, C, cluster, make_view, publish_values, read, until
from mesh_data.core.stream_requests import StoredBatch
from mesh_data.core.stream_snapshot import StreamConfig
from mesh_data.core.stream_state import FIRST_INDEX, StreamState
from mesh_data.core.view import Member, Stream, StreamPhase
from mesh_data.shell.groups.checkpoint_files import KEPT, CheckpointFiles
from mesh_data.shell.groups.checkpointing import Checkpointing
from mesh_data.shell.groups.entry_reader import EntryReader
from mesh_data.shell.groups.replica import Replica
from meshcommon.ids import MemberId
from meshraft import GroupConfig, RaftHost, SimDisk
from meshraft.driver import RaftDriver
from meshwire.batch import decode_header
from meshwire.records import Record, encode_batch

MEMBER = MemberId(11)
CONFIG = GroupConfig()
SMALL = StreamConfig(STREAM, retained_bytes_max=6_000, checkpoint_bytes=1_000)
STREAM_VIEW = Stream(STREAM, NAME, (Member(A, MEMBER, is_voter=True),), StreamPhase.ACTIVE, 1, 0)


@dataclass
class Node:
    """One replica that votes alone, over a disk that loses what was not synced."""

    disk: SimDisk
    checkpoints: Checkpointing
    host: RaftHost
    replica: Replica

    @classmethod
    def start(cls, disk: SimDisk, directory: Path) -> Node:
        host = RaftHost.simulated(disk, seed=1)
        driver = RaftDriver(host, lambda _frame: None)
        replica = Replica(driver, EntryReader(host), STREAM_VIEW, MEMBER, lambda: 5, CONFIG, owner=LoneOwner())
        checkpoints = Checkpointing(directory)
        if host.stored_groups():
            checkpoints.open(host, replica, {MEMBER: A}, CONFIG)
        else:
            first = StreamState(SMALL).snapshot()
            host.create_group(STREAM, MEMBER, {MEMBER: A}, voters=[MEMBER], snapshot=first, config=CONFIG)
            replica.restore(first, FIRST_INDEX)
        replica.raft.join()
        return cls(disk, checkpoints, host, replica)

    def turn(self) -> None:
        self.replica.raft.driver.turn()

    def settle(self) -> None:
        """Until nothing moves, everything synced."""
        while self.host.has_work() or self.disk.sync():
            self.turn()

    def lead(self) -> None:
        self.settle()
        self.host.campaign(STREAM)
        self.settle()
        assert self.replica.is_leading

    async def records(self) -> list[StoredBatch]:
        found: list[StoredBatch] = []
        offset = self.replica.floor_offset
        while offset < self.replica.next_offset:
            batches = await self.replica.read(offset, 1 << 20)
            found += [StoredBatch(item.base_offset, item.time_ms, bytes(item.batch)) for item in batches]
            if batches:
                offset = batches[-1].base_offset + decode_header(batches[-1].batch).record_count
        return found

    async def seen(self) -> tuple[object, ...]:
        """All that a replica is."""
        return (
            self.replica.state.snapshot(),
            self.replica.floor_offset,
            await self.records(),
            {item.index: self.replica.state.checkpoint_snapshot(item.index) for item in self.replica.state.checkpoints},
        )


def act(node: Node, chance: random.Random) -> None:
    """One thing that a leader, its disk or its checkpoints do."""
    if not node.replica.is_leading:
        node.lead()
    match chance.choice(("publish", "repeat", "init", "turn", "sync", "save")):
        case "publish":
            values = [Record(chance.randbytes(chance.randint(0, 300))) for _ in range(chance.randint(1, 4))]
            batch = encode_batch(values)
            node.replica.publish(batch, decode_header(batch))
        case "repeat":
            batch = encode_batch([Record(b"x")], 3, 1, chance.randint(0, 2))  # mostly refused: the index must know
            node.replica.publish(batch, decode_header(batch))
        case "init":
            node.replica.init_producer(chance.choice(("", "named")))
        case "turn":
            node.turn()
        case "sync":
            node.disk.sync(chance.choice((1, 2, None)))
            node.turn()
        case _:
            save(node)


def save(node: Node) -> None:
    checkpoint = node.replica.take_checkpoint()
    assert checkpoint is not None
    node.checkpoints._files.write(checkpoint)


@pytest.mark.parametrize("seed", range(25))
async def test_restart_at_a_checkpoint_equals_replay_of_everything(tmp_path: Path, seed: int) -> None:
    """Checkpoints are durable at once while the log loses what was not synced: the hardest order."""
    print(f"SEED={seed}")
    chance = random.Random(seed)
    node = Node.start(SimDisk(), tmp_path / "kept")
    node.lead()
    resumed = 0
    for _ in range(6):
        for _ in range(chance.randint(1, 60)):
            act(node, chance)
        node.disk.crash()
        replayed = Node.start(node.disk, tmp_path / "none")
        replayed.settle()
        expected = await replayed.seen()
        replayed.host.close()
        node = Node.start(node.disk, tmp_path / "kept")
        resumed += node.replica.state.applied_index > node.replica.state.floor.index
        node.settle()
        assert await node.seen() == expected
    assert resumed


async def test_the_floor_moves_to_a_checkpoint_of_before_the_restart(tmp_path: Path) -> None:
    node = Node.start(SimDisk(), tmp_path)
    node.lead()
    chance = random.Random(1)
    while node.replica.state.retained_bytes < SMALL.retained_bytes_max - 1_500:
        batch = encode_batch([Record(chance.randbytes(200))])
        node.replica.publish(batch, decode_header(batch))
        node.settle()
    save(node)
    target = node.replica.state.checkpoints[0].index
    node.host.close()
    node = Node.start(node.disk, tmp_path)
    assert node.replica.state.applied_index > target
    node.lead()
    while node.replica.state.floor.index < target:
        batch = encode_batch([Record(bytes(200))])
        node.replica.publish(batch, decode_header(batch))
        node.settle()
    assert node.host.status(STREAM).first_index == node.replica.state.floor.index + 1


async def test_damaged_foreign_and_half_written_files_fall_back_to_older_ones(tmp_path: Path) -> None:
    node = Node.start(SimDisk(), tmp_path)
    node.lead()
    for number in range(6):
        batch = encode_batch([Record(b"%d" % number)])
        node.replica.publish(batch, decode_header(batch))
        node.settle()
        save(node)
    directory = tmp_path / f"{STREAM:016x}"
    older, newest = sorted(directory.iterdir(), key=lambda path: int(path.name))
    (directory / "999.new").write_bytes(b"left by a crash")
    expected = await node.seen()
    node.host.close()

    newest.write_bytes(newest.read_bytes()[:-1])
    node = Node.start(node.disk, tmp_path)
    assert node.replica.state.applied_index == int(older.name)
    node.settle()
    assert await node.seen() == expected
    node.host.close()
    assert not newest.exists()

    older.write_bytes(b"not a checkpoint")
    node = Node.start(node.disk, tmp_path)
    assert node.replica.state.applied_index == FIRST_INDEX
    node.settle()
    assert await node.seen() == expected
    files = CheckpointFiles(tmp_path)
    save(node)
    assert len(list(files.read(STREAM, MEMBER))) == 1
    assert list(files.read(STREAM, MemberId(12))) == []
    assert list(files.read(STREAM, MEMBER)) == []  # one of another member is of no use to anybody


async def test_only_the_newest_are_kept_and_a_full_disk_costs_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node.start(SimDisk(), tmp_path)
    node.lead()
    for _ in range(5):
        batch = encode_batch([Record(bytes(1 << 20))])
        node.replica.publish(batch, decode_header(batch))
        node.settle()
        node.checkpoints.save_all([node.replica])
    directory = tmp_path / f"{STREAM:016x}"
    assert len(list(directory.iterdir())) == KEPT
    batch = encode_batch([Record(bytes(1 << 20))])
    node.replica.publish(batch, decode_header(batch))
    node.settle()

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mesh_data.shell.groups.checkpoint_files.write_durably", refuse)
    node.checkpoints.save_all([node.replica])
    assert len(list(directory.iterdir())) == KEPT
    assert node.replica.is_leading


async def test_data_plane_resumes_where_it_stopped_and_forgets_with_the_stream(tmp_path: Path) -> None:
    async with cluster(tmp_path) as three:
        await three.formed()
        values = [bytes([number]) * 300_000 for number in range(8)]
        await publish_values(three.sites[A], values)
        chain = await three.converged()
        applied = three.sites[A].replica.state.applied_index
        for node in tuple(three.sites):
            await three.stop(node)
        kept = list((tmp_path / str(A) / "checkpoints").rglob(str(applied)))
        assert len(kept) == 1
        # Two members have theirs, the third replays everything: all end alike.
        shutil.rmtree(tmp_path / "3" / "checkpoints")
        for node in (A, B, C):
            three.start(node, make_view(2, StreamPhase.ACTIVE))
        await until(lambda: three.sites[A].groups.replica(STREAM) is not None)
        assert three.sites[A].replica.state.applied_index >= applied
        await until(lambda: len(three.leaders()) == 1)
        assert await three.converged() == chain
        for site in three.sites.values():
            assert await read(site) == values
        three.set_view(make_view(3, StreamPhase.DELETING, is_sealed=True))
        await until(lambda: not kept[0].parent.exists())
