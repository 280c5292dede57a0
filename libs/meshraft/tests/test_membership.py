"""Configuration changes, one member at a time: thesis chapter 4."""

from __future__ import annotations

import pytest

from libs.meshraft.tests.cluster import CONFIG, GROUP, Cluster, member_of
from meshraft import ENTRY_CONF_CHANGE, Backpressure, NotLeader


def change(cluster: Cluster, kind: str, node: int, context: bytes = b"") -> None:
    """Makes one change at the leader and waits until it has applied it."""
    leader = cluster.leader()
    assert leader is not None
    _, index = cluster.hosts[leader].propose_conf_change(GROUP, kind, member_of(node), node, context)
    cluster.until(lambda: cluster.status(leader).applied >= index)
    cluster.tick(3)


def test_a_node_joins_as_learner_and_is_promoted() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.commit("a")
    cluster.add_node(4)
    change(cluster, "add_learner", 4, b"join")
    assert cluster.payloads(4) == ["a"]
    assert cluster.status(4).role == "learner"
    assert cluster.status(1).learners == [14]
    change(cluster, "add_voter", 4)
    assert cluster.status(1).voters == [11, 12, 13, 14]
    assert cluster.status(4).role == "follower"
    cluster.crash(2)
    cluster.commit("b")
    assert cluster.payloads(4) == ["a", "b"]  # three of four


def test_every_member_sees_the_change_with_its_context_and_learns_the_node() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.add_node(4)
    for node in (1, 2, 3):
        cluster.hosts[node].set_peers(GROUP, {11: 1, 12: 2, 13: 3})
    change(cluster, "add_voter", 4, b"why")
    assert [cluster.apps[node].contexts for node in (1, 2, 3)] == [["why"]] * 3
    assert [(c, d) for _, c, d in cluster.contents.values() if c == ENTRY_CONF_CHANGE] == [(ENTRY_CONF_CHANGE, b"why")]
    cluster.hosts[1].transfer_leader(GROUP, 12)
    cluster.until(lambda: cluster.leader() == 2)
    cluster.commit("x")
    assert cluster.payloads(4) == ["x"]  # the new leader knows where member 14 lives


def test_a_learner_does_not_count_for_commitment() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.add_node(4)
    change(cluster, "add_learner", 4)
    cluster.isolate(2)
    cluster.isolate(3)
    cluster.propose("x", node=1)
    cluster.settle()
    assert cluster.payloads(1) == []


def test_a_learner_never_campaigns() -> None:
    cluster = Cluster(1)
    cluster.elect(1)
    cluster.add_node(2)
    change(cluster, "add_learner", 2)
    cluster.crash(1)
    cluster.tick(100)
    assert cluster.status(2).role == "learner"
    with pytest.raises(ValueError, match="only a voter"):
        cluster.hosts[2].campaign(GROUP)


def test_a_removed_member_no_longer_counts_and_does_not_disturb() -> None:
    # Thesis §4.2.3.
    cluster = Cluster(3)
    cluster.elect(1)
    change(cluster, "remove", 3)
    assert cluster.status(1).voters == [11, 12]
    term = cluster.status(1).term
    cluster.tick(100)
    assert cluster.status(1).term == term
    assert cluster.leader() == 1
    cluster.isolate(2)
    cluster.propose("x", node=1)
    cluster.settle()
    assert cluster.payloads(1) == []  # one of two


def test_one_change_at_a_time() -> None:
    # Thesis §4.1: two unapplied changes could make disjoint majorities.
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.isolate(1)
    cluster.hosts[1].propose_conf_change(GROUP, "add_learner", 14, 4)
    with pytest.raises(Backpressure):
        cluster.hosts[1].propose_conf_change(GROUP, "add_learner", 15, 5)
    with pytest.raises(NotLeader):
        cluster.hosts[2].propose_conf_change(GROUP, "add_learner", 15, 5)


@pytest.mark.parametrize("kind", ["remove", "add_learner"])
def test_a_leader_does_not_remove_itself(kind: str) -> None:
    # raft-rs would leave it leading outside of its group, and panic.
    cluster = Cluster(3)
    cluster.elect(1)
    with pytest.raises(ValueError, match="transfer the leadership"):
        cluster.hosts[1].propose_conf_change(GROUP, kind, 11, 1)


