"""Which view takes the place of which."""

from __future__ import annotations

import pytest

from mesh_routing.core.view import View
from meshapi.common.v1 import view_pb2
from meshapi.routing.v1 import routing_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId

HELD = View(NodeId(1), "m", 2, 10, {NodeId(1): "a", NodeId(2): "b"})


@pytest.mark.parametrize(
    ("candidate", "is_taken"),
    [
        (View(NodeId(1), "m", 2, 10), True),
        (View(NodeId(1), "m", 2, 11), True),
        (View(NodeId(1), "m", 2, 9), False),
        (View(NodeId(1), "m", 3, 1), True),
        (View(NodeId(1), "m", 1, 99), False),
        (View(NodeId(1), "other", 1, 1), True),
        (View(NodeId(7), "m", 2, 1), True),
        (View(), True),
    ],
)
def test_older_view_of_the_same_membership_is_ignored(candidate: View, is_taken: bool) -> None:
    assert candidate.replaces(HELD) is is_taken


def test_names_both_ways() -> None:
    assert HELD.find("b") == 2
    assert HELD.find("c") is None
    assert HELD.name(NodeId(2)) == "b"
    assert HELD.name(NodeId(9)) == "9"


def test_request_without_node_is_no_membership() -> None:
    view = view_pb2.MeshView(revision=4, mesh_id="m", nodes=[view_pb2.NodeView(node_id=1, name="a")])
    assert View.from_request(routing_pb2.ConfigureRequest(view=view)) == View()
    assert View.from_request(routing_pb2.ConfigureRequest(node_id=1, view=view)).names == {1: "a"}


@pytest.mark.parametrize("node_id", [0, 2**63, 2**64 - 1])
def test_node_id_out_of_range_is_refused(node_id: int) -> None:
    view = view_pb2.MeshView(revision=4, mesh_id="m", nodes=[view_pb2.NodeView(node_id=node_id)])
    with pytest.raises(MeshError) as caught:
        View.from_request(routing_pb2.ConfigureRequest(node_id=1, view=view))
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
