"""Quiescence: when a group quiesces, what wakes it, and that a quiesced cluster elects like one that is awake."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.meshraft.tests.cluster import GROUP, Cluster, Envelope, member_of
from libs.meshraft.tests.messages import Kind, Message, frame, unpack
from meshraft import GroupConfig, InvalidFrame
from meshtest.effort import scaled

CONFIG = GroupConfig(election_ticks=10, heartbeat_ticks=2, quiesces=True)
QUIESCES = 40
"""Ticks within which an idle group quiesces: two election timeouts, then the request and the response."""
ELECTS = 60
"""Ticks within which a new leader is there after the old one died, a tied election included."""
NODE_HEARTBEAT_GROUP = 0


def quiesced_cluster(nodes: int = 3, *, seed: int = 1, config: GroupConfig = CONFIG) -> Cluster:
    """A quiesced cluster led by node 1."""
    cluster = Cluster(nodes, seed=seed, config=config)
    cluster.elect(1)
    cluster.commit("a")
    cluster.tick(QUIESCES)
    assert quiesced(cluster) == set(cluster.nodes)
    return cluster


def quiesced(cluster: Cluster) -> set[int]:
    return {node for node in cluster.hosts if cluster.status(node).quiesced}


def traffic(cluster: Cluster, ticks: int) -> list[tuple[int, Message]]:
    """What nodes send in that time."""
    seen: list[tuple[int, Message]] = []

    def look(envelope: Envelope) -> bool:
        seen.extend(unpack(envelope.data))
        return False

    cluster.loses = look
    cluster.tick(ticks)
    cluster.loses = lambda _: False
    return seen


def test_an_idle_group_quiesces_and_sends_node_heartbeats_only() -> None:
    cluster = quiesced_cluster()
    seen = traffic(cluster, 20)
    assert {group for group, _ in seen} == {NODE_HEARTBEAT_GROUP}
    assert len(seen) == 4 * 20 // CONFIG.heartbeat_ticks  # the leader's node and each follower's, both ways
    assert quiesced(cluster) == {1, 2, 3}
    assert cluster.leader() == 1


def test_one_node_heartbeat_stands_for_all_groups_between_two_nodes() -> None:
    cluster = quiesced_cluster()
    for group in range(100, 150):
        for node in cluster.nodes:
            voters = sorted(cluster.peers)
            cluster.hosts[node].create_group(group, member_of(node), cluster.peers, voters=voters, config=CONFIG)
    cluster.settle()
    for group in range(100, 150):
        cluster.hosts[1 + group % 3].campaign(group)
    cluster.tick(QUIESCES)
    assert all(host.status(group).quiesced for host in cluster.hosts.values() for group in range(100, 150))
    assert len(traffic(cluster, 20)) == 6 * 20 // CONFIG.heartbeat_ticks


def test_a_group_that_is_not_told_to_never_quiesces() -> None:
    cluster = Cluster(config=GroupConfig(election_ticks=10, heartbeat_ticks=2))
    cluster.elect(1)
    cluster.tick(100)
    assert not quiesced(cluster)


def test_a_proposal_wakes_all_and_is_committed_without_a_tick() -> None:
    cluster = quiesced_cluster()
    cluster.commit("b")
    assert all(cluster.payloads(node) == ["a", "b"] for node in cluster.nodes)
    assert not quiesced(cluster)
    cluster.tick(QUIESCES)
    assert quiesced(cluster) == {1, 2, 3}


@pytest.mark.parametrize("node", [1, 2])
def test_a_read_wakes_and_asks_the_quorum(node: int) -> None:
    cluster = quiesced_cluster()
    cluster.hosts[node].read_index(GROUP, 5)
    cluster.settle()
    assert [(at, token) for at, token, _ in cluster.reads] == [(node, 5)]
    assert not quiesced(cluster)


def test_a_read_of_a_quiesced_leader_that_is_cut_off_is_not_answered() -> None:
    cluster = quiesced_cluster()
    cluster.isolate(1)
    cluster.hosts[1].read_index(GROUP, 5)
    cluster.tick(30)
    assert cluster.reads == []


@pytest.mark.parametrize("node", [1, 2])
def test_a_member_that_is_woken_here_wakes_all_without_a_tick_or_an_election(node: int) -> None:
    cluster = quiesced_cluster()
    term = cluster.status(1).term
    cluster.hosts[node].set_peers(GROUP, cluster.peers)
    cluster.settle()
    assert not quiesced(cluster)
    cluster.tick(QUIESCES)
    assert (quiesced(cluster), cluster.status(1).term) == ({1, 2, 3}, term)


def test_a_transfer_and_a_configuration_change_wake() -> None:
    cluster = quiesced_cluster()
    cluster.hosts[1].transfer_leader(GROUP, member_of(2))
    cluster.until(lambda: cluster.leader() == 2, ticks=5)
    cluster.tick(QUIESCES)
    assert quiesced(cluster) == {1, 2, 3}
    cluster.hosts[2].propose_conf_change(GROUP, "remove", member_of(3), 3)
    cluster.settle()
    assert cluster.status(1).voters == [11, 12]


def test_followers_of_a_dead_leader_elect_as_fast_as_awake_ones() -> None:
    for seed in range(10):
        cluster = quiesced_cluster(seed=seed)
        cluster.crash(1)
        ticks = ticks_to_elect(cluster)
        assert CONFIG.election_ticks - CONFIG.heartbeat_ticks < ticks <= ELECTS
        assert not quiesced(cluster)


def ticks_to_elect(cluster: Cluster) -> int:
    for ticks in range(200):
        if cluster.leader() not in (None, 1):
            return ticks
        cluster.tick()
    raise AssertionError("no leader")


def test_followers_wake_when_their_leaders_process_is_a_new_one() -> None:
    cluster = quiesced_cluster()
    cluster.crash(1)
    cluster.restart(1)
    # Another group, led by node 2, makes node 1 send node heartbeats to node 2.
    for node in (1, 2):
        peers = {11: 1, 12: 2}
        cluster.hosts[node].create_group(8, member_of(node), peers, voters=[11, 12], config=CONFIG)
    cluster.settle()
    cluster.hosts[2].campaign(8)
    cluster.tick(ELECTS)
    assert cluster.leader() is not None


def test_a_node_heartbeat_of_another_incarnation_wakes_at_once() -> None:
    cluster = quiesced_cluster()
    cluster.hosts[2].step(1, node_heartbeat(incarnation=77, number=1))
    assert quiesced(cluster) == {1, 3}


def test_a_repeated_node_heartbeat_does_not_count() -> None:
    cluster = quiesced_cluster()
    heartbeats: list[Envelope] = []

    def keep(envelope: Envelope) -> bool:
        if (envelope.source, envelope.target) == (1, 2):
            heartbeats.append(envelope)
        return False

    cluster.loses = keep
    cluster.tick(2)
    cluster.crash(1)
    for _ in range(CONFIG.election_ticks + 1):
        cluster.tick()
        if 2 in quiesced(cluster):
            cluster.hosts[2].step(1, heartbeats[-1].data)
    assert 2 not in quiesced(cluster)


def test_a_leader_whose_follower_falls_silent_wakes_and_steps_down_without_a_quorum() -> None:
    cluster = quiesced_cluster()
    cluster.isolate(1)
    cluster.tick(CONFIG.election_ticks)
    assert 1 not in quiesced(cluster)
    cluster.tick(2 * CONFIG.election_ticks)
    assert cluster.status(1).role != "leader"
    assert cluster.leader() in (2, 3)


def test_a_group_does_not_quiesce_without_all_its_members() -> None:
    cluster = Cluster(config=CONFIG)
    cluster.elect(1)
    cluster.isolate(3)
    cluster.commit("a")
    cluster.tick(100)
    assert 1 not in quiesced(cluster)
    cluster.heal()
    cluster.tick(ELECTS + QUIESCES)
    assert quiesced(cluster) == {1, 2, 3}
    assert cluster.payloads(3) == ["a"]


def test_a_group_quiesces_after_a_snapshot_that_nothing_was_written_behind() -> None:
    cluster = Cluster(3, seed=1, config=CONFIG)
    cluster.elect(1)
    cluster.isolate(3)
    cluster.commit("a", "b")
    end = cluster.status(1).applied
    for node in (1, 2):
        cluster.hosts[node].compact(GROUP, end, cluster.apps[node].dump())
    cluster.settle()
    cluster.heal()
    cluster.until(lambda: cluster.payloads(3) == ["a", "b"])
    cluster.tick(3 * QUIESCES)
    assert quiesced(cluster) == {1, 2, 3}


def test_a_follower_does_not_agree_to_what_it_does_not_have() -> None:
    cluster = quiesced_cluster()
    status = cluster.status(1)
    cluster.hosts[2].set_peers(GROUP, cluster.peers)  # awake
    cluster.settle()
    request = b"sleep?" + (status.last_index + 1).to_bytes(8) + (1).to_bytes(8)
    asked = Message(Kind.HEARTBEAT, 12, 11, term=status.term, commit=status.commit, context=request)
    cluster.hosts[2].step(1, frame(GROUP, asked))
    cluster.settle()
    assert 2 not in quiesced(cluster)


def test_an_echo_of_the_request_by_an_older_host_is_no_agreement() -> None:
    cluster = Cluster(config=CONFIG)
    cluster.elect(1)

    def echo(envelope: Envelope) -> bool:
        if envelope.target == 1 or GROUP not in {group for group, _ in unpack(envelope.data)}:
            return False
        for group, message in unpack(envelope.data):
            if group == GROUP and message.kind is Kind.HEARTBEAT and message.context and envelope.target == 3:
                answer = Message(Kind.HEARTBEAT_RESPONSE, 11, 13, term=message.term, context=message.context)
                cluster.network.append(Envelope(3, 1, 0, frame(GROUP, answer)))
                return True
        return False

    cluster.loses = echo
    cluster.tick(100)
    assert 1 not in quiesced(cluster)


def test_a_leader_that_closed_its_group_disclaims_it_and_the_others_elect() -> None:
    cluster = quiesced_cluster()
    # Node heartbeats go on for the sake of another group that node 1 leads.
    for node in cluster.nodes:
        cluster.hosts[node].create_group(8, member_of(node), cluster.peers, voters=sorted(cluster.peers), config=CONFIG)
    cluster.settle()
    cluster.hosts[1].campaign(8)
    cluster.tick(QUIESCES)
    cluster.hosts[1].close_group(GROUP)
    for _ in range(ELECTS):
        for node in cluster.nodes:
            cluster.hosts[node].tick()
        cluster.settle()
    assert {cluster.hosts[node].status(GROUP).role for node in (2, 3)} == {"leader", "follower"}
    assert cluster.hosts[2].status(8).quiesced


@pytest.mark.parametrize("context", [b"", b"short", bytes(8)])
def test_a_malformed_node_heartbeat_is_refused(context: bytes) -> None:
    cluster = quiesced_cluster()
    with pytest.raises(InvalidFrame):
        cluster.hosts[2].step(1, frame(NODE_HEARTBEAT_GROUP, Message(Kind.HEARTBEAT, 0, 0, context=context)))
    assert 2 in quiesced(cluster)


def node_heartbeat(incarnation: int, number: int) -> bytes:
    return frame(
        NODE_HEARTBEAT_GROUP, Message(Kind.HEARTBEAT, 0, 0, context=incarnation.to_bytes(8) + number.to_bytes(8))
    )


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happens."""

    what: str
    node: int
    ticks: int


