"""Groups of one voter whose log was damaged: it leads only when nobody can know better, and gets back what others hold.

Most were found by a review that attacked the protocol. Source: docs/design/streams.md, "A damaged log".
"""

from __future__ import annotations

import pytest

from libs.meshraft.tests.cluster import CONFIG, GROUP, Cluster, Letter, member_of
from libs.meshraft.tests.messages import Kind, Message, frame, unpack
from libs.meshraft.tests.test_doubtful_elections import change, learner, name
from libs.meshraft.tests.test_forgotten_promises import ELECTIONS, PAYLOADS, damage_down_to, heals, hold, written
from meshraft import RaftHost, SimDisk


def cut_to(cluster: Cluster, last: int) -> None:
    """Damages the log of node 1 so far that nothing behind index `last` is left. What only it has applied may be lost."""
    while 1 not in cluster.hosts or cluster.status(1).last_index > last:
        cluster.damage(1, 1)
        cluster.restart(1)
    cluster.forgive(1)
    cluster.network.clear()
    assert cluster.status(1).in_doubt


def test_a_lone_voter_that_forgot_a_promotion_does_not_lead_without_the_promoted_one() -> None:
    """Node 1 promoted 2, and both confirmed an entry; 1 forgets both, and elects itself."""
    cluster = written(1)
    learner(cluster, 2)
    change(cluster, "add_voter", 2)
    cluster.commit("new")
    cluster.tick(2)
    while 1 not in cluster.hosts or cluster.status(1).voters != [11]:
        cluster.damage(1, 1)
        cluster.network.clear()
        cluster.restart(1)
        while cluster.hosts[1].has_work() or cluster.disks[1].sync():
            cluster.pump(1)
    cluster.network.clear()
    assert (cluster.status(1).voters, cluster.status(1).learners) == ([11], [12]), cluster.status(1)
    cluster.tick(ELECTIONS)
    heals(cluster, "new")


def test_a_lone_voter_asks_the_one_that_is_named_and_not_in_yet() -> None:
    """It began blank, holds nothing, and says so; but only when it is there."""
    cluster = written(1)
    cluster.add_node(2)
    cluster.crash(2)
    cluster.damage(1, 0)
    cluster.restart(1)
    cluster.tick(ELECTIONS)
    assert cluster.leader() is None
    assert cluster.status(1).silent == [12]
    cluster.restart(2)
    cluster.until(lambda: cluster.leader() == 1)
    assert cluster.status(1).silent == []
    change(cluster, "add_learner", 2)
    change(cluster, "add_voter", 2)
    heals(cluster)


def test_a_lone_voter_does_not_wait_for_one_that_is_named_no_more() -> None:
    cluster = written(1)
    cluster.damage(1, 0)
    cluster.peers |= {12: 2, 13: 3}
    cluster.restart(1)
    cluster.tick(ELECTIONS)
    assert (cluster.leader(), cluster.status(1).silent) == (None, [12, 13])
    name(cluster, 1, 1)
    cluster.until(lambda: cluster.leader() == 1)


@pytest.mark.parametrize("is_compacted", [False, True])
@pytest.mark.parametrize("is_committed", [False, True])
def test_a_learner_gives_back_what_a_lone_voter_lost(is_committed: bool, is_compacted: bool) -> None:
    """Two learners hold more or less of it; the lone voter goes on with the longest log."""
    cluster = written(1)
    learner(cluster, 2)
    learner(cluster, 3)
    cluster.propose("new")
    # Or else the learner gets the entry, and its leader never fsyncs it.
    cluster.auto_sync = is_committed
    cluster.loses = lambda letter: letter.target == 3
    cluster.settle()
    cluster.disks[2].sync()
    cluster.tick(2)
    cluster.auto_sync = True
    assert cluster.payloads(2) == ([*PAYLOADS, "new"] if is_committed else PAYLOADS)
    if is_compacted:
        cluster.hosts[2].compact(GROUP, cluster.apps[2].applied, cluster.apps[2].dump())
    cluster.damage(1, 0)
    cluster.restart(1)
    while cluster.status(1).last_index >= cluster.status(3).last_index:
        cluster.damage(1, 1)
        cluster.restart(1)
    cluster.loses = lambda _: False
    cluster.network.clear()
    cluster.auto_sync = False  # what is given back is durable later than the answers to the next question are here
    for _ in range(ELECTIONS):
        cluster.tick(1)
        for node in (2, 3):
            cluster.disks[node].sync()
    assert cluster.leader() is None
    cluster.auto_sync = True
    cluster.until(lambda: cluster.leader() == 1)
    heals(cluster, "new")


