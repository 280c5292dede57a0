"""What the data plane keeps on disk: the newest state, off the loop, and what damage does."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from mesh_data.core.timing import OverlayTiming
from mesh_data.shell.data_service import Configurator
from mesh_data.shell.overlay import Overlay
from mesh_data.shell.state_store import ROUTES_FILE, VIEW_FILE, StateStore
from meshapi.common.v1 import view_pb2
from meshapi.data.v1 import data_pb2
from meshcommon.admin import Readiness
from meshcommon.errors import ErrorCode, MeshError
from meshtest.waiting import eventually


def request(revision: int) -> data_pb2.ConfigureRequest:
    identity = view_pb2.LocalIdentity(node_id=1, name="a", private_key=b"k" * 32)
    return data_pb2.ConfigureRequest(
        identity=identity, view=view_pb2.MeshView(revision=revision, mesh_id="m"), is_running=True
    )


async def test_newest_state_is_what_a_restart_finds(tmp_path: Path) -> None:
    store = StateStore(tmp_path, Readiness())
    for revision in range(1, 100):
        store.keep_view(request(revision))
    store.keep_routes(data_pb2.PushRoutesRequest(version=7))
    assert await store.flush()
    view, routes = StateStore(tmp_path, Readiness()).load()
    assert view == request(99)
    assert routes is not None
    assert routes.version == 7
    assert (tmp_path / VIEW_FILE).stat().st_mode & 0o077 == 0


async def test_forgetting_removes_view_and_routes(tmp_path: Path) -> None:
    store = StateStore(tmp_path, Readiness())
    store.keep_view(request(1))
    store.keep_routes(data_pb2.PushRoutesRequest(version=7))
    await store.flush()
    store.keep_view(None)
    await store.flush()
    assert store.load() == (None, None)
    assert not (tmp_path / VIEW_FILE).exists()


async def test_disk_that_refuses_is_a_warning_and_tried_again(tmp_path: Path) -> None:
    readiness = Readiness()
    directory = tmp_path / "missing"
    store = StateStore(directory, readiness)
    task = asyncio.create_task(store.run(), name="store")
    store.keep_view(request(1))

    async def is_warned() -> bool:
        return bool(readiness.warnings())

    async def is_written() -> bool:
        return (directory / VIEW_FILE).exists() and not readiness.warnings()

    await eventually("the warning", is_warned)
    directory.mkdir()
    await eventually("the file", is_written)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_damaged_view_refuses_the_start_and_damaged_routes_do_not(tmp_path: Path) -> None:
    (tmp_path / ROUTES_FILE).write_bytes(b"\xff\xff")
    store = StateStore(tmp_path, Readiness())
    assert store.load() == (None, None)
    (tmp_path / VIEW_FILE).write_bytes(b"\xff\xff")
    with pytest.raises(MeshError) as refusal:
        store.load()
    assert refusal.value.code is ErrorCode.DATA_DIR_INCOMPLETE


async def test_restored_routes_that_fit_no_more_are_left_out(tmp_path: Path) -> None:
    store = StateStore(tmp_path, Readiness())
    store.keep_view(request(3))
    bad = data_pb2.Route(destination=2, paths=[data_pb2.Path(nodes=[9, 2])])
    store.keep_routes(data_pb2.PushRoutesRequest(version=7, changed=[bad]))
    await store.flush()
    overlay = Overlay(OverlayTiming(), {}, None)
    Configurator(overlay, store).restore()
    assert overlay.node_id == 1
    view = overlay.view()
    assert view is not None
    assert view.revision == 3
    assert overlay.core.forwarder.routes.version == 0


async def test_older_view_changes_nothing_but_whether_the_node_runs(tmp_path: Path) -> None:
    """A control plane that was killed right after a stop knows an older view, and must be able to start the node again."""
    store = StateStore(tmp_path, Readiness())
    overlay = Overlay(OverlayTiming(), {}, None)
    configurator = Configurator(overlay, store)
    stopped = request(7)
    stopped.is_running = False
    configurator.configure(stopped)
    assert configurator.configure(request(5)) == 7
    view = overlay.view()
    assert view is not None
    assert (view.revision, overlay.is_running) == (7, True)
    await store.flush()
    assert store.load()[0] == request(7)


async def test_older_view_under_another_identity_changes_nothing(tmp_path: Path) -> None:
    overlay = Overlay(OverlayTiming(), {}, None)
    configurator = Configurator(overlay, StateStore(tmp_path, Readiness()))
    configurator.configure(request(7))
    other = request(5)
    other.identity.node_id = 2
    other.is_running = False
    assert configurator.configure(other) == 7
    assert (overlay.node_id, overlay.is_running) == (1, True)
