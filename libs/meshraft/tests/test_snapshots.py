"""Snapshots and compaction: Raft paper §7, and what keeps a lost snapshot from hanging a member."""

from __future__ import annotations

import pytest

from libs.meshraft.tests.cluster import CONFIG, GROUP, Cluster, Envelope, member_of
from libs.meshraft.tests.messages import Kind
from meshraft import CLASS_BULK, LogCompacted, RaftHost, SimDisk


def compacted(nodes: int = 3) -> Cluster:
    """A cluster whose leader has ten entries and has compacted five of them; node 3 saw none."""
    cluster = Cluster(nodes)
    cluster.elect(1)
    cluster.isolate(3)
    cluster.commit(*[f"p{n}" for n in range(5)])
    for node in (1, 2):
        cluster.hosts[node].compact(GROUP, cluster.status(node).applied, cluster.apps[node].dump())
    cluster.commit(*[f"p{n}" for n in range(5, 10)])
    return cluster


PAYLOADS = [f"p{n}" for n in range(10)]


def test_a_member_behind_the_log_is_brought_up_by_a_snapshot() -> None:
    cluster = compacted()
    assert cluster.status(1).first_index == 8
    cluster.heal()
    cluster.until(lambda: cluster.payloads(3) == PAYLOADS)
    assert cluster.status(3).first_index == 8


def test_an_installed_snapshot_is_handed_out_only_when_durable_and_survives() -> None:
    cluster = compacted()
    cluster.heal()
    cluster.auto_sync = False
    for _ in range(30):
        cluster.tick()
        cluster.disks[1].sync()
        cluster.disks[2].sync()
        if cluster.disks[3].pending():
            break
    assert cluster.apps[3].applied < 7
    assert cluster.status(3).applied < 7
    cluster.crash(3)
    cluster.restart(3)
    assert cluster.apps[3].applied < 7  # as if it had never come
    cluster.auto_sync = True
    cluster.until(lambda: cluster.payloads(3) == PAYLOADS)
    cluster.crash(3)
    cluster.restart(3)
    assert cluster.payloads(3) == PAYLOADS[:5]
    cluster.until(lambda: cluster.payloads(3) == PAYLOADS)


def test_no_election_starts_while_a_snapshot_waits_for_the_disk() -> None:
    # raft-rs would read the log from an applied index that the snapshot has cut off, and panic.
    cluster = compacted()
    cluster.heal()
    cluster.auto_sync = False
    for _ in range(30):
        cluster.tick()
        cluster.disks[1].sync()
        cluster.disks[2].sync()
        if cluster.disks[3].pending():
            break
    cluster.isolate(3)
    cluster.tick(100, nodes=[3])
    assert cluster.status(3).role == "follower"
    cluster.auto_sync = True
    cluster.heal()
    cluster.until(lambda: cluster.payloads(3) == PAYLOADS)


def is_snapshot(envelope: Envelope) -> bool:
    return any(message.kind is Kind.SNAPSHOT for message in envelope.messages())


def test_a_lost_snapshot_is_sent_again() -> None:
    cluster = compacted()
    cluster.heal()
    lost: list[Envelope] = []

    def loses(envelope: Envelope) -> bool:
        if is_snapshot(envelope) and len(lost) < 3:
            lost.append(envelope)
            return True
        return False

    cluster.loses = loses
    cluster.until(lambda: cluster.payloads(3) == PAYLOADS)
    assert len(lost) == 3
    assert {envelope.cls for envelope in lost} == {CLASS_BULK}


def test_a_slow_snapshot_is_not_sent_again_at_every_heartbeat() -> None:
    cluster = compacted()
    cluster.heal()
    held: list[Envelope] = []

    def holds(envelope: Envelope) -> bool:
        if is_snapshot(envelope):
            held.append(envelope)
            return True
        return False

    cluster.loses = holds
    cluster.tick(4 * CONFIG.election_ticks)
    assert 1 <= len(held) <= 3


def test_a_blank_member_starts_from_the_founding_snapshot() -> None:
    cluster = Cluster(1, create=False)
    cluster.attach(1).create_group(GROUP, 11, {11: 1}, voters=[11], snapshot=b'[1, ["born"], []]', config=CONFIG)
    cluster.apps[1].applied = 1
    cluster.elect(1)
    cluster.commit("a")
    cluster.add_node(2)
    assert cluster.status(2).first_index == 1
    cluster.hosts[1].propose_conf_change(GROUP, "add_learner", 12, 2)
    cluster.until(lambda: cluster.payloads(2) == ["born", "a"])


