"""One flipped bit in the control group's log of one node: it decides nothing by itself, and the others repair it.

Source: architecture I1; docs/design/streams.md, "A damaged log".
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from meshapi.control.v1 import mcg_pb2

if TYPE_CHECKING:
    from tests.shell.conftest import OneNode, SmallMesh

LOG_FILE_HEADER_BYTES = 69
STREAMS = 10


def damage(mesh: SmallMesh, name: str, share: float, chance: random.Random) -> None:
    """Flips a bit behind that share of the node's log."""
    (file,) = (mesh.directory / name / "raft").glob("*.raftlog")
    content = bytearray(file.read_bytes())
    written = len(content.rstrip(b"\0"))
    content[chance.randrange(LOG_FILE_HEADER_BYTES + int(share * (written - LOG_FILE_HEADER_BYTES)), written)] ^= 1
    file.write_bytes(content)


async def create(node: OneNode, name: str) -> None:
    await node.proposals.propose(mcg_pb2.Command(create_stream=mcg_pb2.CreateStream(name=name, node_ids=[1, 2])))


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
