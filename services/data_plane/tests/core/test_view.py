"""The typed view: what is read, what is refused."""

from __future__ import annotations

import pytest

from mesh_data.core.view import NodeState, StreamPhase, view_from_proto
from meshapi.common.v1 import view_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId


def message() -> view_pb2.MeshView:
    view = view_pb2.MeshView(revision=7, mesh_id="m", next_stream_id=8)
    view.nodes.add(node_id=1, name="a", public_key=b"k" * 32, peer_address="ws://a", state=1)
    view.nodes.add(node_id=2, name="b", public_key=b"l" * 32, state=2)
    view.streams.add(stream_id=4, name="x/old", state=3)
    view.streams.add(stream_id=5, name="x/old", state=2, members=[view_pb2.StreamMember(node_id=1, member_id=9)])
    return view


def test_view_is_read_with_its_types() -> None:
    view = view_from_proto(message())
    assert view.nodes[NodeId(2)].state is NodeState.STOPPED
    assert view.node_named("a") is view.nodes[NodeId(1)]
    assert view.node_named("z") is None
    assert (view.name_of(NodeId(1)), view.name_of(NodeId(8))) == ("a", "8")
    assert view.next_stream_id == 8


def test_live_stream_is_found_before_the_tombstone_of_its_name() -> None:
    stream = view_from_proto(message()).stream_named("x/old")
    assert stream is not None
    assert (stream.stream_id, stream.state, stream.members[0].member_id) == (5, StreamPhase.ACTIVE, 9)


@pytest.mark.parametrize("fault", ["mesh_id", "node id", "key", "state", "stream id"])
def test_incomplete_view_is_refused(fault: str) -> None:
    view = message()
    if fault == "mesh_id":
        view.mesh_id = ""
    elif fault == "node id":
        view.nodes[0].node_id = 0
    elif fault == "key":
        view.nodes[0].public_key = b"short"
    elif fault == "state":
        view.nodes[0].state = view_pb2.NODE_STATE_UNSPECIFIED
    else:
        view.streams[0].stream_id = 0
    with pytest.raises(MeshError) as refusal:
        view_from_proto(view)
    assert refusal.value.code is ErrorCode.INVALID_ARGUMENT
