"""The CA in the replicated state: which changes it takes, who was given the key, and that it stays bounded."""

from __future__ import annotations

from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane_testing.mcg_commands import accept, add, apply, found, key, refusal, remove
from mesh_control.core.ca_state import SEALED_BYTES, voters_without_key, who_wraps
from mesh_control.core.limits import CA_FORMER_MAX, CA_FORMER_MS, CA_SEALED_MAX
from mesh_control.core.mcg_state import McgState
from mesh_control.core.peer_answers import check_proposer
from meshapi.common.v1 import view_pb2
from meshapi.control.v1 import mcg_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId

SEALED: Final = b"s" * SEALED_BYTES


def wrap(node_id: int, *, wrap_key: bytes = b"", sealed: bytes = SEALED) -> mcg_pb2.SealedKey:
    return mcg_pb2.SealedKey(node_id=node_id, wrap_key=wrap_key or key(100 + node_id), sealed=sealed)


def set_ca(generation: int, intermediate: bytes, *sealed: mcg_pb2.SealedKey, **fields: Any) -> mcg_pb2.Command:
    roots = fields.pop("roots", [b"root"])
    stamp = fields.pop("stamp_ms", 0)
    change = mcg_pb2.SetCa(generation=generation, roots=roots, intermediate=intermediate, sealed=sealed, **fields)
    return mcg_pb2.Command(set_ca=change, stamp_ms=stamp)


def voters(*node_ids: int) -> mcg_pb2.Command:
    return mcg_pb2.Command(set_voters=mcg_pb2.SetVoters(node_ids=node_ids))


def three(*, of_version: int = 3) -> McgState:
    """Nodes 1 to 3 with wrap keys; the first votes."""
    state, founding = McgState(), found()
    founding.found_mesh.mesh_name, founding.found_mesh.join_policy = "small", view_pb2.JOIN_POLICY_OPEN
    founding.found_mesh.node.wrap_key = key(101)
    founding.found_mesh.node.mesh_version = of_version
    accept(state, founding)
    for number, name in ((2, "b"), (3, "c")):
        newcomer = add(name, number)
        newcomer.add_node.wrap_key, newcomer.add_node.mesh_version = key(100 + number), of_version
        accept(state, newcomer)
    return state


def is_due(state: McgState) -> bool:
    return state.ca is not None and state.ca.is_rotation_due


def with_ca() -> McgState:
    state = three()
    accept(state, set_ca(0, b"first", wrap(1)))
    return state


def test_a_mesh_is_of_version_3_when_its_founder_tells_a_wrap_key() -> None:
    assert three().mesh_version == 3
    assert three().nodes[NodeId(2)].wrap_key == key(102)


def test_of_two_changes_at_once_one_is_taken() -> None:
    state = with_ca()
    accept(state, set_ca(1, b"second", wrap(1)))
    assert refusal(state, set_ca(1, b"third", wrap(1))).code is ErrorCode.CA_CHANGED
    assert state.ca is not None
    assert (state.ca.intermediate, state.ca.generation) == (b"second", 2)


def test_two_founders_of_a_ca_cannot_both_win() -> None:
    state = with_ca()
    error = refusal(state, set_ca(0, b"other", wrap(1), roots=[b"other root"]))
    assert error.code is ErrorCode.CA_EXISTS


def test_a_repeated_change_changes_nothing() -> None:
    state = with_ca()
    before = state.snapshot()
    accept(state, set_ca(0, b"first", wrap(1)))
    after = mcg_pb2.McgSnapshot.FromString(state.snapshot())
    expected = mcg_pb2.McgSnapshot.FromString(before)
    expected.applied_index = after.applied_index
    assert after == expected


