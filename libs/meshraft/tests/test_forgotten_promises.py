"""What a member with a damaged log promised and forgot: confirmations and votes whose effects come late, or are still to come.

Each test is one schedule in which a single damaged disk, together with a pause or a late message, would cost a committed
entry. The cluster's own checks see it (`UnsafeError`). Source: docs/design/recovery.md.
"""

from __future__ import annotations

from collections.abc import Callable

from libs.meshraft.tests.cluster import CONFIG, GROUP, Cluster, Envelope, member_of
from libs.meshraft.tests.messages import Kind, Message, frame, unpack

ELECTIONS = 6 * CONFIG.election_ticks
PAYLOADS = list("abcdefgh")


def written(nodes: int = 3) -> Cluster:
    """A group led by node 1 in which all have applied the payloads."""
    cluster = Cluster(nodes, damages=True)
    cluster.elect(1)
    cluster.commit(*PAYLOADS)
    cluster.tick(3)
    assert all(cluster.payloads(node) == PAYLOADS for node in cluster.nodes)
    return cluster


def hold(cluster: Cluster, is_held: Callable[[Envelope, Message], bool]) -> list[Envelope]:
    """Keeps back, from now on, what `is_held` names; returns where it is collected."""
    held: list[Envelope] = []

    def takes(envelope: Envelope) -> bool:
        if any(is_held(envelope, message) for message in envelope.messages()):
            held.append(envelope)
            return True
        return False

    cluster.loses = takes
    return held


def let_go(cluster: Cluster, held: list[Envelope]) -> None:
    cluster.loses = lambda _: False
    for envelope in held:
        cluster.deliver(envelope)


def damage_down_to(cluster: Cluster, node: int, term: int) -> None:
    """Damages the node's log so far that it knows of no term above `term`, and starts it again."""
    while node not in cluster.hosts or cluster.status(node).term > term:
        cluster.damage(node, 1)
        cluster.restart(node)
    assert cluster.is_on_probation(node)


def heals(cluster: Cluster, *payloads: str) -> None:
    """Everybody comes to hold the payloads, and nobody stays on probation."""
    cluster.loses = lambda _: False
    cluster.heal()
    nodes = cluster.nodes
    cluster.until(lambda: all(cluster.payloads(node)[: len(PAYLOADS)] == PAYLOADS for node in nodes))
    cluster.until(lambda: all(payload in cluster.payloads(node) for node in nodes for payload in payloads))
    cluster.until(lambda: not any(cluster.is_on_probation(node) for node in nodes))
    assert len({tuple(cluster.payloads(node)) for node in nodes}) == 1


def test_a_leader_that_was_deposed_commits_nothing_with_a_member_on_probation() -> None:
    """I1: node 1 stands still while 2 and 3 go on in a new term; 3 loses that term and hears node 1 first."""
    cluster = written()
    cluster.isolate(1)
    for _ in range(ELECTIONS):
        cluster.tick(1, nodes=[2, 3])
    leader = next(node for node in (2, 3) if cluster.status(node).role == "leader")
    follower = 5 - leader
    cluster.propose("new", leader)
    cluster.settle()
    cluster.tick(2, nodes=[2, 3])
    assert cluster.payloads(leader) == [*PAYLOADS, "new"]
    damage_down_to(cluster, follower, cluster.status(1).term)
    cluster.heal()
    cluster.isolate(leader)
    cluster.tick(1, nodes=[1, follower])
    cluster.propose("old", 1)
    cluster.settle()
    cluster.tick(3, nodes=[1, follower])
    assert cluster.payloads(1) == PAYLOADS
    heals(cluster, "new")


def damaged_candidate() -> Cluster:
    """Node 1 is on probation, nobody leads, and nobody follows: whoever campaigns is answered."""
    cluster = written()
    cluster.damage(1, 0)
    for node in (2, 3):
        cluster.crash(node)
    cluster.network.clear()
    for node in cluster.nodes:
        cluster.restart(node)
    cluster.settle()
    assert cluster.is_on_probation(1)
    return cluster


