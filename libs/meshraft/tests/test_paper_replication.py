"""Log replication and commitment: Raft paper §5.3, §5.4.2, §5.4.3; what a follower takes, what a leader may commit."""

from __future__ import annotations

import pytest

from libs.meshraft.tests.cluster import CONFIG, GROUP, Cluster, Envelope, member_of
from libs.meshraft.tests.messages import Kind, LogEntry, Message, frame, unpack
from meshraft import (
    CLASS_BULK,
    CLASS_CONTROL,
    ENTRY_EMPTY,
    ENTRY_NORMAL,
    Backpressure,
    GroupConfig,
    LogCompacted,
    RaftHost,
    SimDisk,
)


def follower(*entries: LogEntry, term: int = 2) -> tuple[RaftHost, SimDisk]:
    """Member 11 of three with `entries` after index 1, put there by member 12."""
    disk = SimDisk()
    host = RaftHost.simulated(disk, seed=1)
    host.create_group(GROUP, 11, {11: 1, 12: 2, 13: 3}, voters=[11, 12, 13], config=CONFIG)
    host.step(2, frame(GROUP, Message(Kind.APPEND, 11, 12, term, 1, 1, list(entries))))
    answers(host, disk)
    return host, disk


def answers(host: RaftHost, disk: SimDisk) -> list[Message]:
    found = []
    for _ in range(3):
        found += [message for f in host.pump().frames for _, message in unpack(f.data)]
        disk.sync()
    return found


def terms(host: RaftHost) -> list[int]:
    """The terms of the log from index 2 on, learnt through the commit index."""
    status = host.status(GROUP)
    return [entry.term for entry in host.entries(GROUP, status.first_index, status.last_index + 1, 1 << 20)]


def test_every_member_applies_the_same_entries_in_order() -> None:
    # §5.3.
    cluster = Cluster(5)
    cluster.elect(1)
    payloads = [f"p{n}" for n in range(50)]
    cluster.commit(*payloads)
    assert [cluster.payloads(node) for node in cluster.nodes] == [payloads] * 5


def test_a_proposal_takes_effect_at_the_term_and_index_it_was_given() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    places = {cluster.propose(f"p{n}"): f"p{n}".encode() for n in range(20)}
    cluster.settle()
    for (term, index), payload in places.items():
        assert cluster.contents[index] == (term, ENTRY_NORMAL, payload)


def test_a_new_leader_commits_an_empty_entry_first() -> None:
    # §8: a leader learns what is committed by committing an entry of its own term.
    cluster = Cluster(3)
    cluster.elect(1)
    assert cluster.contents[2] == (cluster.status(1).term, ENTRY_EMPTY, b"")


def test_an_empty_proposal_is_not_taken_for_a_leaders_first_entry() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    _, index = cluster.propose("")
    cluster.settle()
    assert cluster.contents[index][1] == ENTRY_NORMAL
    assert cluster.hosts[2].entries(GROUP, index, index + 1, 0)[0].kind == ENTRY_NORMAL


def test_nothing_commits_without_a_quorum() -> None:
    cluster = Cluster(5)
    cluster.elect(1)
    for node in (3, 4, 5):
        cluster.isolate(node)
    cluster.propose("lonely")
    cluster.settle()
    assert cluster.payloads(1) == []
    cluster.heal()
    cluster.tick(3)
    assert [cluster.payloads(node) for node in cluster.nodes] == [["lonely"]] * 5


def test_a_follower_acknowledges_only_what_is_durable() -> None:
    # §5.6 and thesis §10.2.1.
    host, disk = follower(LogEntry(2, 2))
    host.step(2, frame(GROUP, Message(Kind.APPEND, 11, 12, 2, 2, 2, [LogEntry(3, 2)])))
    assert host.pump().frames == []
    disk.sync()
    (sent,) = host.pump().frames
    ((group, message),) = unpack(sent.data)
    assert (group, sent.peer, sent.cls, message.kind, message.index) == (
        GROUP,
        2,
        CLASS_CONTROL,
        Kind.APPEND_RESPONSE,
        3,
    )


def test_a_heartbeat_answered_while_a_write_is_under_way_waits_its_turn() -> None:
    host, disk = follower(LogEntry(2, 2))
    host.step(2, frame(GROUP, Message(Kind.APPEND, 11, 12, 2, 2, 2, [LogEntry(3, 2)])))
    host.pump()
    host.step(2, frame(GROUP, Message(Kind.HEARTBEAT, 11, 12, 2, commit=2)))
    assert host.pump().frames == []
    disk.sync()
    kinds = [m.kind for f in host.pump().frames for _, m in unpack(f.data)]
    assert kinds == [Kind.APPEND_RESPONSE, Kind.HEARTBEAT_RESPONSE]


