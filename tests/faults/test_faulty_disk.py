"""The disk that loses what was not fsynced, by itself: what a cut keeps and undoes, and what the orders do."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.faulty_disk import FaultyDisk, Fsync


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FaultyDisk]:
    found = FaultyDisk(tmp_path / "root", tmp_path / "control")
    yield found
    found.close()


def run(disk: FaultyDisk, tmp_path: Path, script: str) -> subprocess.CompletedProcess[str]:
    """A process on that disk, which ends without a word, as if killed."""
    source = f"import os\nos.chdir({str(tmp_path / 'root')!r})\n{script}\nos._exit(0)\n"
    environment = os.environ | disk.environment()
    return subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, text=True, check=False)


def held(tmp_path: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((tmp_path / "root").iterdir())}


SYNC_NAMES = "\nhere = os.open('.', os.O_RDONLY); os.fsync(here)\n"


def test_what_was_synced_stays_and_the_rest_is_undone(disk: FaultyDisk, tmp_path: Path) -> None:
    done = run(
        disk,
        tmp_path,
        "f = os.open('a', os.O_RDWR | os.O_CREAT); os.write(f, b'kept'); os.fsync(f)"
        + SYNC_NAMES
        + "os.pwrite(f, b'LOST', 0); os.write(f, b' and more'); os.ftruncate(f, 2)\n"
        "g = os.open('b', os.O_RDWR | os.O_CREAT); os.write(g, b'x'); os.fsync(g)\n",
    )
    assert done.returncode == 0, done.stderr
    assert held(tmp_path) == {"a": b"LO", "b": b"x"}
    assert disk.cut_power() > 0
    # b's bytes were synced, its name was not.
    assert held(tmp_path) == {"a": b"kept"}
    assert disk.cut_power() == 0


def test_renames_and_removals_are_undone_unless_the_directory_was_synced(disk: FaultyDisk, tmp_path: Path) -> None:
    make = "".join(
        f"f = os.open('{name}', os.O_RDWR | os.O_CREAT); os.write(f, b'{name}'); os.fsync(f)\n" for name in "abcd"
    )
    done = run(disk, tmp_path, make + SYNC_NAMES + "os.rename('a', 'b'); os.unlink('c'); os.rename('d', 'e')\n")
    assert done.returncode == 0, done.stderr
    assert held(tmp_path) == {"b": b"a", "e": b"d"}
    disk.cut_power()
    assert held(tmp_path) == {"a": b"a", "b": b"b", "c": b"c", "d": b"d"}
    run(disk, tmp_path, "os.rename('a', 'b'); os.unlink('c')" + SYNC_NAMES)
    assert disk.cut_power() == 0
    assert held(tmp_path) == {"b": b"a", "d": b"d"}


def test_removals_of_several_processes_are_undone(disk: FaultyDisk, tmp_path: Path) -> None:
    """The second process must not give what it removes a name that the first one gave."""
    run(disk, tmp_path, "for name in 'ab': os.open(name, os.O_RDWR | os.O_CREAT)" + SYNC_NAMES)
    for name in "ab":
        run(disk, tmp_path, f"os.unlink({name!r})\n")
    assert held(tmp_path) == {}
    disk.cut_power()
    assert held(tmp_path).keys() == {"a", "b"}


def test_a_cut_can_keep_the_oldest_writes_and_tear_the_next(disk: FaultyDisk, tmp_path: Path) -> None:
    script = "f = os.open('a', os.O_RDWR | os.O_CREAT); os.write(f, b'........'); os.fsync(f)" + SYNC_NAMES
    run(disk, tmp_path, script + "os.pwrite(f, b'1111', 0); os.pwrite(f, b'2222', 4)\n")
    disk.cut_power(kept=0.5)
    assert held(tmp_path) == {"a": b"111122.."}


def test_an_fsync_that_lies_makes_nothing_durable(disk: FaultyDisk, tmp_path: Path) -> None:
    disk.fsync(Fsync.LIES)
    done = run(disk, tmp_path, "f = os.open('a', os.O_RDWR | os.O_CREAT); os.write(f, b'x'); os.fsync(f)" + SYNC_NAMES)
    assert done.returncode == 0, done.stderr
    disk.cut_power()
    assert held(tmp_path) == {}


def test_fsync_and_writes_fail_as_ordered(disk: FaultyDisk, tmp_path: Path) -> None:
    script = "f = os.open('a', os.O_RDWR | os.O_CREAT); os.write(f, b'x'); os.fdatasync(f)\n"
    disk.fsync(Fsync.FAILS)
    assert f"[Errno {errno.EIO}]" in run(disk, tmp_path, script).stderr
    disk.fsync(Fsync.HONEST)
    disk.refuse_writes(errno.ENOSPC)
    assert f"[Errno {errno.ENOSPC}]" in run(disk, tmp_path, script).stderr
    disk.refuse_writes(0)
    assert run(disk, tmp_path, script).returncode == 0


def test_the_process_crashes_at_the_step_that_was_ordered(disk: FaultyDisk, tmp_path: Path) -> None:
    script = "f = os.open('a', os.O_RDWR | os.O_CREAT)\nfor byte in b'123': os.write(f, bytes([byte]))\n"
    # Two steps make the file, two more the first byte; the fifth is before the second byte.
    disk.crash_after(5)
    assert run(disk, tmp_path, script).returncode == -signal.SIGKILL
    assert held(tmp_path) == {"a": b"1"}
    assert disk.steps == 5


def test_the_wall_clock_can_be_wrong(disk: FaultyDisk, tmp_path: Path) -> None:
    disk.set_clock(3600)
    shown = run(disk, tmp_path, "import time; print(time.time() - time.monotonic(), flush=True)").stdout
    assert float(shown) - (time.time() - time.monotonic()) == pytest.approx(3600, abs=5)
