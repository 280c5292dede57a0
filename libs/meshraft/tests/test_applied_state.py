"""Opening a group where its application was, instead of at its snapshot. Storms with crashes do so too (`test_safety`)."""

from __future__ import annotations

import pytest

from libs.meshraft.tests.cluster import CONFIG, GROUP, Cluster, member_of
from meshraft import AppliedStateRefused, RaftHost, SimDisk

MEMBER = member_of(1)


def formed() -> Cluster:
    cluster = Cluster()
    cluster.elect(1)
    cluster.commit("a", "b", "c")
    return cluster


def applied_state_of(cluster: Cluster, node: int) -> bytes:
    applied_state = cluster.hosts[node].applied_state(GROUP)
    assert applied_state is not None
    return applied_state


def reopened(cluster: Cluster, node: int, applied_state: bytes | None) -> RaftHost:
    """The node's group on a new host, after everything it wrote was synced."""
    cluster.hosts[node].close()
    host = RaftHost.simulated(cluster.disks[node], seed=3)
    host.open_group(GROUP, member_of(node), cluster.peers, applied_state=applied_state, config=CONFIG)
    return host


def test_only_later_entries_come_again() -> None:
    cluster = formed()
    applied_state, at = applied_state_of(cluster, 1), cluster.status(1).applied
    cluster.commit("d", "e")
    host = reopened(cluster, 1, applied_state)
    assert host.status(GROUP).applied == at
    assert [entry.data for entry in host.pump().committed] == [b"d", b"e"]
    # What is before it can be read all the same.
    assert [entry.data for entry in host.entries(GROUP, 3, 6, 1 << 20)] == [b"a", b"b", b"c"]


def test_members_of_the_bookmark_hold_and_a_compaction_below_it_names_the_earlier_ones() -> None:
    cluster = formed()
    before = cluster.status(1).applied
    cluster.add_node(4)
    cluster.hosts[1].propose_conf_change(GROUP, "add_learner", member_of(4), 4)
    cluster.tick(5)
    cluster.commit("d")
    host = reopened(cluster, 1, applied_state_of(cluster, 1))
    assert host.status(GROUP).learners == [member_of(4)]
    assert host.pump().committed == []
    host.compact(GROUP, before, b"state")
    cluster.disks[1].sync()
    host.close()
    again = RaftHost.simulated(cluster.disks[1], seed=3)
    again.open_group(GROUP, MEMBER, cluster.peers, config=CONFIG)
    assert again.status(GROUP).learners == []  # as of the snapshot's index, before the change


def test_refused_when_it_is_of_another_log_and_the_group_opens_without_it() -> None:
    cluster, other = formed(), Cluster()
    other.elect(2)
    other.hosts[2].transfer_leader(GROUP, member_of(3))  # so that the same indexes have another term there
    other.until(lambda: other.leader() == 3)
    other.commit("x", "y")
    cluster.hosts[1].close()
    host = RaftHost.simulated(cluster.disks[1], seed=3)
    for bad, why in [
        (applied_state_of(other, 1), "term|committed"),
        (b"", "no applied state"),
        (b"\x01" * 60, "no applied state"),
    ]:
        with pytest.raises(AppliedStateRefused, match=why):
            host.open_group(GROUP, MEMBER, cluster.peers, applied_state=bad, config=CONFIG)
    assert host.open_group(GROUP, MEMBER, cluster.peers, config=CONFIG).index == 1


def test_refused_below_the_snapshot_and_past_what_is_known_to_be_committed() -> None:
    cluster = formed()
    early = applied_state_of(cluster, 1)
    cluster.commit("d")
    cluster.hosts[1].compact(GROUP, cluster.status(1).applied, b"state")
    cluster.settle()
    with pytest.raises(AppliedStateRefused, match="snapshot is at"):
        reopened(cluster, 1, early)

    lone = RaftHost.simulated(disk := SimDisk(), seed=1)
    lone.create_group(GROUP, MEMBER, {MEMBER: 1}, voters=[MEMBER], config=CONFIG)
    lone.pump()
    disk.sync()
    lone.pump()
    lone.campaign(GROUP)
    while lone.has_work() or disk.sync():
        lone.pump()
    ahead = lone.applied_state(GROUP)
    assert ahead is not None
    disk.crash()  # the entry is durable; that it was committed is not
    host = RaftHost.simulated(disk, seed=3)
    with pytest.raises(AppliedStateRefused, match="to be committed"):
        host.open_group(GROUP, MEMBER, {MEMBER: 1}, applied_state=ahead, config=CONFIG)
