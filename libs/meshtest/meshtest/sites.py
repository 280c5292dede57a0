"""`make up` and `make down`: the three nodes as processes that stay; their data survive in between.

Ports are drawn once and kept in `build/sites/sites.json`, with the pids of what runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

from meshcommon.durable import write_durably
from meshcommon.errors import MeshError
from meshtest.gateway_client import Gateway
from meshtest.ports import free_ports
from meshtest.processes import ProcessId, stop_detached
from meshtest.site import PORTS_PER_SITE, Site, SiteFailedError
from meshtest.stores import StoreFailedError
from meshtest.trio import NODES, form_mesh, plan, start_sites
from meshtest.waiting import ConditionNotMetError

DIRECTORY: Final = Path("build/sites")
_STATE: Final = "sites.json"


def _load() -> dict[str, Any]:
    count = len(NODES) * PORTS_PER_SITE
    try:
        state: dict[str, Any] = json.loads((DIRECTORY / _STATE).read_text())
    except FileNotFoundError:
        return {"ports": free_ports(count), "processes": {}}
    if len(state["ports"]) != count and not _running(state):
        # Written by a version whose services had another number of ports.
        state["ports"] = free_ports(count)
    return state


def _save(state: dict[str, Any]) -> None:
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: it is the only place that knows what runs.
    write_durably(DIRECTORY / _STATE, json.dumps(state, indent=1).encode())


def _running(state: dict[str, Any]) -> dict[str, ProcessId]:
    known = {name: ProcessId(*pair) for name, pair in state["processes"].items()}
    return {name: process for name, process in known.items() if process.is_alive()}


async def up() -> int:
    """Starts what does not run, forms the mesh if there is none, prints where everything is."""
    state = _load()
    running = _running(state)
    sites = {name: Site(config, is_detached=True) for name, config in plan(DIRECTORY, state["ports"], {}).items()}
    if running and len(running) < len(state["processes"]):
        print(f"some processes are gone ({len(running)} of {len(state['processes'])} run): restarting all")
        _stop(running)
        running = {}
    if running:
        print("the three nodes are running already")
    else:
        try:
            await start_sites(sites, print)
        finally:
            state["processes"] = {
                f"{name}/{what}": [child.process_id.pid, child.process_id.started]
                for name, site in sites.items()
                for what, child in site.children().items()
            }
            _save(state)
    async with AsyncExitStack() as stack:
        gateways = {name: await stack.enter_async_context(Gateway(site.config.gateway)) for name, site in sites.items()}
        mesh_id = await form_mesh(sites, gateways, print)
        warnings = {text: None for gateway in gateways.values() for text in (await gateway.status()).warnings}
    print(f"\nmesh {mesh_id} is HEALTHY; data in {DIRECTORY}/, logs in {DIRECTORY}/*/log/")
    for name, site in sites.items():
        addresses = f"API page {site.config.rest}/docs   gRPC {site.config.gateway}   meshclient {site.config.client}"
        print(f"  node {name}   {addresses}")
    for text in warnings:
        print(f"  warning: {text}")
    print(f"\ntry:   .venv/bin/meshctl --gateway {sites['a'].config.gateway} status\nstop:  make down")
    return 0


def _stop(running: dict[str, ProcessId]) -> None:
    """Services first, then the stores that they use."""
    stores = ("/postgres", "/valkey")
    services = {name: process for name, process in running.items() if not name.endswith(stores)}
    for process in services.values():
        process.signal(signal.SIGTERM)
    for process in services.values():
        stop_detached(process)
    for name in running.keys() - services.keys():
        stop_detached(running[name], number=signal.SIGINT if name.endswith("/postgres") else signal.SIGTERM)


def down() -> int:
    """Stops everything that `up` started."""
    state = _load()
    running = _running(state)
    if not running:
        print("nothing runs")
        return 0
    started = time.monotonic()
    _stop(running)
    state["processes"] = {}
    _save(state)
    print(f"stopped {len(running)} processes in {time.monotonic() - started:.1f} s; data stay in {DIRECTORY}/")
    return 0


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m meshtest.sites", description=__doc__)
    parser.add_argument("action", choices=("up", "down"))
    action = parser.parse_args().action
    try:
        sys.exit(asyncio.run(up()) if action == "up" else down())
    except* (SiteFailedError, StoreFailedError, ConditionNotMetError, MeshError) as failures:
        for failure in failures.exceptions:
            print(f"error: {failure}", file=sys.stderr)
        print("what was started still runs: look at its logs, then `make down`", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
