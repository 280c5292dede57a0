"""The version gate: software never applies what it does not know, and never passes over what others apply (I4)."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane_testing.mcg_commands import (
    accept,
    activate,
    add,
    announce,
    apply,
    create,
    found,
    grow,
    raise_version,
    reach,
    refusal,
)
from mesh_control.core.mcg_state import McgState
from mesh_control.core.model import NodeState
from mesh_control.core.replica import Replica
from mesh_control.core.versions import INTRODUCED, MESH_VERSION, check_proposable, read_command
from meshapi.control.v1 import mcg_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId

NEWER: Final = MESH_VERSION + 1
UNKNOWN_KIND: Final = b"\xa2\x3f\x02\x08\x01"
"""Field 1012 of a command: a kind of some later version."""
UNKNOWN_FIELD: Final = b"\x22\x07\x0a\x01\x7a\xa2\x3f\x01\x00"
"""AddNode with a field 1012."""
CUT_SHORT: Final = b"\x22\x7f\x0a"


def newer(command: mcg_pb2.Command) -> mcg_pb2.Command:
    """The command as the next version's software would send it."""
    command.min_version = NEWER
    return command


def test_every_kind_of_command_has_its_version() -> None:
    kinds = {field.name for field in mcg_pb2.Command.DESCRIPTOR.oneofs_by_name["kind"].fields}
    assert kinds == INTRODUCED.keys()
    assert max(INTRODUCED.values()) <= MESH_VERSION


@pytest.mark.parametrize("data", [UNKNOWN_KIND, UNKNOWN_FIELD, CUT_SHORT, b"\xff\xff", b""])
def test_what_does_not_decode_is_beyond(data: bytes) -> None:
    beyond = read_command(data, MESH_VERSION)
    assert not isinstance(beyond, mcg_pb2.Command)
    assert beyond.version == 0
    assert "update this node" in beyond.refusal(MESH_VERSION).message


def test_replica_stops_before_what_it_does_not_know_and_newer_software_goes_on() -> None:
    log = [found(), add("b", 2), newer(activate(2)), add("c", 3)]
    old, new = Replica(), Replica(NEWER)
    for index, command in enumerate(log, 1):
        old.apply(index, command.SerializeToString())
        new.apply(index, command.SerializeToString())
    assert (old.state.applied_index, new.state.applied_index) == (2, 4)
    assert old.beyond is not None
    assert old.beyond.version == NEWER
    error = old.beyond.refusal(MESH_VERSION)
    assert (error.code, error.details["needed"]) == (ErrorCode.UPDATE_REQUIRED, str(NEWER))
    old.advance(5)
    assert old.state.applied_index == 2, "an entry without a command moves it no more than one with one"
    updated = Replica(NEWER)
    updated.restore(2, old.state.snapshot())
    for index, command in enumerate(log[2:], 3):
        updated.apply(index, command.SerializeToString())
    assert updated.state.digest() == new.state.digest()


def test_snapshot_of_a_newer_mesh_is_not_read() -> None:
    """A newer snapshot may hold what decides here; passing over it would be a divergence."""
    state = McgState()
    accept(state, found())
    accept(state, announce(1, NEWER))
    accept(state, raise_version(NEWER))
    replica = Replica()
    replica.apply(1, found("other").SerializeToString())
    before = replica.state.digest()
    assert not replica.restore(9, state.snapshot())
    assert replica.state.digest() == before
    assert replica.apply(10, add("b", 2).SerializeToString()) is None
    assert replica.state.applied_index == 1
    newer_software = Replica(NEWER)
    assert newer_software.restore(9, state.snapshot())
    assert (newer_software.state.mesh_version, newer_software.state.applied_index) == (NEWER, 9)


def test_mesh_version_rises_when_every_member_supports_it() -> None:
    state = McgState()
    accept(state, found())
    grow(state, "bc")
    assert state.mesh_version == 1
    accept(state, announce(1, 3))
    accept(state, announce(2, 2))
    accept(state, raise_version(2))
    assert state.mesh_version == 1, "c supports only 1"
    accept(state, announce(3, 2))
    accept(state, raise_version(3))
    assert state.mesh_version == 1
    accept(state, raise_version(2))
    assert (state.mesh_version, state.view().mesh_version) == (2, 2)
    accept(state, raise_version(1))
    assert state.mesh_version == 2
    restored = McgState()
    restored.restore(state.snapshot())
    assert restored.digest() == state.digest()
    error = refusal(state, add("d", 4))
    assert (error.code, error.details) == (ErrorCode.UPDATE_REQUIRED, {"needed": "2", "supported": "1"})


