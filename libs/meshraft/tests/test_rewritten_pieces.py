"""Damage to a log whose older files were rewritten: a group may have lost a snapshot, and what was compacted by it is gone too.

What does not fit together is dropped when the log is opened, and the member begins anew, blank.
"""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

from meshraft import EngineDisk, GroupConfig, RaftHost

CONFIG = GroupConfig(election_ticks=10, heartbeat_ticks=1)
MEMBER = 11
SLOW, BUSY = 1, 2


class Writer:
    """A lone voter's two groups on one log: one is written seldom, so that its pieces are moved on by the other's purges."""

    def __init__(self, disk: EngineDisk, rng: random.Random) -> None:
        self.disk = disk
        self.rng = rng
        self.host = RaftHost.simulated(disk, seed=1)
        self.applied = {SLOW: 1, BUSY: 1}
        for group in (SLOW, BUSY):
            self.host.create_group(group, MEMBER, {MEMBER: 1}, voters=[MEMBER], config=CONFIG)
            self.host.campaign(group)
        self.settle()

    def settle(self) -> None:
        """Until all is written and applied."""
        while self.host.has_work() or self.disk.pending():
            for entry in self.host.pump().committed:
                self.applied[entry.group] = entry.index
            self.disk.sync()

    def write(self, group: int, count: int) -> None:
        """Entries that do not compress."""
        for _ in range(count):
            self.host.propose(group, self.rng.randbytes(300))
            self.settle()

    def compact(self, group: int, behind: int) -> None:
        """Up to so many entries before the last one, unless that was done."""
        with contextlib.suppress(ValueError):
            self.host.compact(group, self.applied[group] - behind, b"state")
        self.settle()

    def live(self) -> None:
        """Compactions of the slow group lie behind entries that they drop and entries that they keep, in files that go."""
        rng = self.rng
        for _ in range(rng.randrange(1, 4)):
            self.write(SLOW, rng.randrange(5, 20))
            self.compact(SLOW, rng.randrange(4))
            for _ in range(rng.randrange(2, 7)):
                self.write(BUSY, rng.randrange(20, 40))
                self.compact(BUSY, 1)
                self.disk.purge()
            for _ in range(2):
                self.write(SLOW, rng.randrange(3, 12))
                self.write(BUSY, rng.randrange(10, 30))
                self.compact(BUSY, 1)
            self.compact(SLOW, rng.randrange(1, 12))
            self.disk.purge()
            self.write(rng.choice((SLOW, BUSY)), rng.randrange(1, 6))


def flip(disk: EngineDisk, rng: random.Random) -> None:
    """Flips a bit of the newest file."""
    path = max(disk.directory().glob("*.raftlog"))
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content.rstrip(b"\0")))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def test_a_group_whose_pieces_do_not_fit_together_begins_anew_blank(tmp_path: Path) -> None:
    dropped = 0
    for seed in range(30):
        rng = random.Random(seed)
        disk = EngineDisk(str(tmp_path / str(seed)))
        Writer(disk, rng).live()
        disk.crash()
        flip(disk, rng)
        host = RaftHost.simulated(disk, seed=2)
        if host.damage() is None:
            continue  # the bit lay in what a file that is used again held before
        for group in (SLOW, BUSY):
            if group in host.stored_groups():
                host.open_group(group, MEMBER, {MEMBER: 1}, config=CONFIG)
            else:
                host.create_group(group, MEMBER, {MEMBER: 1, 12: 2}, voters=[], config=CONFIG)
                dropped += 1
            assert host.status(group).member_state in ("blank", "retired", "probation")
            assert group in host.stored_groups()
    assert dropped, "no damage left pieces that do not fit"
