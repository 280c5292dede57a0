"""The real log over simulated files: a crash after every single change of a file, and what each of them leaves.

One run notes every change; for each the files that a crash right after it leaves are written out and opened. What was
reported as written must be there, and nothing that was never submitted.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from libs.meshraft.tests.cluster import CONFIG
from meshraft import ENTRY_NORMAL, EngineDisk, HostPoisoned, RaftHost

KEPT = ("nothing", "everything", "half", "names", "bytes")
MAY_TEAR = ("half",)
GROUPS = (7, 8)
PAYLOAD_BYTES = 900


@dataclass(slots=True)
class Truth:
    """What one group was given and what it was told, in payloads and as the index of the last one reported."""

    submitted: list[bytes] = field(default_factory=list)
    reported: int = 0
    index: int = 0
    compacted: int = 0


@dataclass(frozen=True, slots=True)
class Moment:
    """What had been reported and submitted when so many changes were done."""

    steps: int
    reported: tuple[int, ...]
    submitted: tuple[int, ...]
    index: tuple[int, ...] = (0, 0)


class Scenario:
    """Two groups with one voter each: appends, compactions, purges; files are filled, reused, rewritten and removed."""

    def __init__(self, root: Path, mutant: str | None = None) -> None:
        self.disk = EngineDisk(str(root), mutant=mutant)
        self.host = RaftHost.simulated(self.disk, seed=1)
        self.truth = {group: Truth() for group in GROUPS}
        self.moments: list[Moment] = []

    def create(self) -> None:
        for group in GROUPS:
            self.host.create_group(group, 11, {11: 1}, voters=[11], snapshot=b"0", config=CONFIG)
        self.settle()
        for group in GROUPS:
            self.host.campaign(group)
        self.settle()

    def settle(self) -> None:
        """Writes one batch at a time, and notes after each what is reported."""
        while self.host.has_work() or self.disk.pending():
            pump = self.host.pump()
            for entry in pump.committed:
                self.truth[entry.group].reported += entry.kind == ENTRY_NORMAL
                self.truth[entry.group].index = entry.index
            self.note()
            self.disk.sync(1)

    def note(self) -> None:
        truths = [self.truth[group] for group in GROUPS]
        reported, submitted = tuple(it.reported for it in truths), tuple(len(it.submitted) for it in truths)
        index = tuple(it.index for it in truths)
        self.moments.append(Moment(self.disk.steps(), reported, submitted, index))

    def append(self, group: int, count: int = 1) -> None:
        truth = self.truth[group]
        for _ in range(count):
            number = len(truth.submitted)
            payload = b"%d.%d." % (group, number) + bytes([number % 251]) * PAYLOAD_BYTES
            self.host.propose(group, payload)
            truth.submitted.append(payload)

    def compact(self, group: int) -> None:
        """Everything applied goes, but the last two entries; the snapshot says how many payloads it stands for."""
        index = self.host.status(group).applied - 2
        kept = [
            entry for entry in self.host.entries(group, index + 1, index + 3, 1 << 20) if entry.kind == ENTRY_NORMAL
        ]
        self.truth[group].compacted = self.truth[group].reported - len(kept)
        self.host.compact(group, index, b"%d" % self.truth[group].compacted)

    def purge(self) -> None:
        assert self.disk.purge()
        self.note()

    def run(self) -> None:
        self.create()
        for turn in range(9):
            for _ in range(4):
                self.append(7, 2)
                self.append(8, 1 if turn < 2 else 0)  # then idle: what it has is rewritten or holds files back
                self.settle()
            self.compact(7)
            if turn in (5, 7):
                self.append(8)
                self.settle()
                self.compact(8)
            self.settle()
            self.purge()
        self.append(7, 3)
        self.settle()
        self.host.close()
        self.note()


@dataclass(frozen=True, slots=True)
class Found:
    """One group after a crash: its payloads behind its snapshot, how many that stands for, and where its log ends."""

    skipped: int
    payloads: list[bytes]
    last_index: int


def stored(root: Path) -> tuple[str | None, dict[int, Found]]:
    """Damage, and what each group has. One on probation does not stand, so only what it knows to be committed is read."""
    disk = EngineDisk(str(root))
    host = RaftHost.simulated(disk, seed=2)
    found = {}
    for group in host.stored_groups():
        skipped = int(host.open_group(group, 11, {11: 1}, config=CONFIG).data)
        found[group] = Found(skipped, [], host.status(group).last_index)
        if host.damage() is None:
            host.campaign(group)
    while host.has_work() or disk.pending():
        for entry in host.pump().committed:
            if entry.kind == ENTRY_NORMAL:
                found[entry.group].payloads.append(entry.data)
        disk.sync()
    return host.damage(), found


def lasts(root: Path) -> str:
    """What is wrong with the next incarnation's writes after another power cut; empty when they are there."""
    disk = EngineDisk(str(root))
    host = RaftHost.simulated(disk, seed=3)
    if host.damage() is not None:
        return f"{host.damage()}"
    for group in GROUPS:
        if group not in host.stored_groups():
            host.create_group(group, 11, {11: 1}, voters=[11], snapshot=b"0", config=CONFIG)
        else:
            host.open_group(group, 11, {11: 1}, config=CONFIG)
    settle(host, disk)
    for group in GROUPS:
        host.campaign(group)
    settle(host, disk)
    ends = {group: host.propose(group, b"next incarnation")[1] for group in GROUPS}
    settle(host, disk)
    disk.crash()
    host = RaftHost.simulated(disk, seed=4)
    if host.damage() is not None:
        return f"{host.damage()}"
    for group, end in ends.items():
        if group not in host.stored_groups():
            return f"group {group} is gone"
        host.open_group(group, 11, {11: 1}, config=CONFIG)
        if host.status(group).last_index < end:
            return f"group {group} ends at {host.status(group).last_index}, not {end}"
    return ""


