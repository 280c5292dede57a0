"""The host around the groups: lifecycle, many groups, misuse, and faults that stay inside one group."""

from __future__ import annotations

from typing import Any

import pytest

import meshraft
from libs.meshraft.tests.cluster import CONFIG, GROUP, Cluster
from libs.meshraft.tests.messages import Kind, LogEntry, Message, frame
from meshraft import (
    Backpressure,
    GroupConfig,
    GroupExists,
    GroupPoisoned,
    HostPoisoned,
    LogCorrupt,
    RaftError,
    RaftHost,
    SimDisk,
    UnknownGroup,
)

PEERS = {11: 1, 12: 2, 13: 3}


def host_on(disk: SimDisk) -> RaftHost:
    host = RaftHost.simulated(disk, seed=1)
    host.create_group(GROUP, 11, PEERS, voters=[11, 12, 13], config=CONFIG)
    host.pump()
    disk.sync()
    host.pump()
    return host


def test_every_error_has_a_stable_code() -> None:
    codes = {
        name: getattr(meshraft, name).code
        for name in meshraft.__all__
        if isinstance(getattr(meshraft, name), type) and issubclass(getattr(meshraft, name), RaftError)
    }
    assert codes == {
        "Backpressure": "BACKPRESSURE",
        "AppliedStateRefused": "APPLIED_STATE_REFUSED",
        "GroupExists": "GROUP_EXISTS",
        "GroupPoisoned": "GROUP_POISONED",
        "HostPoisoned": "HOST_POISONED",
        "InvalidFrame": "INVALID_FRAME",
        "LogCompacted": "LOG_COMPACTED",
        "LogCorrupt": "LOG_CORRUPT",
        "NotLeader": "NOT_LEADER",
        "RaftError": "RAFT_ERROR",
        "UnknownGroup": "UNKNOWN_GROUP",
    }


def test_calls_on_an_unknown_group_are_refused() -> None:
    host = RaftHost.simulated(SimDisk(), seed=1)
    for call in (
        lambda: host.status(9),
        lambda: host.propose(9, b""),
        lambda: host.propose_conf_change(9, "remove", 1, 1),
        lambda: host.transfer_leader(9, 1),
        lambda: host.campaign(9),
        lambda: host.read_index(9, 1),
        lambda: host.entries(9, 1, 2, 1),
        lambda: host.compact(9, 1, b""),
        lambda: host.set_peers(9, {}),
        lambda: host.close_group(9),
        lambda: host.destroy_group(9),
        lambda: host.open_group(9, 1, {}),
    ):
        with pytest.raises(UnknownGroup):
            call()


def test_a_group_is_made_once() -> None:
    host = host_on(SimDisk())
    with pytest.raises(GroupExists):
        host.create_group(GROUP, 11, PEERS, voters=[11, 12, 13])
    with pytest.raises(GroupExists):
        host.open_group(GROUP, 11, PEERS)
    host.close_group(GROUP)
    with pytest.raises(GroupExists):
        host.create_group(GROUP, 11, PEERS, voters=[11, 12, 13])
    assert host.stored_groups() == [GROUP]


@pytest.mark.parametrize(
    ("member", "peers", "voters", "learners", "message"),
    [
        (0, PEERS, [11], [], "begin at 1"),
        (14, PEERS, [11, 12], [], "not among"),
        (11, {11: 1}, [11, 12], [], "where member 12 lives"),
        (11, PEERS, [11, 11], [], "distinct"),
        (11, PEERS, [11], [11], "distinct"),
        (11, PEERS, [0, 11], [], "distinct"),
        (11, PEERS, [], [11], "starts blank"),
    ],
)
def test_a_group_that_cannot_be_is_refused_and_leaves_nothing(
    member: int, peers: dict[int, int], voters: list[int], learners: list[int], message: str
) -> None:
    host = RaftHost.simulated(SimDisk(), seed=1)
    with pytest.raises(ValueError, match=message):
        host.create_group(GROUP, member, peers, voters=voters, learners=learners)
    assert host.stored_groups() == []
    assert not host.has_work()