def test_what_a_lone_voter_still_holds_gives_way_to_no_older_log() -> None:
    """The learner knows of one commit more, and keeps a tail that the voter never fsynced and has written anew since."""
    cluster = written(1)
    learner(cluster, 2)
    cluster.tick(2)
    cluster.commit("x")
    cluster.tick(1)
    cluster.auto_sync = False
    cluster.propose("stale")
    cluster.settle()
    cluster.disks[2].sync()
    cluster.settle()
    assert cluster.status(2).last_index > cluster.status(2).commit
    cluster.crash(1)
    cluster.network.clear()
    cluster.isolate(2)
    cluster.restart(1)
    cluster.settle()
    cluster.hosts[1].campaign(GROUP)
    while cluster.status(1).role != "leader":
        cluster.pump(1)
        cluster.disks[1].sync()
    cluster.propose("new")
    cluster.settle()
    cluster.disks[1].sync()
    cluster.settle()
    assert cluster.payloads(1)[-1] == "new"
    cluster.auto_sync = True
    cluster.damage(1, 0)
    cluster.restart(1)
    assert cluster.status(1).commit < cluster.status(2).commit
    cluster.network.clear()
    heals(cluster, "x", "new")


@pytest.mark.parametrize("is_all_lost", [True, False])
def test_the_last_voter_that_forgot_its_own_promotion_gets_it_back(is_all_lost: bool) -> None:
    """The founder promoted it and left. The learner that is there holds all, from a snapshot of when there was but the founder."""
    cluster = written(1)
    cluster.disks[2] = SimDisk(keeps_history=True)
    cluster.hosts[1].compact(GROUP, cluster.apps[1].applied, cluster.apps[1].dump())
    learner(cluster, 2)
    end = cluster.status(2).last_index
    change(cluster, "add_voter", 2)
    learner(cluster, 3)
    cluster.hosts[1].transfer_leader(GROUP, 12)
    cluster.until(lambda: cluster.leader() == 2)
    change(cluster, "remove", 1)
    cluster.crash(1)
    cluster.nodes.remove(1)
    del cluster.peers[11]
    name(cluster, 2, 2, 3)
    name(cluster, 3, 2, 3)
    cluster.commit("last")
    cluster.tick(3)
    if is_all_lost:
        cluster.damage(2, 10_000)
        cluster.restart(2)
        assert cluster.status(2).voters == []
    else:
        while 2 not in cluster.hosts or cluster.status(2).last_index > end:
            cluster.damage(2, 1)
            cluster.restart(2)
        cluster.settle()
        assert (cluster.status(2).voters, cluster.status(2).learners) == ([11], [12])
    cluster.network.clear()
    cluster.until(lambda: cluster.leader() == 2)
    heals(cluster, "last")
    assert (cluster.status(2).voters, cluster.status(2).learners) == ([12], [13])


@pytest.mark.parametrize("delay", [1, 4, 9])
def test_a_lone_voter_waits_for_answers_as_long_as_others_do(delay: int) -> None:
    """Ticks that a letter takes: one canvass has to outlast two rounds of them, or each comes too late for the one before."""
    cluster = written(1)
    learner(cluster, 2)
    cluster.damage(1, 0)
    cluster.restart(1)
    cluster.network.clear()
    term = cluster.status(2).term
    late: list[tuple[int, Letter]] = []

    def delays(letter: Letter) -> bool:
        late.append((now + delay, letter))
        return True

    cluster.loses = delays
    for now in range(40 * delay + 40):
        cluster.tick(1)
        due = [letter for at, letter in late if at <= now]
        late = [(at, letter) for at, letter in late if at > now]
        for letter in due:
            if (letter.source, letter.target) not in cluster.cut:
                cluster.hosts[letter.target].step(letter.source, letter.data)
        if cluster.leader() == 1:
            break
    assert cluster.leader() == 1
    assert cluster.status(1).term - term < 2**17 + delay * 2**17


