"""Small files that survive a crash: written beside, fsynced, renamed, directory fsynced. Blocking; small files only."""

from __future__ import annotations

import os
from pathlib import Path


def write_durably(path: Path, data: bytes, mode: int = 0o600, *, group: int | None = None) -> None:
    """Replaces `path` by `data` so that after a crash either the old or the new content is there, never a mixture.

    Args:
        path: The file.
        data: All of it.
        mode: Of the new file; the process's umask takes bits away unless `group` is given.
        group: Number of the group that the file shall belong to, with exactly `mode`; None: as the system makes files.

    Raises:
        OSError: The disk refused; the old content is still there.
    """
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        if group is not None:
            os.fchown(descriptor, -1, group)
            os.fchmod(descriptor, mode)
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Makes creations, renames and removals in `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
