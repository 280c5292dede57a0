"""Data directories: made, opened again, and refused when they are not ours to use."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from meshcommon.datadir import FORMAT_VERSION, DataDir, StoreMarker
from meshcommon.errors import ErrorCode, MeshError

_HOLD = """
import sys
from pathlib import Path
from meshcommon.datadir import DataDir
DataDir.open(Path(sys.argv[1]), "data", "a")
print("open", flush=True)
sys.stdin.read()
"""

MESH = "0b0f9c4e-3c5a-4b6e-9a52-3d0b5f0a7c11"
OTHER_MESH = "7f0e4a52-91d6-4c58-8d2e-51a5f3f0c922"


def opened(path: Path, role: str = "data", node_name: str = "a") -> DataDir:
    return DataDir.open(path, role, node_name)


def marker_after(path: Path, role: str = "data", node_name: str = "a") -> StoreMarker:
    """Opens, closes, and returns what the marker said."""
    directory = opened(path, role, node_name)
    directory.close()
    return directory.marker


def refusal(path: Path, role: str = "data", node_name: str = "a") -> MeshError:
    with pytest.raises(MeshError) as caught:
        opened(path, role, node_name)
    return caught.value


def edit_marker(path: Path, change: Callable[[dict[str, object]], None]) -> None:
    fields = json.loads((path / "store.json").read_text())
    change(fields)
    (path / "store.json").write_text(json.dumps(fields))


def test_absent_directory_is_made_and_marked(tmp_path: Path) -> None:
    path = tmp_path / "site" / "data"
    marker = marker_after(path)
    assert (marker.role, marker.node_name, marker.boot, marker.format_version) == ("data", "a", 1, FORMAT_VERSION)
    assert (marker.node_id, marker.mesh_id) == (0, "")
    assert len(marker.store_id) == 36


def test_empty_directory_is_marked(tmp_path: Path) -> None:
    assert marker_after(tmp_path).boot == 1


def test_each_open_raises_the_boot_number_and_keeps_the_store_id(tmp_path: Path) -> None:
    markers = [marker_after(tmp_path) for _ in range(3)]
    assert [marker.boot for marker in markers] == [1, 2, 3]
    assert len({marker.store_id for marker in markers}) == 1


def test_creation_that_a_crash_cut_short_is_done_again(tmp_path: Path) -> None:
    """Before the marker is renamed into place only the lock and the marker's draft can be there."""
    (tmp_path / "lock").touch()
    (tmp_path / "store.json.new").write_bytes(b'{"role"')
    assert marker_after(tmp_path).boot == 1


def test_second_process_is_told_that_it_is_locked_until_the_first_has_died(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == b"open\n"
            before = (tmp_path / "store.json").read_bytes()
            assert refusal(tmp_path).code is ErrorCode.DATA_DIR_LOCKED
            assert (tmp_path / "store.json").read_bytes() == before
        finally:
            holder.kill()
            holder.wait(10)
    assert marker_after(tmp_path).boot == 2


def test_close_releases_the_lock_and_may_be_repeated(tmp_path: Path) -> None:
    directory = opened(tmp_path)
    assert refusal(tmp_path).code is ErrorCode.DATA_DIR_LOCKED
    directory.close()
    directory.close()
    opened(tmp_path).close()


@pytest.mark.parametrize(("role", "node_name"), [("control", "a"), ("data", "b")])
def test_directory_of_another_role_or_node_is_foreign(tmp_path: Path, role: str, node_name: str) -> None:
    marker_after(tmp_path)
    error = refusal(tmp_path, role, node_name)
    assert error.code is ErrorCode.DATA_DIR_FOREIGN
    assert error.details == {"path": str(tmp_path), "role": "data", "node_name": "a"}


def test_refusal_changes_nothing_and_releases_the_lock(tmp_path: Path) -> None:
    marker_after(tmp_path)
    before = (tmp_path / "store.json").read_bytes()
    refusal(tmp_path, node_name="b")
    assert (tmp_path / "store.json").read_bytes() == before
    assert marker_after(tmp_path).boot == 2


def test_directory_of_a_newer_version_is_left_alone_whatever_else_it_says(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text('{"format_version": 2, "something": "new"}')
    error = refusal(tmp_path)
    assert error.code is ErrorCode.DATA_DIR_NEWER
    assert error.details["format_version"] == "2"


def test_files_without_a_marker_are_half_written_or_not_ours(tmp_path: Path) -> None:
    (tmp_path / "raft").mkdir()
    assert refusal(tmp_path).code is ErrorCode.DATA_DIR_INCOMPLETE
    assert (tmp_path / "raft").is_dir()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"7", b"{}", b'{"format_version": "1"}', b'{"role": "data"}']
)
def test_damaged_marker(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "store.json").write_bytes(content)
    assert refusal(tmp_path).code is ErrorCode.DATA_DIR_INCOMPLETE
    assert (tmp_path / "store.json").read_bytes() == content


@pytest.mark.parametrize(
    ("field", "value"), [("boot", "1"), ("boot", None), ("node_id", True), ("role", 1), ("store_id", []), ("more", 1)]
)
def test_marker_with_a_wrong_field_is_damaged(tmp_path: Path, field: str, value: object) -> None:
    marker_after(tmp_path)
    edit_marker(tmp_path, lambda fields: fields.update({field: value}))
    assert refusal(tmp_path).code is ErrorCode.DATA_DIR_INCOMPLETE


def test_path_through_a_file_is_unwritable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    error = refusal(tmp_path / "file" / "data")
    assert error.code is ErrorCode.DATA_DIR_UNWRITABLE
    assert "Not a directory" in error.message


