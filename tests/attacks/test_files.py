"""Kind 7: listeners and files of the site are its own."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from pathlib import Path

from meshtest.ports import free_ports
from meshtest.processes import start
from tests.attacks.newcomer import Newcomer
from tests.attacks.target import Target

LISTENERS = (
    ("mesh_control", "MESH_CONTROL_GRPC_LISTEN"),
    ("mesh_routing", "MESH_ROUTING_GRPC_LISTEN"),
    ("mesh_data", "MESH_DATA_GRPC_LISTEN"),
    ("mesh_data", "MESH_DATA_CLIENT_LISTEN"),
    ("mesh_gateway", "MESH_GATEWAY_GRPC_LISTEN"),
    ("mesh_gateway", "MESH_GATEWAY_HTTP_LISTEN"),
)

LISTEN_SETTINGS = tuple(
    f"MESH_{service}_LISTEN"
    for service in (
        "CONTROL_GRPC",
        "CONTROL_ADMIN",
        "ROUTING_GRPC",
        "ROUTING_ADMIN",
        "DATA_GRPC",
        "DATA_ADMIN",
        "GATEWAY_GRPC",
        "GATEWAY_HTTP",
        "GATEWAY_ADMIN",
    )
)


async def test_state_is_readable_by_nobody_else(target: Target) -> None:
    """Keys, logs of streams and votes: directories 0700, files nothing for group and others."""
    open_paths = []
    for site in target.sites.values():
        for path in (site.config.directory / "state").rglob("*"):
            mode = stat.S_IMODE(path.lstat().st_mode)
            if mode & 0o077 and not path.is_symlink():
                open_paths.append(f"{path.relative_to(target.directory)} has {mode:o}")
    assert open_paths == []


def umask_of(pid: int) -> str:
    """The umask of a process, in octal."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("Umask:"))


async def test_services_make_files_for_themselves_alone(target: Target) -> None:
    for site in target.sites.values():
        for name, child in site.services.items():
            assert umask_of(child.pid) == "0077", name


async def test_listeners_that_others_reach_need_the_operators_word(tmp_path: Path) -> None:
    """Without MESH_INSECURE_DEV no listener that cannot authenticate anyone opens beyond the loopback."""
    results = await asyncio.gather(
        *(refused_start(tmp_path / name, module, name) for module, name in LISTENERS), return_exceptions=True
    )
    failures = [(name, result) for (_, name), result in zip(LISTENERS, results, strict=True) if result is not None]
    assert failures == []


async def refused_start(directory: Path, module: str, name: str) -> None:
    """Starts one service with one listener on all interfaces."""
    ports = free_ports(len(LISTEN_SETTINGS) + 1)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MESH_")} | {
        "MESH_NODE_NAME": "open",
        "MESH_NODE_DATA_DIR": str(directory / "state"),
        **{setting: f"127.0.0.1:{port}" for setting, port in zip(LISTEN_SETTINGS, ports, strict=False)},
        name: f"0.0.0.0:{ports[-1]}",
    }
    log = directory / "log"
    child = start([sys.executable, "-m", module], log=log, environment=environment)
    try:
        status = await asyncio.to_thread(child.wait, 50)
    finally:
        child.kill()
    text = log.read_text()
    assert status == 77, text
    assert "INSECURE_NOT_ALLOWED" in text
    assert "Traceback" not in text


async def test_ids_that_become_path_names(newcomer: Newcomer, target: Target) -> None:
    """Nothing was made outside of the newcomer's own directories by any of the answers that it was given."""
    made = [path for path in newcomer.config.directory.rglob("*") if path.is_dir()]
    names = {path.name for path in made if path.parent.name == "state"}
    assert names <= {"data", "control"}, names
    assert not [path for path in made if "evil" in path.name]