def test_a_newcomer_is_in_no_configuration_from_before_it_joined() -> None:
    """Raft-rs wants the snapshot to name it; what it stores, and might share, must not."""
    cluster = written(1)
    cluster.hosts[1].compact(GROUP, cluster.apps[1].applied, cluster.apps[1].dump())
    cluster.add_node(2)
    hold(cluster, lambda letter, m: letter.target == 2 and bool(m.entries) and cluster.status(2).last_index > 0)
    change(cluster, "add_learner", 2)
    assert (cluster.status(1).learners, cluster.payloads(2)) == ([12], PAYLOADS)
    assert (cluster.status(2).voters, cluster.status(2).learners) == ([11], [])
    cluster.crash(2)
    cluster.restart(2)
    assert (cluster.status(2).voters, cluster.status(2).learners) == ([11], [])
    heals(cluster)
    cluster.until(lambda: cluster.status(2).learners == [12])


def test_a_lone_voter_waits_for_the_learner_that_may_hold_more() -> None:
    cluster = written(1)
    learner(cluster, 2)
    cluster.crash(2)
    cluster.damage(1, 0)
    cluster.restart(1)
    cluster.tick(ELECTIONS)
    assert (cluster.leader(), cluster.status(1).silent) == (None, [12])
    cluster.restart(2)
    heals(cluster)


def leads_on_from(cluster: Cluster, last: int, old: list[Letter]) -> None:
    """Node 1 loses what it has beyond `last`, leads again and proposes; only then what it sent before reaches node 2."""
    cut_to(cluster, last)
    hold(cluster, lambda letter, message: letter.source == 1 and message.kind in (Kind.APPEND, Kind.HEARTBEAT))
    cluster.until(lambda: cluster.leader() == 1)
    cluster.propose("y")
    cluster.settle()
    for letter in old:
        cluster.hosts[2].step(letter.source, letter.data)
    heals(cluster, "y")


def test_letters_from_a_life_that_a_lone_voter_forgot_come_too_late() -> None:
    """Entry and commit of "x" reach the learner when the voter, which lost "x", leads again: it must have raised its term."""
    cluster = written(1)
    learner(cluster, 2)
    last = cluster.status(2).last_index
    old = hold(cluster, lambda letter, message: letter.target == 2 and message.kind == Kind.APPEND)
    cluster.propose("x")
    cluster.settle()
    cluster.tick(1)
    old = list(old)
    assert cluster.payloads(1)[-1] == "x"
    leads_on_from(cluster, last, old)


def test_a_term_that_only_a_lone_voter_knew_is_not_led_twice() -> None:
    cluster = written(1)
    learner(cluster, 2)
    last = cluster.status(2).last_index
    cluster.crash(1)
    cluster.network.clear()
    cluster.restart(1)
    held = hold(cluster, lambda letter, m: letter.target == 2 and m.kind in (Kind.APPEND, Kind.HEARTBEAT))
    cluster.hosts[1].campaign(GROUP)
    cluster.settle()
    term = cluster.status(1).term
    cluster.propose("x")
    cluster.tick(2)
    # An answer makes it send what it wrote in this term, which the learner never heard of.
    cluster.hosts[1].step(2, frame(GROUP, Message(Kind.HEARTBEAT_RESPONSE, 11, 12, term)))
    cluster.settle()
    old = [letter for letter in held if any(len(message.entries) == 2 for message in letter.messages())]
    assert old
    assert cluster.status(2).term < term
    damage_down_to(cluster, 1, term - 1)
    leads_on_from(cluster, last, old)


def test_what_was_shared_with_a_former_life_is_not_taken() -> None:
    """The learner lost it since, never having synced it, and both went on."""
    cluster = written(1)
    learner(cluster, 2)
    base = cluster.status(2).last_index
    cluster.auto_sync = False
    cluster.propose("x")
    for _ in range(3):
        cluster.tick(1)
        cluster.disks[1].sync()
    assert cluster.payloads(1)[-1] == "x"
    assert cluster.status(2).commit > base
    cluster.damage(1, 0)
    cluster.restart(1)
    cut_to(cluster, base)
    shares: list[Letter] = hold(cluster, lambda letter, m: letter.source == 2 and m.kind == Kind.APPEND)
    for _ in range(ELECTIONS):
        cluster.tick(1)
        cluster.disks[1].sync()
    shares = list(shares)
    assert shares
    cluster.crash(2)
    cluster.restart(2)
    assert cluster.status(2).last_index == base
    cluster.auto_sync = True
    cluster.loses = lambda _: False
    cluster.network.clear()
    cluster.until(lambda: cluster.leader() == 1)
    cluster.commit("y", "z")
    cluster.tick(2)
    assert cluster.payloads(2)[-1] == "z"
    cut_to(cluster, base)
    cluster.isolate(2)
    cluster.tick(ELECTIONS)
    for letter in shares:
        cluster.hosts[1].step(letter.source, letter.data)
        cluster.settle()
    heals(cluster, "y", "z")


