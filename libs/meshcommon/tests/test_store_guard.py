"""Nodes whose disks forget are heard by nobody who knows better; all others hear each other in the end."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from meshcommon.ids import NodeId
from meshcommon.store_guard import GuardReady, GuardTiming, Objection, StoreGuard, StoreMemory
from meshcommon.store_lineage import Lineage, Seen, Verdict, begin, next_incarnation, raised, renounced, seen_of
from meshtest.effort import scaled
from meshwire.store_message import Ask, Hello, Refusal, StoreMessage, Welcome

TIMING = GuardTiming(repeat_s=1.0, patience_s=10.0)
A, B, C = NodeId(1), NodeId(2), NodeId(3)
OTHERS = frozenset({B, C})
LATE = 100.0


def guard(own: Lineage | None = None, seen: Mapping[NodeId, Seen] | None = None) -> StoreGuard:
    made = StoreGuard(own or begin(1, 10), StoreMemory(seen or {}), TIMING, 0.0)
    made.follow(OTHERS, OTHERS | {A}, 0.0)
    made.tick(0.0)
    return made


def sent_to(ready: GuardReady, node: NodeId) -> list[StoreMessage]:
    return [message for peer, message in (*ready.to_send_now, *ready.to_send_after_persist) if peer == node]


def objection_to(node: StoreGuard) -> Objection | None:
    return node.objection


def test_nothing_goes_to_a_peer_that_has_not_noted_this_life() -> None:
    node = guard()
    assert sent_to(node.take_ready(), B) == [Hello(node.own)]
    node.receive(B, Welcome(99), 0.0)  # an answer to a former incarnation
    assert not node.may_send(B, LATE)
    node.receive(B, Welcome(10), 0.0)
    assert node.may_send(B, LATE)
    assert not node.may_send(C, LATE)


def test_a_node_waits_for_all_peers_but_not_for_ever() -> None:
    node = guard()
    node.receive(B, Welcome(10), 0.0)
    assert not node.may_send(B, 9.0)
    assert node.may_send(B, 10.0)
    both = guard()
    both.receive(B, Welcome(10), 0.0)
    both.receive(C, Welcome(10), 0.0)
    assert both.may_send(B, 0.0)


def test_a_hello_is_repeated_until_it_is_answered() -> None:
    node = guard()
    node.receive(C, Welcome(10), 0.0)
    node.take_ready()
    assert node.next_deadline() == 1.0
    node.tick(1.0)
    ready = node.take_ready()
    assert (sent_to(ready, B), sent_to(ready, C)) == ([Hello(node.own)], [])
    node.receive(B, Welcome(10), 1.5)
    assert node.next_deadline() == math.inf


def test_a_welcome_is_promised_only_after_the_memory_is_durable() -> None:
    node = guard()
    node.take_ready()
    node.receive(B, Hello(begin(2, 20)), 0.0)
    ready = node.take_ready()
    assert ready.to_persist == StoreMemory({B: Seen(2, 20, 1)})
    assert ready.to_send_after_persist == ((B, Welcome(20)),)
    assert Welcome(20) not in [message for _, message in ready.to_send_now]


def test_a_peer_is_taken_only_while_its_last_hello_was_accepted() -> None:
    node = guard()
    node.take_ready()
    assert not node.may_take(B, 0.0)
    assert sent_to(node.take_ready(), B) == [Ask()]
    assert not node.may_take(B, 0.5)  # asked a moment ago
    assert sent_to(node.take_ready(), B) == []
    former = next_incarnation(begin(2, 20), 21)
    node.receive(B, Hello(former), 1.0)
    assert node.may_take(B, 1.0)
    node.take_ready()
    node.receive(B, Hello(next_incarnation(begin(2, 20), 22)), 2.0)
    assert not node.may_take(B, 2.0)
    assert Refusal(seen_of(former), node.own) in sent_to(node.take_ready(), B)
    node.receive(B, Hello(renounced(former, 5, 50, [2])), 3.0)
    assert node.may_take(B, 3.0)


def test_a_refused_node_is_silent_towards_all_until_it_has_renounced() -> None:
    node = guard(next_incarnation(begin(1, 10), 12))
    for peer in OTHERS:
        node.receive(peer, Welcome(12), 0.0)
    assert node.may_send(C, 0.0)
    node.receive(B, Refusal(Seen(1, 11, 2), begin(2, 20)), 1.0)
    assert objection_to(node) == Objection(B, Seen(1, 11, 2), Verdict.ROLLED_BACK)
    assert not any(node.may_send(peer, LATE) or node.may_take(peer, LATE) for peer in OTHERS)
    node.take_ready()
    node.tick(LATE)
    assert node.take_ready().to_send_now == ()
    node.reborn(renounced(node.own, 7, 70, [1]), LATE)
    ready = node.take_ready()
    assert sent_to(ready, B) == [Hello(node.own)]
    assert sent_to(ready, C) == [Hello(node.own, ((B, Seen(2, 20, 1)),))]
    assert objection_to(node) is None
    assert not node.may_send(C, 2 * LATE)


def test_who_was_set_back_itself_is_not_believed() -> None:
    """Its memory is as old as its disk: it may know of a store that this node has long replaced, and nothing of that."""
    node = guard(seen={B: Seen(2, 21, 2)})
    node.take_ready()
    set_back = next_incarnation(begin(2, 20), 22)
    node.receive(B, Refusal(Seen(9, 90, 5), set_back), 0.0)
    assert objection_to(node) is None
    assert not node.may_take(B, 0.0)
    node.receive(B, Refusal(Seen(9, 90, 5), renounced(set_back, 5, 50, [2])), 1.0)
    assert objection_to(node) == Objection(B, Seen(9, 90, 5), Verdict.ANOTHER_STORE)


def test_what_a_wiped_disk_had_renounced_is_learnt_from_who_refuses_it() -> None:
    node = guard(begin(3, 30))
    node.receive(B, Refusal(Seen(2, 21, 2, (1,)), begin(7, 70)), 0.0)
    found = objection_to(node)
    assert found is not None
    node.reborn(renounced(node.own, 4, 40, found.lost), 0.0)
    assert node.own.renounced == (1, 2, 3)


def test_what_others_know_of_a_node_counts_too() -> None:
    """B was down while C lived on; A knows, and tells."""
    node = guard(seen={A: Seen(1, 10, 1), C: Seen(3, 30, 1)})
    lived_on = next_incarnation(begin(3, 30), 31)
    node.receive(A, Hello(begin(1, 10), ((C, seen_of(lived_on)),)), 0.0)
    ready = node.take_ready()
    assert ready.to_persist == StoreMemory({A: Seen(1, 10, 1), C: Seen(3, 30, 1)}, {C: seen_of(lived_on)})
    node.receive(C, Hello(next_incarnation(begin(3, 30), 32)), 1.0)
    assert not node.may_take(C, 1.0)
    ready = node.take_ready()
    assert Refusal(seen_of(lived_on), node.own) in sent_to(ready, C)
    # It is told on, and done with when the node has shown that it goes on from it.
    node.tick(2.0)
    assert Hello(node.own, ((A, Seen(1, 10, 1)), (C, seen_of(lived_on)))) in sent_to(node.take_ready(), B)
    node.receive(C, Hello(next_incarnation(lived_on, 33)), 3.0)
    assert node.may_take(C, 3.0)
    assert node.take_ready().to_persist == StoreMemory({A: Seen(1, 10, 1), C: Seen(3, 33, 3)})


def test_old_news_and_news_of_strangers_or_from_the_refused_are_passed_over() -> None:
    node = guard(seen={A: Seen(1, 11, 2), C: Seen(5, 50, 3, (3,))})
    node.take_ready()
    for told in (Seen(5, 50, 3), Seen(5, 49, 2), Seen(3, 30, 9)):
        node.receive(A, Hello(next_incarnation(begin(1, 11), 12), ((C, told), (99, Seen(9, 9, 9)))), 0.0)
    node.receive(A, Hello(next_incarnation(begin(1, 10), 13), ((C, Seen(5, 55, 9)),)), 1.0)  # set back itself
    memory = node.take_ready().to_persist
    assert memory is None or memory.heard == {}


def test_a_refusal_of_what_was_overtaken_changes_nothing() -> None:
    node = guard(raised(begin(1, 10)))
    node.take_ready()
    node.receive(B, Refusal(Seen(1, 10, 2), begin(2, 20)), 0.0)
    assert objection_to(node) is None
    assert Hello(node.own) in sent_to(node.take_ready(), B)
    # Less than one has said in the same incarnation is possible only when the memory of the machine was set back.
    node.receive(B, Refusal(Seen(1, 10, 3), begin(2, 20)), 0.0)
    assert objection_to(node) == Objection(B, Seen(1, 10, 3), Verdict.OVERTAKEN)


def test_a_raised_number_is_told_again_until_it_is_noted_and_stops_nobody() -> None:
    node = guard()
    for peer in OTHERS:
        node.receive(peer, Welcome(10), 0.0)
    node.take_ready()
    node.raised(raised(node.own), 5.0)
    assert sent_to(node.take_ready(), B) == [Hello(node.own)]
    assert node.may_send(B, 5.0)
    assert node.next_deadline() == 6.0


def test_who_left_the_mesh_is_forgotten_and_who_may_not_be_known_again_yet_is_not() -> None:
    late = NodeId(9)
    node = guard(seen={B: Seen(2, 20, 1), C: Seen(3, 30, 1), late: Seen(9, 90, 1)})
    for peer in (B, C):
        node.receive(peer, Welcome(10), 0.0)
    node.take_ready()
    node.follow(frozenset({C}), frozenset({A, C}), 0.0)
    assert node.take_ready().to_persist == StoreMemory({C: Seen(3, 30, 1), late: Seen(9, 90, 1)})
    assert not node.may_take(B, 0.0)
    assert not node.may_send(B, LATE)
    assert node.may_take(late, 0.0)


class _Machine:
    """A node over a disk; `written` is the oracle's view of that disk."""

    def __init__(self, lineage: Lineage) -> None:
        self.lineage = lineage
        self.memory = StoreMemory()
        self.written: frozenset[int] = frozenset()
        self.noted: dict[NodeId, frozenset[int]] = {}
        """By peer: all that was on the peer's disk when it sent a hello that was accepted here. Never forgotten."""
        self.guard: StoreGuard | None = None
        self.copy: tuple[Lineage, StoreMemory, frozenset[int]] | None = None


