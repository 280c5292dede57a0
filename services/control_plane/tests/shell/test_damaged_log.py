"""One flipped bit in the control group's log of one node: it decides nothing by itself, and the others repair it.

Source: architecture I1; docs/design/streams.md, "A damaged log".
"""

from __future__ import annotations

import asyncio
import random
import shutil
from typing import TYPE_CHECKING

import pytest

from meshapi.control.v1 import mcg_pb2
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
    await node.proposals.propose(mcg_pb2.Command(create_stream=command))


def is_in_doubt(node: OneNode) -> bool:
    mcg = node.node.mcg
    return mcg is None or mcg.raft_status().in_doubt


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.3, 0.6, 0.9])
async def test_a_node_whose_log_is_damaged_leads_nobody_and_is_repaired(
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
        assert back.node.mcg is None or not back.node.mcg.standing().is_leader
        assert is_in_doubt(back)
    mesh.cut_off = set()
    await mesh.eventually(lambda: len({node.node.require_mcg().state.digest() for node in mesh.nodes.values()}) == 1)
    await mesh.eventually(lambda: not is_in_doubt(back))
    assert len(back.node.require_mcg().state.streams) == STREAMS + 1
    await create(back, "demo/after")


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 0.5, 0.8])
async def test_the_only_voter_of_two_nodes_gets_back_what_the_learner_holds(mesh: SmallMesh, share: float) -> None:
    await mesh.grow("a", "b")
    for number in range(STREAMS):
        await create(mesh.nodes["b"], f"demo/s{number}")
    await mesh.crash("a")
    damage(mesh, "a", share, random.Random(f"two{share}"))
    mesh.cut_off = {"a"}
    back = mesh.start("a")
    for _ in range(5 * mesh.timing.election_ticks):
        await asyncio.sleep(mesh.timing.tick_s)
        assert back.node.mcg is None or not back.node.mcg.standing().is_leader
    mesh.cut_off = set()
    await mesh.eventually(lambda: back.node.require_mcg().standing().is_leader)
    assert len(back.node.require_mcg().state.streams) == STREAMS
    await create(mesh.nodes["b"], "demo/after")
    assert not is_in_doubt(back)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.8])
async def test_the_only_voter_finds_the_learner_that_was_renewed_since(mesh: SmallMesh, share: float) -> None:
    """It asks for a member that the other node no longer has: whoever is there now holds everything."""
    await mesh.grow("a", "b")
    for number in range(STREAMS):
        await create(mesh.nodes["b"], f"demo/s{number}")
    await mesh.crash("b")
    shutil.rmtree(mesh.directory / "b" / "raft")
    renewed = mesh.start("b")
    await mesh.eventually(lambda: renewed.node.mcg is not None and renewed.node.mcg.place.mcg_member == 3)
    await mesh.eventually(lambda: len(renewed.node.require_mcg().state.streams) == STREAMS)
    await mesh.crash("a")
    damage(mesh, "a", share, random.Random(f"renewed{share}"))
    back = mesh.start("a")
    await mesh.eventually(lambda: back.node.require_mcg().standing().is_leader)
    await mesh.eventually(lambda: len(back.node.require_mcg().state.streams) == STREAMS)
    await create(renewed, "demo/after")
    assert not is_in_doubt(back)


@pytest.mark.parametrize("last", ["a", "b"])
async def test_the_last_node_of_a_mesh_goes_on_after_a_torn_write(mesh: SmallMesh, last: str) -> None:
    """The other one has left: the store remembers it, the log knows that it is gone."""
    left = {"a": "b", "b": "a"}[last]
    await mesh.grow("a", "b")
    await mesh.nodes[left].lifecycle.leave()
    await mesh.crash(left)
    await mesh.crash(last)
    (file,) = (mesh.directory / last / "raft").glob("*.raftlog")
    content = file.read_bytes()
    written = len(content.rstrip(b"\0"))
    file.write_bytes(content[:written] + b"torn" + content[written + 4 :])
    back = mesh.start(last)
    await mesh.eventually(lambda: back.node.require_mcg().standing().is_leader)
    assert not is_in_doubt(back)
    with pytest.raises(MeshError, match="MEMBER_COUNT"):  # decided, and refused
        await create(back, "demo/after", back.node.node_id)
