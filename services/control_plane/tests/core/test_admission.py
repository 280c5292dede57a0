"""What a newcomer may bring, and that it counts for nothing until it was heard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane_testing.mcg_commands import (
    MESH_ID,
    accept,
    activate,
    add,
    change,
    create,
    expire,
    formed,
    found,
    grow,
    reach,
    refusal,
    remove,
    set_state,
)
from mesh_control.core import limits, mcg_state, rules
from mesh_control.core.mcg_state import McgState
from mesh_control.core.model import MeshStatus, Node, NodeState
from mesh_control.core.peer_answers import read_join_response, read_propose_response
from mesh_control.core.reachability import Reachability
from mesh_control.core.status import has_expired
from mesh_control.core.versions import MESH_VERSION
from mesh_control.core.voters import wanted_voters
from meshapi.control.v1 import join_pb2, mcg_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import MemberId, NodeId
from meshwire.packet import MAX_PACKET_BYTES

KEY: Final = bytes([2]) * 32


def health(state: McgState) -> MeshStatus:
    return state.status


@pytest.fixture
def state() -> McgState:
    """A mesh of a alone."""
    state = McgState()
    accept(state, found())
    return state


def test_strangers_that_never_speak_change_nothing(state: McgState) -> None:
    """Three of them once made the mesh CRITICAL."""
    grow(state, "bc")
    for name, number in (("x", 10), ("y", 11), ("z", 12)):
        accept(state, add(name, number))
    assert health(state) is MeshStatus.HEALTHY
    nodes = list(state.nodes.values())
    voters = wanted_voters(nodes, set(), frozenset({MemberId(1)}), MemberId(1))
    assert voters == {1, 2, 3}
    silence = dict.fromkeys(state.nodes, 1000)
    judge = Reachability(10)
    judge.changes(nodes, silence, NodeId(1), 1, 0)
    assert judge.changes(nodes, silence, NodeId(1), 1, 1000) == [(2, False), (3, False)]
    error = refusal(state, create("x/y", [1, 4]))
    assert (error.code, error.retryable) == (ErrorCode.UNKNOWN_NODE, True)
    assert "still joining" in error.message
    stream = accept(state, create("x/y", [1, 2]))
    accept(state, formed(stream))
    assert refusal(state, change(stream, [5])).message.startswith("'y' is still joining")
    accept(state, activate(4))
    assert (state.nodes[NodeId(4)].state, state.nodes[NodeId(4)].is_reachable) == (NodeState.ACTIVE, True)
    accept(state, change(stream, [4]))
    accept(state, reach(4, False))
    accept(state, activate(4))
    assert health(state) is MeshStatus.DEGRADED, "one that is in is not heard again by the same command"


def test_nobody_is_heard_by_saying_so(state: McgState) -> None:
    accept(state, add("b", 2))
    for wish in (NodeState.ACTIVE, NodeState.STOPPED, NodeState.ACTIVE):
        accept(state, set_state(2, wish))
        assert state.nodes[NodeId(2)].state is NodeState.JOINING


def test_who_joins_for_ten_minutes_is_removed_and_nobody_else(state: McgState) -> None:
    grow(state, "b")
    accept(state, add("c", 3, stamp_ms=5_000))
    accept(state, expire(3, stamp_ms=5_000 + limits.JOINING_TIME_MS_MAX - 1))
    assert NodeId(3) in state.nodes
    accept(state, expire(3, stamp_ms=5_000 + limits.JOINING_TIME_MS_MAX))
    assert NodeId(3) not in state.nodes
    accept(state, expire(3, stamp_ms=9_000_000))
    accept(state, expire(2, stamp_ms=9_000_000))
    assert set(state.nodes) == {1, 2}
    assert accept(state, add("c", 3)) == 4


def test_those_who_join_at_once_are_bounded(state: McgState) -> None:
    for number in range(limits.JOINING_MAX):
        accept(state, add(f"n{number}", number + 2))
    error = refusal(state, add("late", 200))
    assert (error.code, error.retryable) == (ErrorCode.MESH_FULL, True)
    restored = McgState()
    restored.restore(state.snapshot())
    assert refusal(restored, add("late", 200)).retryable
    accept(state, activate(2))
    accept(state, add("late", 200))


def test_nodes_streams_and_view_are_bounded(state: McgState, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(state, "bc")
    monkeypatch.setattr(rules, "NODES_MAX", 3)
    error = refusal(state, add("d", 4))
    assert (error.code, error.retryable) == (ErrorCode.MESH_FULL, False)
    monkeypatch.undo()
    monkeypatch.setattr(rules, "STREAMS_MAX", 1)
    stream = accept(state, create("x/a", [1, 2]))
    accept(state, formed(stream))
    assert refusal(state, create("x/b", [1, 2])).code is ErrorCode.MESH_FULL
    monkeypatch.undo()
    for module in (rules, mcg_state):
        monkeypatch.setattr(module, "VIEW_BYTES_MAX", state.view_bytes + 5)
    for command in (add("d", 4), create("x/b", [1, 2]), change(stream, [3])):
        assert refusal(state, command).code is ErrorCode.MESH_FULL
    assert accept(state, add("b", 2)) == 2
    accept(state, reach(3, False))
    accept(state, change(stream, renew=[2]))


@pytest.mark.parametrize("letter", ["x", "é", "\N{PILE OF POO}"])
def test_snapshot_of_a_full_mesh_fits_into_a_packet(state: McgState, letter: str) -> None:
    """Else no newcomer and no member that lags could ever have it. Refusals are as long as a caller can make them."""
    for number in range(limits.REMEMBERED_PROPOSALS_MAX):
        refused = create(letter * 66_000, [1, 2])
        refused.proposal_id = 2**63 - number
        state.apply(state.applied_index + 1, refused)
    assert len(mcg_pb2.McgSnapshot.FromString(state.snapshot()).recent) == limits.REMEMBERED_PROPOSALS_MAX
    remembered = len(state.snapshot()) - state.view().ByteSize()
    being_deleted = 2 * 11 * 10 * 500
    tokens = limits.TOKENS_MAX * 150
    assert limits.RENEWAL_BYTES_MAX + remembered + being_deleted + tokens < MAX_PACKET_BYTES


def test_long_details_are_not_remembered(state: McgState) -> None:
    grow(state, "b")
    for number in range(60):
        accept(state, create(f"x/s{number}", [1, 2]))
    leave = remove(2)
    leave.proposal_id = 7
    first, again = (state.apply(state.applied_index + 1, leave).refusal for _ in range(2))
    assert first is not None
    assert again is not None
    assert (len(first.details["streams"].split(",")), again.details) == (60, {})
    assert (again.code, again.retryable) == (first.code, first.retryable)
    assert len(again.message.encode()) <= limits.REMEMBERED_TEXT_BYTES_MAX


@given(st.lists(st.tuples(st.sampled_from("bcdef"), st.integers(2, 6), st.booleans()), max_size=20))
def test_bytes_of_the_view_are_those_of_its_nodes_and_streams(steps: list[tuple[str, int, bool]]) -> None:
    state = McgState()
    accept(state, found())
    for name, number, is_stream in steps:
        command = create(f"x/{name}", [1, number]) if is_stream else add(name, number, f"ws://{name}:{number}")
        state.apply(state.applied_index + 1, command)
        state.apply(state.applied_index + 1, activate(number))
        view = state.view()
        assert state.view_bytes == sum(item.ByteSize() for item in (*view.nodes, *view.streams))
    restored = McgState()
    restored.restore(state.snapshot())
    assert restored.view_bytes == state.view_bytes


BAD_ADDRESSES = [
    "ws://u@é:1",
    "ws://a:1/path",
    "ws://a:1?query",
    "ws://a",
    "ws://a:0",
    "ws://a:1\x00",
    "ws://a\n:1",
    "ws://[::1:1",
    "ws://" + "a" * 250 + ":1",
    "http://a:1",
    "ws://" + "a" * 1_900_000 + ":1",
]


@pytest.mark.parametrize("address", BAD_ADDRESSES, ids=range(len(BAD_ADDRESSES)))
def test_what_is_no_address_is_never_committed(state: McgState, address: str) -> None:
    error = refusal(state, add("b", 2, address))
    assert error.code is ErrorCode.INVALID_ARGUMENT
    assert len(error.message) < 500
    founding = found()
    founding.found_mesh.node.peer_address = address
    assert refusal(McgState(), founding).code is ErrorCode.INVALID_ARGUMENT


def test_committed_is_the_canonical_text(state: McgState) -> None:
    accept(state, add("b", 2, "ws://BÜRO.Example:0443"))
    assert state.nodes[NodeId(2)].peer_address == "ws://xn--bro-hoa.example:443"


def test_bad_address_of_an_old_state_is_kept(state: McgState) -> None:
    old = mcg_pb2.McgSnapshot.FromString(state.snapshot())
    old.view.nodes[0].peer_address = "ws://u@host:1"
    state.restore(old.SerializeToString())
    assert state.nodes[NodeId(1)].peer_address == "ws://u@host:1"
    accept(state, add("b", 2))


@pytest.mark.parametrize(
    "mesh_id", ["", "mine", "../../etc", MESH_ID.upper(), MESH_ID + "\n", "{" + MESH_ID + "}", "a" * 66_000, "é" * 36]
)
def test_mesh_id_is_a_uuid(mesh_id: str) -> None:
    founding = found()
    founding.found_mesh.mesh_id = mesh_id
    error = refusal(McgState(), founding)
    assert error.code is ErrorCode.INVALID_ARGUMENT
    assert len(error.message) < 500


def test_numbers_fit_into_the_database(state: McgState) -> None:
    grow(state, "b")
    assert refusal(state, create("x/y", [1, 2], 2**63)).code is ErrorCode.INVALID_ARGUMENT
    stream = accept(state, create("x/y", [1, 2], 2**63 - 1, stamp_ms=2**64 - 1))
    assert state.streams[stream].created_at_ms == limits.TIME_MS_MAX  # type: ignore[index]


def answer(state: McgState) -> join_pb2.JoinResponse:
    return join_pb2.JoinResponse(node_id=2, mcg_member=2, view=state.view())


def read(body: bytes) -> join_pb2.JoinResponse:
    return read_join_response(body, join_pb2.JoinRequest(mesh_id=MESH_ID, name="b", public_key=KEY), MESH_VERSION)


def test_place_is_taken_when_it_is_sound(state: McgState) -> None:
    accept(state, add("b", 2))
    assert read(answer(state).SerializeToString()).node_id == 2


def test_place_that_is_not_sound_is_refused(state: McgState) -> None:
    accept(state, add("b", 2))
    good = answer(state)
    bad: list[bytes] = [b"", b"\xff", bytes(2 * 1024**2 + 1)]
    for path, value in (
        ("node_id", 0),
        ("node_id", 1),
        ("node_id", 2**63),
        ("mcg_member", 0),
        ("mcg_member", 3),
        ("view.mesh_id", "../x"),
        ("view.mesh_id", MESH_ID.replace("0001", "0002")),
        ("view.revision", 2**63),
    ):
        changed = join_pb2.JoinResponse()
        changed.CopyFrom(good)
        target = changed.view if path.startswith("view.") else changed
        setattr(target, path.removeprefix("view."), value)
        bad.append(changed.SerializeToString())
    for field, wrong in (("name", "NO NAME"), ("public_key", b"short"), ("state", 9), ("public_key", bytes(32))):
        changed = join_pb2.JoinResponse()
        changed.CopyFrom(good)
        setattr(changed.view.nodes[1], field, wrong)
        bad.append(changed.SerializeToString())
    for body in bad:
        with pytest.raises(MeshError) as caught:
            read(body)
        assert caught.value.code is ErrorCode.WRONG_PROTOCOL
    good.view.mesh_version = MESH_VERSION + 1
    with pytest.raises(MeshError) as caught:
        read(good.SerializeToString())
    assert caught.value.code is ErrorCode.UPDATE_REQUIRED


@given(st.binary(max_size=300))
def test_any_answer_is_read_or_refused(body: bytes) -> None:
    def code_of(reader: Callable[[bytes], object]) -> ErrorCode | None:
        try:
            reader(body)
        except MeshError as error:
            return error.code
        return None

    assert code_of(read) in {None, ErrorCode.WRONG_PROTOCOL, ErrorCode.UPDATE_REQUIRED}
    assert code_of(read_propose_response) in {None, ErrorCode.UNAVAILABLE}


def test_expiry_is_the_leaders_question_and_the_states_answer() -> None:
    node = Node(NodeId(2), "b", KEY, "", MemberId(2), NodeState.JOINING, admitted_at_ms=1_000)
    assert not has_expired(node, 600_999)
    assert has_expired(node, 601_000)


def test_joins_push_no_other_proposal_out_of_memory(state: McgState) -> None:
    """A stranger can ask as often as it likes; a repeated join finds its own place, so nothing has to be remembered."""
    grow(state, "b")
    once = create("x/a", [1, 2])
    once.proposal_id = 7
    stream = accept(state, once)
    for number in range(2 * limits.REMEMBERED_PROPOSALS_MAX):
        state.apply(state.applied_index + 1, add("a", 99, proposal_id=1_000 + number))
    assert accept(state, once) == stream
    assert [item.proposal_id for item in mcg_pb2.McgSnapshot.FromString(state.snapshot()).recent] == [7]
