"""Identity, membership and crashes between the steps of founding and leaving."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from control_plane_testing.mcg_commands import MESH_ID
from mesh_control.core.model import JoinPolicy
from mesh_control.shell.membership import MembershipFile
from meshapi.control.v1.membership_pb2 import Membership
from meshcommon.errors import ErrorCode, MeshError

if TYPE_CHECKING:
    from tests.shell.conftest import SmallMesh


def test_unwritable_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MeshError) as caught:
        MembershipFile(tmp_path / "missing").write(Membership())
    assert caught.value.code is ErrorCode.DATA_DIR_UNWRITABLE


@pytest.mark.parametrize("content", [b"", b"\xff\xff", b"\x0a\x01m"])
def test_damaged_membership_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "membership.bin").write_bytes(content)
    with pytest.raises(MeshError) as caught:
        MembershipFile(tmp_path).read()
    assert caught.value.code is ErrorCode.DATA_DIR_INCOMPLETE


def lose_log(mesh: SmallMesh, name: str) -> None:
    for item in (mesh.directory / name / "raft").iterdir():
        item.unlink()


async def test_crash_before_the_log_was_made_does_not_lose_the_founding(mesh: SmallMesh) -> None:
    node = mesh.start("a")
    node.node.found(MESH_ID, "small", JoinPolicy.KEY_REQUIRED)
    founding = MembershipFile(mesh.directory / "a").read()
    assert founding is not None
    await mesh.eventually(lambda: node.node.require_mcg().leader_view().is_leader)
    await mesh.crash("a")
    lose_log(mesh, "a")
    MembershipFile(mesh.directory / "a").write(founding)
    again = mesh.start("a")
    await mesh.eventually(lambda: again.node.require_mcg().leader_view().is_leader)
    state = again.node.require_mcg().state
    assert (state.mesh_id, state.mesh_name, state.join_policy) == (MESH_ID, "small", JoinPolicy.KEY_REQUIRED)
    assert again.node.is_listed


async def test_founder_that_lost_its_log_does_not_found_the_mesh_a_second_time(mesh: SmallMesh) -> None:
    """I11: with its first state it would be a quorum of its own beside the mesh that went on."""
    _a, b, _c = await mesh.grow("a", "b", "c")
    await mesh.eventually(lambda: len(b.node.require_mcg().raft_status().voters) == 3)
    await mesh.crash("a")
    lose_log(mesh, "a")
    mesh.cut_off.add("a")
    again = mesh.start("a")
    assert again.node.require_mcg().raft_status().voters == []
    await mesh.eventually(
        lambda: any(mesh.nodes[name].node.require_mcg().leader_view().is_leader for name in ("b", "c"))
    )
    mesh.cut_off.clear()
    # It becomes another member of the group, and has no replica for a moment.
    await mesh.eventually(lambda: (mcg := again.node.mcg) is not None and len(mcg.state.nodes) == 3)


async def test_crash_in_the_middle_of_leaving_is_finished_at_the_start(mesh: SmallMesh) -> None:
    _a, b = await mesh.grow("a", "b")
    b.node.mark_leaving()
    again = await mesh.restart("b")
    assert (again.node.membership, again.node.mcg, again.node.view()) == (None, None, None)
    assert not (mesh.directory / "b" / "raft").exists()
    await mesh.crash("b")
    (mesh.directory / "b" / "raft").mkdir()
    again = mesh.start("b")
    assert not (mesh.directory / "b" / "raft").exists()


async def test_leaving_ends_although_the_answer_is_lost(mesh: SmallMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others close their lanes to a node that was removed, perhaps before they answer it."""
    _a, b = await mesh.grow("a", "b")
    monkeypatch.setattr(b.calls, "receive", lambda packet: None)
    await b.lifecycle.leave()
    assert b.node.membership is None


async def test_removed_node_can_leave_without_anyone(mesh: SmallMesh) -> None:
    """Its removal was committed but the answer was lost: what it applied says that it is no member."""
    _a, b = await mesh.grow("a", "b")
    state = b.node.require_mcg().state
    del state._now.nodes[b.node.node_id]
    state._now.revision += 1
    assert b.node.is_removed
    mesh.cut_off = {"b"}
    await b.lifecycle.leave()
    assert b.node.membership is None
