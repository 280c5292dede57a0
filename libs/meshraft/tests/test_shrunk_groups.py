"""Groups that lost voters by changes of the membership, and then a log: who is out must not be waited for, who came since must.

Found by a review that attacked the protocol, and by hunts (`test_hunts.py`). Source: docs/design/streams.md, "A damaged log".
"""

from __future__ import annotations

import pytest

from libs.meshraft.tests.cluster import GROUP, Cluster, Letter
from libs.meshraft.tests.messages import Kind, LogEntry, Message, frame
from libs.meshraft.tests.test_doubtful_elections import change, learner, name
from libs.meshraft.tests.test_forgotten_promises import ELECTIONS, PAYLOADS, heals, hold, let_go, written
from libs.meshraft.tests.test_lone_voters import cut_to


def with_one_that_does_not_know() -> tuple[Cluster, int]:
    """Node 1 is the last voter since the change at the index returned; node 2 holds that change, and not that it is committed."""
    cluster = written(2)
    removed_at = cluster.status(1).last_index + 1
    hold(cluster, lambda letter, message: letter.target == 2 and message.commit >= removed_at)
    change(cluster, "remove", 2)
    assert (cluster.status(1).voters, cluster.status(2).voters) == ([11], [11, 12])
    assert cluster.status(2).last_index >= removed_at
    return cluster, removed_at


def test_a_candidate_takes_the_term_of_one_that_is_out() -> None:
    """Node 3 is asked since a group of one may follow; it knows a newer term, and nothing else would tell that to node 2."""
    cluster = written()
    change(cluster, "remove", 3)
    cluster.hosts[1].transfer_leader(GROUP, 12)
    cluster.settle()
    term = cluster.status(2).term
    cluster.hosts[3].step(2, frame(GROUP, Message(Kind.HEARTBEAT, 13, 12, term + 1)))
    cluster.settle()
    assert cluster.status(3).term == term + 1
    cluster.loses = lambda letter: letter.target == 1
    cluster.hosts[2].propose_conf_change(GROUP, "remove", 11, 1)
    cluster.settle()
    assert cluster.status(2).last_index > cluster.status(2).commit
    cluster.crash(2)
    cluster.damage(1, 0)
    cluster.loses = lambda _: False
    cluster.network.clear()
    cluster.restart(1)
    cluster.restart(2)
    cluster.until(lambda: cluster.leader() == 2)
    cluster.until(lambda: cluster.status(2).voters == [12])
    assert cluster.payloads(2) == PAYLOADS


@pytest.mark.parametrize("learners", [[3], [3, 4]])
def test_a_voter_that_forgot_that_the_other_one_is_out_hears_it_from_a_learner(learners: list[int]) -> None:
    cluster = written(2)
    for node in learners:
        learner(cluster, node)
    change(cluster, "remove", 2)
    removed_at = cluster.status(1).applied
    cluster.commit("new")
    cluster.tick(3)
    cluster.crash(2)
    cluster.nodes.remove(2)
    del cluster.peers[12]
    cut_to(cluster, removed_at - 1)
    assert cluster.status(1).voters == [11, 12]
    for node in cluster.nodes:
        name(cluster, node, *cluster.nodes)
    cluster.until(lambda: cluster.leader() == 1)
    heals(cluster, "new")


def test_a_voter_says_whose_vote_it_needs_when_that_one_is_out_and_nobody_knows() -> None:
    cluster = written(2)
    change(cluster, "remove", 2)
    removed_at = cluster.status(1).applied
    cluster.crash(2)
    cluster.nodes.remove(2)
    del cluster.peers[12]
    cut_to(cluster, removed_at - 1)
    cluster.peers[13] = 3
    name(cluster, 1, 1, 3)
    cluster.tick(ELECTIONS)
    assert (cluster.leader(), cluster.status(1).silent) == (None, [12, 13])