def test_a_snapshot_carries_where_the_members_live() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.add_node(4)
    cluster.hosts[4].set_peers(GROUP, {11: 1})
    cluster.hosts[1].compact(GROUP, cluster.status(1).applied, cluster.apps[1].dump())
    cluster.hosts[1].propose_conf_change(GROUP, "add_voter", 14, 4)
    cluster.until(lambda: cluster.status(1).voters == [11, 12, 13, 14])
    cluster.tick(3)
    cluster.hosts[1].transfer_leader(GROUP, 14)
    cluster.until(lambda: cluster.leader() == 4)
    assert {p.member: p.peer for p in cluster.status(4).progress} == {11: 1, 12: 2, 13: 3, 14: 4}


def test_compacting_past_the_applied_index_or_back_is_refused() -> None:
    cluster = compacted()
    for index in (0, 6, 99):
        with pytest.raises(ValueError, match="cannot be compacted"):
            cluster.hosts[1].compact(GROUP, index, b"")
    assert cluster.status(1).first_index == 8
    cluster.hosts[1].compact(GROUP, 7, cluster.apps[2].dump())  # the same index: the snapshot is replaced


def test_entries_below_the_snapshot_are_gone() -> None:
    cluster = compacted()
    with pytest.raises(LogCompacted) as caught:
        cluster.hosts[1].entries(GROUP, 7, 9, 100)
    assert caught.value.code == "LOG_COMPACTED"
    assert [e.data for e in cluster.hosts[1].entries(GROUP, 8, 10, 100)] == [b"p5", b"p6"]


def test_a_compaction_is_one_write() -> None:
    cluster = compacted()
    cluster.settle()
    cluster.auto_sync = False
    applied = cluster.status(1).applied
    cluster.hosts[1].compact(GROUP, applied, cluster.apps[1].dump())
    cluster.pump(1)
    assert cluster.disks[1].pending() == 1
    cluster.crash(1)
    cluster.restart(1)
    assert cluster.status(1).first_index == 8  # the crash undid all of it
    cluster.auto_sync = True
    cluster.until(lambda: cluster.status(1).applied >= applied)
    cluster.auto_sync = False
    cluster.hosts[1].compact(GROUP, applied, cluster.apps[1].dump())
    cluster.pump(1)
    cluster.disks[1].sync()
    cluster.crash(1)
    cluster.restart(1)
    assert cluster.status(1).first_index == applied + 1
    assert cluster.payloads(1) == PAYLOADS


def test_a_snapshot_replaces_a_divergent_log() -> None:
    # §7: if the snapshot describes what the follower's log does not contain, the whole log goes, also beyond it.
    cluster = Cluster(3)
    cluster.elect(3)
    cluster.isolate(3)
    for n in range(30):
        cluster.propose(f"lost{n}", node=3)
    cluster.settle()
    cluster.until(lambda: cluster.leader() in {1, 2})
    cluster.commit("a", "b")
    for node in (1, 2):
        cluster.hosts[node].compact(GROUP, cluster.status(node).applied, cluster.apps[node].dump())
    cluster.settle()
    cluster.heal()
    cluster.until(lambda: cluster.payloads(3) == ["a", "b"])
    assert cluster.status(3).last_index == cluster.status(1).last_index
    cluster.crash(3)
    cluster.restart(3)
    assert cluster.status(3).last_index == cluster.status(1).last_index
    cluster.commit("c")
    cluster.tick(2)
    assert cluster.payloads(3) == ["a", "b", "c"]


def test_reopening_returns_the_snapshot_and_index_zero_when_blank() -> None:
    disk = SimDisk()
    host = RaftHost.simulated(disk, seed=1)
    host.create_group(GROUP, member_of(1), {}, voters=[], config=CONFIG)
    host.pump()
    disk.sync()
    host = RaftHost.simulated(disk, seed=1)
    installed = host.open_group(GROUP, member_of(1), {}, config=CONFIG)
    assert (installed.index, installed.term, installed.data) == (0, 0, b"")