@pytest.mark.parametrize(
    "command",
    [
        set_ca(0, b"first"),
        set_ca(0, b"first", wrap(1, sealed=b"short")),
        set_ca(0, b"first", wrap(1), wrap(1)),
        set_ca(0, b"", wrap(1)),
        set_ca(0, b"i" * 4097, wrap(1)),
        set_ca(0, b"first", wrap(1), roots=[]),
        set_ca(0, b"first", wrap(1), roots=[b"a", b"b", b"c"]),
        set_ca(0, b"first", wrap(1), roots=[b"a", b"a"]),
        set_ca(0, b"first", wrap(1), roots=[b"r" * 4097]),
        set_ca(0, b"first", *(wrap(number) for number in range(1, CA_SEALED_MAX + 2))),
        set_ca(0, b"first", wrap(1, wrap_key=key(9))),
        set_ca(0, b"first", wrap(9)),
    ],
    ids=range(12),
)
def test_what_is_not_sound_is_refused(command: mcg_pb2.Command) -> None:
    state = three()
    assert refusal(state, command).code in {ErrorCode.INVALID_ARGUMENT, ErrorCode.CA_CHANGED}
    assert state.ca is None


def test_a_new_voter_is_given_the_key_once() -> None:
    state = with_ca()
    accept(state, voters(1, 2))
    assert state.ca is not None
    assert [node.node_id for node in voters_without_key(state.ca, state.nodes)] == [2]
    assert who_wraps(state.ca, state.nodes) == 1
    sealing = mcg_pb2.WrapCa(intermediate_digest=state.ca.digest, sealed=wrap(2))
    accept(state, mcg_pb2.Command(wrap_ca=sealing))
    assert state.ca.sealed.keys() == {1, 2}
    revision = state.revision
    accept(state, mcg_pb2.Command(wrap_ca=sealing))
    assert state.revision == revision


@pytest.mark.parametrize(
    "sealing",
    [
        mcg_pb2.WrapCa(intermediate_digest=b"another", sealed=wrap(2)),
        mcg_pb2.WrapCa(sealed=wrap(2, wrap_key=key(9))),
        mcg_pb2.WrapCa(sealed=wrap(2, sealed=b"short")),
        mcg_pb2.WrapCa(sealed=wrap(3)),
        mcg_pb2.WrapCa(sealed=wrap(9)),
    ],
    ids=["another intermediate", "another key", "short", "no voter", "no member"],
)
def test_a_sealed_key_that_fits_nothing_is_passed_over(sealing: mcg_pb2.WrapCa) -> None:
    state = with_ca()
    accept(state, voters(1, 2))
    assert state.ca is not None
    sealing.intermediate_digest = sealing.intermediate_digest or state.ca.digest
    before = state.ca
    accept(state, mcg_pb2.Command(wrap_ca=sealing))
    assert state.ca == before


def test_the_last_key_is_kept_until_every_voter_has_its_own() -> None:
    state = with_ca()
    accept(state, voters(2))
    assert state.ca is not None
    assert state.ca.sealed.keys() == {1}, "nobody else could open it"
    accept(state, mcg_pb2.Command(wrap_ca=mcg_pb2.WrapCa(intermediate_digest=state.ca.digest, sealed=wrap(2))))
    assert state.ca.sealed.keys() == {2}
    assert state.ca.holders == {1, 2}
    assert not state.ca.is_rotation_due, "who votes no longer is still a member"


def test_rotation_is_due_when_one_that_was_given_the_key_is_no_member_any_more() -> None:
    state = with_ca()
    accept(state, voters(1, 2))
    assert state.ca is not None
    accept(state, mcg_pb2.Command(wrap_ca=mcg_pb2.WrapCa(intermediate_digest=state.ca.digest, sealed=wrap(2))))
    accept(state, remove(3))
    assert not is_due(state), "it never had the key"
    accept(state, remove(2))
    assert is_due(state)
    accept(state, set_ca(1, b"second", wrap(1)))
    assert state.ca.holders == {1}
    assert not is_due(state)


