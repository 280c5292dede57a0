"""What replicas say reaches the MCG; what it refuses for one stream holds up no other."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from control_plane_testing.mcg_commands import accept, activate, add, create, formed, found
from mesh_control.core.confirmations import Report
from mesh_control.core.mcg_state import McgState
from mesh_control.shell.changes import Changes
from mesh_control.shell.group_watch import GroupWatch
from meshapi.control.v1 import mcg_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import MemberId, NodeId, StreamId

LOST = Report("other", NodeId(0), "lost some", MemberId(1), is_distrusted=True)
OPEN = Report("open", NodeId(1), member_id=MemberId(3))


async def proposed_when(refusal: Exception) -> list[str | None]:
    """Kinds of the first proposals when each is refused with `refusal`."""
    state = McgState()
    for command in (found(), add("b", 2), activate(2), create("x/a", [1, 2]), formed(1), create("x/b", [1, 2])):
        accept(state, command)
    kinds: list[str | None] = []

    async def propose(command: mcg_pb2.Command) -> None:
        kinds.append(command.WhichOneof("kind"))
        raise refusal

    node: Any = SimpleNamespace(mcg=SimpleNamespace(state=state), is_running=True, node_id=NodeId(1), changed=Changes())
    data: Any = SimpleNamespace(reports={StreamId(1): LOST, StreamId(2): OPEN}, reported=Changes())
    proposer: Any = SimpleNamespace(propose=propose)
    watch = asyncio.create_task(GroupWatch(node, data, proposer).run())
    async with asyncio.timeout(5):
        while not kinds:
            node.changed.notify()
            await asyncio.sleep(0.01)
    for _ in range(20):  # changes keep coming, as each refusal is one
        node.changed.notify()
        await asyncio.sleep(0.005)
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    return kinds


async def test_a_refusal_concerns_its_own_stream() -> None:
    refused = MeshError(ErrorCode.MEMBERS_CHANGING, "Later.")
    assert await proposed_when(refused) == ["change_members", "stream_formed"]


async def test_without_a_quorum_nothing_more_is_tried() -> None:
    assert await proposed_when(MeshError(ErrorCode.NO_QUORUM, "Later.")) == ["change_members"]


async def test_failure_that_nobody_expected_is_tried_again_later() -> None:
    assert await proposed_when(ZeroDivisionError("not a MeshError")) == ["change_members"]
