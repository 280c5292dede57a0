"""One flipped bit in the control group's log of one node: it decides nothing by itself, and becomes another member.

Source: architecture I1; docs/design/recovery.md.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable
from typing import TYPE_CHECKING

import pytest

from meshapi.control.v1 import mcg_pb2
from meshapi.supervisor.v1 import mesh_pb2
from meshcommon.errors import MeshError

if TYPE_CHECKING:
    from tests.shell.conftest import OneNode, SmallMesh

LOG_FILE_HEADER_BYTES = 69
STREAMS = 10


def damage(mesh: SmallMesh, name: str, share: float, chance: random.Random) -> None:
    """Flips a bit behind that share of the node's log, within the next tenth."""
    (file,) = (mesh.directory / name / "raft").glob("*.raftlog")
    content = bytearray(file.read_bytes())
    room = len(content.rstrip(b"\0")) - LOG_FILE_HEADER_BYTES
    content[LOG_FILE_HEADER_BYTES + int(room * (share + 0.1 * chance.random()))] ^= 1
    file.write_bytes(content)


async def create(node: OneNode, name: str, *node_ids: int) -> None:
    command = mcg_pb2.CreateStream(name=name, node_ids=node_ids or (1, 2))
    await node.proposer.propose(mcg_pb2.Command(create_stream=command))


def member_state(node: OneNode) -> str:
    mcg = node.node.mcg
    return mcg.raft_status().member_state if mcg is not None else ""


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
async def test_a_node_whose_log_is_damaged_leads_nobody_and_is_renewed(
    mesh: SmallMesh, share: float, name: str
) -> None:
    """`a` founded the mesh: at the start of its log it is the only voter."""
    await mesh.grow("a", "b", "c")
    await mesh.eventually(lambda: len(mesh.nodes["a"].node.require_mcg().raft_status().voters) == 3)
    for number in range(STREAMS):
        await create(mesh.nodes["c"], f"demo/s{number}")
    await mesh.crash(name)
    await create(mesh.nodes["c"], "demo/meanwhile")
    damage(mesh, name, share, random.Random(f"{name}{share}"))
    mesh.cut_off = {name}
    back = mesh.start(name)
    for _ in range(5 * mesh.timing.election_ticks):
        await asyncio.sleep(mesh.timing.tick_s)
        assert back.node.mcg is None or not back.node.mcg.leader_view().is_leader
        assert member_state(back) != "full"
    mesh.cut_off = set()
    await mesh.eventually(lambda: member_state(back) in ("blank", "full"))
    await mesh.eventually(lambda: len({node.node.require_mcg().state.digest() for node in mesh.nodes.values()}) == 1)
    await mesh.eventually(lambda: member_state(back) == "full")
    assert len(back.node.require_mcg().state.streams) == STREAMS + 1
    await create(back, "demo/after")


async def test_the_only_voter_of_two_nodes_waits_for_an_operator(mesh: SmallMesh) -> None:
    """Earlier damage: what it still has may be less than it confirmed, and nobody guesses."""
    await mesh.grow("a", "b")
    for number in range(STREAMS):
        await create(mesh.nodes["b"], f"demo/s{number}")
    await mesh.crash("a")
    damage(mesh, "a", 0.3, random.Random("two"))
    back = mesh.start("a")
    for _ in range(5 * mesh.timing.election_ticks):
        await asyncio.sleep(mesh.timing.tick_s)
        assert not back.node.require_mcg().leader_view().is_leader
    assert back.node.is_distrusted
    assert "was damaged before its last write" in back.node.store.reason
    assert len(mesh.nodes["b"].node.require_mcg().state.streams) == STREAMS, "nothing is lost where it is held"