def settle(host: RaftHost, disk: EngineDisk) -> None:
    while host.has_work() or disk.pending():
        host.pump()
        disk.sync()


def faults(scenario: Scenario, root: Path, first: Moment, last: Moment, steps: int, kept: str) -> Iterator[str]:
    """What is wrong after a crash at `steps`, between what was known at `first` and at `last`."""
    where = f"after {steps} changes, of the rest {kept}"
    shutil.rmtree(root, ignore_errors=True)
    scenario.disk.image(str(root), steps, kept)
    files = " ".join(f"{path.name}={path.stat().st_size}" for path in sorted((root / "0").iterdir()))
    try:
        damage, groups = stored(root)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        yield f"{where}: cannot be opened: {error!r} {files}"
        return
    if damage is None and (lost := lasts(root)):
        yield f"{where}, and the next incarnation: {lost.replace(str(root), '')} {files}"
    # A torn last batch may be damage as well, and counts as such (`damage.rs`); nothing else does.
    if damage is not None and kept not in MAY_TEAR:
        yield f"{where}: {damage.replace(str(root), '')} {files}"
        return
    for position, group in enumerate(GROUPS):
        truth, found = scenario.truth[group], groups.get(group)
        if found is None:
            if first.reported[position]:
                yield f"{where}: group {group} is gone {files}"
            continue
        end = found.skipped + len(found.payloads)
        if found.payloads != truth.submitted[found.skipped : end]:
            yield f"{where}: group {group} holds what was never written in that order {files}"
        if found.last_index < first.index[position]:
            yield f"{where}: group {group} ends at {found.last_index}, not {first.index[position]} or later {files}"
        least = first.reported[position] if damage is None else 0
        if not least <= end <= last.submitted[position]:
            yield f"{where}: group {group} holds {end} payloads, not {least} to {last.submitted[position]} {files}"