class GuardedNodes(RuleBasedStateMachine):
    """Three nodes over a network that loses, doubles and reorders; one disk is restored or wiped again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.ids = itertools.count(100)
        self.now = 0.0
        self.in_flight: list[tuple[NodeId, NodeId, StoreMessage, frozenset[int]]] = []
        self.nodes = {node: _Machine(begin(next(self.ids), next(self.ids))) for node in (A, B, C)}
        for node in self.nodes:
            self._note(node)
            self._start(node)

    def _note(self, node: NodeId) -> None:
        self.nodes[node].written |= {next(self.ids)}

    def _start(self, node: NodeId) -> None:
        machine = self.nodes[node]
        machine.guard = StoreGuard(machine.lineage, machine.memory, TIMING, self.now)
        machine.guard.follow(self.nodes.keys() - {node}, frozenset(self.nodes), self.now)
        self._act(node)

    def _act(self, node: NodeId) -> None:
        machine = self.nodes[node]
        if machine.guard is None:
            return
        machine.guard.tick(self.now)
        if (objection := machine.guard.objection) is not None:
            assert node == C, f"{node} forgot nothing and was given up: {objection}"
            machine.lineage = renounced(machine.lineage, next(self.ids), next(self.ids), objection.lost)
            for other in self.nodes.values():  # nothing that it confirmed before is counted on from now on
                other.noted.pop(node, None)
            self._note(node)
            machine.guard.reborn(machine.lineage, self.now)
        ready = machine.guard.take_ready()
        if ready.to_persist is not None:
            machine.memory = ready.to_persist
        for target, message in (*ready.to_send_now, *ready.to_send_after_persist):
            self.in_flight.append((node, target, message, machine.written))

    def _deliver(self, at: int, *, is_kept: bool) -> None:
        source, target, message, written = self.in_flight[at] if is_kept else self.in_flight.pop(at)
        machine = self.nodes[target]
        if machine.guard is None:
            return
        before = machine.guard._seen.get(source)
        machine.guard.receive(source, message, self.now)
        if isinstance(message, Hello) and machine.guard._seen.get(source) != before:
            machine.noted[source] = machine.noted.get(source, frozenset()) | written
        self._act(target)

    @rule(at=st.integers(0, 1000), is_kept=st.booleans())
    def deliver(self, at: int, is_kept: bool) -> None:
        if self.in_flight:
            self._deliver(at % len(self.in_flight), is_kept=is_kept)

    @rule(count=st.integers(1, 12))
    def deliver_in_order(self, count: int) -> None:
        for _ in range(min(count, len(self.in_flight))):
            self._deliver(0, is_kept=False)

    @rule()
    def lose_everything_under_way(self) -> None:
        self.in_flight.clear()

    @rule(seconds=st.sampled_from((0.5, 2.0, 20.0)))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for node in self.nodes:
            self._act(node)

    @rule(node=st.sampled_from((A, B, C)))
    def stop(self, node: NodeId) -> None:
        self.nodes[node].guard = None

    @rule(node=st.sampled_from((A, B, C)))
    def restart(self, node: NodeId) -> None:
        machine = self.nodes[node]
        machine.lineage = next_incarnation(machine.lineage, next(self.ids))
        self._note(node)
        self._start(node)

    @rule(node=st.sampled_from((A, B, C)))
    def raise_number(self, node: NodeId) -> None:
        machine = self.nodes[node]
        if machine.guard is not None and machine.guard.objection is None:
            machine.lineage = raised(machine.lineage)
            self._note(node)
            machine.guard.raised(machine.lineage, self.now)
            self._act(node)

    @rule()
    def copy_the_bad_disk(self) -> None:
        machine = self.nodes[C]
        machine.copy = (machine.lineage, machine.memory, machine.written)

    @rule()
    def restore_the_bad_disk(self) -> None:
        machine = self.nodes[C]
        if machine.copy is not None:
            machine.lineage, machine.memory, machine.written = machine.copy
            self.restart(C)

    @rule()
    def wipe_the_bad_disk(self) -> None:
        machine = self.nodes[C]
        machine.lineage, machine.memory, machine.written = (
            begin(next(self.ids), next(self.ids)),
            StoreMemory(),
            frozenset(),
        )
        self._note(C)
        self._start(C)

    @invariant()
    def a_disk_that_forgot_is_heard_by_nobody_who_knows(self) -> None:
        for node, machine in self.nodes.items():
            for peer, other in self.nodes.items():
                if node == peer or machine.guard is None or other.guard is None:
                    continue
                if not other.noted.get(node, frozenset()) <= machine.written:
                    assert not machine.guard.may_send(peer, self.now), f"{node} is heard by {peer}"

    def teardown(self) -> None:
        """When the network works again everybody is heard by everybody."""
        for node, machine in self.nodes.items():
            if machine.guard is None:
                self.restart(node)
        for _ in range(20):
            self.now += TIMING.repeat_s
            for node in self.nodes:
                self._act(node)
            while self.in_flight:
                self._deliver(0, is_kept=False)
        for node, machine in self.nodes.items():
            for peer in self.nodes.keys() - {node}:
                assert machine.guard is not None
                assert machine.guard.may_send(peer, self.now)
                assert machine.guard.may_take(peer, self.now)


TestGuardedNodes = GuardedNodes.TestCase
TestGuardedNodes.settings = settings(max_examples=scaled(50), stateful_step_count=40, deadline=None)
