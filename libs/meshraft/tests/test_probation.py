"""Members whose log was cut at damage: they abstain beside an intact quorum, and without one the longest valid log wins.

Source: Alagappan et al., Protocol-Aware Recovery (FAST 2018), §3.3-3.4; bars.md "a flipped bit in one member's log".
"""

from __future__ import annotations

import pytest

from libs.meshraft.tests.cluster import CONFIG, GROUP, Cluster, member_of
from libs.meshraft.tests.messages import Kind
from meshraft import SimDisk

ELECTIONS = 6 * CONFIG.election_ticks
PAYLOADS = list("abcdefgh")


def written(nodes: int = 3) -> Cluster:
    """A group led by node 1 in which all have applied the payloads."""
    cluster = Cluster(nodes, damages=True)
    cluster.elect(1)
    for payload in PAYLOADS:
        cluster.commit(payload)
    cluster.tick(3)
    assert all(cluster.payloads(node) == PAYLOADS for node in cluster.nodes)
    return cluster


def everybody_agrees(cluster: Cluster) -> bool:
    return cluster.leader() is not None and all(
        node in cluster.hosts and cluster.payloads(node) == PAYLOADS and not cluster.is_on_probation(node)
        for node in cluster.nodes
    )


def test_a_member_on_probation_is_repaired_by_the_leader_that_counts_on_what_it_lost() -> None:
    cluster = written()
    cluster.damage(3, 4, as_one=True)
    cluster.restart(3)
    assert cluster.is_on_probation(3)
    assert cluster.status(3).last_index < cluster.status(1).last_index
    term = cluster.status(1).term
    cluster.until(lambda: everybody_agrees(cluster))
    assert (cluster.leader(), cluster.status(1).term) == (1, term), "the repair needs no election"


@pytest.mark.parametrize("batches", range(1, 16))
def test_a_tail_that_had_been_overwritten_is_not_taken_for_what_the_leader_means(batches: int) -> None:
    """I1: node 3 led, wrote what nobody else has, and was corrected. It loses the correction, and the tail is there again."""
    cluster = written()
    cluster.hosts[1].transfer_leader(GROUP, member_of(3))
    cluster.until(lambda: cluster.leader() == 3)
    cluster.isolate(3)
    for number in range(6):
        cluster.propose(f"stray {number}", node=3)
    cluster.settle()
    cluster.until(lambda: cluster.leader() in (1, 2))
    for payload in ("k", "l", "m", "n", "o", "p", "q"):
        cluster.commit(payload)
    cluster.heal()
    agreed = [*PAYLOADS, "k", "l", "m", "n", "o", "p", "q"]
    cluster.until(lambda: cluster.payloads(3) == agreed)
    leader = cluster.leader()
    cluster.damage(3, batches, as_one=True)
    cluster.restart(3)
    cluster.until(lambda: all(cluster.payloads(node) == agreed for node in cluster.nodes))
    cluster.until(lambda: not cluster.is_on_probation(3))
    assert cluster.leader() == leader, "the repair needs no election"


def test_a_repaired_member_votes_again_also_after_a_restart() -> None:
    cluster = written()
    cluster.damage(3, 4, as_one=True)
    cluster.restart(3)
    cluster.until(lambda: everybody_agrees(cluster))
    cluster.crash(3)
    cluster.restart(3)
    assert not cluster.is_on_probation(3)
    cluster.crash(1)
    cluster.until(lambda: cluster.leader() in (2, 3))


def test_probation_outlives_a_restart() -> None:
    cluster = written()
    cluster.damage(3, 4, as_one=True)
    cluster.isolate(3)
    cluster.restart(3)
    cluster.settle()
    cluster.crash(3)
    cluster.restart(3)
    assert cluster.is_on_probation(3)


