"""The Python side of `disk.c`: builds it, gives its orders, and cuts the power.

A power cut keeps what an fsync covered and undoes the rest: all of it, or all but its oldest part, whose last write may be
torn, as `kept` says. Undo records are in one order over all files, so what stays is what a disk that writes in order would
hold. Leaves out: disks that reorder writes between two fsyncs.
"""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

_SOURCE: Final = Path(__file__).with_name("disk.c")
_BUILT: Final = Path("build/faults/disk.so")
_RECORD: Final = struct.Struct("<4I4Q")
_ORDERS: Final = struct.Struct("<4i2q")


class Fsync(IntEnum):
    """What fsync does."""

    HONEST = 0
    LIES = 1
    FAILS = 2


class _Kind(IntEnum):
    DATA = 1
    CREATED = 2
    RENAMED = 3
    REMOVED = 4
    DURABLE = 5


@dataclass(frozen=True, slots=True)
class _Record:
    kind: _Kind
    inode: int
    offset: int
    old_size: int
    name: Path
    other: Path
    data: bytes


def build() -> Path:
    """The shared library, compiled when it is missing or older than its source. Raises CalledProcessError."""
    if not _BUILT.exists() or _BUILT.stat().st_mtime < _SOURCE.stat().st_mtime:
        _BUILT.parent.mkdir(parents=True, exist_ok=True)
        fresh = _BUILT.with_suffix(f".{os.getpid()}")
        words = ("cc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
        subprocess.run([*words, "-o", fresh, _SOURCE, "-ldl", "-lpthread"], check=True)
        fresh.rename(_BUILT)
    return _BUILT.resolve()


class FaultyDisk:
    """What lies below `root`, as one process at a time sees it. Orders hold across restarts of that process."""

    def __init__(self, root: Path, control: Path) -> None:
        """Makes both directories. They have to be on one file system, and `control` not below `root`."""
        root.mkdir(parents=True, exist_ok=True)
        (control / "removed").mkdir(parents=True)
        self._root = root.resolve()
        self._control = control.resolve()
        self._library = build()
        page = self._control / "orders"
        page.write_bytes(bytes(mmap.PAGESIZE))
        with page.open("r+b") as file:
            self._orders = mmap.mmap(file.fileno(), mmap.PAGESIZE)

    def close(self) -> None:
        """Lets go of the orders' page."""
        self._orders.close()

    def environment(self) -> dict[str, str]:
        """What a process needs to be on this disk."""
        return {
            "LD_PRELOAD": str(self._library),
            "FAULTY_DISK_ROOT": str(self._root),
            "FAULTY_DISK_CONTROL": str(self._control),
        }

    def _order(self, place: int, code: str, value: int) -> None:
        struct.pack_into(code, self._orders, place, value)

    def fsync(self, how: Fsync) -> None:
        """From now on."""
        self._order(0, "<i", how)

    def refuse_writes(self, error: int) -> None:
        """Every change fails with this error number (`errno.ENOSPC`, for instance); 0: none does."""
        self._order(4, "<i", error)

    def slow_down(self, fsync_delay_s: float) -> None:
        """Every fsync takes so much longer, and nothing else is written meanwhile."""
        self._order(8, "<i", int(fsync_delay_s * 1_000_000))

    def crash_after(self, steps: int) -> None:
        """The process kills itself at the n-th step from now: there is one before and one after each change and fsync."""
        self._order(12, "<i", steps)

    def set_clock(self, offset_s: int) -> None:
        """The wall clock of the process is so much ahead."""
        self._order(16, "<q", offset_s)

    @property
    def steps(self) -> int:
        """Steps so far; rises with every change and fsync."""
        return int(_ORDERS.unpack_from(self._orders)[5])

    def cut_power(self, kept: float = 0.0) -> int:
        """Undoes what no fsync covers; the process has to be dead.

        Args:
            kept: Share of the undone bytes' records that the disk happened to write all the same, oldest first, 0 to 1.

        Returns:
            Records that were undone.
        """
        journal = self._control / "journal"
        lost = _not_durable(journal.read_bytes()) if journal.exists() else []
        stays = int(len(lost) * kept)
        undone = lost[stays:]
        # The write at the seam is torn: its first half is on the disk, the rest is not.
        is_torn = bool(stays and undone and undone[0].kind is _Kind.DATA)
        places = dict(self._places())
        for record in reversed(undone):
            _undo(record, places, is_torn=is_torn and record is undone[0])
        journal.unlink(missing_ok=True)
        for name in (self._control / "removed").iterdir():
            name.unlink()
        return len(undone)

    def _places(self) -> Iterator[tuple[int, Path]]:
        for top in (self._control / "removed", self._root):
            for path in top.rglob("*"):
                if path.is_file():
                    yield path.stat().st_ino, path


def _read(journal: bytes) -> Iterator[_Record]:
    at = 0
    while at + _RECORD.size <= len(journal):
        kind, name_bytes, other_bytes, _, inode, offset, data_bytes, old_size = _RECORD.unpack_from(journal, at)
        at += _RECORD.size
        name, other, data = (at + name_bytes, at + name_bytes + other_bytes, at + name_bytes + other_bytes + data_bytes)
        if data > len(journal):
            return  # the process died while it noted what it was about to do
        texts = Path(journal[at:name].decode()), Path(journal[name:other].decode())
        yield _Record(_Kind(kind), inode, offset, old_size, *texts, journal[other:data])
        at = data


def _not_durable(journal: bytes) -> list[_Record]:
    records = [*_read(journal)]
    durable = {record.inode: place for place, record in enumerate(records) if record.kind is _Kind.DURABLE}
    return [
        record
        for place, record in enumerate(records)
        if record.kind is not _Kind.DURABLE and place > durable.get(record.inode, -1)
    ]


def _undo(record: _Record, places: dict[int, Path], *, is_torn: bool) -> None:
    """`places`: where each file is now, by inode."""
    if record.kind is _Kind.DATA:
        _undo_write(record, places, is_torn=is_torn)
    elif record.kind is _Kind.CREATED:
        if record.name.exists():
            places.pop(record.name.stat().st_ino, None)
            record.name.unlink()
    elif record.kind is _Kind.RENAMED:
        if record.other.exists():
            record.other.rename(record.name)
            places[record.name.stat().st_ino] = record.name
    elif record.other.exists() and not record.name.exists():
        record.name.hardlink_to(record.other)
        places[record.name.stat().st_ino] = record.name


def _undo_write(record: _Record, places: dict[int, Path], *, is_torn: bool) -> None:
    path = places.get(record.inode)
    if path is None:
        return  # durably removed
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        if is_torn and not record.data:
            file.truncate(min(size, record.offset + max(0, size - record.offset) // 2))
            return
        skipped = len(record.data) // 2 if is_torn else 0
        os.pwrite(file.fileno(), record.data[skipped:], record.offset + skipped)
        if not is_torn and size > record.old_size:
            file.truncate(record.old_size)