def test_a_grant_from_before_the_damage_does_not_stand_beside_one_on_probation() -> None:
    """I1: node 2 grants node 1 its vote, then leads with node 3 in the next term. 3 forgets that, and grants 1 as well."""
    cluster = damaged_candidate()

    def is_held(envelope: Envelope, message: Message) -> bool:
        asks_3 = envelope.target == 3 and message.kind == Kind.REQUEST_VOTE
        return asks_3 or (envelope.source == 2 and message.kind == Kind.REQUEST_VOTE_RESPONSE)

    held = hold(cluster, is_held)
    cluster.hosts[1].campaign(GROUP)
    cluster.settle()
    term = cluster.status(1).term
    assert (len(held), cluster.status(1).role, cluster.status(2).term) == (2, "candidate", term)
    cluster.loses = lambda _: False
    cluster.isolate(1)
    cluster.hosts[2].campaign(GROUP)
    cluster.settle()
    assert cluster.leader() == 2
    cluster.commit("new")
    cluster.tick(1, nodes=[2, 3])
    assert cluster.payloads(3) == [*PAYLOADS, "new"]
    damage_down_to(cluster, 3, term)
    cluster.heal()
    let_go(cluster, held)
    cluster.isolate(2)
    cluster.settle()
    assert cluster.status(1).role == "candidate"
    assert cluster.status(3).term == term, "node 3 has granted"
    heals(cluster, "new")


def test_a_candidate_on_probation_is_refused_a_term_that_it_has_forgotten() -> None:
    """The others granted it, and it may have led since."""
    cluster = damaged_candidate()
    held = hold(cluster, lambda envelope, message: message.kind == Kind.REQUEST_VOTE_RESPONSE)
    cluster.hosts[1].campaign(GROUP)
    cluster.settle()
    term = cluster.status(1).term
    assert len(held) == 2
    damage_down_to(cluster, 1, term - 1)
    cluster.hosts[1].campaign(GROUP)
    cluster.settle()
    assert (cluster.status(1).role, cluster.status(1).term) == ("follower", term)
    let_go(cluster, held)
    cluster.settle()
    assert (cluster.status(1).role, cluster.status(1).term) == ("follower", term)
    heals(cluster)


def test_a_term_is_not_led_twice_by_two_lives() -> None:
    """Else entries of both would pass for the same: old ones that come late would confirm new ones."""
    cluster = written()
    cluster.restart_everybody()
    old = hold(cluster, lambda envelope, message: message.kind == Kind.APPEND and envelope.source == 1)
    cluster.hosts[1].campaign(GROUP)
    cluster.settle()
    term = cluster.status(1).term
    cluster.propose("x", 1)
    cluster.settle()
    cluster.tick(2)
    old = list(old)
    damage_down_to(cluster, 1, term - 1)
    for node in (2, 3):
        cluster.crash(node)
        cluster.restart(node)
    cluster.network.clear()
    cluster.hosts[1].campaign(GROUP)
    cluster.settle()
    assert (cluster.status(1).role, cluster.status(1).term) == ("follower", term)
    cluster.loses = lambda _: False
    cluster.until(lambda: cluster.leader() is not None)
    cluster.propose("y")
    for envelope in old:
        cluster.deliver(envelope)
    heals(cluster, "y")


def test_a_candidate_with_a_forgotten_vote_does_not_lead_past_what_the_voter_confirmed_since() -> None:
    """I1: node 5 has the vote of 4, which forgets it. Later 1, 3 and 4 confirm an entry, then 2 is asked for the third vote."""
    cluster = written(5)
    term = cluster.status(1).term
    held = hold(cluster, lambda envelope, message: message.kind == Kind.REQUEST_VOTE and envelope.target != 4)
    cluster.hosts[1].transfer_leader(GROUP, member_of(5))
    cluster.settle()
    assert (cluster.status(5).role, cluster.status(4).term, cluster.status(1).term) == ("candidate", term + 1, term)
    damage_down_to(cluster, 4, term)
    cluster.isolate(5)
    others = [1, 2, 3, 4]
    cluster.tick(2 * CONFIG.election_ticks, nodes=others)
    assert (cluster.status(1).role, cluster.status(1).term, cluster.is_on_probation(4)) == ("leader", term, False)
    cluster.isolate(2)
    cluster.commit("new")
    cluster.tick(1, nodes=others)
    assert all(cluster.payloads(node) == [*PAYLOADS, "new"] for node in (1, 3, 4))
    cluster.heal()
    let_go(cluster, [envelope for envelope in held if envelope.target == 2])
    cluster.cut = {(a, b) for a in cluster.nodes for b in cluster.nodes if {a, b} != {2, 5}}
    cluster.settle()
    assert (cluster.status(2).term, cluster.status(5).role) == (term + 1, "candidate"), "node 2 was asked and refused"
    heals(cluster, "new")


