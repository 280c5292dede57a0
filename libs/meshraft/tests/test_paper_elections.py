"""Elections: Raft paper §5.2, §5.4.1; thesis §9.6 (pre-vote), §6.2 (check quorum), §3.10 (transfer)."""

from __future__ import annotations

import pytest

from libs.meshraft.tests.cluster import CONFIG, GROUP, Cluster, member_of
from libs.meshraft.tests.messages import Kind, LogEntry, Message, frame, unpack
from meshraft import NotLeader, RaftHost, SimDisk


def lone_follower(disk: SimDisk | None = None) -> tuple[RaftHost, SimDisk]:
    """Member 11 of three, alone with its disk."""
    disk = disk or SimDisk()
    host = RaftHost.simulated(disk, seed=1)
    host.create_group(GROUP, 11, {11: 1, 12: 2, 13: 3}, voters=[11, 12, 13], config=CONFIG)
    host.pump()
    disk.sync()
    host.pump()
    return host, disk


def answers(host: RaftHost, disk: SimDisk) -> list[Message]:
    """What the host says once its disk is done."""
    found = []
    for _ in range(3):
        found += [message for f in host.pump().frames for _, message in unpack(f.data)]
        disk.sync()
    return found


def vote_request(sender: int, term: int, index: int = 1, log_term: int = 1) -> bytes:
    return frame(GROUP, Message(Kind.REQUEST_VOTE, 11, sender, term, log_term, index))