def test_one_that_is_out_and_does_not_know_does_not_lead_without_whom_the_last_voter_took_in() -> None:
    """Node 2 knows nothing of the learner; node 1, which lost its whole log, has been told where members are."""
    cluster, _ = with_one_that_does_not_know()
    cluster.crash(2)
    learner(cluster, 3)
    cluster.commit("new")
    cluster.tick(2)
    assert cluster.payloads(3)[-1] == "new"
    cut_to(cluster, 1)
    cluster.loses = lambda _: False
    cluster.restart(2)
    name(cluster, 2, 1, 2)
    cluster.settle()
    cluster.hosts[2].campaign(GROUP)
    cluster.until(lambda: cluster.leader() == 1)
    cluster.until(lambda: all(cluster.payloads(node)[-1] == "new" for node in (1, 3)))
    assert not cluster.status(1).in_doubt


def test_nobody_shares_what_differs_from_what_the_candidate_knows_to_be_committed() -> None:
    """However new it is: it would be refused, and shared again, for ever."""
    cluster = written(1)
    learner(cluster, 2)
    end = cluster.status(1).last_index + 1
    hold(cluster, lambda letter, message: letter.target == 2 and message.commit >= end)
    cluster.commit("x")
    cluster.tick(2)
    assert (cluster.status(2).last_index, cluster.status(2).commit) == (end, end - 1)
    term = cluster.status(1).term
    other = Message(Kind.APPEND, 12, 11, term + 1, log_term=term, index=end - 1, entries=[LogEntry(end, term + 1)])
    cluster.hosts[2].step(1, frame(GROUP, other))
    cluster.settle()
    cluster.damage(1, 0)
    cluster.restart(1)
    assert cluster.status(1).commit == end
    heals(cluster, "x")


def test_what_a_demoted_voter_confirmed_before_its_demotion_was_applied_is_not_lost() -> None:
    """Two of three confirm a demotion and "x" at once: the one that is demoted, and the one that loses all of it."""
    cluster = written()
    demoted_at = cluster.status(1).last_index + 1
    is_let_go = False

    def is_held(letter: Letter, message: Message) -> bool:
        if letter.target == 2 and any(entry.index > demoted_at for entry in message.entries):
            return True
        return not is_let_go and (letter.target == 3 or letter.source == 2)

    held = hold(cluster, is_held)
    cluster.hosts[1].propose_conf_change(GROUP, "add_learner", 13, 3)
    cluster.settle()
    cluster.propose("x")
    cluster.settle()
    is_let_go = True
    answers = [letter for letter in held if letter.source == 2]
    for letter in [letter for letter in held if letter.target == 3]:
        cluster.hosts[3].step(letter.source, letter.data)
    cluster.settle()
    for letter in answers:
        cluster.hosts[1].step(letter.source, letter.data)
    cluster.tick(3)
    assert [cluster.payloads(node)[-1] for node in cluster.nodes] == ["x", PAYLOADS[-1], "x"]
    assert [cluster.status(node).voters for node in cluster.nodes] == [[11, 12]] * 3
    cut_to(cluster, demoted_at - 1)
    cluster.loses = lambda _: False
    cluster.hosts[2].campaign(GROUP)
    heals(cluster, "x")


def test_what_is_shared_is_taken_although_another_one_has_refused() -> None:
    """One refusal of two ends a candidacy at once; a share comes later, each time."""
    cluster, removed_at = with_one_that_does_not_know()
    learner(cluster, 3)
    cluster.commit("new")
    cluster.tick(2)
    cut_to(cluster, removed_at - 1)
    shares = hold(cluster, lambda letter, message: (letter.source, letter.target) == (3, 1))
    cluster.cut = {(2, 3), (3, 2), (1, 2), (2, 1)}
    cluster.tick(ELECTIONS, nodes=[2, 3])  # they miss their leader
    cluster.cut = {(2, 3), (3, 2)}
    for _ in range(2):  # the first refusal tells what is committed
        shares.clear()
        cluster.hosts[1].campaign(GROUP)
        cluster.settle()
    assert shares
    assert (cluster.status(1).role, cluster.status(1).last_index) == ("follower", removed_at - 1)
    let_go(cluster, shares)
    cluster.settle()
    assert cluster.payloads(1)[-1] == "new"
    cluster.until(lambda: cluster.leader() == 1)