def findings(scenario: Scenario, root: Path, kinds: tuple[str, ...] = KEPT, stride: int = 1) -> Iterator[str]:
    """Every crash of the run."""
    moments = scenario.moments
    at = 0
    for steps in range(0, moments[-1].steps + 1, stride):
        while at + 1 < len(moments) and moments[at + 1].steps <= steps:
            at += 1
        following = next((it for it in moments[at:] if it.steps > steps), moments[-1])
        first = moments[at] if moments[at].steps <= steps else Moment(0, (0, 0), (0, 0))
        for kept in kinds:
            yield from faults(scenario, root, first, following, steps, kept)


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    made = Scenario(tmp_path_factory.mktemp("noted"))
    made.run()
    return made


def test_the_run_reuses_and_rewrites_files(scenario: Scenario, tmp_path: Path) -> None:
    """Else the crashes below would say little."""
    scenario.disk.image(str(tmp_path), scenario.moments[-1].steps, "everything")
    names = [path.name for path in (tmp_path / "0").iterdir()]
    numbers = [int(name.split(".")[0]) for name in names if name.endswith(".raftlog")]
    assert min(numbers) > 1
    assert any(name.endswith(".rewrite") for name in names)
    # Never more files than were made: the highest number is past their count, so some were used again.
    assert max(numbers) > len([name for name in names if not name.endswith(".rewrite")])
    assert any("reserved" in name for name in names)


@pytest.mark.parametrize("kept", KEPT)
def test_no_crash_between_two_changes_loses_what_was_reported(scenario: Scenario, kept: str, tmp_path: Path) -> None:
    found = list(findings(scenario, tmp_path / "image", (kept,)))
    assert not found, f"{len(found)} of {scenario.moments[-1].steps + 1}:\n" + "\n".join(found[:10])


@pytest.mark.parametrize("mutant", ["first_name_not_synced", "fsync_lies"])
def test_a_planted_bug_of_the_disk_is_seen(mutant: str, tmp_path: Path) -> None:
    scenario = Scenario(tmp_path / "noted", mutant)
    scenario.create()
    scenario.append(7, 3)
    scenario.settle()
    assert any("is gone" in text for text in findings(scenario, tmp_path / "image", ("nothing",)))


def test_equal_runs_make_equal_changes(scenario: Scenario, tmp_path: Path) -> None:
    again = Scenario(tmp_path / "again")
    again.run()
    assert again.moments == scenario.moments
    for number, one in enumerate((scenario, again)):
        one.disk.image(str(tmp_path / f"image{number}"), one.moments[-1].steps, "everything")
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / f"image{number}" / "0").iterdir()} for number in (0, 1)
    )
    assert first == second


def test_what_a_crashed_log_does_when_it_is_let_go_is_not_noted(tmp_path: Path) -> None:
    """A reader may hold on to it until the next incarnation has begun, whose files have the same names."""
    scenario = Scenario(tmp_path)
    scenario.create()
    for _ in range(4):
        scenario.append(7, 8)
        scenario.settle()
        scenario.compact(7)
        scenario.settle()
        scenario.purge()
    reader = scenario.host.reader()
    scenario.disk.crash("nothing")
    reopened = RaftHost.simulated(scenario.disk, seed=2)
    steps = scenario.disk.steps()
    scenario.host = reopened
    del reader
    assert scenario.disk.steps() == steps


@pytest.mark.parametrize("operation", ["sync", "write"])
def test_a_failing_disk_ends_the_host_and_keeps_what_was_reported(operation: str, tmp_path: Path) -> None:
    scenario = Scenario(tmp_path / "noted")
    scenario.create()
    scenario.append(7, 3)
    scenario.settle()
    scenario.append(7)
    scenario.host.pump()
    scenario.disk.fail_next(operation)
    scenario.disk.sync()
    with pytest.raises(HostPoisoned, match="cannot be written"):
        scenario.host.pump()
    for kept in KEPT:
        root = tmp_path / kept
        scenario.disk.image(str(root), scenario.disk.steps(), kept)
        damage, groups = stored(root)
        found = groups[7].payloads
        assert damage is None or kept in MAY_TEAR
        assert found == scenario.truth[7].submitted[: len(found)]
        assert len(found) >= 3 or damage is not None