@pytest.mark.parametrize("nodes", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_a_leader_is_elected_by_timeout_and_only_one_per_term(nodes: int, seed: int) -> None:
    # §5.2: an election timeout makes candidates; a majority of votes makes one leader.
    cluster = Cluster(nodes, seed=seed)
    cluster.until(lambda: cluster.leader() is not None)
    cluster.settle()
    leader = cluster.leader()
    assert leader is not None
    assert {cluster.status(node).leader for node in cluster.nodes} == {member_of(leader)}


def test_a_new_group_starts_as_follower_of_nobody() -> None:
    host, _ = lone_follower()
    status = host.status(GROUP)
    assert (status.role, status.term, status.leader, status.first_index, status.last_index) == ("follower", 1, 0, 2, 1)


def test_an_election_begins_within_one_to_two_election_timeouts() -> None:
    # §5.2: timeouts are drawn from [t, 2t).
    host, _ = lone_follower()
    for _ in range(CONFIG.election_ticks - 1):
        host.tick()
    assert host.status(GROUP).role == "follower"
    for _ in range(CONFIG.election_ticks + 1):
        host.tick()
    assert host.status(GROUP).role == "candidate"


def test_election_timeouts_differ_between_members() -> None:
    # §5.2: randomised timeouts make split votes rare.
    first = set()
    for node in range(1, 30):
        host = RaftHost.simulated(SimDisk(), seed=node)
        host.create_group(GROUP, 11, {11: 1, 12: 2}, voters=[11, 12], config=CONFIG)
        ticks = 0
        while host.status(GROUP).role == "follower":
            host.tick()
            ticks += 1
        first.add(ticks)
    assert len(first) > 4


def test_a_voter_votes_once_per_term_first_come_first_served() -> None:
    # §5.2.
    host, disk = lone_follower()
    host.step(2, vote_request(12, 2))
    host.step(3, vote_request(13, 2))
    votes = [(m.to, m.reject) for m in answers(host, disk) if m.kind is Kind.REQUEST_VOTE_RESPONSE]
    assert votes == [(12, False), (13, True)]


def test_a_vote_is_not_sent_before_it_is_durable() -> None:
    # §5.6: a server must remember its vote across restarts, so it may not speak of it before.
    host, disk = lone_follower()
    host.step(2, vote_request(12, 2))
    assert host.pump().frames == []
    assert host.pump().frames == []
    disk.sync()
    assert [m.kind for f in host.pump().frames for _, m in unpack(f.data)] == [Kind.REQUEST_VOTE_RESPONSE]


@pytest.mark.parametrize("mutant", [None, "vote_not_saved", "hard_state_not_written"])
def test_a_vote_survives_a_restart(mutant: str | None) -> None:
    # §5.2: one vote in a term, across restarts. The planted bugs show that this test can fail.
    disk = SimDisk(mutant=mutant)
    host, _ = lone_follower(disk)
    host.step(2, vote_request(12, 5))
    granted = [m for m in answers(host, disk) if m.kind is Kind.REQUEST_VOTE_RESPONSE]
    assert [(m.to, m.term, m.reject) for m in granted] == [(12, 5, False)]
    disk.crash()
    host = RaftHost.simulated(disk, seed=2)
    host.open_group(GROUP, 11, {11: 1, 12: 2, 13: 3}, config=CONFIG)
    host.step(3, vote_request(13, 5))
    answer = [m for m in answers(host, disk) if m.kind is Kind.REQUEST_VOTE_RESPONSE]
    assert [(m.to, m.reject) for m in answer] == [(13, mutant is None)]
    host.step(2, vote_request(12, 5))
    again = [m for m in answers(host, disk) if m.kind is Kind.REQUEST_VOTE_RESPONSE]
    assert [(m.to, m.reject) for m in again] == [(12, mutant is not None)]


def test_an_unsynced_vote_was_never_given() -> None:
    host, disk = lone_follower()
    host.step(2, vote_request(12, 2))
    host.pump()
    disk.crash()
    host = RaftHost.simulated(disk, seed=1)
    host.open_group(GROUP, 11, {11: 1, 12: 2, 13: 3}, config=CONFIG)
    host.step(3, vote_request(13, 2))
    assert [m.reject for m in answers(host, disk)] == [False]


@pytest.mark.parametrize(
    ("index", "log_term", "granted"),
    [(3, 1, False), (2, 2, True), (1, 3, True), (9, 1, False), (1, 2, False), (3, 2, True)],
)
def test_a_voter_refuses_a_candidate_whose_log_is_behind(index: int, log_term: int, granted: bool) -> None:
    # §5.4.1: the later last term wins, then the longer log. The voter's log ends at (2, term 2).
    host, disk = lone_follower()
    host.step(2, frame(GROUP, Message(Kind.APPEND, 11, 12, 2, 1, 1, [LogEntry(2, 2)])))
    answers(host, disk)
    for _ in range(CONFIG.election_ticks):
        host.tick()  # the lease of member 12 must be over before others are heard
    host.step(3, vote_request(13, 5, index, log_term))
    votes = [m for m in answers(host, disk) if m.kind is Kind.REQUEST_VOTE_RESPONSE]
    assert [not vote.reject for vote in votes] == [granted]


def test_a_candidate_that_returns_with_a_higher_term_does_not_disturb() -> None:
    # Thesis §9.6: pre-vote. Without it the isolated node comes back with a high term and deposes the leader.
    cluster = Cluster(3)
    cluster.elect(1)
    term = cluster.status(1).term
    cluster.isolate(3)
    cluster.tick(100)
    assert cluster.status(3).role == "candidate"
    assert cluster.status(3).term == term
    cluster.heal()
    cluster.tick(30)
    assert cluster.leader() == 1
    assert {cluster.status(node).term for node in cluster.nodes} == {term}


def test_a_leader_without_a_quorum_steps_down() -> None:
    # Thesis §6.2: check quorum.
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.isolate(1)
    cluster.tick(2 * CONFIG.election_ticks + 1, nodes=[1])
    assert cluster.status(1).role != "leader"
    with pytest.raises(NotLeader):
        cluster.propose("too late", node=1)


def test_a_leader_with_a_quorum_stays() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.isolate(3)
    cluster.tick(100, nodes=[1, 2])
    assert cluster.status(1).role == "leader"


def test_a_vote_is_refused_while_the_leader_is_heard() -> None:
    # Thesis §4.2.3: a removed member must not disturb those that hear their leader.
    cluster = Cluster(3)
    cluster.elect(1)
    term = cluster.status(1).term
    cluster.hosts[2].step(3, frame(GROUP, Message(Kind.REQUEST_VOTE, 12, 13, term + 5, 99, 99)))
    cluster.settle()
    assert cluster.status(2).term == term


def test_a_new_leader_is_elected_when_the_old_one_is_gone() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.commit("a")
    cluster.crash(1)
    cluster.until(lambda: cluster.leader() is not None)
    cluster.commit("b")
    cluster.restart(1)
    cluster.until(lambda: cluster.payloads(1) == ["a", "b"])


def test_leadership_is_handed_over_without_waiting_for_a_timeout() -> None:
    # Thesis §3.10.
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.propose("a")
    cluster.hosts[1].transfer_leader(GROUP, member_of(2))
    with pytest.raises(NotLeader):
        cluster.propose("b", node=1)
    cluster.settle()
    assert cluster.leader() == 2
    cluster.commit("c")
    assert [cluster.payloads(node) for node in cluster.nodes] == [["a", "c"]] * 3


def test_a_handover_to_a_dead_member_is_given_up() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.crash(2)
    cluster.hosts[1].transfer_leader(GROUP, member_of(2))
    cluster.tick(CONFIG.election_ticks + 1)
    assert cluster.leader() == 1
    cluster.commit("a")
    assert cluster.payloads(3) == ["a"]


def test_only_a_leader_proposes_and_hands_over() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    with pytest.raises(NotLeader, match="member 11 leads"):
        cluster.propose("x", node=2)
    with pytest.raises(NotLeader) as caught:
        cluster.hosts[2].transfer_leader(GROUP, member_of(3))
    assert caught.value.code == "NOT_LEADER"
    with pytest.raises(ValueError, match="no voter"):
        cluster.hosts[1].transfer_leader(GROUP, 99)


def test_a_lone_voter_tells_its_learner_nothing_of_a_term_that_is_not_durable() -> None:
    # Thesis §10.2.1 lets a leader send before its own fsync, but not before its term is durable: after a crash it would
    # fill the same term again with other entries. raft-rs 0.7 does not see to it for a lone voter.
    disk = SimDisk()
    host = RaftHost.simulated(disk, seed=1)
    host.create_group(GROUP, 11, {11: 1, 12: 2}, voters=[11], learners=[12], config=CONFIG)
    host.pump()
    disk.sync()
    host.pump()
    host.campaign(GROUP)
    assert host.pump().frames == []
    host.propose(GROUP, b"x")
    assert host.pump().frames == []
    disk.sync(1)
    told = [m for f in host.pump().frames for _, m in unpack(f.data)]
    assert {m.term for m in told} == {host.status(GROUP).term}
    assert {m.to for m in told} == {12}