def test_another_wrap_key_makes_the_sealed_one_worthless_and_is_told_by_the_node_alone() -> None:
    state = with_ca()
    told = mcg_pb2.Command(set_wrap_key=mcg_pb2.SetWrapKey(node_id=1, wrap_key=key(77)))
    with pytest.raises(MeshError):
        check_proposer(told, NodeId(2), {})
    check_proposer(told, NodeId(1), {})
    accept(state, told)
    assert state.ca is not None
    assert not state.ca.sealed
    short = mcg_pb2.Command(set_wrap_key=mcg_pb2.SetWrapKey(node_id=1, wrap_key=b"k"))
    assert refusal(state, short).code is ErrorCode.INVALID_ARGUMENT


def test_an_intermediate_before_is_accepted_for_a_day_and_a_revoked_one_not_at_all() -> None:
    state = with_ca()
    accept(state, set_ca(1, b"second", wrap(1), stamp_ms=10_000))
    assert state.ca is not None
    assert state.ca.accepts(b"first", 10_000 + CA_FORMER_MS - 1)
    assert not state.ca.accepts(b"first", 10_000 + CA_FORMER_MS)
    accept(state, set_ca(2, b"third", wrap(1), revoke=True))
    assert not state.ca.accepts(b"second", 0)
    assert state.ca.accepts(b"third", 2**50)


def test_roots_are_exchanged_while_the_intermediate_stays() -> None:
    state = with_ca()
    accept(state, set_ca(1, b"second", wrap(1), roots=[b"new root", b"root"]))
    assert refusal(state, set_ca(2, b"second", wrap(1), roots=[b"new root"])).code is ErrorCode.INVALID_ARGUMENT
    accept(state, set_ca(2, b"second", roots=[b"new root"]))
    assert state.ca is not None
    assert state.ca.roots == (b"new root",)
    assert set(state.ca.sealed) == {1}


COMMANDS = st.one_of(
    st.builds(
        lambda generation, number, revoke, stamp: set_ca(
            generation, b"i%d" % number, wrap(1), revoke=revoke, stamp_ms=stamp
        ),
        st.integers(0, 30),
        st.integers(0, 30),
        st.booleans(),
        st.integers(0, 2**40),
    ),
    st.builds(lambda members: voters(*members), st.sets(st.integers(1, 3), min_size=1)),
    st.builds(
        lambda node_id, number: mcg_pb2.Command(
            set_wrap_key=mcg_pb2.SetWrapKey(node_id=node_id, wrap_key=key(100 + number))
        ),
        st.integers(1, 3),
        st.integers(1, 3),
    ),
    st.builds(remove, st.integers(1, 3)),
    st.integers(1, 3),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(COMMANDS, max_size=25))
def test_whatever_comes_the_ca_stays_bounded_and_a_snapshot_is_the_state(commands: list[mcg_pb2.Command | int]) -> None:
    """CA1 (compare and set), CA3 (holders), CA4 (bounds)."""
    state = with_ca()
    for command in commands:
        before = state.ca
        if isinstance(command, int):
            assert state.ca is not None
            sealing = mcg_pb2.WrapCa(intermediate_digest=state.ca.digest, sealed=wrap(command))
            apply(state, mcg_pb2.Command(wrap_ca=sealing))
        else:
            apply(state, command)
        ca = state.ca
        assert ca is not None
        assert before is not None
        assert len(ca.sealed) <= CA_SEALED_MAX
        assert len(ca.former) <= CA_FORMER_MAX
        assert ca.sealed.keys() <= ca.holders <= state.nodes.keys()
        assert ca.generation in {before.generation, before.generation + 1}
        if ca.intermediate == before.intermediate:
            assert ca.holders - before.holders <= {command} if isinstance(command, int) else True
            assert ca.is_rotation_due >= before.is_rotation_due
    again = McgState()
    again.restore(state.snapshot())
    assert again.digest() == state.digest()
    assert again.ca == state.ca
