"""Disks that lose what they confirmed, under real logs: recognised before they vote, whoever leads; told, and renewed.

Architecture §7: a wiped or rolled-back disk is recognised and its membership retired, never trusted.
"""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

from data_plane_testing.stream_cluster import (
    STREAM,
    A,
    B,
    C,
    Cluster,
    D,
    Site,
    cluster,
    make_view,
    numbered,
    publish_values,
    read,
    until,
)
from mesh_data.core.replica_report import ReplicaState, Report
from mesh_data.core.stream_frames import store_payload
from mesh_data.core.view import Member, Retiring, StreamPhase, View
from meshcommon.ids import MemberId, NodeId
from meshcommon.store_files import IDENTITY_FILE, PEERS_FILE, StoreFiles
from meshcommon.store_guard import StoreMemory
from meshwire.packet import Protocol, TrafficClass

ACTIVE = StreamPhase.ACTIVE


def report_of(site: Site) -> Report | None:
    return next(iter(site.groups.reports()), None)


def is_distrusted(site: Site) -> bool:
    report = report_of(site)
    return report is not None and report.is_distrusted


def log_of(directory: Path, node: NodeId) -> Path:
    return directory / str(node)


def restore(directory: Path, copy: Path, node: NodeId) -> None:
    shutil.rmtree(log_of(directory, node))
    shutil.copytree(copy, log_of(directory, node))


def boot_of(log: Path) -> int:
    record = StoreFiles(log, None).read().record
    assert record is not None
    return record.lineage.present.boot


def peers_of(directory: Path, node: NodeId) -> StoreMemory:
    """What a node has made durable of its peers."""
    (file,) = log_of(directory, node).rglob(PEERS_FILE)
    return StoreFiles(file.parent, None).read_peers()


def forget_anchor(directory: Path, node: NodeId) -> None:
    """A whole volume is restored or wiped, not only the log directory: nothing else on it knows better."""
    (directory / f"{node}.anchor").unlink()


def renewed(view: View, members: dict[NodeId, int], *, revision: int, is_out: bool) -> View:
    stream = view.streams[STREAM]
    listed = tuple(Member(node, MemberId(member), is_voter=True) for node, member in members.items())
    ending = (Retiring(C, MemberId(13), 3, is_out),)
    return replace(
        view, revision=revision, streams={STREAM: replace(stream, members=listed, retiring=ending, revision=revision)}
    )


async def renew_c(three: Cluster) -> None:
    """What the catalogue makes of C's report."""
    members = {A: 11, B: 12, C: 21}
    three.set_view(renewed(make_view(3, ACTIVE), members, revision=3, is_out=False))
    await until(
        lambda: any(13 in report.members_out for site in three.sites.values() for report in site.groups.reports())
    )
    three.set_view(renewed(make_view(4, ACTIVE), members, revision=4, is_out=True))
    back = three.sites[C]
    await until(lambda: (found := report_of(back)) is not None and found.state is ReplicaState.OPEN)
    assert back.replica.member_id == 21


async def acknowledged_without_b(three: Cluster, directory: Path) -> Path:
    """A and C commit what B never gets; then all three are down. Returns a copy of C's disk from before."""
    await three.formed()
    await publish_values(three.sites[A], numbered(3))
    await three.converged()
    await three.stop(C)
    copy = directory / "copy"
    shutil.copytree(log_of(directory, C), copy)
    three.start(C, make_view(2, ACTIVE))
    await three.converged()
    (log,) = (file.parent for file in log_of(directory, C).rglob(IDENTITY_FILE))
    await until(lambda: peers_of(directory, B).seen[C].boot == boot_of(log) > boot_of(copy / log.name))
    await three.stop(B)
    await publish_values(three.sites[A], numbered(20, start=3))
    await three.stop(C)
    await three.stop(A)
    return copy


