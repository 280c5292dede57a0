"""Elections with members in doubt: which grants stand together, and whom a leader trusts. Found by a review that attacked them.

The last tests are of changes of the membership that were forgotten. Of groups of one voter: `test_lone_voters.py`.
"""

from __future__ import annotations

import pytest

from libs.meshraft.tests.cluster import GROUP, Cluster, Letter, member_of
from libs.meshraft.tests.messages import Kind, Message
from libs.meshraft.tests.test_forgotten_promises import (
    ELECTIONS,
    PAYLOADS,
    damage_down_to,
    heals,
    hold,
    written,
)


def test_a_leader_that_not_all_elected_does_not_trust_a_grant_in_doubt() -> None:
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
    held = hold(cluster, lambda letter, message: letter.source in (2, 3) and message.kind in grants)
    cluster.hosts[1].campaign(GROUP)
    for _ in range(2):
        cluster.settle()
        letters = list(held)
        held.clear()
        for letter in letters:
            cluster.hosts[1].step(letter.source, letter.data)
    cluster.isolate(2)
    cluster.isolate(3)
    cluster.tick(3, nodes=[1, 4])
    assert (cluster.status(1).role, cluster.status(4).in_doubt) == ("leader", True)
    cluster.restart(5)
    heals(cluster)


def asking() -> tuple[Cluster, list[Letter], list[Letter]]:
    """Node 1 stands; returns too a copy of what it was granted in advance, and its requests for votes, which nobody got."""
    cluster = written()
    cluster.restart_everybody()
    granted: list[Letter] = []
    requests: list[Letter] = []

    def watch(letter: Letter) -> bool:
        kinds = {message.kind for message in letter.messages()}
        granted.extend([letter] if Kind.REQUEST_PRE_VOTE_RESPONSE in kinds else [])
        requests.extend([letter] if Kind.REQUEST_VOTE in kinds else [])
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
    assert cluster.status(1).in_doubt
    cluster.network.clear()
    cluster.hosts[1].campaign(GROUP)
    while cluster.status(1).term < term - 1:  # old answers may make up for what it forgot of terms
        cluster.tick(1, nodes=[1])
        cluster.network.clear()
    cluster.pump(1)
    cluster.network.clear()
    for letter in granted:
        cluster.hosts[1].step(letter.source, letter.data)
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
    for letter in old[:before]:
        cluster.hosts[letter.target].step(letter.source, letter.data)
    for node in (2, 3):
        cluster.pump(node)
        cluster.disks[node].sync()
    cluster.settle()
    assert cluster.status(1).role == "candidate"
    for letter in new:
        cluster.deliver(letter)
    cluster.settle()
    assert cluster.status(1).role == "candidate"  # they know this term by now, and do not give it twice
    heals(cluster)


def test_a_doubt_that_ended_with_its_life_is_not_reported_for_ever() -> None:
    """Else nobody is promoted, or handed the leadership, till another leads."""
    cluster = written()
    cluster.damage(3, 2)
    cluster.restart(3)
    # One heartbeat reaches it, its notice reaches the leader, and it starts again before there is a goal.
    cluster.loses = lambda letter: letter.target == 2  # nothing is committed for a moment
    cluster.tick(1)
    cluster.crash(3)
    cluster.restart(3)
    cluster.loses = lambda _: False
    term = cluster.status(1).term
    heals(cluster)
    cluster.commit("more")
    cluster.tick(200)
    assert (cluster.leader(), cluster.status(1).term) == (1, term)
    assert not cluster.status(3).in_doubt
    assert not any(item.in_doubt for item in cluster.status(1).progress)


def change(cluster: Cluster, kind: str, node: int) -> None:
    """One change of the membership, to its end."""
    leader = cluster.leader()
    assert leader is not None
    cluster.hosts[leader].propose_conf_change(GROUP, kind, member_of(node), node)
    cluster.settle()
    cluster.tick(3)


def learner(cluster: Cluster, node: int) -> None:
    """A new member that has caught up."""
    cluster.add_node(node)
    change(cluster, "add_learner", node)
    cluster.until(lambda: cluster.payloads(node) == PAYLOADS)


def test_one_of_two_voters_that_forgot_the_promotion_of_a_third_does_not_elect_the_other() -> None:
    """Nodes 1 and 3 confirmed an entry; 1 forgets that 3 votes, and elects 2 that never heard it."""
    cluster = written(2)
    learner(cluster, 3)
    # node 2 takes the promotion into its log, and does not hear that it is committed
    leader = cluster.leader()
    assert leader == 1
    cluster.hosts[1].propose_conf_change(GROUP, "add_voter", member_of(3), 3)
    end = cluster.status(1).last_index

    def late(letter: Letter, m: Message) -> bool:
        return letter.target == 2 and m.kind in (Kind.APPEND, Kind.HEARTBEAT) and m.commit >= end

    hold(cluster, late)
    cluster.settle()
    assert cluster.status(1).voters == [11, 12, 13]
    assert cluster.status(2).voters == [11, 12]
    assert cluster.status(2).last_index == cluster.status(1).last_index
    cluster.loses = lambda _: False
    cluster.isolate(2)
    cluster.commit("new")
    cluster.tick(2, nodes=[1, 3])
    assert cluster.payloads(1) == cluster.payloads(3) == [*PAYLOADS, "new"]
    promotion = end + 1
    cluster.isolate(1)
    cluster.isolate(2)
    cluster.network.clear()
    while 1 not in cluster.hosts or cluster.status(1).commit >= promotion:
        cluster.damage(1, 1)
        cluster.restart(1)
        cluster.settle()
    cluster.crash(2)  # or its lease just ends
    cluster.restart(2)
    cluster.settle()
    assert (cluster.status(1).voters, cluster.status(1).learners) == ([11, 12], [13])
    assert (cluster.status(2).voters, cluster.status(2).learners) == ([11, 12], [13])
    assert cluster.status(1).in_doubt
    cluster.heal()
    cluster.isolate(3)
    cluster.tick(ELECTIONS)
    if cluster.leader():
        cluster.propose("other")
        cluster.settle()
    heals(cluster, "new")