@pytest.mark.parametrize(
    "bad",
    [
        {"election_ticks": 1},
        {"heartbeat_ticks": 0},
        {"max_inflight_appends": 0},
        {"max_uncommitted_bytes": 1},
        {"election_ticks": 2_000_000},
    ],
)
def test_a_configuration_that_cannot_be_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        GroupConfig(**bad)


def test_a_group_opened_as_another_member_is_refused() -> None:
    host = host_on(SimDisk())
    host.close_group(GROUP)
    with pytest.raises(LogCorrupt, match="stored as member 11"):
        host.open_group(GROUP, 12, PEERS)
    host.open_group(GROUP, 11, PEERS)


def test_a_closed_group_reopens_with_all_that_was_written() -> None:
    cluster = Cluster(1)
    cluster.elect(1)
    cluster.commit("a", "b")
    host = cluster.hosts[1]
    host.close_group(GROUP)
    with pytest.raises(UnknownGroup):
        host.status(GROUP)
    host.open_group(GROUP, 11, cluster.peers, config=CONFIG)
    assert host.status(GROUP).commit == 4  # the commit index was written at closing
    cluster.apps[1].applied = 1
    cluster.apps[1].payloads.clear()
    cluster.settle()
    assert cluster.payloads(1) == ["a", "b"]


def test_a_group_reopened_before_its_writes_are_durable_keeps_silent() -> None:
    disk = SimDisk()
    host = host_on(disk)
    host.step(2, frame(GROUP, Message(Kind.REQUEST_VOTE, 11, 12, 2, 1, 1)))
    host.pump()
    host.close_group(GROUP)
    host.open_group(GROUP, 11, PEERS, config=CONFIG)
    host.step(2, frame(GROUP, Message(Kind.REQUEST_VOTE, 11, 12, 2, 1, 1)))
    assert host.pump().frames == []
    disk.sync()
    assert len(host.pump().frames) == 1


def test_a_destroyed_group_is_gone_and_its_id_free() -> None:
    disk = SimDisk()
    host = host_on(disk)
    host.step(2, frame(GROUP, Message(Kind.APPEND, 11, 12, 2, 1, 1, [LogEntry(2, 2, b"old")])))
    host.pump()
    host.destroy_group(GROUP)
    assert host.stored_groups() == []
    host.create_group(GROUP, 21, {21: 1}, voters=[21], config=CONFIG)
    host.pump()
    disk.sync()
    host = RaftHost.simulated(disk, seed=1)
    assert host.stored_groups() == [GROUP]
    host.open_group(GROUP, 21, {21: 1}, config=CONFIG)
    status = host.status(GROUP)
    assert (status.member, status.last_index, status.voters) == (21, 1, [21])


def test_groups_share_one_write_and_one_frame_per_peer() -> None:
    disk = SimDisk()
    host = RaftHost.simulated(disk, seed=1)
    for group in range(1, 51):
        host.create_group(group, 11, PEERS, voters=[11, 12, 13], config=CONFIG)
    host.pump()
    assert disk.pending() == 1
    disk.sync()
    host.pump()
    for group in range(1, 51):
        host.campaign(group)
    sent = host.pump().frames
    assert [f.peer for f in sent] == [2, 3]


def test_a_frame_for_groups_that_are_not_here_names_them() -> None:
    host = host_on(SimDisk())
    beat = Message(Kind.HEARTBEAT, 11, 12, 2)
    mixed = frame(99, beat) + frame(GROUP, beat)[1:] + frame(98, beat)[1:]
    assert host.step(2, mixed) == [98, 99]
    assert host.status(GROUP).leader == 12


def test_a_panic_closes_its_group_only_and_the_disk_heals_it() -> None:
    # A heartbeat that commits past the log says that this member lost data; raft-rs panics on it.
    disk = SimDisk()
    host = host_on(disk)
    host.create_group(8, 11, PEERS, voters=[11, 12, 13], config=CONFIG)
    host.step(2, frame(GROUP, Message(Kind.HEARTBEAT, 11, 12, 2, commit=50)))
    with pytest.raises(GroupPoisoned) as caught:
        host.status(GROUP)
    assert caught.value.code == "GROUP_POISONED"
    with pytest.raises(GroupPoisoned):
        host.propose(GROUP, b"x")
    turn = host.pump()
    assert [group for group, _, _ in turn.closed] == [GROUP]
    assert turn.closed[0][1] == "lost_synced_data"
    assert host.pump().closed == []
    assert host.status(8).role == "follower"
    assert host.step(2, frame(GROUP, Message(Kind.HEARTBEAT, 11, 12, 2))) == []
    host.open_group(GROUP, 11, PEERS, config=CONFIG)
    assert host.status(GROUP).last_index == 1


