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
_DAMAGE_EVERY: Final = 3
"""One seed of so many has a disk that loses what it had synced."""
_CUT_MAX: Final = 60
"""Batches that the model of the log loses at once."""
_PURGES: Final = 0.2
"""Share of syncs after which old files are removed."""
_KEPT: Final = ("nothing", "everything", "half", "names", "bytes")
"""What a power cut leaves of what no sync covers. "half" tears a batch, which counts as damage: the groups are in doubt."""
_MEMORY: Final = "/dev/shm"

Disk: TypeAlias = SimDisk | EngineDisk


def uses_engine(seed: int) -> bool:
    """Whether the disks of that seed are raft-engine's files and not the model of the log."""
    return seed % ENGINE_EVERY == 0


def has_damage(seed: int) -> bool:
    """Whether one of the nodes of that seed has bad disks."""
    return seed % _DAMAGE_EVERY == 1


def damage(disk: Disk, rng: random.Random) -> None:
    """After a crash: a bit of raft-engine's newest file is flipped; the model of the log loses its newest batches.

    In older files a bit of a record is seen only when it is read; the member is replaced then, which the mesh here cannot.
    """
    if isinstance(disk, SimDisk):
        disk.cut(rng.randint(1, _CUT_MAX))
    else:
        for path in sorted(disk.directory().glob("*.raftlog"), reverse=True):
            content = bytearray(path.read_bytes())
            # Behind the last byte that is not zero nothing was written.
            if written := len(content.rstrip(b"\0")):
                content[rng.randrange(written)] ^= 1 << rng.randrange(8)
                path.write_bytes(content)
                return


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