def test_writes_are_released_in_order_as_each_becomes_durable() -> None:
    host, disk = follower()
    for index in (2, 3, 4):
        log_term = 1 if index == 2 else 2
        host.step(2, frame(GROUP, Message(Kind.APPEND, 11, 12, 2, log_term, index - 1, [LogEntry(index, 2)])))
        assert host.pump().frames == []
    assert disk.pending() == 3
    for index in (2, 3, 4):
        disk.sync(1)
        acknowledged = [m.index for f in host.pump().frames for _, m in unpack(f.data)]
        assert acknowledged == [index]


def test_a_leader_sends_before_its_own_write_is_durable_and_counts_itself_after() -> None:
    # Thesis §10.2.1: writing to the leader's disk in parallel.
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.auto_sync = False
    cluster.propose("a")
    cluster.settle()
    assert cluster.disks[2].pending() == 1
    cluster.disks[2].sync()
    cluster.settle()
    assert cluster.payloads(1) == []  # one follower and no leader's disk: no quorum yet
    cluster.disks[1].sync()
    cluster.settle()
    assert cluster.payloads(1) == ["a"]


def test_two_followers_commit_without_the_leaders_disk() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.auto_sync = False
    cluster.propose("a")
    cluster.settle()
    cluster.disks[2].sync()
    cluster.disks[3].sync()
    cluster.settle()
    assert cluster.status(1).commit == 3
    assert cluster.payloads(1) == []  # committed, but applied only once it is durable here
    cluster.disks[1].sync()
    cluster.settle()
    assert cluster.payloads(1) == ["a"]


@pytest.mark.parametrize(("index", "log_term"), [(3, 2), (9, 2), (2, 1), (2, 3)])
def test_follower_rejects_append_with_gap(index: int, log_term: int) -> None:
    # §5.3: the consistency check. The follower's log ends at (2, term 2).
    host, disk = follower(LogEntry(2, 2))
    host.step(2, frame(GROUP, Message(Kind.APPEND, 11, 12, 4, log_term, index, [LogEntry(index + 1, 4)])))
    (answer,) = [m for m in answers(host, disk) if m.kind is Kind.APPEND_RESPONSE]
    assert answer.reject
    assert host.status(GROUP).last_index == 2


@pytest.mark.parametrize(
    ("previous", "entries", "expected"),
    [
        ((3, 2), [LogEntry(4, 3)], [2, 2, 3]),
        ((2, 2), [LogEntry(3, 3), LogEntry(4, 4)], [2, 3, 4]),
        ((1, 1), [LogEntry(2, 3)], [3]),
        ((1, 1), [LogEntry(2, 2)], [2, 2]),
    ],
)
def test_a_follower_replaces_a_conflicting_tail(
    previous: tuple[int, int], entries: list[LogEntry], expected: list[int]
) -> None:
    # §5.3: conflicting entries and all that follow are overwritten, also on the disk; matching ones stay.
    host, disk = follower(LogEntry(2, 2), LogEntry(3, 2))
    index, log_term = previous
    last = index + len(entries)
    host.step(3, frame(GROUP, Message(Kind.APPEND, 11, 13, 4, log_term, index, entries)))
    answers(host, disk)
    final = len(expected) + 1
    assert host.status(GROUP).last_index == final
    disk.crash()
    host = RaftHost.simulated(disk, seed=1)
    host.open_group(GROUP, 11, {11: 1, 12: 2, 13: 3}, config=CONFIG)
    assert host.status(GROUP).last_index == final
    host.step(3, frame(GROUP, Message(Kind.APPEND, 11, 13, 4, entries[-1].term, last, [], commit=last)))
    answers(host, disk)
    assert terms(host)[: last - 1] == expected[: last - 1]


def test_a_stale_leader_is_told_the_current_term() -> None:
    # §5.1.
    host, disk = follower(LogEntry(2, 5), term=5)
    host.step(3, frame(GROUP, Message(Kind.APPEND, 11, 13, 3, 1, 1, [LogEntry(2, 3)])))
    (answer,) = answers(host, disk)
    assert (answer.kind, answer.term, answer.to) == (Kind.APPEND_RESPONSE, 5, 13)
    assert host.status(GROUP).leader == 12


def test_a_leader_commits_only_entries_of_its_own_term_by_counting() -> None:
    # §5.4.2, figure 8: an entry of an old term on a majority may still be overwritten.
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.isolate(1)
    cluster.propose("old", node=1)
    cluster.settle()
    cluster.crash(1)
    cluster.heal()
    cluster.restart(1)
    host, disk = cluster.hosts[1], cluster.disks[1]
    old = cluster.status(1).last_index
    assert old == 3
    host.campaign(GROUP)
    term = cluster.status(1).term + 1
    host.pump()
    host.step(2, frame(GROUP, Message(Kind.REQUEST_PRE_VOTE_RESPONSE, 11, 12, term)))
    answers(host, disk)
    host.step(2, frame(GROUP, Message(Kind.REQUEST_VOTE_RESPONSE, 11, 12, term)))
    answers(host, disk)
    assert cluster.status(1).role == "leader"
    committed = cluster.status(1).commit
    host.step(2, frame(GROUP, Message(Kind.APPEND_RESPONSE, 11, 12, term, index=old)))
    answers(host, disk)
    assert cluster.status(1).commit == committed  # on two of three, and yet not committed
    host.step(2, frame(GROUP, Message(Kind.APPEND_RESPONSE, 11, 12, term, index=old + 1)))
    answers(host, disk)
    assert cluster.status(1).commit == old + 1  # its own entry takes the old one with it