def test_one_that_is_out_is_shared_what_it_does_not_know() -> None:
    """The learner does not know where the removed one lives, and answers it all the same."""
    cluster, _ = with_one_that_does_not_know()
    learner(cluster, 3)
    cluster.crash(3)
    cluster.restart(3)
    name(cluster, 3, 1, 3)
    cut_to(cluster, 1)
    cluster.isolate(1)
    cluster.cut -= {(1, 2), (2, 1)}  # node 1 grants, and gets nothing back by itself
    cluster.loses = lambda _: False
    cluster.hosts[2].campaign(GROUP)
    cluster.until(lambda: cluster.status(2).voters == [11])
    cluster.heal()
    cluster.until(lambda: cluster.leader() == 1)
    cluster.until(lambda: cluster.payloads(1) == PAYLOADS)


def test_a_lone_voter_that_was_deposed_stands_when_its_log_is_durable() -> None:
    """Raft-rs panics when it stands sooner; a slow disk and a term that somebody else knows are enough."""
    cluster = written(1)
    learner(cluster, 2)
    cluster.auto_sync = False
    cluster.propose("x")
    cluster.settle()
    cluster.hosts[1].step(2, frame(GROUP, Message(Kind.HEARTBEAT, 11, 12, cluster.status(1).term + 1)))
    cluster.tick(ELECTIONS, nodes=[1])
    cluster.hosts[1].campaign(GROUP)
    cluster.settle()
    assert cluster.leader() is None
    cluster.auto_sync = True
    cluster.until(lambda: cluster.leader() == 1)
    assert cluster.payloads(1)[-1] == "x"


@pytest.mark.parametrize("is_healed", [False, True])
@pytest.mark.parametrize("forgets", [False, True])
def test_an_old_catalogue_of_the_damaged_one_keeps_nobody_waiting_who_knows_better(
    forgets: bool, is_healed: bool
) -> None:
    """Node 1 tells with its grant of one that is out, and gone; node 2 knows that from a newer catalogue."""
    cluster = written()
    change(cluster, "remove", 3)
    removed_at = cluster.status(1).applied
    cluster.commit("new")
    cluster.tick(5)
    cluster.crash(3)
    cluster.nodes.remove(3)
    name(cluster, 2, 1, 2, known=14)
    if forgets:
        cut_to(cluster, removed_at - 1)
    else:
        cluster.damage(1, 1)
        cluster.restart(1)
    if is_healed:
        cluster.tick(ELECTIONS)
        name(cluster, 1, 1, 2, known=14)
    cluster.until(lambda: cluster.leader() is not None)
    heals(cluster, "new")


@pytest.mark.parametrize("is_late", [False, True])
def test_a_group_goes_on_when_the_catalogue_drops_who_is_gone(is_late: bool) -> None:
    cluster = written(2)
    learner(cluster, 3)
    change(cluster, "remove", 3)
    cluster.commit("new")
    cluster.tick(5)
    cluster.crash(3)
    cluster.nodes.remove(3)
    cluster.add_node(4)
    if not is_late:
        del cluster.peers[13]
        name(cluster, 2, 1, 2, 4)
    cluster.damage(1, 1)
    cluster.restart(1)
    if is_late:
        cluster.tick(ELECTIONS)
        assert (cluster.leader(), cluster.status(2).silent) == (None, [13])
        name(cluster, 1, 1, 2, 4)
        name(cluster, 2, 1, 2, 4)
    cluster.until(lambda: cluster.leader() is not None)


def test_a_grant_whose_doubt_cannot_be_read_does_not_count() -> None:
    cluster = written()
    for node in cluster.nodes:
        cluster.crash(node)
    cluster.restart(1)
    cluster.tick(ELECTIONS)
    cluster.hosts[1].campaign(GROUP)
    cluster.settle()
    term = cluster.status(1).term
    for context in (b"doubt", b"doubt" + bytes(23), b"doubt" + bytes(32)):
        grant = Message(Kind.REQUEST_PRE_VOTE_RESPONSE, 11, 12, term + 1, context=context)
        cluster.hosts[1].step(2, frame(GROUP, grant))
    cluster.settle()
    assert cluster.status(1).term == term
    grant = Message(Kind.REQUEST_PRE_VOTE_RESPONSE, 11, 12, term + 1)
    cluster.hosts[1].step(2, frame(GROUP, grant))
    cluster.settle()
    assert cluster.status(1).term == term + 1
