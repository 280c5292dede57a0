"""The only voter of a group after damage: it goes on if nobody holds more, and waits for an operator otherwise.

Source: docs/design/recovery.md, "A lone voter".
"""

from __future__ import annotations

from libs.meshraft.tests.cluster import CONFIG, GROUP, Cluster, Envelope, member_of
from libs.meshraft.tests.messages import Kind
from libs.meshraft.tests.test_forgotten_promises import PAYLOADS, written

WHILE = 6 * CONFIG.election_ticks
LEAP = 1 << 16


def with_a_learner() -> Cluster:
    cluster = written(1)
    cluster.add_node(2)
    cluster.hosts[1].propose_conf_change(GROUP, "add_learner", member_of(2), 2)
    cluster.settle()
    cluster.until(lambda: cluster.payloads(2) == PAYLOADS)
    cluster.tick(2)
    return cluster


def test_without_learners_it_goes_on_in_a_term_far_above_its_own() -> None:
    cluster = written(1)
    term = cluster.status(1).term
    cluster.damage(1, 0)
    cluster.restart(1)
    cluster.until(lambda: cluster.leader() == 1)
    assert not cluster.is_on_probation(1)
    assert cluster.status(1).term > term + LEAP
    cluster.commit("after")
    assert cluster.payloads(1)[-1] == "after"


def test_no_term_is_led_in_two_lives() -> None:
    cluster = written(1)
    terms = []
    for _ in range(3):
        cluster.damage(1, 2, as_one=True)
        cluster.contents.clear()  # nobody else holds what it forgot
        cluster.restart(1)
        cluster.until(lambda: cluster.leader() == 1)
        terms.append(cluster.status(1).term)
    assert len(set(terms)) == 3


def test_it_waits_until_its_learner_has_answered() -> None:
    cluster = with_a_learner()
    cluster.crash(2)
    cluster.damage(1, 0)
    cluster.restart(1)
    cluster.hosts[1].campaign(GROUP)
    cluster.tick(WHILE)
    assert cluster.leader() is None
    assert cluster.status(1).waits_for == [member_of(2)]
    cluster.restart(2)
    cluster.until(lambda: cluster.leader() == 1)
    cluster.commit("after")
    assert cluster.payloads(2)[-1] == "after"


def test_it_waits_for_an_operator_while_its_learner_holds_more() -> None:
    """The learner gets an entry while the voter writes it; then that write is torn."""
    cluster = with_a_learner()
    cluster.commit("torn")
    while 1 not in cluster.hosts or cluster.status(1).last_index >= cluster.status(2).last_index:
        cluster.damage(1)
        cluster.restart(1)
    cluster.tick(WHILE)
    assert cluster.leader() is None
    assert cluster.status(1).waits_for == [member_of(2)]
    assert cluster.is_on_probation(1)


def test_a_learner_that_is_still_blank_holds_no_more() -> None:
    cluster = written(1)
    cluster.add_node(2)
    cluster.loses = lambda envelope: any(message.kind == Kind.SNAPSHOT for message in envelope.messages())
    cluster.hosts[1].propose_conf_change(GROUP, "add_learner", member_of(2), 2)
    cluster.settle()
    cluster.damage(1, 0)
    cluster.restart(1)
    cluster.until(lambda: cluster.leader() == 1)
    cluster.loses = lambda _: False
    cluster.until(lambda: cluster.payloads(2) == PAYLOADS)


def test_with_earlier_damage_it_never_leads() -> None:
    cluster = written(1)
    cluster.damage(1, 2)
    cluster.restart(1)
    assert cluster.hosts[1].retirement() is not None
    cluster.tick(WHILE)
    assert (cluster.status(1).member_state, cluster.leader()) == ("retired", None)


def test_a_retired_member_says_nothing_and_the_others_go_on() -> None:
    cluster = written(3)
    cluster.damage(3, 2)
    cluster.restart(3)
    spoken: list[Envelope] = []

    def listen(envelope: Envelope) -> bool:
        spoken.extend([envelope] if envelope.source == 3 else [])
        return False

    cluster.loses = listen
    cluster.crash(1)
    cluster.tick(WHILE)
    assert cluster.leader() is None, "one of three is no quorum"
    cluster.restart(1)
    cluster.until(lambda: cluster.leader() is not None)
    assert (spoken, cluster.status(3).member_state) == ([], "retired")