def test_a_request_that_names_more_than_a_learner_holds_does_not_harm_it() -> None:
    cluster = written(1)
    learner(cluster, 2)
    cluster.crash(1)
    cluster.tick(ELECTIONS)
    last = cluster.status(2).last_index
    context = b"doubt" + (5).to_bytes(8, "big") + bytes(8) + (6).to_bytes(8, "big")
    request = Message(Kind.REQUEST_PRE_VOTE, 12, 11, 9, log_term=1, index=last + 5, commit=last + 3, context=context)
    cluster.hosts[2].step(1, frame(GROUP, request))
    cluster.settle()
    cluster.restart(1)
    heals(cluster)


@pytest.mark.parametrize("is_torn", [True, False])
def test_a_learner_that_holds_its_promotion_gives_it_back(is_torn: bool) -> None:
    """It does not know that it is committed, so it cannot stand, and its log is the longer one."""
    cluster = written(1)
    learner(cluster, 2)
    end = cluster.status(1).last_index
    cluster.auto_sync = not is_torn
    hold(cluster, lambda letter, m: letter.target == 2 and m.commit > end)
    cluster.hosts[1].propose_conf_change(GROUP, "add_voter", 12, 2)
    cluster.settle()
    cluster.disks[2].sync()
    cluster.auto_sync = True
    cluster.loses = lambda _: False
    cluster.damage(1, 0)
    cluster.restart(1)
    cut_to(cluster, end)
    assert (cluster.status(2).last_index, cluster.status(2).voters) == (end + 1, [11])
    cluster.until(lambda: cluster.leader() is not None)
    heals(cluster)
    assert cluster.status(1).voters == [11, 12]


@pytest.mark.parametrize("is_held", [True, False])
def test_the_last_voter_that_forgot_a_demotion_gets_it_back(is_held: bool) -> None:
    """It believes in two voters, and the other one cannot stand any more. Or it holds the demotion and forgot the commit."""
    cluster = written(2)
    end = cluster.status(1).last_index
    change(cluster, "add_learner", 2)
    assert cluster.status(2).voters == [11]
    while cluster.status(1).voters == [11] if 1 in cluster.hosts else True:
        cluster.damage(1, 1)
        cluster.restart(1)
        cluster.settle()
    if not is_held:
        cut_to(cluster, end)
    assert cluster.status(1).voters == [11, 12]
    cluster.network.clear()
    cluster.until(lambda: cluster.leader() == 1)
    heals(cluster)
    assert (cluster.status(1).voters, cluster.status(1).learners) == ([11], [12])


def test_a_refusal_of_one_that_is_not_known_any_more_raises_the_term() -> None:
    cluster = written(1)
    for _ in range(2):
        cluster.crash(1)
        cluster.restart(1)
        cluster.elect(1)
    last = cluster.status(1).last_index
    cluster.add_node(2)
    hold(cluster, lambda letter, m: letter.target == 2 and m.kind in (Kind.APPEND, Kind.SNAPSHOT))
    cluster.hosts[1].propose_conf_change(GROUP, "add_learner", 12, 2)
    cluster.tick(3)
    term = cluster.status(2).term
    cluster.loses = lambda _: False
    cut_to(cluster, last)
    damage_down_to(cluster, 1, term - 2)
    cut_to(cluster, last)
    cluster.until(lambda: cluster.leader() == 1)
    assert cluster.status(1).term > term


def is_blank(cluster: Cluster, node: int) -> bool:
    """Whether a crash now would leave a member that may not vote."""
    disk = cluster.disks[node].copy()
    host = RaftHost.simulated(disk, seed=99)
    host.open_group(GROUP, member_of(node), cluster.peers, config=cluster.config)
    host.step(1, frame(GROUP, Message(Kind.REQUEST_PRE_VOTE, member_of(node), 11, 9, log_term=8, index=1000)))
    frames = []
    while host.has_work() or disk.sync():
        frames += host.pump().frames
    return not any(m.kind == Kind.REQUEST_PRE_VOTE_RESPONSE for each in frames for _, m in unpack(each.data))


