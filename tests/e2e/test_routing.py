"""Routing as an operator sees it: weights that change live at every node, and a what-if that comes true."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest

from meshtest.trio import Trio
from meshtest.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def ctl(mesh: Trio, node: str, *arguments: str) -> Any:
    """What the program says, as JSON."""
    command = [sys.executable, "-m", "meshctl", "--gateway", mesh.sites[node].config.gateway, "--json", *arguments]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, (arguments, done.stderr)
    return json.loads(done.stdout)


async def test_weights_that_change_are_in_force_at_every_node(mesh: Trio) -> None:
    """Set at a, seen at c, whose routing computes with them."""

    async def hops_at_c() -> int:
        paths = (await ctl(mesh, "c", "paths", "a", "b", "-k", "4", "--class", "bulk"))["paths"]
        assert len(paths) == 2
        for path in paths:
            assert sum(path["terms"].values()) == path["cost"]
        return int(paths[0]["terms"]["hops"])

    await eventually("the default weights to be in force", lambda: _is(hops_at_c, 2_000), 30)
    changed = await ctl(mesh, "a", "weights", "set", "bulk", "--hop-us", "777")
    assert changed["weights"]["hop_us"] == 777
    await eventually("the new weight to be in force at c", lambda: _is(hops_at_c, 777), 30)
    shown = {item["traffic_class"]: item["weights"] for item in (await ctl(mesh, "c", "weights", "show"))["classes"]}
    assert (shown["BULK"]["hop_us"], shown["CONTROL"]["hop_us"]) == (777, 2_000)
    await ctl(mesh, "b", "weights", "set", "bulk", "--reset")
    await eventually("the default weight to be back at c", lambda: _is(hops_at_c, 2_000), 30)


async def test_what_if_says_what_a_real_cut_then_does(mesh: Trio) -> None:
    async def protection() -> dict[str, int]:
        found: dict[str, int] = (await ctl(mesh, "b", "links"))["protection"]
        return found

    whole = {"pairs": 3, "connected": 3, "protected": 3}
    await eventually("all links to be up", lambda: _is(protection, whole), 30)
    effect = await ctl(mesh, "b", "whatif", "cut", "a", "c")
    assert effect["before"] == whole
    assert (effect["lost_count"], effect["unprotected_count"]) == (0, 3)
    mesh.link("a", "c").silence()
    try:
        await eventually("the cut to have the effect that was told", lambda: _is(protection, effect["after"]), 30)
    finally:
        mesh.link("a", "c").heal()
    await eventually("the link to be back", lambda: _is(protection, whole), 60)


async def _is(ask: Any, expected: object) -> bool:
    return bool(await ask() == expected)
