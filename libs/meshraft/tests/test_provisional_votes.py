"""Elections with provisional votes: when they count, and whose goal the leader names. Source: docs/design/recovery.md."""

from __future__ import annotations

from libs.meshraft.tests.cluster import GROUP, Cluster, Envelope, member_of
from libs.meshraft.tests.messages import Kind
from libs.meshraft.tests.test_forgotten_promises import (
    ELECTIONS,
    PAYLOADS,
    damage_down_to,
    heals,
    hold,
    written,
)


def test_a_leader_that_not_all_elected_does_not_trust_a_grant_on_probation() -> None:
    """Node 4 grants, but so do 2 and 3; node 5, whom nobody hears, may lead with a vote that 4 forgot."""
    cluster = written(5)
    cluster.damage(4, 0)
    for node in (1, 2, 3, 5):
        cluster.crash(node)
    cluster.network.clear()
    for node in (1, 2, 3, 4):
        cluster.restart(node)
    cluster.settle()
    # What 4 says comes first: later it would not be looked at.
    grants = {Kind.REQUEST_PRE_VOTE_RESPONSE, Kind.REQUEST_VOTE_RESPONSE}
    held = hold(cluster, lambda envelope, message: envelope.source in (2, 3) and message.kind in grants)
    cluster.hosts[1].campaign(GROUP)
    for _ in range(2):
        cluster.settle()
        envelopes = list(held)
        held.clear()
        for envelope in envelopes:
            cluster.hosts[1].step(envelope.source, envelope.data)
    cluster.isolate(2)
    cluster.isolate(3)
    cluster.tick(3, nodes=[1, 4])
    assert (cluster.status(1).role, cluster.is_on_probation(4)) == ("leader", True)
    cluster.restart(5)
    heals(cluster)


def asking() -> tuple[Cluster, list[Envelope], list[Envelope]]:
    """Node 1 stands; returns too a copy of what it was granted in advance, and its requests for votes, which nobody got."""
    cluster = written()
    cluster.restart_everybody()
    granted: list[Envelope] = []
    requests: list[Envelope] = []

    def watch(envelope: Envelope) -> bool:
        kinds = {message.kind for message in envelope.messages()}
        granted.extend([envelope] if Kind.REQUEST_PRE_VOTE_RESPONSE in kinds else [])
        requests.extend([envelope] if Kind.REQUEST_VOTE in kinds else [])
        return Kind.REQUEST_VOTE in kinds

    cluster.loses = watch
    cluster.hosts[1].campaign(GROUP)
    cluster.settle()
    assert cluster.status(1).role == "candidate"
    assert len(requests) == 2
    return cluster, granted, requests


def test_what_an_earlier_life_was_granted_in_advance_does_not_count() -> None:
    """Node 1 loses entries and its candidacy; nobody grants it that with the log that it has left."""
    cluster, granted, _ = asking()
    term = cluster.status(1).term
    while 1 not in cluster.hosts or cluster.status(1).last_index > cluster.status(2).last_index - 3:
        cluster.damage(1, 1)
        cluster.restart(1)
    assert cluster.is_on_probation(1)
    cluster.network.clear()
    cluster.hosts[1].campaign(GROUP)
    while cluster.status(1).term < term - 1:  # old answers may make up for what it forgot of terms
        cluster.tick(1, nodes=[1])
        cluster.network.clear()
    cluster.pump(1)
    cluster.network.clear()
    for envelope in granted:
        cluster.hosts[1].step(envelope.source, envelope.data)
    cluster.settle()
    assert cluster.status(1).role != "leader"
    assert cluster.status(1).term == term - 1
    heals(cluster)


def test_a_vote_names_the_life_that_it_was_given_to() -> None:
    """Requests of a candidate from before and after its damage come in one turn of the voter: only the later ones count."""
    cluster, _, old = asking()
    term = cluster.status(1).term
    damage_down_to(cluster, 1, term - 1)
    assert cluster.status(1).last_index == cluster.status(2).last_index
    cluster.network.clear()
    before = len(old)
    cluster.hosts[1].campaign(GROUP)
    cluster.settle()
    assert (cluster.status(1).role, cluster.status(1).term) == ("candidate", term)
    new = old[before:]
    cluster.loses = lambda _: False
    for envelope in old[:before]:
        cluster.hosts[envelope.target].step(envelope.source, envelope.data)
    for node in (2, 3):
        cluster.pump(node)
        cluster.disks[node].sync()
    cluster.settle()
    assert cluster.status(1).role == "candidate"
    for envelope in new:
        cluster.deliver(envelope)
    cluster.settle()
    assert cluster.status(1).role == "candidate"  # they know this term by now, and do not give it twice
    heals(cluster)


def test_probation_that_ended_with_its_life_is_not_reported_for_ever() -> None:
    """Else nobody is promoted, or handed the leadership, till another leads."""
    cluster = written()
    cluster.damage(3, 2, as_one=True)
    cluster.restart(3)
    # One heartbeat reaches it, its notice reaches the leader, and it starts again before there is a goal.
    cluster.loses = lambda envelope: envelope.target == 2  # nothing is committed for a moment
    cluster.tick(1)
    cluster.crash(3)
    cluster.restart(3)
    cluster.loses = lambda _: False
    term = cluster.status(1).term
    heals(cluster)
    cluster.commit("more")
    cluster.tick(200)
    assert (cluster.leader(), cluster.status(1).term) == (1, term)
    assert not cluster.is_on_probation(3)
    assert not any(item.on_probation for item in cluster.status(1).progress)


def test_voters_with_different_configurations_wait_for_an_operator() -> None:
    """Node 3 was promoted; node 1 forgets that, and node 2 never heard that it is committed. Everybody answers, nobody leads."""
    cluster = written(2)
    cluster.add_node(3)
    cluster.hosts[1].propose_conf_change(GROUP, "add_learner", member_of(3), 3)
    cluster.settle()
    cluster.until(lambda: cluster.payloads(3) == PAYLOADS)
    cluster.tick(3)
    cluster.hosts[1].propose_conf_change(GROUP, "add_voter", member_of(3), 3)
    end = cluster.status(1).last_index
    hold(
        cluster,
        lambda envelope, m: envelope.target == 2 and m.kind in (Kind.APPEND, Kind.HEARTBEAT) and m.commit >= end,
    )
    cluster.settle()
    assert (cluster.status(1).voters, cluster.status(2).voters) == ([11, 12, 13], [11, 12])
    cluster.crash(2)
    cluster.crash(3)
    cluster.network.clear()
    cluster.loses = lambda _: False
    while 1 not in cluster.hosts or cluster.status(1).voters == [11, 12, 13]:
        cluster.damage(1, 1)
        cluster.restart(1)
        cluster.settle()
    cluster.restart(2)
    cluster.tick(ELECTIONS)
    assert cluster.leader() is None
    assert cluster.is_on_probation(1)
    assert cluster.status(1).waits_for == []
