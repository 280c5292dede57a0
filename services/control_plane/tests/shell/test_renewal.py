"""A node that needs a new membership asks its peers, whatever they answer."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace
from typing import Any

import pytest

from mesh_control.shell.changes import Changes
from mesh_control.shell.renewal import Renewal
from meshapi.control.v1 import join_pb2
from meshcommon.admin import Readiness
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId

GOOD = join_pb2.ProposeResponse(revision=9, allocated_id=8).SerializeToString()


@pytest.mark.parametrize(
    "nonsense",
    [
        MeshError(ErrorCode.NOT_LEADER, "Ask.", {"leader": "not a number"}),
        MeshError(ErrorCode.NOT_LEADER, "Ask.", {"leader": "9" * 5_000}),
        MeshError(ErrorCode.NOT_LEADER, "Ask.", {"leader": "2"}),
        b"\x10",
        join_pb2.ProposeResponse(allocated_id=2**64 - 1).SerializeToString(),
        join_pb2.ProposeResponse(allocated_id=7).SerializeToString(),
        b"",
    ],
    ids=["no number", "endless number", "itself", "truncated", "beyond 2^63", "own id", "nothing"],
)
async def test_peer_that_answers_nonsense_is_passed_over(nonsense: bytes | MeshError) -> None:
    asked: list[NodeId] = []
    renewed: list[int] = []

    async def call(*_: object, peer: NodeId) -> bytes:
        asked.append(peer)
        # The first that is asked lies, whoever it is; then the others are asked.
        if len(asked) > 1:
            return GOOD
        if isinstance(nonsense, MeshError):
            raise nonsense
        return nonsense

    async def renew(member_id: int) -> None:
        renewed.append(member_id)
        node.is_distrusted = False

    node: Any = SimpleNamespace(
        changed=Changes(),
        is_distrusted=True,
        is_running=True,
        node_id=NodeId(1),
        store=SimpleNamespace(reason="It forgot."),
        membership=SimpleNamespace(mcg_member=7),
        known_peers=lambda: [NodeId(2), NodeId(3)],
        renew=renew,
    )
    calls: Any = SimpleNamespace(call=call)
    running = asyncio.create_task(Renewal(node, calls, Readiness(), random.Random(1)).run(), name="renewal")
    async with asyncio.timeout(10):
        while not renewed and not running.done():
            node.changed.notify()
            await asyncio.sleep(0.01)
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert (renewed, sorted(asked)) == ([8], [2, 3])