def test_who_joins_and_never_speaks_holds_no_version_back() -> None:
    """Strangers with old software could ask again every ten minutes, for ever."""
    state = McgState()
    accept(state, found())
    accept(state, add("x", 2))
    accept(state, announce(1, 2))
    accept(state, raise_version(2))
    assert state.mesh_version == 2
    accept(state, activate(2))
    assert state.nodes[NodeId(2)].state is NodeState.JOINING, "it could not apply what comes next"
    accept(state, announce(2, 2))
    accept(state, activate(2))
    assert state.nodes[NodeId(2)].state is NodeState.ACTIVE


def test_software_stops_where_the_mesh_rises_above_it() -> None:
    """From there on a command may mean something else. An attempt that raised nothing stops nobody."""
    old, new = Replica(1), Replica(2)
    log = [found(), raise_version(2), announce(1, 2), raise_version(2), add("b", 2)]
    for index, command in enumerate(log, 1):
        old.apply(index, command.SerializeToString())
        new.apply(index, command.SerializeToString())
        if index == 4:
            assert old.state.digest() == new.state.digest()
    assert (old.state.applied_index, old.beyond is not None, new.beyond) == (4, True, None)


@pytest.mark.parametrize(
    ("command", "committed", "supported", "code"),
    [
        (newer(add("b", 2)), 1, NEWER, ErrorCode.MESH_VERSION_TOO_LOW),
        (newer(add("b", 2)), NEWER, MESH_VERSION, ErrorCode.UPDATE_REQUIRED),
        (mcg_pb2.Command.FromString(UNKNOWN_FIELD), 1, MESH_VERSION, ErrorCode.UPDATE_REQUIRED),
        (raise_version(NEWER), 1, MESH_VERSION, ErrorCode.UPDATE_REQUIRED),
        (newer(add("b", 2)), NEWER, NEWER, None),
        (raise_version(NEWER), 1, NEWER, None),
        (add("b", 2), 1, MESH_VERSION, None),
    ],
)
def test_what_not_every_member_could_apply_is_not_proposed(
    command: mcg_pb2.Command, committed: int, supported: int, code: ErrorCode | None
) -> None:
    if code is None:
        check_proposable(command, committed, supported)
        return
    with pytest.raises(MeshError) as caught:
        check_proposable(command, committed, supported)
    assert caught.value.code is code


NAMES = st.sampled_from(["b", "c", "d"])
NUMBERS = st.integers(1, 4)
KNOWN = st.one_of(
    st.builds(add, NAMES, NUMBERS),
    st.builds(activate, NUMBERS),
    st.builds(reach, NUMBERS, st.booleans()),
    st.builds(create, st.sampled_from(["x/a", "x/b"]), st.lists(NUMBERS, min_size=2, max_size=3, unique=True)),
    st.builds(announce, NUMBERS, st.integers(0, NEWER + 1)),
    st.builds(raise_version, st.integers(0, NEWER + 1)),
)
ENTRIES = st.one_of(
    KNOWN.map(lambda command: command.SerializeToString()),
    KNOWN.map(lambda command: newer(command).SerializeToString()),
    st.sampled_from([UNKNOWN_KIND, UNKNOWN_FIELD, CUT_SHORT]),
    st.binary(max_size=20),
)


@given(st.lists(ENTRIES, max_size=30), st.integers(0, 30))
def test_replicas_of_two_versions_never_diverge(entries: list[bytes], restart_at: int) -> None:
    """I4: wherever both are at an index, they are equal; the older one, updated, ends where the newer one is."""
    old, new = Replica(MESH_VERSION), Replica(NEWER)
    at_index: dict[int, str] = {}
    log = [found().SerializeToString(), *entries]
    for index, data in enumerate(log, 1):
        new.apply(index, data)
        at_index[new.state.applied_index] = new.state.digest()
        old.apply(index, data)
        if index == restart_at and old.beyond is None:
            again = Replica(MESH_VERSION)
            again.restore(index, old.state.snapshot())
            old = again
        assert old.state.applied_index <= new.state.applied_index
        assert old.state.digest() == at_index[old.state.applied_index]
    updated, start = Replica(NEWER), int(old.state.applied_index)
    updated.restore(start, old.state.snapshot())
    for index, data in enumerate(log[start:], start + 1):
        updated.apply(index, data)
    assert updated.state.digest() == new.state.digest()


def test_a_replica_that_passed_over_such_an_entry_would_be_found() -> None:
    """What this software did before: the checker of the property above can fail."""
    old, new = McgState(), McgState()
    for state in (old, new):
        accept(state, found())
    apply(new, newer(add("b", 2)))
    old.apply(2, mcg_pb2.Command())
    assert old.digest() != new.digest()
