"""A member that begins blank may be one whose disk was lost: it neither votes nor stands until a leader has caught it up.

Source: architecture §7 "a wiped disk is never trusted"; Alagappan et al., Protocol-Aware Recovery (FAST 2018), §3.4.
"""

from __future__ import annotations

import pytest

from libs.meshraft.tests.cluster import CONFIG, GROUP, Cluster, Envelope
from libs.meshraft.tests.messages import Kind
from meshraft import SimDisk

ELECTIONS = 6 * CONFIG.election_ticks


def lose_disk(cluster: Cluster, node: int) -> None:
    """The node comes back with an empty disk, as the same member."""
    cluster.crash(node)
    cluster.disks[node] = SimDisk()
    cluster.joined.add(node)
    cluster.bootstrap(node)


def committed_without_node_2() -> Cluster:
    """`a` is on nodes 1 and 3, then 1 crashes and 3 loses its disk: only 1 still has it."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.isolate(2)
    cluster.commit("a")
    assert cluster.payloads(3) == ["a"]
    cluster.crash(1)
    lose_disk(cluster, 3)
    cluster.heal()
    return cluster


def brings_entries(envelope: Envelope) -> bool:
    return any(message.entries for message in envelope.messages())


def answers_of(cluster: Cluster, node: int) -> list[Kind]:
    """Collects what the node says from now on."""
    said: list[Kind] = []

    def notes(envelope: Envelope) -> bool:
        if envelope.source == node:
            said.extend(message.kind for message in envelope.messages())
        return False

    cluster.loses = notes
    return said


def test_member_that_lost_its_disk_does_not_elect_a_leader_without_what_it_confirmed() -> None:
    """I1: `a` was confirmed by nodes 1 and 3, and a quorum of disks, 1 and 2, survives."""
    cluster = committed_without_node_2()
    cluster.tick(ELECTIONS)
    assert cluster.leader() is None
    cluster.restart(1)
    cluster.until(lambda: cluster.leader() == 1)
    cluster.until(lambda: [cluster.payloads(node) for node in (2, 3)] == [["a"], ["a"]])


def test_snapshot_alone_gives_no_vote_also_after_a_restart() -> None:
    """The snapshot is of the log's floor: the entries behind it may be those that were lost."""
    cluster = committed_without_node_2()
    cluster.loses = lambda envelope: (
        envelope.target == 3 and brings_entries(envelope) and cluster.status(3).first_index == 2
    )
    cluster.restart(1)
    cluster.until(lambda: cluster.leader() == 1 and cluster.status(3).first_index == 2)
    cluster.crash(1)
    cluster.crash(3)
    cluster.restart(3)
    with pytest.raises(ValueError, match="only a voter"):
        cluster.hosts[3].campaign(GROUP)
    cluster.isolate(2)
    cluster.tick(ELECTIONS)
    assert cluster.status(3).role == "follower"
    cluster.heal()
    asked = answers_of(cluster, 3)
    cluster.hosts[2].campaign(GROUP)
    cluster.tick()
    assert asked == []


def test_member_that_was_caught_up_votes_again_also_after_a_restart() -> None:
    cluster = committed_without_node_2()
    cluster.restart(1)
    cluster.until(lambda: cluster.leader() is not None and cluster.payloads(3) == ["a"])
    cluster.crash(3)
    cluster.restart(3)
    cluster.crash(1)
    cluster.until(lambda: cluster.leader() in (2, 3))


def test_blank_member_answers_no_request_for_a_vote() -> None:
    cluster = Cluster(2)
    lose_disk(cluster, 2)
    cluster.settle()
    asked = answers_of(cluster, 2)
    cluster.hosts[1].campaign(GROUP)
    cluster.tick(ELECTIONS)
    assert asked == []
    assert cluster.leader() is None