def test_an_acknowledgement_that_is_processed_after_the_goal_was_named_does_not_stop_the_repair() -> None:
    """The leader takes it that node 3 has all, in a group where nothing else is written."""
    cluster = written()
    acks = hold(cluster, lambda envelope, message: envelope.source == 3 and message.kind == Kind.APPEND_RESPONSE)
    cluster.commit("z")
    assert acks
    cluster.damage(3, 4, as_one=True)
    cluster.restart(3)
    cluster.loses = lambda envelope: envelope.target == 3 and any(message.entries for message in envelope.messages())
    cluster.tick(3)
    end = cluster.status(1).last_index
    known = {item.member: item for item in cluster.status(1).progress}[member_of(3)]
    assert (known.on_probation, known.matched < end - 1) == (True, True)
    let_go(cluster, acks[-1:])
    assert {item.member: item.matched for item in cluster.status(1).progress}[member_of(3)] == end - 1
    heals(cluster, "z")
    assert not any(item.on_probation for item in cluster.status(1).progress)


def test_what_came_before_the_goal_is_confirmed_with_it() -> None:
    """A snapshot that was installed in silence would else be waited for, given up, and sent again."""
    cluster = written()
    for node in (1, 2):
        cluster.hosts[node].compact(GROUP, cluster.apps[node].applied, cluster.apps[node].dump())
    cluster.damage(3, 1000, as_one=True)
    cluster.restart(3)
    installed = cluster.installs
    cluster.tick(4)
    assert (cluster.payloads(3), cluster.is_on_probation(3), cluster.installs) == (PAYLOADS, False, installed + 1)


def test_a_member_on_probation_tells_a_former_leader_of_a_newer_term() -> None:
    """It says nothing else to it; both would stay as they are for ever."""
    cluster = written()
    cluster.damage(3, 4, as_one=True)
    cluster.restart(3)
    ahead = cluster.status(1).term + 5
    asks = Message(Kind.REQUEST_VOTE, member_of(3), member_of(2), ahead, log_term=ahead - 1, index=1000)
    cluster.hosts[3].step(2, frame(GROUP, asks))
    cluster.settle()
    assert (cluster.leader(), cluster.status(3).term) == (1, ahead)
    heals(cluster)


def test_a_goal_of_an_earlier_doubt_is_none() -> None:
    """Node 3 is damaged twice in one term; what the leader named for the first time says nothing of what it lost since."""
    cluster = written()
    cluster.damage(3, 2, as_one=True)
    cluster.restart(3)
    goals = hold(cluster, lambda envelope, message: envelope.target == 3 and message.context.startswith(b"doubt"))
    cluster.tick(4)
    assert goals
    cluster.damage(3, 2, as_one=True)
    cluster.network.clear()
    cluster.restart(3)
    cluster.isolate(3)
    cluster.settle()
    cluster.heal()
    let_go(cluster, goals[-1:])
    said = [message for out in cluster.hosts[3].pump().frames for _, message in unpack(out.data)]
    assert [(message.kind, message.reject) for message in said] == [(Kind.APPEND_RESPONSE, True)], "only its notice"
    heals(cluster)


def test_a_vote_that_was_lost_is_not_given_to_another_in_the_same_term() -> None:
    """I1: node 3 elected node 1; whoever else asks in that term, also after the repair, gets no vote."""
    cluster = written()
    term = cluster.status(1).term
    cluster.damage(3, 1000, as_one=True)
    cluster.restart(3)
    cluster.until(lambda: not cluster.is_on_probation(3))
    assert cluster.status(3).term == term
    cluster.crash(3)
    cluster.network.clear()
    cluster.restart(3)
    asks = Message(Kind.REQUEST_VOTE, member_of(3), member_of(2), term, log_term=term, index=1000)
    cluster.hosts[3].step(2, frame(GROUP, asks))
    said = [message for out in cluster.hosts[3].pump().frames for _, message in unpack(out.data)]
    assert [(message.kind, message.reject) for message in said] == [(Kind.REQUEST_VOTE_RESPONSE, True)]


def test_a_member_on_probation_keeps_no_leader_in_office() -> None:
    """What it cannot confirm does not count as heard: without a quorum of others the leader steps down."""
    cluster = written()
    cluster.crash(2)
    cluster.damage(3, 4, as_one=True)
    cluster.restart(3)
    cluster.tick(ELECTIONS)
    assert cluster.leader() is None
    assert cluster.status(1).waits_for == cluster.status(3).waits_for == [member_of(2)]
    cluster.restart(2)
    heals(cluster)
