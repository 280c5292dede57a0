"""Members of a stream change while it is written: added, replaced, renewed after a lost disk; and its end is sealed.

Real processes. C1 and C2 over what the new members hold; nothing acknowledged is lost by a change (I1).
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from meshapi.common.v1 import view_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshtest.checkers import check_acknowledged_readable, check_exactly_once
from meshtest.gateway_client import Gateway
from meshtest.trio import Trio
from meshtest.waiting import eventually
from tests.e2e.workload import check, held_by, publishing

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def stream_of(gateway: Gateway, name: str) -> view_pb2.StreamView | None:
    return next((stream for stream in await gateway.streams() if stream.name == name), None)


async def settled(trio: Trio, name: str, nodes: set[str]) -> None:
    """The group has exactly these members and nothing of former ones is left."""

    async def is_settled() -> bool:
        stream = await stream_of(trio.gateways["b"], name)
        live = await trio.gateways["b"].describe(name)
        voters = {member.node for member in live.members if member.is_voter}
        return stream is not None and not stream.retiring and voters == nodes and not live.change

    await eventually(f"{name} is on {sorted(nodes)}", is_settled, 60)


async def holds(gateway: Gateway, name: str) -> bool:
    return any(replica.stream == name for replica in (await gateway.replicas()).replicas)


async def test_a_stream_moves_from_its_leader_to_another_node_under_load(mesh: Trio) -> None:
    name = "members/moved"
    await mesh.create_stream(name, ["a", "b"])
    async with publishing(mesh.gateways["b"], name) as workload:
        await mesh.gateways["c"].change_members(name, add=["c"], remove=["a"])
        await settled(mesh, name, {"b", "c"})
        assert not await holds(mesh.gateways["a"], name)
        await workload.progress()
    acknowledged = workload.acknowledged()
    members = {node: await held_by(mesh.gateways[node], name, len(acknowledged)) for node in ("a", "b", "c")}
    assert check_acknowledged_readable(acknowledged, members) + check_exactly_once(acknowledged, members) == []
    # And back again: the node gets a new membership, not its old one.
    await mesh.gateways["a"].change_members(name, add=["a"])
    await settled(mesh, name, {"a", "b", "c"})
    await check(mesh, workload)
    term = await mesh.gateways["c"].transfer_leader(name, "a")
    assert term > 0

    async def is_led_by_a() -> bool:
        return (await mesh.gateways["b"].describe(name)).leader == "a"

    await eventually("b knows that a leads", is_led_by_a)
    with pytest.raises(MeshError) as caught:
        await mesh.gateways["a"].change_members(name, remove=["a", "b"])
    assert caught.value.code is ErrorCode.MEMBER_COUNT


async def test_a_node_whose_disk_was_lost_comes_back_as_another_member(mesh: Trio) -> None:
    """Architecture §7: a wiped disk is recognised and its membership retired, never trusted."""
    name = "members/wiped"
    await mesh.create_stream(name)
    before = await stream_of(mesh.gateways["a"], name)
    async with publishing(mesh.gateways["a"], name) as workload:
        mesh.sites["c"].kill_service("data")
        shutil.rmtree(mesh.sites["c"].config.directory / "state" / "data" / "raft")
        mesh.sites["c"].start_service("data")
        await workload.progress()

        async def is_renewed() -> bool:
            now = await stream_of(mesh.gateways["a"], name)
            assert before is not None
            return now is not None and [it.member_id for it in now.members] != [it.member_id for it in before.members]

        await eventually("c has another membership", is_renewed, 60)
        await settled(mesh, name, {"a", "b", "c"})
        await workload.progress()
    await check(mesh, workload)
    found = await mesh.gateways["b"].audit(name)
    assert not found.is_divergent
    assert [(member.node, member.problem) for member in found.members] == [("a", ""), ("b", ""), ("c", "")]


async def test_a_change_survives_the_death_of_the_leader_that_is_replaced(mesh: Trio) -> None:
    name = "members/killed"
    await mesh.create_stream(name)
    async with publishing(mesh.gateways["b"], name) as workload:
        await mesh.gateways["a"].change_members(name, remove=["a"])
        mesh.sites["a"].kill_service("data")
        await workload.progress()
        mesh.sites["a"].start_service("data")
        await settled(mesh, name, {"b", "c"})
        await workload.progress()

        async def is_gone() -> bool:
            return not await holds(mesh.gateways["a"], name)

        await eventually("a holds nothing of it any more", is_gone)
    acknowledged = workload.acknowledged()
    members = {node: await held_by(mesh.gateways[node], name, len(acknowledged)) for node in ("b", "c")}
    assert check_acknowledged_readable(acknowledged, members) + check_exactly_once(acknowledged, members) == []


def flip(directory: Path, value: bytes) -> int:
    """Flips a bit in every file that holds `value`; returns how many do."""
    flipped = 0
    for file in (item for item in directory.rglob("*") if item.is_file()):
        at = file.read_bytes().find(value)
        if at < 0:
            continue
        with file.open("r+b") as log:
            log.seek(at)
            log.write(bytes([value[0] ^ 1]))
        flipped += 1
    return flipped


async def test_meshctl_shows_moves_and_audits_a_group(mesh: Trio) -> None:
    """The audit ends with 0, and with 4 once a bit of one member's log on its disk is wrong."""
    name, value = "members/audited", b"a record of its own " * 40

    async def ctl(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "meshctl", "--gateway", mesh.sites["a"].config.gateway, *arguments]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout

    await mesh.create_stream(name)
    await mesh.gateways["b"].publish(name, [value])
    status, shown = await ctl("raft", "transfer", name, "b")
    assert (status, shown.startswith(f"b leads {name} in term")) == (0, True)
    status, shown = await ctl("raft", "ls")
    assert status == 0
    assert name in shown

    async def is_clean() -> bool:
        return (await ctl("audit", name))[0] == 0

    await eventually("all members are whole", is_clean)
    disk = mesh.sites["c"].config.directory / "state" / "data" / "raft"
    assert flip(disk, value) == 1
    try:
        status, shown = await ctl("audit", name)
    finally:
        assert flip(disk, bytes([value[0] ^ 1]) + value[1:]) == 1
    assert status == 4
    assert [line.split()[:2] for line in shown.splitlines() if line.startswith(("a ", "b ", "c "))] == [
        ["a", "good"],
        ["b", "good"],
        ["c", "damaged"],
    ]


async def test_a_deleted_stream_acknowledges_nothing_more_and_goes_everywhere(mesh: Trio) -> None:
    name = "members/sealed"
    await mesh.create_stream(name)
    await mesh.gateways["a"].publish(name, [b"last"])
    await mesh.gateways["b"].delete_stream(name)

    async def is_refused() -> bool:
        try:
            await mesh.gateways["c"].publish(name, [b"late"])
        except MeshError as error:
            return error.code is ErrorCode.STREAM_NOT_FOUND
        return False  # the seal is on its way

    await eventually("publishers are told that the stream is gone", is_refused)

    async def is_gone() -> bool:
        views = [(await gateway.status()).view for gateway in mesh.gateways.values()]
        held = [await holds(gateway, name) for gateway in mesh.gateways.values()]
        return not any(held) and all(stream.name != name for view in views for stream in view.streams)

    await eventually("no replica and no tombstone is left", is_gone, 60)
    await mesh.create_stream(name)  # the name is free again