def test_an_unknown_change_is_refused() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    with pytest.raises(ValueError, match="unknown change"):
        cluster.hosts[1].propose_conf_change(GROUP, "swap", 12, 2)
    with pytest.raises(ValueError, match="begin at 1"):
        cluster.hosts[1].propose_conf_change(GROUP, "remove", 0, 2)


def test_a_leader_removed_by_its_predecessors_entry_steps_down() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.isolate(3)  # the third member must not win
    cluster.auto_sync = False
    cluster.hosts[1].propose_conf_change(GROUP, "remove", 12, 2)
    cluster.settle()
    cluster.disks[2].sync()
    cluster.network.clear()
    cluster.crash(1)
    cluster.restart(1)
    cluster.heal()
    cluster.auto_sync = True
    cluster.settle()
    cluster.tick(CONFIG.election_ticks, nodes=[1, 2])
    cluster.until(lambda: cluster.status(1).voters == [11, 13] or cluster.status(3).voters == [11, 13])
    cluster.until(lambda: cluster.leader() in {1, 3})
    cluster.commit("x")
    assert cluster.payloads(1) == ["x"]


def test_the_configuration_survives_a_restart() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.add_node(4)
    change(cluster, "add_voter", 4)
    change(cluster, "remove", 3)
    for node in cluster.nodes:
        cluster.crash(node)
    for node in (1, 2, 4):
        cluster.restart(node)
    cluster.until(lambda: cluster.leader() is not None)
    cluster.tick(2)
    assert [cluster.status(node).voters for node in (1, 2, 4)] == [[11, 12, 14]] * 3


def test_a_compaction_keeps_the_configuration_of_its_index() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.commit("a")
    before = cluster.status(1).applied
    cluster.add_node(4)
    change(cluster, "add_voter", 4)
    cluster.hosts[1].compact(GROUP, before, cluster.apps[1].dump())
    cluster.settle()
    cluster.crash(1)
    cluster.cut = {(a, b) for a in cluster.nodes for b in cluster.nodes}
    cluster.restart(1)
    assert cluster.status(1).voters == [11, 12, 13]  # as of the snapshot; the change comes again
    cluster.settle()
    assert cluster.status(1).voters == [11, 12, 13, 14]


def test_a_single_member_grows_to_five_and_shrinks_again() -> None:
    cluster = Cluster(1)
    cluster.elect(1)
    for node in (2, 3, 4, 5):
        cluster.add_node(node)
        change(cluster, "add_learner", node)
        change(cluster, "add_voter", node)
        cluster.commit(f"n{node}")
    assert all(cluster.payloads(node) == ["n2", "n3", "n4", "n5"] for node in cluster.nodes)
    for node in (5, 4, 3):
        change(cluster, "remove", node)
    cluster.commit("two left")
    assert cluster.status(2).voters == [11, 12]
    assert cluster.payloads(2)[-1] == "two left"


@pytest.mark.parametrize("is_witnessed", [False, True])
def test_a_removal_outlives_a_crash_only_with_an_entry_from_after_it(*, is_witnessed: bool) -> None:
    """What `Witness` in the data plane is for: no fsync is made for a commit index alone."""
    cluster = Cluster(2)
    cluster.elect(1)
    _, index = cluster.hosts[1].propose_conf_change(GROUP, "remove", member_of(2), 2)
    cluster.settle()
    status = cluster.status(1)
    assert (status.voters, status.conf_index, status.applied) == ([11], index, index)
    if is_witnessed:
        _, index = cluster.hosts[1].propose(GROUP, b"")
        cluster.settle()
    assert cluster.status(1).applied == index
    cluster.isolate(2)
    cluster.crash(1)
    cluster.restart(1)
    cluster.tick(20 * CONFIG.election_ticks)
    assert cluster.status(1).voters == ([11] if is_witnessed else [11, 12])
    assert cluster.status(1).role == ("leader" if is_witnessed else "candidate")