def test_a_divergent_tail_is_overwritten_by_the_new_leader() -> None:
    # §5.3, figure 7.
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.commit("a")
    cluster.isolate(1)
    for n in range(5):
        cluster.propose(f"lost{n}", node=1)
    cluster.settle()
    cluster.until(lambda: cluster.leader() in {2, 3})
    cluster.commit("b")
    cluster.heal()
    cluster.until(lambda: all(cluster.payloads(node) == ["a", "b"] for node in cluster.nodes))


def test_committed_entries_come_again_after_a_restart() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.commit("a", "b")
    for node in cluster.nodes:
        cluster.crash(node)
    for node in cluster.nodes:
        cluster.restart(node)
    cluster.until(lambda: cluster.leader() is not None)
    cluster.settle()
    assert [cluster.payloads(node) for node in cluster.nodes] == [["a", "b"]] * 3


def test_uncommitted_bytes_are_bounded() -> None:
    cluster = Cluster(3, create=False)
    config = GroupConfig(max_uncommitted_bytes=1000, max_bytes_per_append=500)
    for node in cluster.nodes:
        cluster.attach(node).create_group(GROUP, member_of(node), cluster.peers, voters=[11, 12, 13], config=config)
        cluster.apps[node].applied = 1
    cluster.elect(1)
    cluster.isolate(1)
    for _ in range(10):
        cluster.propose("x" * 100, node=1)
    with pytest.raises(Backpressure):
        cluster.propose("x", node=1)
    cluster.heal()
    cluster.tick(2)
    cluster.commit("fits again")
    assert cluster.payloads(2)[-1] == "fits again"


def test_one_entry_larger_than_every_bound_still_passes() -> None:
    cluster = Cluster(3, create=False)
    config = GroupConfig(max_uncommitted_bytes=1000, max_bytes_per_append=500)
    for node in cluster.nodes:
        cluster.attach(node).create_group(GROUP, member_of(node), cluster.peers, voters=[11, 12, 13], config=config)
        cluster.apps[node].applied = 1
    cluster.elect(1)
    cluster.commit("x" * (3 << 20))
    assert len(cluster.payloads(3)[0]) == 3 << 20


def test_frames_are_split_at_a_megabyte_and_classed_by_payload() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    for _ in range(100):
        cluster.propose("x" * 50_000, node=1)
    turn = cluster.hosts[1].pump()
    sizes = [len(f.data) for f in turn.frames if f.cls == CLASS_BULK]
    assert len(sizes) > 6
    assert max(sizes) <= 1 << 20
    cluster.hosts[1].tick()
    heartbeats = cluster.hosts[1].pump().frames
    assert {f.cls for f in heartbeats} == {CLASS_CONTROL}


def test_an_empty_append_does_not_overtake_the_entries_it_follows() -> None:
    # Classes are not ordered among each other: overtaking, it would be refused and throw the leader back to probing.
    cluster = Cluster(3)
    cluster.elect(1)
    held: list[Envelope] = []

    def holds(envelope: Envelope) -> bool:
        if envelope.target == 3 and any(message.kind is Kind.APPEND for message in envelope.messages()):
            held.append(envelope)
            return True
        return False

    cluster.loses = holds
    cluster.commit("a", "b")  # by member 12; the new commit index goes to 13 in an empty append
    appends = [(envelope.cls, message.entries) for envelope in held for message in envelope.messages()]
    assert {bool(entries) for _, entries in appends} == {True, False}
    assert {cls for cls, _ in appends} == {CLASS_BULK}
    cluster.loses = lambda _: False
    for envelope in held:
        cluster.deliver(envelope)
    cluster.settle()
    assert cluster.payloads(3) == ["a", "b"]
    cluster.tick(1)
    assert {p.state for p in cluster.status(1).progress} == {"replicate"}


def test_entries_are_read_back_up_to_the_applied_index() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.commit(*[f"p{n}" for n in range(10)])
    host = cluster.hosts[2]
    assert [entry.data for entry in host.entries(GROUP, 3, 6, 1 << 20)] == [b"p0", b"p1", b"p2"]
    assert len(host.entries(GROUP, 3, 13, 0)) == 1
    assert host.entries(GROUP, 13, 99, 1 << 20) == []
    with pytest.raises(LogCompacted):
        host.entries(GROUP, 1, 3, 1 << 20)
    cluster.auto_sync = False
    cluster.propose("pending")
    cluster.settle()
    assert cluster.status(1).last_index == 13
    assert cluster.hosts[1].entries(GROUP, 13, 14, 1 << 20) == []
