"""The replicated state: determinism, ids, repeats, snapshots, and every refusal with its code."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from control_plane_testing.mcg_commands import (
    MESH_ID,
    accept,
    activate,
    add,
    announce,
    apply,
    change,
    create,
    delete,
    destroyed,
    expire,
    forget,
    formed,
    found,
    grow,
    out,
    raise_version,
    reach,
    refusal,
    remove,
    renew,
    sealed,
    set_state,
)
from mesh_control.core.limits import REMEMBERED_PROPOSALS_MAX
from mesh_control.core.mcg_state import McgState, Result
from mesh_control.core.model import RETAINED_BYTES_DEFAULT, RETAINED_BYTES_MIN, MeshStatus, StreamPhase
from meshapi.control.v1 import mcg_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import MemberId, NodeId, StreamId
from meshtest.effort import scaled


def health(state: McgState) -> MeshStatus:
    return state.status


@pytest.fixture
def state() -> McgState:
    """A mesh of a, b and c."""
    state = McgState()
    accept(state, found())
    grow(state, "bc")
    return state


def test_founding_gives_id_one_and_a_healthy_mesh() -> None:
    state = McgState()
    assert state.status is MeshStatus.UNSPECIFIED
    assert accept(state, found()) == 1
    view = state.view()
    assert (view.mesh_id, view.mesh_epoch, view.revision, state.status) == (MESH_ID, 1, 1, MeshStatus.HEALTHY)
    assert view.nodes[0].is_voter


def test_commands_before_the_founding_are_refused() -> None:
    assert refusal(McgState(), add("b", 2)).code is ErrorCode.NOT_A_MEMBER


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (found("x"), ErrorCode.ALREADY_MEMBER),
        (mcg_pb2.Command(), ErrorCode.INVALID_ARGUMENT),
        (add("b", 9), ErrorCode.NAME_TAKEN),
        (add("z", 2), ErrorCode.KEY_TAKEN),
        (add("No Name", 9), ErrorCode.ILLEGAL_NAME),
        (add("", 9), ErrorCode.ILLEGAL_NAME),
        (add("z", 9, "http://z"), ErrorCode.INVALID_ARGUMENT),
        (mcg_pb2.Command(add_node=mcg_pb2.AddNode(name="z", public_key=b"short")), ErrorCode.INVALID_ARGUMENT),
        (remove(9), ErrorCode.UNKNOWN_NODE),
        (reach(9, False), ErrorCode.UNKNOWN_NODE),
        (set_state(9, 1), ErrorCode.UNKNOWN_NODE),
        (renew(9), ErrorCode.UNKNOWN_NODE),
        (set_state(1, 0), ErrorCode.INVALID_ARGUMENT),
        (set_state(1, 7), ErrorCode.INVALID_ARGUMENT),
        (create("x/y", []), ErrorCode.MEMBER_COUNT),
        (create("x/y", [1]), ErrorCode.MEMBER_COUNT),
        (create("x/y", list(range(1, 12))), ErrorCode.MEMBER_COUNT),
        (create("x/y", [1, 9]), ErrorCode.UNKNOWN_NODE),
        (create("x/y", [1, 1]), ErrorCode.INVALID_ARGUMENT),
        (create("x/y", [1, 2], RETAINED_BYTES_MIN - 1), ErrorCode.INVALID_ARGUMENT),
        (create("no namespace", [1, 2]), ErrorCode.ILLEGAL_NAME),
        (create("a/b/c", [1, 2]), ErrorCode.ILLEGAL_NAME),
        (formed(9), ErrorCode.STREAM_NOT_FOUND),
        (delete(9), ErrorCode.STREAM_NOT_FOUND),
    ],
)
def test_bad_command_is_refused_with_its_code(state: McgState, command: mcg_pb2.Command, code: ErrorCode) -> None:
    error = refusal(state, command)
    assert error.code is code
    assert ":" in error.message, "a message says what to do next"


def test_joining_again_with_the_same_name_and_key_gives_the_same_place(state: McgState) -> None:
    revision = state.revision
    assert accept(state, add("b", 2)) == 2
    assert state.revision == revision
    assert accept(state, add("b", 2, "ws://other:1")) == 2
    assert (state.revision, state.nodes[NodeId(2)].peer_address) == (revision, "")


def test_ids_of_removed_nodes_are_not_used_again(state: McgState) -> None:
    accept(state, remove(3))
    assert accept(state, add("c", 4)) == 4
    assert state.nodes[NodeId(4)].mcg_member == 4


def test_a_node_that_forgot_becomes_another_member_of_the_group(state: McgState) -> None:
    before = state.nodes[NodeId(2)]
    assert accept(state, renew(2, proposal_id=5)) == 4
    assert state.nodes[NodeId(2)] == replace(before, mcg_member=MemberId(4))
    revision = state.revision
    assert accept(state, renew(2, proposal_id=5)) == 4  # its answer was lost
    assert state.revision == revision
    assert accept(state, renew(2)) == 5
    assert accept(state, add("d", 4)) == 4
    assert state.nodes[NodeId(4)].mcg_member == 6


def test_last_node_may_not_go(state: McgState) -> None:
    accept(state, remove(3))
    accept(state, remove(2))
    assert refusal(state, remove(1)).code is ErrorCode.LAST_NODE


def test_node_with_a_replica_may_not_go_and_the_streams_are_listed(state: McgState) -> None:
    for number in range(7):
        accept(state, create(f"x/s{number}", [1, 2]))
    error = refusal(state, remove(2))
    assert error.code is ErrorCode.STREAMS_AT_RISK
    assert error.details["streams"] == ",".join(f"x/s{number}" for number in range(7))
    accept(state, remove(3))


def test_stream_is_born_and_dies(state: McgState) -> None:
    """Architecture §7: a tombstone stays until every member has confirmed."""
    stream_id = StreamId(accept(state, create("x/y", [2, 1])))
    stream = state.streams[stream_id]
    assert (stream.state, stream.retained_bytes_max) == (StreamPhase.FORMING, RETAINED_BYTES_DEFAULT)
    assert [member.node_id for member in stream.members] == [2, 1]
    accept(state, formed(stream_id))
    accept(state, formed(stream_id))
    assert state.streams[stream_id].state is StreamPhase.ACTIVE
    assert refusal(state, destroyed(stream_id, 1)).code is ErrorCode.INVALID_ARGUMENT
    accept(state, delete(stream_id))
    assert refusal(state, create("x/y", [1, 2])).details["state"] == "DELETING"
    accept(state, destroyed(stream_id, 1))
    accept(state, destroyed(stream_id, 1))
    accept(state, destroyed(stream_id, 3))
    assert state.streams[stream_id].state is StreamPhase.DELETING
    accept(state, destroyed(stream_id, 2))
    assert stream_id not in state.streams
    accept(state, destroyed(stream_id, 2))
    assert accept(state, create("x/y", [1, 2])) == stream_id + 1


def test_removal_of_a_member_counts_as_its_confirmation(state: McgState) -> None:
    stream_id = StreamId(accept(state, create("x/y", [1, 3])))
    accept(state, delete(stream_id))
    accept(state, destroyed(stream_id, 1))
    accept(state, remove(3))
    assert stream_id not in state.streams


def test_first_five_members_vote_and_member_ids_are_never_used_again() -> None:
    state = McgState()
    accept(state, found())
    grow(state, "bcdefghij")
    first = state.streams[StreamId(accept(state, create("x/y", list(range(1, 11)))))]
    assert [member.is_voter for member in first.members] == [True] * 5 + [False] * 5
    second = state.streams[StreamId(accept(state, create("x/z", [4, 2, 3, 1])))]
    assert [member.is_voter for member in second.members] == [True] * 4
    ids = [member.member_id for stream in (first, second) for member in stream.members]
    assert len(set(ids)) == len(ids)


def test_taken_name_tells_the_state_of_the_stream(state: McgState) -> None:
    stream_id = accept(state, create("x/y", [1, 2]))
    error = refusal(state, create("x/y", [1, 2]))
    assert error.code is ErrorCode.STREAM_EXISTS
    assert error.details == {"name": "x/y", "state": "FORMING", "stream_id": str(stream_id)}


def test_critical_mesh_accepts_only_what_heals_it(state: McgState) -> None:
    stream_id = accept(state, create("x/y", [1, 2]))
    accept(state, reach(2, False))
    assert health(state) is MeshStatus.DEGRADED
    accept(state, reach(3, False))
    assert health(state) is MeshStatus.CRITICAL
    for command in (create("x/z", [1, 2]), delete(stream_id), add("d", 4)):
        error = refusal(state, command)
        assert (error.code, error.retryable) == (ErrorCode.MESH_CRITICAL, True)
    assert accept(state, add("b", 2)) == 2
    accept(state, formed(stream_id))
    accept(state, remove(3))
    accept(state, reach(2, True))
    assert health(state) is MeshStatus.HEALTHY


def test_stopped_node_does_not_count_and_a_started_one_is_reachable(state: McgState) -> None:
    accept(state, set_state(2, 2))
    accept(state, reach(2, False))
    assert state.status is MeshStatus.HEALTHY
    accept(state, set_state(2, 1))
    assert state.nodes[NodeId(2)].is_reachable


def test_state_time_never_runs_back(state: McgState) -> None:
    apply(state, add("d", 4, stamp_ms=5000))
    apply(state, create("x/y", [1, 2], stamp_ms=4000))
    assert state.time_ms == 5000
    assert state.streams[StreamId(1)].created_at_ms == 5000


def test_the_view_tells_which_stream_ids_are_given_out(state: McgState) -> None:
    assert state.view().next_stream_id == 1
    apply(state, create("x/y", [1, 2]))
    assert state.view().next_stream_id == 2
    restored = McgState()
    restored.restore(state.snapshot())
    assert restored.view().next_stream_id == 2


def test_repeated_proposal_takes_effect_once_and_answers_alike(state: McgState) -> None:
    first = apply(state, create("x/y", [1, 2], proposal_id=7))
    digest_view = state.view().SerializeToString(deterministic=True)
    assert apply(state, create("x/y", [1, 2], proposal_id=7)) == first
    assert state.view().SerializeToString(deterministic=True) == digest_view
    refused = apply(state, create("x/y", [1, 2], proposal_id=8)).refusal
    assert refused is not None
    assert refused.code is ErrorCode.STREAM_EXISTS
    restored = McgState()
    restored.restore(state.snapshot())
    repeated = apply(restored, create("x/y", [1, 2], proposal_id=8)).refusal
    assert repeated is not None
    assert (repeated.code, repeated.message, repeated.details) == (refused.code, refused.message, refused.details)
    assert apply(restored, create("x/y", [1, 2], proposal_id=7)) == first


def test_memory_of_proposals_is_bounded(state: McgState) -> None:
    """I6."""
    for number in range(REMEMBERED_PROPOSALS_MAX + 50):
        command = reach(2, number % 2 == 0)
        command.proposal_id = number + 1
        apply(state, command)
    assert len(mcg_pb2.McgSnapshot.FromString(state.snapshot()).recent) == REMEMBERED_PROPOSALS_MAX


@pytest.mark.parametrize("data", [b"\xff\xff", b"\x1a\x04\x2a\x02\x28\x09"])
def test_damaged_snapshot_is_refused_and_changes_nothing(state: McgState, data: bytes) -> None:
    before = state.digest()
    with pytest.raises(MeshError) as caught:
        state.restore(data)
    assert caught.value.code is ErrorCode.STORAGE_FAILED
    assert state.digest() == before


NUMBERS = st.integers(1, 6)
COMMANDS = st.one_of(
    st.builds(add, st.sampled_from(["b", "c", "d", "e", "BAD"]), NUMBERS),
    st.builds(remove, NUMBERS),
    st.builds(renew, NUMBERS),
    st.builds(activate, NUMBERS),
    st.builds(expire, NUMBERS),
    st.builds(forget, NUMBERS, risk=st.booleans()),
    st.builds(announce, NUMBERS, st.integers(0, 2)),
    st.builds(raise_version, st.integers(0, 2)),
    st.builds(reach, NUMBERS, st.booleans()),
    st.builds(set_state, NUMBERS, st.integers(0, 3)),
    st.builds(create, st.sampled_from(["x/a", "x/b", "bad"]), st.lists(NUMBERS, max_size=4)),
    st.builds(formed, NUMBERS),
    st.builds(delete, NUMBERS),
    st.builds(destroyed, NUMBERS, NUMBERS),
    st.builds(sealed, NUMBERS),
    st.builds(out, NUMBERS, st.integers(1, 20)),
    st.builds(destroyed, NUMBERS, NUMBERS, st.integers(1, 20)),
    st.builds(
        change, NUMBERS, st.lists(NUMBERS, max_size=2), st.lists(NUMBERS, max_size=2), st.lists(NUMBERS, max_size=1)
    ),
)


class Replicas(RuleBasedStateMachine):
    """Two replicas apply the same log; one of them is restored from the other's snapshot at any point (I4)."""

    proposals = Bundle("proposals")

    def __init__(self) -> None:
        super().__init__()
        self.steady, self.restored = McgState(), McgState()
        self.node_ids: set[int] = set()
        self.stream_ids: set[int] = set()
        self.member_ids: dict[int, tuple[int, int]] = {}
        self.next_proposal = 1
        self.both(found())

    def both(self, command: mcg_pb2.Command) -> Result:
        known_nodes, known_streams = set(self.steady.nodes), set(self.steady.streams)
        first, second = apply(self.steady, command), apply(self.restored, command)
        assert (first.revision, first.allocated_id) == (second.revision, second.allocated_id)
        assert str(first.refusal) == str(second.refusal)
        for node_id in set(self.steady.nodes) - known_nodes:
            assert node_id not in self.node_ids, "a node id was used again"
            self.node_ids.add(node_id)
        for stream_id in set(self.steady.streams) - known_streams:
            assert stream_id not in self.stream_ids, "a stream id was used again"
            self.stream_ids.add(stream_id)
        for stream in self.steady.streams.values():
            for member in stream.members:
                home = (stream.stream_id, member.node_id)
                assert self.member_ids.setdefault(member.member_id, home) == home, "a member id was used again"
                assert member.member_id not in {item.member_id for item in stream.retiring}
        return first

    @rule(target=proposals, command=COMMANDS, stamp_ms=st.integers(0, 10_000))
    def propose(self, command: mcg_pb2.Command, stamp_ms: int) -> tuple[bytes, str]:
        numbered = mcg_pb2.Command()
        numbered.CopyFrom(command)
        numbered.proposal_id, numbered.stamp_ms = self.next_proposal, stamp_ms
        self.next_proposal += 1
        return numbered.SerializeToString(), str(self.both(numbered))

    @rule(proposal=proposals)
    def repeat(self, proposal: tuple[bytes, str]) -> None:
        revision = self.steady.revision
        command = mcg_pb2.Command.FromString(proposal[0])
        self.both(command)
        # Joins are not remembered: one that comes late, after a removal, is a request to join again.
        if not command.HasField("add_node"):
            assert self.steady.revision == revision, "a repeated proposal changed something"

    @rule()
    def restore(self) -> None:
        self.restored = McgState()
        self.restored.restore(self.steady.snapshot())

    @invariant()
    def replicas_are_equal(self) -> None:
        assert self.steady.digest() == self.restored.digest()

    @invariant()
    def catalogue_is_sound(self) -> None:
        names = [node.name for node in self.steady.nodes.values()]
        assert names
        assert len(set(names)) == len(names)
        for stream in self.steady.streams.values():
            if stream.state is not StreamPhase.DELETING:
                assert all(member.node_id in self.steady.nodes for member in stream.members)
                assert len({member.node_id for member in stream.members}) == len(stream.members)
                assert sum(member.is_voter for member in stream.members) == min(len(stream.members), 5)
        assert self.steady.view_bytes == self.restored.view_bytes


TestReplicas = Replicas.TestCase
TestReplicas.settings = settings(max_examples=scaled(30), stateful_step_count=30, deadline=None)


@given(st.binary(max_size=200))
def test_restore_of_any_bytes_succeeds_or_changes_nothing(data: bytes) -> None:
    state = McgState()
    accept(state, found())
    before = state.digest()
    with suppress(MeshError):
        state.restore(data)
        return
    assert state.digest() == before