def test_a_grant_on_probation_does_not_elect_a_leader_without_what_was_confirmed() -> None:
    """I1: `z` was confirmed by nodes 1 and 3; 3 loses it and 1 is away. Node 2, which never had it, must not lead."""
    cluster = written()
    cluster.isolate(2)
    cluster.commit("z")
    cluster.crash(1)
    cluster.damage(3, 3, as_one=True)
    cluster.restart(3)
    cluster.heal()
    granted: list[bytes] = []

    def sees(envelope: object) -> bool:
        granted.extend(
            message.context
            for message in envelope.messages()  # type: ignore[attr-defined]
            if message.sender == member_of(3) and message.kind == Kind.REQUEST_PRE_VOTE_RESPONSE and not message.reject
        )
        return False

    cluster.loses = sees
    cluster.tick(ELECTIONS)
    assert granted, "it was asked, and answered"
    assert all(granted), "every grant on probation is provisional"
    assert cluster.leader() is None
    assert cluster.status(2).waits_for == [member_of(1)]
    assert cluster.status(3).waits_for == [member_of(1)]
    cluster.restart(1)
    cluster.until(lambda: cluster.leader() == 1)
    cluster.until(lambda: all(cluster.payloads(node) == [*PAYLOADS, "z"] for node in cluster.nodes))


def test_an_acknowledgement_from_before_the_damage_does_not_count() -> None:
    """Node 3 confirms `z` and loses it before node 1, its leader, has written it: both together must not commit it on that."""
    cluster = written()
    cluster.isolate(2)
    cluster.auto_sync = False

    def settle_without_writes_of_the_leader() -> None:
        while cluster.step_once() or cluster.disks[3].sync():
            pass

    cluster.propose("z", 1)
    settle_without_writes_of_the_leader()
    assert {item.member: item.matched for item in cluster.status(1).progress}[member_of(3)] == cluster.status(
        1
    ).last_index
    cluster.damage(3, 2, as_one=True)
    cluster.loses = lambda envelope: envelope.target == 3 and any(message.entries for message in envelope.messages())
    cluster.restart(3)
    assert cluster.status(3).last_index < cluster.status(1).last_index
    for node in (1, 3, 1, 3):
        cluster.hosts[node].tick()
        settle_without_writes_of_the_leader()
    cluster.auto_sync = True
    cluster.tick(2)
    assert "z" not in cluster.payloads(1)
    cluster.loses = lambda _: False
    cluster.heal()
    cluster.until(lambda: cluster.payloads(3)[-1:] == ["z"])


@pytest.mark.parametrize("lost", [(4, 0, 6), (0, 6, 4), (6, 4, 0), (0, 0, 0)])
def test_with_all_on_probation_the_longest_valid_log_wins(lost: tuple[int, int, int]) -> None:
    cluster = written()
    lengths = {}
    for node, batches in zip(cluster.nodes, lost, strict=True):
        cluster.damage(node, batches, as_one=True)
    for node in cluster.nodes:
        cluster.restart(node)
        lengths[node] = cluster.status(node).last_index
    terms = [cluster.status(node).term for node in cluster.nodes]
    cluster.until(lambda: cluster.leader() is not None, ticks=1000)
    leader = cluster.leader()
    assert leader is not None
    assert lengths[leader] == max(lengths.values())
    assert cluster.status(leader).term > max(terms)
    cluster.commit("after")
    cluster.until(lambda: not any(cluster.is_on_probation(node) for node in cluster.nodes))
    assert all(cluster.payloads(node)[-1] == "after" for node in cluster.nodes)
    assert len({tuple(cluster.payloads(node)) for node in cluster.nodes}) == 1


def test_with_two_of_three_on_probation_the_third_is_waited_for() -> None:
    cluster = written()
    cluster.damage(1, 6, as_one=True)
    cluster.damage(2, 6, as_one=True)
    cluster.crash(3)
    cluster.restart(1)
    cluster.restart(2)
    cluster.tick(ELECTIONS)
    assert cluster.leader() is None
    assert cluster.status(1).waits_for == cluster.status(2).waits_for == [member_of(3)]
    cluster.restart(3)
    cluster.until(lambda: everybody_agrees(cluster), ticks=1000)


def test_a_lone_voter_goes_on_with_what_is_valid() -> None:
    cluster = written(1)
    cluster.damage(1, 0)
    cluster.restart(1)
    assert cluster.is_on_probation(1)
    cluster.until(lambda: cluster.leader() == 1)
    assert not cluster.is_on_probation(1)


def test_a_group_bootstrapped_on_a_disk_that_lost_its_record_is_on_probation() -> None:
    cluster = written()
    cluster.damage(3, 1000, as_one=True)
    cluster.restart(3)
    assert cluster.hosts[3].damage() is not None
    assert cluster.is_on_probation(3)
    cluster.until(lambda: everybody_agrees(cluster))


def test_a_disk_without_history_cannot_be_cut() -> None:
    with pytest.raises(ValueError, match="history"):
        SimDisk().cut(1)
