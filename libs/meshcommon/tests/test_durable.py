"""Files that survive a crash at any moment of being replaced."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from meshcommon.durable import write_durably

_CRASH_BEFORE_RENAME = """
import os, sys
from pathlib import Path
from meshcommon.durable import write_durably
Path.replace = lambda self, target: os._exit(9)
write_durably(Path(sys.argv[1]), b"new and longer")
"""


def test_replaces_the_content_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "view.bin"
    write_durably(path, b"old")
    write_durably(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    write_durably(tmp_path / "key", b"secret")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_crash_between_write_and_rename_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "view.bin"
    write_durably(path, b"old")
    crash = subprocess.run([sys.executable, "-c", _CRASH_BEFORE_RENAME, str(path)], check=False)
    assert crash.returncode == 9
    assert path.read_bytes() == b"old"
    write_durably(path, b"next")
    assert path.read_bytes() == b"next"
    assert list(tmp_path.iterdir()) == [path]


def test_failing_disk_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "view.bin"
    write_durably(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        write_durably(path, b"new")
    assert path.read_bytes() == b"old"


def test_content_is_synced_before_the_rename_and_the_name_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I1: an order in which a crash could show an empty file would lose what was acknowledged."""
    steps: list[str] = []
    replace, fsync = Path.replace, os.fsync

    def noting_fsync(descriptor: int) -> None:
        steps.append("sync directory" if Path(f"/proc/self/fd/{descriptor}").is_dir() else "sync file")
        fsync(descriptor)

    def noting_replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(Path, "replace", noting_replace)
    write_durably(tmp_path / "view.bin", b"new")
    assert steps == ["sync file", "rename", "sync directory"]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    write_durably(tmp_path / "view.bin", b"ten bytes!")
    assert (tmp_path / "view.bin").read_bytes() == b"ten bytes!"
