"""Members change while the network is cut: at most one side makes the change (I11), and nothing acknowledged is lost (I1)."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from meshapi.supervisor.v1 import data_pb2
from meshtest.checkers import check_acknowledged_readable, check_exactly_once
from meshtest.trio import Trio, form_mesh, running_trio
from meshtest.waiting import eventually
from tests.e2e.workload import Workload, held_by, publishing

STREAM = "faults/members"


@pytest_asyncio.fixture
async def trio() -> AsyncIterator[Trio]:
    """Three whole nodes over links that can be silenced."""
    with tempfile.TemporaryDirectory(prefix="mesh-faults-") as directory:
        async with running_trio(Path(directory) / "sites") as found:
            await form_mesh(found.sites, found.gateways, print)
            yield found


async def voters(trio: Trio, at: str) -> set[str]:
    """The group's voters as its leader knows them."""
    return {member.node for member in (await trio.gateways[at].describe(STREAM)).members if member.is_voter}


async def replica(trio: Trio, at: str) -> data_pb2.ReplicaInfo | None:
    replicas = (await trio.gateways[at].replicas()).replicas
    return next((found for found in replicas if found.stream == STREAM), None)


async def check(trio: Trio, workload: Workload, nodes: set[str]) -> None:
    acknowledged = workload.acknowledged()
    assert len(acknowledged) == workload.publisher.submitted
    members = {name: await held_by(trio.gateways[name], STREAM, len(acknowledged)) for name in nodes}
    findings = check_acknowledged_readable(acknowledged, members) + check_exactly_once(acknowledged, members)
    assert findings + workload.stalls() == []


async def test_the_leader_is_cut_off_while_its_membership_ends(trio: Trio) -> None:
    await trio.create_stream(STREAM)
    async with publishing(trio.gateways["b"], STREAM) as workload:
        for link in ("ab", "ac"):
            trio.links[link].silence()
        await workload.progress()
        await trio.gateways["b"].change_members(STREAM, remove=["a"])

        async def is_made() -> bool:
            return await voters(trio, "b") == {"b", "c"}

        await eventually("the majority has made the change", is_made)
        # a cannot have made any step of its own: it no longer leads, and has committed nothing since.
        cut_off, other = await replica(trio, "a"), await replica(trio, "b")
        assert cut_off is not None
        assert other is not None
        assert cut_off.role != "leader"
        assert cut_off.commit_index < other.commit_index
        for link in ("ab", "ac"):
            trio.links[link].heal()
        workload.healed()

        async def is_out() -> bool:
            return await replica(trio, "a") is None

        await eventually("a learns of it and lets its data go", is_out)
        await workload.progress()
    await check(trio, workload, {"a", "b", "c"})


async def test_a_member_that_cannot_be_reached_is_added_once_it_can(trio: Trio) -> None:
    await trio.create_stream(STREAM, ["a", "b"])
    async with publishing(trio.gateways["a"], STREAM) as workload:
        for link in ("ac", "bc"):
            trio.links[link].silence()
        await trio.gateways["a"].change_members(STREAM, add=["c"])
        await workload.progress()
        assert await voters(trio, "a") == {"a", "b"}
        for link in ("ac", "bc"):
            trio.links[link].heal()
        workload.healed()

        async def is_added() -> bool:
            return await voters(trio, "a") == {"a", "b", "c"}

        await eventually("c learns, catches up and votes", is_added)
        await workload.progress()
    await check(trio, workload, {"a", "b", "c"})
