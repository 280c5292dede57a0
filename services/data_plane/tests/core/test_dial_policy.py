"""Who dials whom, and when."""

from __future__ import annotations

from random import Random

from mesh_data.core.dial_policy import Dial, DialPolicy
from mesh_data.core.timing import OverlayTiming
from mesh_data.core.view import Node, NodeState, View
from meshcommon.ids import NodeId

TIMING = OverlayTiming()
ONE, TWO, THREE = NodeId(1), NodeId(2), NodeId(3)


def view(addresses: dict[int, str], stopped: tuple[int, ...] = ()) -> View:
    nodes = {
        NodeId(i): Node(NodeId(i), f"n{i}", b"k" * 32, address, NodeState.STOPPED if i in stopped else NodeState.ACTIVE)
        for i, address in addresses.items()
    }
    return View(1, "mesh", 0, nodes, {})


ALL = view({1: "ws://n1:7", 2: "ws://n2:7", 3: ""})


def policy(overrides: dict[str, str] | None = None) -> DialPolicy:
    return DialPolicy(overrides or {}, TIMING, Random(1))


def peers(dials: list[Dial]) -> set[int]:
    return {dial.peer for dial in dials}


def test_everybody_with_an_address_is_dialled_once() -> None:
    item = policy()
    item.configure(ALL, THREE, set(), 0.0)
    assert peers(item.take_due(0.0)) == {1, 2}
    assert item.take_due(9.0) == []


def test_stopped_nodes_and_nodes_without_address_are_left_alone() -> None:
    item = policy()
    item.configure(view({1: "ws://n1:7", 2: "ws://n2:7", 3: ""}, stopped=(2,)), ONE, set(), 0.0)
    assert item.take_due(0.0) == []


def test_node_that_only_dials_tries_a_stopped_one_too() -> None:
    """When the only node with a listener starts again, nobody else could make the lane."""
    item = policy()
    item.configure(view({1: "ws://n1:7", 3: ""}, stopped=(1,)), THREE, set(), 0.0)
    assert peers(item.take_due(0.0)) == {1}


def test_override_replaces_the_advertised_address() -> None:
    item = policy({"n2": "ws://proxy:7", "n3": "ws://three:7"})
    item.configure(ALL, ONE, set(), 0.0)
    assert set(item.take_due(0.0)) == {Dial(TWO, "ws://proxy:7"), Dial(THREE, "ws://three:7")}


def test_smaller_id_leaves_the_dialling_to_the_other_for_a_while() -> None:
    item = policy()
    item.configure(ALL, ONE, set(), 0.0)
    item.take_due(0.0)
    item.link_up(TWO)
    item.attempt_ended(TWO)
    item.link_down(TWO, 10.0)
    assert item.take_due(12.9) == []
    assert peers(item.take_due(13.0)) == {2}


def test_larger_id_dials_again_at_once() -> None:
    item = policy()
    item.configure(ALL, TWO, set(), 0.0)
    item.take_due(0.0)
    item.link_up(ONE)
    item.attempt_ended(ONE)
    item.link_down(ONE, 10.0)
    assert peers(item.take_due(10.1)) == {1}


def test_node_that_cannot_be_dialled_never_waits_for_the_other() -> None:
    item = policy()
    item.configure(view({1: "", 2: "ws://n2:7"}), ONE, {TWO}, 0.0)
    item.link_down(TWO, 5.0)
    assert peers(item.take_due(5.1)) == {2}


def test_link_that_is_up_is_not_dialled() -> None:
    item = policy()
    item.configure(ALL, THREE, {ONE}, 0.0)
    assert peers(item.take_due(0.0)) == {2}
    assert item.next_deadline() is None


def test_backoff_grows_to_its_cap_with_full_jitter() -> None:
    item = policy()
    item.configure(view({1: "", 2: "ws://n2:7"}), ONE, set(), 0.0)
    now, delays = 0.0, []
    for _ in range(200):
        assert peers(item.take_due(now)) == {2}
        item.failed(TWO, now)
        due = item.next_deadline()
        assert due is not None
        delays.append(due - now)
        now = due
    assert delays[0] <= TIMING.dial_first_s
    assert max(delays) <= TIMING.dial_max_s
    assert max(delays[10:]) > 1.5
    assert min(delays[10:]) < 0.5


def test_new_address_is_tried_at_once() -> None:
    item = policy()
    item.configure(view({1: "", 2: "ws://n2:7"}), ONE, set(), 0.0)
    for _ in range(10):
        item.take_due(100.0)
        item.failed(TWO, 100.0)
    item.configure(view({1: "", 2: "ws://moved:7"}), ONE, set(), 100.0)
    assert item.take_due(100.0) == [Dial(TWO, "ws://moved:7")]


def test_leaving_the_mesh_ends_all_dialling() -> None:
    item = policy()
    item.configure(ALL, THREE, set(), 0.0)
    item.configure(None, NodeId(0), set(), 0.0)
    assert item.take_due(9.0) == []
    item.failed(ONE, 9.0)
    item.link_down(ONE, 9.0)
    assert item.next_deadline() is None


def test_what_is_no_address_is_never_dialled_and_named() -> None:
    """An older version let a node advertise anything: its state is kept, and one look tells whom it concerns."""
    item = policy({"n3": "ws://u@é:1"})
    item.configure(view({1: "", 2: "ws://u@é:1", 3: "ws://n3:7"}), ONE, set(), 0.0)
    assert item.take_due(0.0) == []
    assert item.next_deadline() is None
    assert item.undiallable == {TWO: "ws://u@é:1", THREE: "ws://u@é:1"}
    item.configure(view({1: "", 2: "ws://bücher.example:7"}), ONE, set(), 1.0)
    assert item.take_due(1.0) == [Dial(TWO, "ws://xn--bcher-kva.example:7")]
    assert item.undiallable == {}


def test_a_node_whose_address_became_none_is_not_dialled_any_more() -> None:
    item = policy()
    item.configure(view({1: "", 2: "ws://n2:7"}), ONE, set(), 0.0)
    item.configure(view({1: "", 2: "nonsense"}), ONE, set(), 0.0)
    assert item.take_due(10.0) == []