def test_a_conflict_with_a_committed_entry_closes_the_group() -> None:
    disk = SimDisk()
    host = host_on(disk)
    host.step(2, frame(GROUP, Message(Kind.APPEND, 11, 12, 2, 1, 1, [LogEntry(2, 2)], commit=2)))
    for _ in range(3):
        host.pump()
        disk.sync()
    host.step(3, frame(GROUP, Message(Kind.APPEND, 11, 13, 3, 1, 1, [LogEntry(2, 3)])))
    host.step(3, frame(GROUP, Message(Kind.HEARTBEAT, 11, 13, 3, commit=9)))
    assert host.pump().closed


def test_quiet_ticks_count_since_a_member_was_heard() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.isolate(3)
    before = {p.member: p.quiet_ticks for p in cluster.status(1).progress}
    cluster.tick(15, nodes=[1, 2])
    after = {p.member: p.quiet_ticks for p in cluster.status(1).progress}
    assert after[11] == 0
    assert after[12] <= 1
    assert after[13] == before[13] + 15
    assert cluster.status(2).leader_quiet_ticks <= 1
    assert cluster.status(1).leader_quiet_ticks == 0
    cluster.tick(5, nodes=[3])
    assert cluster.status(3).leader_quiet_ticks >= 5


def test_a_status_shows_progress_only_at_the_leader() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.commit("a")
    assert {(p.member, p.peer, p.matched, p.voter, p.state) for p in cluster.status(1).progress} == {
        (11, 1, 3, True, "replicate"),
        (12, 2, 3, True, "replicate"),
        (13, 3, 3, True, "replicate"),
    }
    assert cluster.status(2).progress == []


def test_an_idle_host_has_no_work() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    assert not any(host.has_work() for host in cluster.hosts.values())
    cluster.propose("x")
    assert cluster.hosts[1].has_work()
    cluster.settle()
    assert not any(host.has_work() for host in cluster.hosts.values())


def test_a_crashed_disk_detaches_its_host() -> None:
    disk = SimDisk()
    host = host_on(disk)
    disk.crash()
    with pytest.raises(HostPoisoned):
        host.pump()
    with pytest.raises(HostPoisoned):
        host.status(GROUP)
    assert not host.has_work()


def test_a_closed_host_refuses_every_call() -> None:
    host = host_on(SimDisk())
    host.close()
    host.close()
    for call in (host.pump, host.tick, host.stored_groups, host.disk_bytes):
        with pytest.raises(HostPoisoned):
            call()


def test_an_unknown_mutant_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown mutant"):
        SimDisk(mutant="nothing")


def test_an_idle_leader_does_not_grow() -> None:
    # raft-rs keeps a record per Ready until told that it is durable; heartbeats make Readies without a write.
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.tick(2000)
    assert cluster.leader() == 1
    assert cluster.status(1).last_index == 2


def test_uncommitted_bytes_are_bounded_over_all_groups_of_a_host() -> None:
    disk = SimDisk()
    host = RaftHost.simulated(disk, seed=1)
    for group in (1, 2, 3):
        host.create_group(group, 11, {11: 1}, voters=[11], config=CONFIG)
        host.campaign(group)
    while host.has_work():
        host.pump()
        disk.sync()
    entry = bytes(4 << 20)
    for number in range(16):
        host.propose(1 + number % 2, entry)
    for group in (1, 2):
        with pytest.raises(Backpressure, match="this host"):
            host.propose(group, b"x")
    # A third group gets what each of the three would have if they shared, however greedy the others were.
    taken = 0
    with pytest.raises(Backpressure, match="this host"):  # noqa: PT012 - the last of many is refused
        while True:
            host.propose(3, entry)
            taken += len(entry)
    assert (64 << 20) / 4 <= taken <= (64 << 20) / 2
    while host.has_work():
        host.pump()
        disk.sync()
    for group in (1, 2, 3):
        host.propose(group, entry)
