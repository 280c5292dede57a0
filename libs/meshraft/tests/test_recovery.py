"""Attested recovery: an operator names who survives, every one of them answers, and the greatest (last term, last index) wins.

Source: docs/design/recovery.md, "Attested recovery".
"""

from __future__ import annotations

import pytest

from libs.meshraft.tests.cluster import CONFIG, GROUP, Cluster, member_of
from libs.meshraft.tests.test_forgotten_promises import PAYLOADS, written

WHILE = 6 * CONFIG.election_ticks
EPOCH = 1 << 24


def recover(cluster: Cluster, *nodes: int, at: tuple[int, ...] = ()) -> None:
    for node in at or nodes:
        cluster.hosts[node].recover(GROUP, {member_of(other): other for other in nodes})


def lose(cluster: Cluster, *nodes: int) -> None:
    """For good."""
    for node in nodes:
        if node in cluster.hosts:
            cluster.crash(node)
        cluster.nodes.remove(node)
    cluster.network.clear()


def test_one_of_three_goes_on_alone() -> None:
    cluster = written(3)
    term = cluster.status(1).term
    lose(cluster, 1, 2)
    cluster.tick(WHILE)
    assert cluster.leader() is None
    recover(cluster, 3)
    cluster.until(lambda: cluster.leader() == 3)
    cluster.until(lambda: cluster.status(3).voters == [13] and not cluster.status(3).learners)
    cluster.commit("after")
    assert cluster.payloads(3) == [*PAYLOADS, "after"]
    assert cluster.status(3).term > term + EPOCH
    cluster.crash(3)
    cluster.restart(3)
    cluster.until(lambda: cluster.leader() == 3)  # the log says it by itself
    assert cluster.payloads(3) == [*PAYLOADS, "after"]


def test_every_named_one_answers_and_the_longest_log_wins() -> None:
    cluster = written(5)
    cluster.isolate(4)
    cluster.commit("newest")
    assert cluster.payloads(5)[-1] == "newest"
    cluster.heal()
    cluster.crash(4)
    lose(cluster, 1, 2, 3)
    cluster.crash(5)
    cluster.restart(4)
    recover(cluster, 4, 5, at=(4,))
    cluster.tick(WHILE)
    assert cluster.leader() is None, "node 5 was named, and has not answered"
    cluster.restart(5)
    cluster.tick(WHILE)
    assert cluster.leader() is None, "node 5 was not told yet"
    recover(cluster, 4, 5, at=(5,))
    cluster.until(lambda: cluster.leader() == 5)
    cluster.until(lambda: all(cluster.status(node).voters == [14, 15] for node in (4, 5)))
    cluster.commit("after")
    assert cluster.payloads(4) == cluster.payloads(5) == [*PAYLOADS, "newest", "after"]
    cluster.tick(WHILE)
    assert all(cluster.status(node).member_state == "full" for node in (4, 5))
    cluster.add_node(6)  # the group is an ordinary one again
    cluster.hosts[5].propose_conf_change(GROUP, "add_learner", member_of(6), 6)
    cluster.until(lambda: cluster.payloads(6) == cluster.payloads(5))


def test_a_lone_voter_with_earlier_damage_goes_on_with_what_is_left() -> None:
    cluster = written(1)
    cluster.damage(1, 2)
    cluster.contents.clear()
    cluster.restart(1)
    assert cluster.status(1).member_state == "retired"
    recover(cluster, 1)
    cluster.until(lambda: cluster.leader() == 1)
    cluster.commit("after")
    assert cluster.payloads(1)[-1] == "after"
    assert cluster.status(1).member_state == "full"


def test_a_learner_goes_on_when_the_only_voter_is_lost() -> None:
    cluster = written(1)
    cluster.add_node(2)
    cluster.hosts[1].propose_conf_change(GROUP, "add_learner", member_of(2), 2)
    cluster.settle()
    cluster.until(lambda: cluster.payloads(2) == PAYLOADS)
    lose(cluster, 1)
    cluster.tick(WHILE)
    recover(cluster, 2)
    cluster.until(lambda: cluster.leader() == 2)
    cluster.commit("after")
    assert cluster.payloads(2) == [*PAYLOADS, "after"]


def test_a_lost_member_that_comes_back_changes_nothing() -> None:
    cluster = written(3)
    for node in (1, 2):
        cluster.crash(node)
    cluster.network.clear()
    cluster.tick(WHILE)
    recover(cluster, 3)
    cluster.until(lambda: cluster.leader() == 3 and cluster.status(3).voters == [13])
    cluster.commit("after")
    cluster.restart(1)
    cluster.tick(WHILE)
    assert cluster.leader() == 3
    assert cluster.payloads(3) == [*PAYLOADS, "after"]
    assert "after" not in cluster.payloads(1)


def test_what_cannot_be_recovered_is_refused() -> None:
    cluster = written(3)
    host = cluster.hosts[2]
    with pytest.raises(ValueError, match="has a leader"):
        recover(cluster, 2)
    with pytest.raises(ValueError, match="must be among the survivors"):
        host.recover(GROUP, {11: 1})
    with pytest.raises(ValueError, match="must be among the survivors"):
        host.recover(GROUP, {0: 1, 12: 2})
    cluster.add_node(4)
    with pytest.raises(ValueError, match="no log of its own"):
        recover(cluster, 4)
