"""Linearizable reads by ReadIndex: thesis §6.4."""

from __future__ import annotations

import pytest

from libs.meshraft.tests.cluster import GROUP, Cluster, Envelope
from libs.meshraft.tests.messages import Kind
from meshraft import Backpressure, RaftHost, SimDisk


def test_a_read_at_the_leader_is_answered_after_a_quorum_confirmed_it() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.commit("a")
    cluster.hosts[1].read_index(GROUP, 42)
    assert cluster.pump(1).reads == []
    cluster.settle()
    assert cluster.reads == [(1, 42, cluster.status(1).commit)]


def test_a_read_at_a_follower_is_answered_once_it_applied_that_far() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.commit("a")
    cluster.hosts[3].read_index(GROUP, 7)
    cluster.settle()
    assert cluster.reads == [(3, 7, 3)]
    assert cluster.apps[3].applied >= 3


def test_a_follower_that_is_behind_answers_only_when_it_caught_up() -> None:
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.auto_sync = False
    cluster.propose("a")
    cluster.settle()
    cluster.disks[1].sync()
    cluster.disks[2].sync()
    cluster.settle()
    cluster.hosts[3].read_index(GROUP, 7)
    cluster.tick(2)
    assert cluster.reads == []
    cluster.disks[3].sync()
    cluster.tick(2)
    assert cluster.reads == [(3, 7, 3)]
    assert cluster.payloads(3) == ["a"]


def test_equal_tokens_of_different_members_are_told_apart() -> None:
    # raft-rs drops a request whose context it already has.
    cluster = Cluster(3)
    cluster.elect(1)
    for node in (1, 2, 3, 3):
        cluster.hosts[node].read_index(GROUP, 5)
    cluster.settle()
    cluster.tick(2)
    assert sorted(node for node, _, _ in cluster.reads) == [1, 2, 3, 3]


def test_a_cut_off_leader_answers_no_read() -> None:
    # The reason for asking a quorum: another leader may have committed since.
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.commit("a")
    cluster.isolate(1)
    cluster.hosts[1].read_index(GROUP, 1)
    cluster.tick(5)
    assert cluster.reads == []


def test_a_read_before_the_leaders_first_commit_gets_no_answer() -> None:
    # Thesis §6.4 step 1: only an entry of its own term tells a leader what is committed.
    cluster = Cluster(3)
    cluster.settle()
    cluster.loses = lambda envelope: any(message.kind is Kind.APPEND for message in envelope.messages())
    cluster.hosts[1].campaign(GROUP)
    cluster.settle()
    assert (cluster.status(1).role, cluster.status(1).commit) == ("leader", 1)
    cluster.hosts[1].read_index(GROUP, 1)
    cluster.tick(3)
    assert cluster.reads == []


def test_a_read_without_a_leader_gets_no_answer_and_waiting_reads_are_bounded() -> None:
    disk = SimDisk()
    host = RaftHost.simulated(disk, seed=1)
    host.create_group(GROUP, 11, {11: 1}, voters=[11])
    host.read_index(GROUP, 1)
    assert host.pump().reads == []
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.isolate(1)
    for token in range(4096):
        cluster.hosts[1].read_index(GROUP, token)
    with pytest.raises(Backpressure):
        cluster.hosts[1].read_index(GROUP, 4096)


def test_a_lone_voter_answers_at_once() -> None:
    cluster = Cluster(1)
    cluster.elect(1)
    cluster.hosts[1].read_index(GROUP, 2**64 - 1)
    cluster.settle()
    assert cluster.reads == [(1, 2**64 - 1, 2)]


def test_a_late_answer_to_a_read_before_a_restart_answers_no_new_read() -> None:
    # Else the new read, with the token of the old one, would miss what was committed in between.
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.commit("a")
    late: list[Envelope] = []

    def holds_back(envelope: Envelope) -> bool:
        is_answer = envelope.target == 3 and any(
            message.kind is Kind.READ_INDEX_RESPONSE for message in envelope.messages()
        )
        late.extend([envelope] if is_answer else [])
        return is_answer

    cluster.loses = holds_back
    cluster.hosts[3].read_index(GROUP, 7)
    cluster.tick(2)
    assert len(late) == 1
    cluster.crash(3)
    cluster.seed += 1  # a process draws a new one at each start
    cluster.restart(3)
    cluster.commit("b")
    cluster.tick(2)
    cluster.hosts[3].read_index(GROUP, 7)
    cluster.pump(3)
    cluster.hosts[3].step(1, late[0].data)
    cluster.settle()
    assert cluster.reads == []
