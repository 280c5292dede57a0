"""What the data plane keeps on disk: the newest state, off the loop, and what damage does."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mesh_data.core.timing import OverlayTiming
from mesh_data.shell.data_service import Configurator
from mesh_data.shell.overlay.overlay import Overlay
from mesh_data.shell.state_store import ROUTES_FILE, VIEW_FILE, StateStore
from meshapi.common.v1 import view_pb2
from meshapi.data.v1 import data_pb2
from meshcommon.admin import Readiness
from meshcommon.delegated_keys import DelegatedKey, DelegatedKeys
from meshcommon.delegation import Delegation, Grantor, Use
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshcommon.key_signer import KeySigner
from meshtest.delegated import local_identity
from meshtest.waiting import eventually

SIGNER = KeySigner(b"d" * 32)
KEYS = DelegatedKeys(Path("unused"), [DelegatedKey(0, b"d" * 32)])
SEED = b"k" * 32
GRANTOR = Grantor(KeySigner(SEED).public_key, "m", 0, NodeId(1))
DELEGATION = local_identity(SEED, SIGNER.public_key, "a", "m", 1).delegation


def request(revision: int) -> data_pb2.ConfigureRequest:
    identity = local_identity(SEED, SIGNER.public_key, "a", "m", 1)
    identity.delegation.CopyFrom(DELEGATION)
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
    Configurator(overlay, store, KEYS).restore()
    assert overlay.node_id == 1
    view = overlay.view()
    assert view is not None
    assert view.revision == 3
    assert overlay.core.forwarder.paths.routes.version == 0


async def test_older_view_changes_nothing_but_whether_the_node_runs(tmp_path: Path) -> None:
    """A control plane that was killed right after a stop knows an older view, and must be able to start the node again."""
    store = StateStore(tmp_path, Readiness())
    overlay = Overlay(OverlayTiming(), {}, None)
    configurator = Configurator(overlay, store, KEYS)
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
    configurator = Configurator(overlay, StateStore(tmp_path, Readiness()), KEYS)
    configurator.configure(request(7))
    other = request(5)
    other.identity.node_id = 2
    other.is_running = False
    assert configurator.configure(other) == 7
    assert (overlay.node_id, overlay.is_running) == (1, True)


async def test_older_view_with_a_newer_delegation_lends_it_to_the_view_in_force(tmp_path: Path) -> None:
    """A node that was away for more than a day needs it to open the lanes by which it hears the newer view."""
    store = StateStore(tmp_path, Readiness())
    overlay = Overlay(OverlayTiming(), {}, None)
    configurator = Configurator(overlay, store, KEYS)
    configurator.configure(request(7))
    older = request(5)
    newer = Delegation.signed(KeySigner(SEED), GRANTOR, Use.LANES, SIGNER.public_key, time.time() + 3600)
    older.identity.delegation.CopyFrom(newer.to_proto())
    assert configurator.configure(older) == 7
    await store.flush()
    kept = store.load()[0]
    assert kept is not None
    assert (kept.view.revision, kept.identity.delegation) == (7, newer.to_proto())
    for bad in (replace(newer, use=Use.LINK_STATES), replace(newer, public_key=bytes(32))):
        older.identity.delegation.CopyFrom(bad.to_proto())
        with pytest.raises(MeshError) as caught:
            configurator.configure(older)
        assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    await store.flush()
    assert store.load()[0] == kept


def old_state() -> bytes:
    """A view.bin of before delegated keys: the identity has the seed of the identity key in field 3."""
    identity = b"\x08\x01\x12\x01a\x1a\x20" + SEED
    view = view_pb2.MeshView(revision=3, mesh_id="m").SerializeToString()
    return b"\x0a" + bytes((len(identity),)) + identity + b"\x12" + bytes((len(view),)) + view + b"\x18\x01"


@pytest.mark.parametrize("is_of_another_key", [False, True], ids=["with-a-seed", "of-another-key"])
async def test_state_that_cannot_be_used_is_removed_and_the_start_goes_on(
    tmp_path: Path, is_of_another_key: bool
) -> None:
    content = request(3).SerializeToString() if is_of_another_key else old_state()
    (tmp_path / VIEW_FILE).write_bytes(content)
    (tmp_path / ROUTES_FILE).write_bytes(data_pb2.PushRoutesRequest(version=7).SerializeToString())
    store = StateStore(tmp_path, Readiness())
    overlay = Overlay(OverlayTiming(), {}, None)
    configurator = Configurator(overlay, store, DelegatedKeys(tmp_path) if is_of_another_key else KEYS)
    configurator.restore()
    assert (overlay.node_id, overlay.view()) == (0, None)
    await store.flush()
    assert not (tmp_path / VIEW_FILE).exists()
    assert not (tmp_path / ROUTES_FILE).exists()


async def test_state_of_a_delegation_that_is_over_is_restored(tmp_path: Path) -> None:
    """Streams of this node alone need no lane, and what is over is renewed when the control plane comes back."""
    kept = request(3)
    over = Delegation.signed(KeySigner(SEED), GRANTOR, Use.LANES, SIGNER.public_key, time.time() - 48 * 3600)
    kept.identity.delegation.CopyFrom(over.to_proto())
    store = StateStore(tmp_path, Readiness())
    (tmp_path / VIEW_FILE).write_bytes(kept.SerializeToString())
    overlay = Overlay(OverlayTiming(), {}, None)
    Configurator(overlay, store, KEYS).restore()
    assert overlay.node_id == 1


async def test_no_seed_of_an_identity_is_kept(tmp_path: Path) -> None:
    """ID2: not even when a control plane of an earlier version, or a later one, sends more than is known here."""
    store = StateStore(tmp_path, Readiness())
    configurator = Configurator(Overlay(OverlayTiming(), {}, None), store, KEYS)
    told = request(3).SerializeToString()
    seed = data_pb2.ConfigureRequest.FromString(told + b"\x0a\x22\x1a\x20" + SEED)
    assert SEED in seed.SerializeToString()
    configurator.configure(seed)
    await store.flush()
    assert SEED not in (tmp_path / VIEW_FILE).read_bytes()