def test_a_newcomer_tells_what_is_committed_only_when_a_crash_leaves_it_a_vote() -> None:
    """It is promoted on the strength of that, and a blank voter has no say."""
    cluster = written(1)
    cluster.auto_sync = False
    cluster.add_node(2)
    cluster.hosts[1].propose_conf_change(GROUP, "add_learner", 12, 2)
    blank = told = 0
    for step in range(200):
        for node in cluster.nodes:
            cluster.pump(node)
        cluster.disks[1].sync()
        cluster.disks[2].sync(step % 3 == 0)
        letters, cluster.network = cluster.network, []
        for letter in letters:
            cluster.deliver(letter)
        if step % 5 == 0:
            cluster.hosts[1].tick()
        commits = [item.commit for item in cluster.status(1).progress if item.member == 12]
        blank += is_blank(cluster, 2)
        told += any(commits)
        assert not (any(commits) and is_blank(cluster, 2))
    assert blank
    assert told


def test_a_blank_member_that_finds_its_promotion_compares_logs() -> None:
    """A leader that asks nobody has promoted it, and counts on what it confirms."""
    cluster = written(1)
    cluster.add_node(2)
    cluster.disks[2].sync()
    cluster.auto_sync = False  # what is not durable is not applied, so it stays blank
    for kind in ("add_learner", "add_voter"):
        cluster.hosts[1].propose_conf_change(GROUP, kind, 12, 2)
        for _ in range(3):
            cluster.tick(1)
            cluster.disks[1].sync()
            cluster.disks[2].sync(1 if kind == "add_learner" else 0)
    cluster.crash(1)
    cluster.tick(2 * CONFIG.election_ticks, nodes=[2])
    status = cluster.status(2)
    assert (cluster.status(2).voters, status.applied) == ([11], 1), status
    context = b"doubt" + bytes(16) + (6).to_bytes(8, "big")
    request = Message(Kind.REQUEST_PRE_VOTE, 12, 11, 9, log_term=1, index=status.last_index, commit=99, context=context)
    cluster.hosts[2].step(1, frame(GROUP, request))
    cluster.pump(2)
    cluster.disks[2].sync()
    letters = [m for each in cluster.hosts[2].pump().frames for _, m in unpack(each.data)]
    assert [m.reject for m in letters if m.kind == Kind.REQUEST_PRE_VOTE_RESPONSE] == [True]


def test_a_learner_does_not_vote_for_a_log_that_differs_from_what_it_knows_to_be_committed() -> None:
    """What only the voter had confirmed reaches it late, between its grant in advance and its vote; another log has that index too."""
    cluster = written(1)
    learner(cluster, 2)
    learner(cluster, 3)
    base = cluster.status(1).last_index
    cluster.auto_sync = False
    cluster.propose("x")
    cluster.loses = lambda letter: letter.target == 3
    cluster.settle()
    cluster.disks[2].sync()
    cluster.crash(1)  # before it has synced that itself
    cluster.auto_sync = True
    cluster.network.clear()
    cluster.restart(1)
    late: list[Letter] = []

    def withholds(letter: Letter) -> bool:
        late.extend([letter] if letter.target == 3 else [])
        return 3 in (letter.source, letter.target) or 2 in (letter.source, letter.target)

    cluster.loses = withholds
    cluster.until(lambda: cluster.leader() == 1)
    term = cluster.status(1).term
    cluster.hosts[1].step(3, frame(GROUP, Message(Kind.HEARTBEAT_RESPONSE, 11, 13, term)))
    cluster.tick(2)
    late = [letter for letter in late if any(m.kind == Kind.APPEND and m.commit > base for m in letter.messages())]
    assert late
    cut_to(cluster, base)
    cluster.loses = lambda _: True
    cluster.tick(2 * CONFIG.election_ticks, nodes=[2, 3])
    asked = hold(cluster, lambda letter, m: letter.target == 3 and m.kind == Kind.REQUEST_VOTE)
    cluster.until(lambda: bool(asked))
    for letter in late:
        cluster.hosts[3].step(letter.source, letter.data)
    cluster.loses = lambda letter: letter.target in (1, 2)
    cluster.settle()
    cluster.tick(2 * CONFIG.election_ticks, nodes=[3])
    cluster.loses = lambda _: False
    for letter in asked:
        cluster.deliver(letter)
    cluster.settle()
    heals(cluster)