steps = st.lists(
    st.builds(
        Step,
        st.sampled_from(["nothing", "crash", "restart", "cut", "heal", "pause", "propose", "read", "loss", "repeat"]),
        st.integers(1, 3),
        st.integers(0, 45),
    ),
    max_size=14,
)


class Chance:
    """One in so many, the same ones again for the same seed."""

    def __init__(self, seed: int) -> None:
        self._state = seed

    def one_in(self, count: int) -> bool:
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self._state >> 33) % count == 0


def play(cluster: Cluster, step: Step, chance: Chance) -> None:
    """Takes one step, and lets its ticks pass."""
    cluster.loses = lambda _: False
    running, leader = step.node in cluster.hosts, cluster.leader()
    match step.what:
        case "crash" if running:
            cluster.crash(step.node)
        case "restart" if not running:
            cluster.restart(step.node)
        case "cut":
            cluster.isolate(step.node)
        case "heal":
            cluster.heal()
        case "propose" if leader is not None:
            cluster.propose(f"p{step.ticks}")
        case "read" if running:
            cluster.hosts[step.node].read_index(GROUP, step.ticks)
        case "loss":
            cluster.loses = lambda _: chance.one_in(3)
        case "repeat":
            cluster.loses = lambda envelope: again(cluster, envelope, chance)
    paused = step.node if step.what == "pause" else 0
    for _ in range(step.ticks):
        cluster.tick(nodes=[node for node in cluster.nodes if node != paused])
        check_quiesced(cluster)
    cluster.loses = lambda _: False


