"""The simulated disks of one run: the model of the log, or raft-engine itself over simulated files.

The files of a run lie in memory where the machine has such a place, and are gone when it ends. Leaves out: who writes when.
"""

from __future__ import annotations

import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, TypeAlias

from meshraft import EngineDisk, SimDisk

ENGINE_EVERY: Final = 2
"""One seed of so many runs raft-engine itself."""
_FAILING: Final = 0.001
"""Share of the syncs of raft-engine that fail, or find no room."""
_CUT_MAX: Final = 60
"""Writes that the model of the log loses at once."""
_MARK: Final = b"meshraft sync group"
"""In the batch with which a sync group begins."""
_PURGES: Final = 0.1
"""Share of syncs after which old files are removed."""
_KEPT: Final = ("nothing", "everything", "half", "names", "bytes")
"""What a power cut leaves of what no sync covers. "half" tears a batch, which counts as damage: the members are on probation."""
_MEMORY: Final = "/dev/shm"

Disk: TypeAlias = SimDisk | EngineDisk


def uses_engine(seed: int) -> bool:
    """Whether the disks of that seed are raft-engine's files and not the model of the log."""
    return seed % ENGINE_EVERY == 0


def damage(disk: Disk, rng: random.Random) -> None:
    """After a crash: a bit of raft-engine's last sync group is flipped; the model of the log loses its newest ones, as if they were one.

    The members of that disk are on probation then.
    """
    if isinstance(disk, SimDisk):
        disk.cut(rng.randint(1, _CUT_MAX), as_one=True)
        return
    path = max(disk.directory().glob("*.raftlog"), default=None)
    content = bytearray(path.read_bytes()) if path is not None else bytearray()
    # Behind the last byte that is not zero nothing was written.
    begins, written = content.rfind(_MARK), len(content.rstrip(b"\0"))
    if path is not None and 0 <= begins < written:
        content[rng.randrange(begins, written)] ^= 1 << rng.randrange(8)
        path.write_bytes(content)


def damage_earlier(disk: Disk, rng: random.Random) -> bool:
    """The same, of more than one sync group, which retires the members; only the model of the log can do so for certain."""
    if isinstance(disk, SimDisk):
        disk.cut(rng.randint(2, _CUT_MAX))
        return True
    return False


def crash(disk: Disk, rng: random.Random) -> None:
    """Power loss: what was not synced is gone; of raft-engine's files some of it may be there."""
    if isinstance(disk, EngineDisk):
        disk.crash(rng.choice(_KEPT))
    else:
        disk.crash()


def sync(disk: Disk, batches: int, rng: random.Random) -> bool:
    """Makes the oldest `batches` durable; False when old files could not be removed afterwards."""
    disk.sync(batches)
    return not isinstance(disk, EngineDisk) or rng.random() >= _PURGES or disk.purge()


def fails(disk: Disk, rng: random.Random) -> bool:
    """Whether the disk fails now: then what was submitted is in doubt, and the host over it has to say so."""
    if not isinstance(disk, EngineDisk) or rng.random() >= _FAILING:
        return False
    disk.fail_next(rng.choice(("sync", "write")))
    disk.sync()
    # What was submitted may need no such operation: then nothing has failed.
    return not disk.cancel_failure()


class Disks:
    """Makes the disks of a run; `mutant` plants a known bug in all of them."""

    def __init__(self, *, on_engine: bool, mutant: str | None = None) -> None:
        self._mutant = mutant
        self._made = 0
        self._root: TemporaryDirectory[str] | None = None
        if on_engine:
            self._root = TemporaryDirectory(prefix="meshsim-", dir=_MEMORY if Path(_MEMORY).is_dir() else None)

    def blank(self, *, is_bad: bool = False) -> Disk:
        """A disk with nothing on it; only one that `is_bad` can be damaged."""
        if self._root is None:
            return SimDisk(mutant=self._mutant, keeps_history=is_bad)
        return EngineDisk(self._next(), mutant=self._mutant)

    def copy(self, disk: Disk) -> Disk:
        """A disk that holds what is durable on `disk` now: a backup, for instance."""
        if isinstance(disk, SimDisk):
            return disk.copy()
        root = self._next()
        disk.image(root, disk.steps(), "nothing")
        return EngineDisk(root, mutant=self._mutant)

    def close(self) -> None:
        """Removes the files."""
        if self._root is not None:
            self._root.cleanup()

    def _next(self) -> str:
        assert self._root is not None
        self._made += 1
        return f"{self._root.name}/{self._made}"