@pytest.mark.parametrize("last", ["a", "b"])
async def test_the_last_node_of_a_mesh_goes_on_after_a_torn_write(mesh: SmallMesh, last: str) -> None:
    """The other one has left, and the log knows that."""
    left = {"a": "b", "b": "a"}[last]
    await mesh.grow("a", "b")
    await mesh.nodes[left].lifecycle.leave()
    await mesh.crash(left)
    # Until then it is a learner that holds more than the torn log may tell of, and the last one would wait for it.
    await mesh.eventually(lambda: not mesh.nodes[last].node.require_mcg().raft_status().learners)
    await mesh.crash(last)
    (file,) = (mesh.directory / last / "raft").glob("*.raftlog")
    content = file.read_bytes()
    written = len(content.rstrip(b"\0"))
    file.write_bytes(content[:written] + b"torn" + content[written + 4 :])
    back = mesh.start(last)
    await mesh.eventually(lambda: back.node.require_mcg().leader_view().is_leader)
    assert member_state(back) == "full"
    with pytest.raises(MeshError, match="MEMBER_COUNT"):  # decided, and refused
        await create(back, "demo/after", back.node.node_id)


def recover(node: OneNode, *names: str) -> Awaitable[mesh_pb2.RecoverControlGroupResponse]:
    return node.service.RecoverControlGroup(mesh_pb2.RecoverControlGroupRequest(survivors=names), None)


async def test_an_operator_lets_the_only_node_go_on_with_what_is_left(mesh: SmallMesh) -> None:
    await mesh.grow("a")
    for _ in range(5):
        await mesh.eventually(lambda: mesh.nodes["a"].node.require_mcg().leader_view().is_leader)
        await asyncio.sleep(2 * mesh.timing.tick_s)  # it writes
        await mesh.restart("a")
    await asyncio.sleep(2 * mesh.timing.tick_s)
    await mesh.crash("a")
    damage(mesh, "a", 0.6, random.Random("only"))
    back = mesh.start("a")
    await asyncio.sleep(3 * mesh.timing.election_ticks * mesh.timing.tick_s)
    assert back.node.is_distrusted
    assert not back.node.require_mcg().leader_view().is_leader
    found = await recover(back, "a")
    assert not found.is_below_quorum
    await mesh.eventually(lambda: back.node.require_mcg().leader_view().is_leader)
    await mesh.eventually(lambda: not back.node.is_distrusted)
    assert member_state(back) == "full"
    await asyncio.sleep(2 * mesh.timing.tick_s)
    again = await mesh.restart("a")
    await mesh.eventually(lambda: again.node.require_mcg().leader_view().is_leader)
    with pytest.raises(MeshError, match="MEMBER_COUNT"):  # decided, and refused
        await create(again, "demo/after", again.node.node_id)


async def test_survivors_that_cannot_be_are_refused(mesh: SmallMesh) -> None:
    await mesh.grow("a")
    for names, reason in (
        (("a",), "has a leader"),
        (("a", "b"), "UNKNOWN_NODE"),
        (("a", "a"), "each once"),
        ((), "each"),
    ):
        with pytest.raises(MeshError, match=reason):
            await recover(mesh.nodes["a"], *names)


async def test_an_operator_lets_the_learner_go_on_when_the_only_voter_is_damaged(mesh: SmallMesh) -> None:
    """It holds all; the damaged node then becomes another member of its group by itself."""
    await mesh.grow("a", "b")
    for number in range(STREAMS):
        await create(mesh.nodes["b"], f"demo/s{number}")
    await mesh.crash("a")
    damage(mesh, "a", 0.3, random.Random("two"))
    back, other = mesh.start("a"), mesh.nodes["b"]
    await asyncio.sleep(5 * mesh.timing.election_ticks * mesh.timing.tick_s)
    found = await recover(other, "b")
    assert found.is_below_quorum
    await mesh.eventually(lambda: other.node.require_mcg().leader_view().is_leader)
    await mesh.eventually(lambda: member_state(back) == "full")
    await mesh.eventually(lambda: len(back.node.require_mcg().state.streams) == STREAMS)
    assert not back.node.is_distrusted
    await create(back, "demo/after")
