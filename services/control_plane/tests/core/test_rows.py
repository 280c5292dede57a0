"""The state as rows: every number fits its column, whatever the state holds."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from control_plane_testing.mcg_commands import accept, activate, add, found
from mesh_control.core.limits import INTEGER_MAX
from mesh_control.core.mcg_state import McgState
from mesh_control.core.rows import rows_of
from meshapi.control.v1 import mcg_pb2
from meshcommon.ids import NodeId


@pytest.mark.parametrize(("stamp_ms", "year"), [(0, 1970), (253_402_300_799_000, 9999), (2**64 - 1, 9999)])
def test_absurd_clock_of_a_leader_gives_the_last_moment_that_there_is(stamp_ms: int, year: int) -> None:
    """It once raised in the projection of every node, again at each start."""
    state = McgState()
    for command in (found(), add("b", 2), activate(2)):
        accept(state, command)
    stream = mcg_pb2.CreateStream(name="x/a", node_ids=[1, 2], retained_bytes_max=2**40)
    state.apply(state.applied_index + 1, mcg_pb2.Command(create_stream=stream, stamp_ms=stamp_ms))
    [row] = rows_of(state, NodeId(1)).streams.values()
    assert row["created_at"].year == year
    assert row["created_at"] <= datetime.max.replace(tzinfo=UTC)
    assert row["retained_bytes_max"] == 2**40 <= INTEGER_MAX