def name(cluster: Cluster, node: int, *nodes: int, known: int = 0) -> None:
    """The catalogue names these to the node's member; members below `known` that are not among them are out."""
    cluster.hosts[node].set_peers(GROUP, {member_of(other): other for other in nodes}, known_members=known)


def test_two_voters_of_which_one_lost_everything() -> None:
    """Its configuration is empty, and its grant is needed."""
    cluster = written(2)
    cluster.crash(1)
    cluster.joined.add(2)  # the record of its birth is lost too, and a second birth is blank
    cluster.damage(2, 1000)
    cluster.restart(1)
    cluster.restart(2)
    assert (cluster.status(2).voters, cluster.status(2).in_doubt) == ([], True)
    heals(cluster)


def test_two_voters_in_doubt_wait_for_who_is_named() -> None:
    """Of two more that the catalogue names nobody knows whether one was a voter until lately."""
    cluster = written(2)
    for node in (1, 2):
        cluster.damage(node, node - 1)
    for node in (1, 2):
        cluster.restart(node)
        name(cluster, node, 1, 2, 3, 4)
    cluster.tick(ELECTIONS)
    assert (cluster.leader(), cluster.status(1).silent) == (None, [13, 14])
    for node in (1, 2):
        name(cluster, node, 1, 2)
    cluster.until(lambda: cluster.leader() is not None)
    heals(cluster)


def test_one_that_left_for_good_is_not_waited_for() -> None:
    """Nodes 1 and 2 removed 3; node 1 forgets that, and node 2 never heard that it is committed."""
    cluster = written(3)
    end = cluster.status(1).last_index + 1
    hold(cluster, lambda letter, m: letter.target == 2 and m.kind in (Kind.APPEND, Kind.HEARTBEAT) and m.commit >= end)
    cluster.hosts[1].propose_conf_change(GROUP, "remove", 13, 3)
    cluster.settle()
    assert (cluster.status(1).voters, cluster.status(2).voters) == ([11, 12], [11, 12, 13])
    cluster.crash(3)
    cluster.nodes.remove(3)
    cluster.network.clear()
    cluster.loses = lambda _: False
    while 1 not in cluster.hosts or cluster.status(1).voters == [11, 12]:
        cluster.damage(1, 1)
        cluster.restart(1)
        cluster.settle()
    cluster.crash(2)
    cluster.restart(2)
    cluster.tick(ELECTIONS)
    assert (cluster.leader(), cluster.status(2).voters) == (None, [11, 12, 13])
    for node in (1, 2):
        name(cluster, node, 1, 2, known=14)
    cluster.until(lambda: cluster.leader() is not None)
    cluster.tick(5)
    assert cluster.status(1).voters == cluster.status(2).voters == [11, 12]
    heals(cluster)


@pytest.mark.parametrize("is_told", [False, True])
def test_a_former_voter_stands_only_with_what_a_learner_holds(is_told: bool) -> None:
    """Node 1 removed 2, then committed "new" alone; it forgets both, and 2 holds the removal and knows not that it is committed.

    So 2 may stand, and 1 grants; but the learner, node 3, holds "new", and may even know that it is committed.
    """
    cluster = written(2)
    learner(cluster, 3)
    cluster.tick(2)
    taken: list[Letter] = []

    def loses(letter: Letter) -> bool:
        is_lost = letter.target == 2 and bool(taken)
        if letter.target == 2 and any(message.kind == Kind.APPEND for message in letter.messages()):
            taken.append(letter)
        return is_lost

    cluster.loses = loses
    cluster.hosts[1].propose_conf_change(GROUP, "remove", 12, 2)
    cluster.settle()
    removal = cluster.status(1).last_index
    assert (cluster.status(1).voters, cluster.status(2).voters) == ([11], [11, 12])
    hold(cluster, lambda letter, m: letter.target == 2 or (letter.target == 3 and not is_told and m.commit > removal))
    cluster.tick(2)
    cluster.propose("new")
    cluster.settle()
    assert (cluster.payloads(1)[-1], cluster.status(3).last_index) == ("new", removal + 1)
    assert (cluster.status(3).commit > removal) == is_told
    while 1 not in cluster.hosts or cluster.status(1).last_index >= removal:
        cluster.damage(1, 1)
        cluster.restart(1)
    cluster.network.clear()
    cluster.loses = lambda _: False
    cluster.until(lambda: cluster.leader() is not None, ticks=400)
    cluster.until(lambda: "new" in cluster.payloads(1) and "new" in cluster.payloads(3))
    assert cluster.status(1).voters == [11]