def test_marker_that_cannot_be_read_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "store.json").mkdir()
    assert refusal(tmp_path).code is ErrorCode.DATA_DIR_UNWRITABLE


def test_full_disk_is_unwritable_and_keeps_the_boot_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker_after(tmp_path)

    def full(descriptor: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        error = refusal(tmp_path)
    assert error.code is ErrorCode.DATA_DIR_UNWRITABLE
    assert "No space left" in error.message
    assert marker_after(tmp_path).boot == 2


def test_claim_binds_the_directory_to_one_membership_for_good(tmp_path: Path) -> None:
    directory = opened(tmp_path)
    directory.claim(3, MESH)
    directory.claim(3, MESH)
    directory.close()
    again = opened(tmp_path)
    assert (again.marker.node_id, again.marker.mesh_id) == (3, MESH)
    for node_id, mesh_id in [(4, MESH), (3, OTHER_MESH)]:
        with pytest.raises(MeshError) as caught:
            again.claim(node_id, mesh_id)
        assert caught.value.code is ErrorCode.DATA_DIR_FOREIGN
        assert caught.value.details["node_id"] == "3"
    assert (again.marker.node_id, again.marker.mesh_id) == (3, MESH)
    again.close()


def filled(path: Path) -> DataDir:
    """A claimed directory with content of several kinds."""
    directory = opened(path)
    directory.claim(3, MESH)
    (path / "raft").mkdir()
    (path / "raft" / "log").write_bytes(b"entries")
    (path / "view.bin").write_bytes(b"view")
    return directory


def test_reset_forgets_the_membership_and_its_content(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    directory = filled(tmp_path / "data")
    (directory.path / "link").symlink_to(outside)
    before = directory.marker
    directory.reset()
    assert (directory.marker.node_id, directory.marker.mesh_id) == (0, "")
    assert directory.marker.store_id != before.store_id
    assert directory.marker.boot == before.boot
    assert {item.name for item in directory.path.iterdir()} == {"store.json", "lock"}
    assert outside.is_dir()
    assert refusal(directory.path).code is ErrorCode.DATA_DIR_LOCKED
    directory.claim(9, OTHER_MESH)
    directory.close()
    assert marker_after(directory.path).mesh_id == OTHER_MESH


def test_reset_that_a_crash_cut_short_is_finished_by_the_next_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I1: the log of a former membership must never be taken for that of the next."""
    directory = filled(tmp_path)

    def crash(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", crash)
        with pytest.raises(KeyboardInterrupt):
            directory.reset()
    directory.close()
    assert (tmp_path / "raft").exists()
    marker = marker_after(tmp_path)
    assert (marker.node_id, marker.mesh_id, marker.is_resetting) == (0, "", False)
    assert {item.name for item in tmp_path.iterdir()} == {"store.json", "lock"}


@pytest.mark.parametrize(
    "mesh_id",
    ["", "m", "../../etc", "a/b", MESH.upper(), MESH + "\n", "x" * 66_000, f"{{{MESH}}}", MESH.replace("-", "")],
)
def test_only_a_uuid_becomes_the_mesh_of_a_directory(tmp_path: Path, mesh_id: str) -> None:
    """Ids come from other nodes: what is no id must not reach a file."""
    directory = opened(tmp_path)
    before = (tmp_path / "store.json").read_bytes()
    with pytest.raises(MeshError) as caught:
        directory.claim(3, mesh_id)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert len(caught.value.message) < 300
    assert (tmp_path / "store.json").read_bytes() == before
    directory.close()


def test_the_directory_is_its_owners_alone_also_one_of_an_earlier_version(tmp_path: Path) -> None:
    fresh, old = tmp_path / "state" / "fresh", tmp_path / "old"
    old.mkdir(mode=0o755)
    old.chmod(0o755)
    for path in (fresh, old):
        opened(path).close()
        assert path.stat().st_mode & 0o777 == 0o700


class TestEarlierFormats:
    """A service writes a later format than the one that wrote the directory."""

    def open(self, path: Path) -> DataDir:
        return DataDir.open(path, "data", "a", format_version=2, changed=("raft/*/*.log",))

    def test_a_new_directory_has_the_services_own_format(self, tmp_path: Path) -> None:
        directory = self.open(tmp_path)
        directory.reset()
        directory.close()
        assert directory.marker.format_version == 2
        assert refusal(tmp_path).code is ErrorCode.DATA_DIR_NEWER

    def test_what_was_written_differently_is_refused_and_left_as_it_is(self, tmp_path: Path) -> None:
        marker_after(tmp_path)
        log = tmp_path / "raft" / "mesh-1" / "1.log"
        log.parent.mkdir(parents=True)
        log.write_bytes(b"entries")
        before = (tmp_path / "store.json").read_bytes()
        with pytest.raises(MeshError) as caught:
            self.open(tmp_path)
        assert caught.value.code is ErrorCode.STORE_FORMAT_OLD
        assert caught.value.details == {"path": str(log.parent), "format_version": "1"}
        assert ((tmp_path / "store.json").read_bytes(), log.read_bytes()) == (before, b"entries")
        log.unlink()  # what the error says to do
        directory = self.open(tmp_path)
        directory.close()
        assert (directory.marker.format_version, directory.marker.boot) == (2, 2)

    def test_a_directory_without_it_is_taken_over(self, tmp_path: Path) -> None:
        old = marker_after(tmp_path)
        (tmp_path / "raft").mkdir()
        (tmp_path / "raft" / "reserve").touch()
        directory = self.open(tmp_path)
        directory.close()
        assert (directory.marker.format_version, directory.marker.store_id) == (2, old.store_id)