async def test_a_rolled_back_voter_elects_nobody_who_lacks_what_it_confirmed(tmp_path: Path) -> None:
    """I1: the leader that knew is gone when the older copy comes back, and the other voter has less."""
    async with cluster(tmp_path) as three:
        copy = await acknowledged_without_b(three, tmp_path)
        restore(tmp_path, copy, C)
        forget_anchor(tmp_path, C)
        three.start(B, make_view(2, ACTIVE))
        back = three.start(C, make_view(2, ACTIVE))
        await until(lambda: is_distrusted(back))
        found = report_of(back)
        assert found is not None
        assert found.state is ReplicaState.FAILED
        assert "rolled back (node n2 has seen its boot number" in found.reason
        assert any("rolled back" in warning for warning in back.readiness.warnings())
        # Two of three are there, and lead nothing: what A confirmed could be missing.
        await asyncio.sleep(3 * three.sites[B].groups.timing.election_s)
        assert three.leaders() == []
        three.start(A, make_view(2, ACTIVE))
        await until(lambda: three.leaders() == [A])
        await renew_c(three)
        assert await read(back) == numbered(23)
        assert back.readiness.warnings() == []
        record = next(log_of(tmp_path, C).rglob(IDENTITY_FILE))
        await until(lambda: b'"disowned": []' in record.read_bytes())
        await three.stop(C)
        again = three.start(C, three.sites[A].overlay.view())
        await until(lambda: again.groups.replica(STREAM) is not None and again.replica.is_formed)
        assert not is_distrusted(again)


async def test_without_the_exchange_the_rolled_back_voter_would_lose_it(tmp_path: Path) -> None:
    """The mistake planted: what the peers remember of C is taken from them. The test above can fail."""
    async with cluster(tmp_path) as three:
        copy = await acknowledged_without_b(three, tmp_path)
        restore(tmp_path, copy, C)
        forget_anchor(tmp_path, C)
        next(log_of(tmp_path, B).rglob(PEERS_FILE)).unlink()
        three.start(B, make_view(2, ACTIVE))
        three.start(C, make_view(2, ACTIVE))
        await until(lambda: len(three.leaders()) == 1)
        assert len(await read(three.sites[B])) < 23


async def test_a_copy_of_a_running_node_is_recognised_once_its_number_was_raised(tmp_path: Path) -> None:
    """A backup, or a snapshot of a virtual machine, taken in the middle of an incarnation."""
    async with cluster(tmp_path) as three:
        await three.formed()
        await publish_values(three.sites[A], numbered(3))
        await three.converged()
        shutil.copytree(log_of(tmp_path, C), tmp_path / "copy")
        (copied,) = (tmp_path / "copy").rglob(IDENTITY_FILE)
        boot = boot_of(copied.parent)
        await publish_values(three.sites[A], numbered(3, start=3))
        await until(lambda: peers_of(tmp_path, B).seen[C].boot > boot)
        await three.stop(B)
        await publish_values(three.sites[A], numbered(14, start=6))
        await three.stop(C)
        await three.stop(A)
        restore(tmp_path, tmp_path / "copy", C)
        forget_anchor(tmp_path, C)
        three.start(B, make_view(2, ACTIVE))
        back = three.start(C, make_view(2, ACTIVE))
        await until(lambda: is_distrusted(back))
        three.start(A, make_view(2, ACTIVE))
        await until(lambda: three.leaders() == [A])
        await renew_c(three)
        assert await read(back) == numbered(20)


async def test_a_peer_that_was_down_is_told_by_those_that_were_not(tmp_path: Path) -> None:
    """B never met C's last incarnation; A tells it, and is gone when the older copy comes back."""
    async with cluster(tmp_path) as three:
        await three.formed()
        await publish_values(three.sites[A], numbered(3))
        await three.converged()
        await three.stop(B)
        await three.stop(C)
        shutil.copytree(log_of(tmp_path, C), tmp_path / "copy")
        three.start(C, make_view(2, ACTIVE))
        await publish_values(three.sites[A], numbered(3, start=3))
        await three.stop(C)
        three.start(B, make_view(2, ACTIVE))
        await until(lambda: C in peers_of(tmp_path, B).heard)
        await three.stop(A)
        restore(tmp_path, tmp_path / "copy", C)
        forget_anchor(tmp_path, C)
        back = three.start(C, make_view(2, ACTIVE))
        await until(lambda: is_distrusted(back))