@settings(max_examples=scaled(100), deadline=None)
@given(steps, st.integers(0, 1000))
def test_a_quiesced_cluster_elects_and_commits_like_an_awake_one(schedule: list[Step], seed: int) -> None:
    cluster = Cluster(seed=seed, config=CONFIG)
    cluster.elect(1)
    chance = Chance(seed)
    for step in schedule:
        play(cluster, step, chance)
    live = [node for node in cluster.hosts if (node, 1 if node != 1 else 2) not in cluster.cut]
    if len(live) >= 2:
        # Those in touch have a leader, quiesced or not.
        cluster.until(lambda: leads_a_quorum(cluster, live), ticks=2 * ELECTS)
    for node in set(cluster.nodes) - set(cluster.hosts):
        cluster.restart(node)
    cluster.heal()
    cluster.until(lambda: leads_a_quorum(cluster, cluster.nodes), ticks=2 * ELECTS)
    cluster.tick(ELECTS)
    cluster.commit("last")
    assert all(cluster.payloads(node)[-1] == "last" for node in cluster.nodes)
    cluster.tick(QUIESCES)
    assert quiesced(cluster) == {1, 2, 3}


def again(cluster: Cluster, envelope: Envelope, chance: Chance) -> bool:
    """Sometimes delivers an envelope twice, and sometimes late."""
    if chance.one_in(3):
        cluster.hosts[envelope.target].step(envelope.source, envelope.data)
    if chance.one_in(4):
        cluster.network.append(envelope)
        return True
    return False


def leads_a_quorum(cluster: Cluster, live: list[int]) -> bool:
    leading = [node for node in live if cluster.status(node).role == "leader"]
    return any(sum(cluster.status(it).leader == member_of(node) for it in live) >= 2 for node in leading)


def check_quiesced(cluster: Cluster) -> None:
    """A leader is quiesced only if every member holds and has applied all that it has."""
    for node in quiesced(cluster):
        status = cluster.status(node)
        assert status.applied == status.commit == status.last_index
        if status.role == "leader":
            assert all(cluster.status(other).last_index >= status.last_index for other in cluster.hosts)