async def test_a_log_directory_that_was_set_back_alone_is_recognised_without_asking_anybody(tmp_path: Path) -> None:
    async with cluster(tmp_path) as three:
        copy = await acknowledged_without_b(three, tmp_path)
        restore(tmp_path, copy, C)
        back = three.start(C, make_view(2, ACTIVE))
        await until(lambda: is_distrusted(back))
        three.start(A, make_view(2, ACTIVE))
        three.start(B, make_view(2, ACTIVE))
        await until(lambda: three.leaders() == [A])
        await renew_c(three)
        assert await read(back) == numbered(23)


async def test_a_wiped_disk_is_recognised_under_another_leader(tmp_path: Path) -> None:
    async with cluster(tmp_path) as three:
        await acknowledged_without_b(three, tmp_path)
        shutil.rmtree(log_of(tmp_path, C))
        forget_anchor(tmp_path, C)
        three.start(B, make_view(2, ACTIVE))
        back = three.start(C, make_view(2, ACTIVE))
        await until(lambda: is_distrusted(back))
        found = report_of(back)
        assert found is not None
        assert "wiped or exchanged" in found.reason
        three.start(A, make_view(2, ACTIVE))
        await until(lambda: three.leaders() == [A])
        await renew_c(three)
        assert await read(back) == numbered(23)


async def test_what_is_disowned_stays_so_across_restarts_until_its_data_are_gone(tmp_path: Path) -> None:
    async with cluster(tmp_path) as three:
        copy = await acknowledged_without_b(three, tmp_path)
        restore(tmp_path, copy, C)
        forget_anchor(tmp_path, C)
        three.start(B, make_view(2, ACTIVE))
        back = three.start(C, make_view(2, ACTIVE))
        await until(lambda: is_distrusted(back))
        record = next(log_of(tmp_path, C).rglob(IDENTITY_FILE))
        await until(lambda: b'"disowned": [1]' in record.read_bytes())
        await three.stop(B)
        await three.stop(C)
        again = three.start(C, make_view(2, ACTIVE))  # nobody is there who could tell
        await until(lambda: is_distrusted(again))


async def test_a_restart_is_no_rollback_and_is_heard_at_once(tmp_path: Path) -> None:
    async with cluster(tmp_path) as three:
        await three.formed()
        for node in (C, B, A):
            await three.stop(node)
            three.start(node, make_view(2, ACTIVE))
            await publish_values(three.sites[C], numbered(2))
        await three.converged()
        assert not any(is_distrusted(site) for site in three.sites.values())
        for node in (A, B, C):
            await three.stop(node)
        for node in (C, A, B):
            three.start(node, make_view(2, ACTIVE))
        await publish_values(three.sites[B], numbered(2))
        assert not any(is_distrusted(site) for site in three.sites.values())


async def test_a_peer_that_is_down_holds_nobody_back_for_long(tmp_path: Path) -> None:
    """Availability: one node is away and another restarts; the two that are there are a quorum."""
    async with cluster(tmp_path) as three:
        await three.formed()
        await three.stop(C)
        await three.stop(B)
        three.start(B, make_view(2, ACTIVE))
        answers = await publish_values(three.sites[A], numbered(5))
        assert [answer.error.code for answer in answers] == [""] * 5


async def test_a_newcomer_is_believed_and_heard(tmp_path: Path) -> None:
    async with cluster(tmp_path) as four:
        await four.formed()
        await publish_values(four.sites[A], numbered(5))
        late = four.start(D, make_view(2, ACTIVE))
        four.set_view(make_view(3, ACTIVE, (A, B, C, D)))
        await until(lambda: (found := report_of(late)) is not None and found.state is ReplicaState.OPEN)
        assert await read(late) == numbered(5)


async def test_lost_and_malformed_messages_stop_nobody(tmp_path: Path) -> None:
    async with cluster(tmp_path, loss=0.3) as three:
        three.sites[A].overlay.send(Protocol.RAFT_DSG, TrafficClass.CONTROL, B, store_payload(b"\x63"))
        three.sites[A].overlay.send(Protocol.RAFT_DSG, TrafficClass.CONTROL, B, b"")
        await until(lambda: all(site.groups.replica(STREAM) is not None for site in three.sites.values()))
        await until(lambda: len(three.leaders()) == 1)
        answers = await publish_values(three.sites[B], numbered(3))
        assert [answer.error.code for answer in answers] == [""] * 3
