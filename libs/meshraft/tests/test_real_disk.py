"""The log on a real disk: restarts, kills, a second process, failing writes, and damaged files."""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from libs.meshraft.tests.cluster import CONFIG, GROUP
from meshraft import ENTRY_NORMAL, HostPoisoned, RaftHost

DEADLINE_S = 20.0
FILE_HEAD_BYTES = 69
FULL_FILE_BYTES = 64 << 20
NUMBER = 64

# A lone voter that acknowledges each payload on stdout once it is applied, until it is killed.
WRITER = """
import select, sys
from meshraft import RaftHost, GroupConfig
host = RaftHost.open(sys.argv[1], seed=1)
host.create_group(7, 11, {11: 1}, voters=[11])
host.pump()
host.campaign(7)
number = 0
while True:
    for entry in host.pump().committed:
        if entry.kind == 0:
            print(entry.data.decode(), flush=True)
    if host.status(7).role == "leader":
        host.propose(7, b"p%d" % number)
        number += 1
    if not host.has_work():
        select.select([host.fileno()], [], [], 1)
"""

# Fills the log until a file may not grow any further, then says what it was told.
FILLER = """
import resource, select, signal, sys
from meshraft import HostPoisoned, RaftHost
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
host = RaftHost.open(sys.argv[1], seed=1)
host.create_group(7, 11, {11: 1}, voters=[11])
acknowledged = 0
try:
    host.pump()
    host.campaign(7)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    for _ in range(10_000):
        acknowledged += sum(entry.kind == 0 for entry in host.pump().committed)
        if host.status(7).applied == host.status(7).last_index:
            host.propose(7, b"x" * 10_000)
        if not host.has_work():
            select.select([host.fileno()], [], [], 1)
except HostPoisoned as error:
    try:
        host.status(7)
    except HostPoisoned as again:
        print(acknowledged, error.code, again.code, *(word for word in str(error).split() if "raftlog" in word))
host.close()
"""


@contextmanager
def opened(path: Path) -> Iterator[RaftHost]:
    host = RaftHost.open(str(path), seed=1)
    try:
        yield host
    finally:
        host.close()


def settle(host: RaftHost, applied: list[bytes], until_index: int) -> None:
    """Pumps on the eventfd until `until_index` is applied."""
    deadline = time.monotonic() + DEADLINE_S
    while host.status(GROUP).applied < until_index:
        assert time.monotonic() < deadline
        if not host.has_work():
            select.select([host.fileno()], [], [], 1)
        applied += [entry.data for entry in host.pump().committed if entry.kind == ENTRY_NORMAL]


def lead_alone(host: RaftHost) -> None:
    host.create_group(GROUP, 11, {11: 1}, voters=[11], snapshot=b"born", config=CONFIG)
    host.campaign(GROUP)
    settle(host, [], 2)


def write(path: Path, count: int, size: int = 100) -> list[bytes]:
    """A closed directory with `count` committed payloads."""
    payloads = [bytes([n % 256]) * size for n in range(count)]
    with opened(path) as host:
        lead_alone(host)
        for payload in payloads:
            host.propose(GROUP, payload)
            settle(host, [], host.status(GROUP).last_index)
    return payloads


def log_files(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.suffix == ".raftlog")


def test_everything_committed_is_there_after_a_reopen(tmp_path: Path) -> None:
    payloads = write(tmp_path, 50)
    with opened(tmp_path) as host:
        assert host.stored_groups() == [GROUP]
        installed = host.open_group(GROUP, 11, {11: 1}, config=CONFIG)
        assert (installed.index, installed.data) == (1, b"born")
        applied: list[bytes] = []
        settle(host, applied, 52)
        assert applied == payloads
        assert host.status(GROUP).term == 2
        assert host.disk_bytes() > 0


def test_files_come_free_as_the_log_is_compacted(tmp_path: Path) -> None:
    """The directory takes what is retained, half as much again, and 512 MB at most."""
    retained_entries, entry_bytes = 128, 512 << 10
    with opened(tmp_path) as host:
        lead_alone(host)
        host.create_group(GROUP + 1, 12, {12: 1}, voters=[12], config=CONFIG)  # idle: it must not hold back old files
        payload = bytes(entry_bytes)
        for _ in range(30):
            last = host.status(GROUP).last_index + 64
            for _ in range(64):
                host.propose(GROUP, payload)
            settle(host, [], last)
            host.compact(GROUP, max(2, last - retained_entries), b"state")
            host.pump()
        limit_bytes = retained_entries * entry_bytes * 3 // 2 + 512_000_000
        written_bytes = 30 * 64 * entry_bytes
        assert written_bytes > 1.5 * limit_bytes
        deadline = time.monotonic() + DEADLINE_S
        while host.disk_bytes() > limit_bytes:
            assert time.monotonic() < deadline, f"{host.disk_bytes()} bytes are left, {limit_bytes} may be"
            select.select([host.fileno()], [], [], 0.1)
            host.pump()
        first = host.status(GROUP).first_index
        assert host.entries(GROUP, first, first + 1, 1)[0].data == payload


def test_a_crash_after_a_purge_is_no_damage(tmp_path: Path) -> None:
    """Of files that come free at once some are kept and some go; what a kill leaves of them is not taken for a lost file."""
    directory, crashed = tmp_path / "log", tmp_path / "crashed"
    with opened(directory) as host:
        lead_alone(host)
        last = 0
        for _ in range(11):
            for _ in range(64):
                host.propose(GROUP, bytes(1 << 20))
            settle(host, [], host.status(GROUP).last_index)
        last = host.status(GROUP).last_index
        full_bytes = host.disk_bytes()
        host.compact(GROUP, last, b"state")
        deadline = time.monotonic() + DEADLINE_S
        while host.disk_bytes() > full_bytes * 2 // 3:
            assert time.monotonic() < deadline
            select.select([host.fileno()], [], [], 0.1)
            host.pump()
        host.propose(GROUP, b"acknowledged")
        settle(host, [], last + 1)
        # The same files under the names of this moment: what a kill would leave.
        crashed.mkdir()
        for file in directory.iterdir():
            if file.name != "LOCK":
                (crashed / file.name).hardlink_to(file)
    with opened(crashed) as host:
        host.open_group(GROUP, 11, {11: 1}, config=CONFIG)
        applied: list[bytes] = []
        settle(host, applied, last + 1)
    assert applied == [b"acknowledged"]


def test_a_commit_is_signalled_on_the_descriptor(tmp_path: Path) -> None:
    with opened(tmp_path) as host:
        lead_alone(host)
        host.propose(GROUP, b"x")
        host.pump()
        readable, _, _ = select.select([host.fileno()], [], [], DEADLINE_S)
        assert readable == [host.fileno()]
        assert host.has_work()
        assert [entry.data for entry in host.pump().committed] == [b"x"]
        assert select.select([host.fileno()], [], [], 0)[0] == []


@pytest.mark.parametrize("round_", range(3))
def test_nothing_acknowledged_is_lost_by_a_kill(tmp_path: Path, round_: int) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stdout is not None
        seen = [process.stdout.readline().strip() for _ in range(100 + 77 * round_)]
        process.send_signal(signal.SIGKILL)
        seen += process.stdout.read().split("\n")[:-1]
    with opened(tmp_path) as host:
        host.open_group(GROUP, 11, {11: 1}, config=CONFIG)
        applied: list[bytes] = []
        host.campaign(GROUP)
        settle(host, applied, host.status(GROUP).last_index)
        assert [payload.decode() for payload in applied[: len(seen)]] == seen


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(HostPoisoned, match="locked"):
        RaftHost.open(str(tmp_path), seed=1)
    with opened(tmp_path) as host:
        assert host.stored_groups() == []


def test_a_directory_that_cannot_be_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(HostPoisoned):
        RaftHost.open(str(file / "below"), seed=1)
    with pytest.raises(HostPoisoned):
        RaftHost.open(str(file), seed=1)


def test_a_failed_write_poisons_the_host_and_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILLER, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    acknowledged, *codes, file = done.stdout.split()
    assert codes == ["HOST_POISONED", "HOST_POISONED"]
    assert Path(file) == log_files(tmp_path)[-1].resolve()
    assert 10 < int(acknowledged) < 250
    with opened(tmp_path) as host:
        host.open_group(GROUP, 11, {11: 1}, config=CONFIG)
        assert host.status(GROUP).last_index >= 2 + int(acknowledged)


def test_a_destroyed_group_stays_destroyed(tmp_path: Path) -> None:
    write(tmp_path, 5)
    with opened(tmp_path) as host:
        host.destroy_group(GROUP)
        host.pump()
    with opened(tmp_path) as host:
        assert host.stored_groups() == []
        lead_alone(host)
        assert host.status(GROUP).last_index == 2
    with opened(tmp_path) as host:
        host.open_group(GROUP, 11, {11: 1}, config=CONFIG)
        assert host.status(GROUP).last_index == 2


def test_a_group_destroyed_and_made_anew_in_one_turn_is_the_new_one(tmp_path: Path) -> None:
    write(tmp_path, 5)
    with opened(tmp_path) as host:
        host.destroy_group(GROUP)
        host.create_group(GROUP, 21, {21: 1}, voters=[21], snapshot=b"again", config=CONFIG)
        host.pump()
    with opened(tmp_path) as host:
        assert host.open_group(GROUP, 21, {21: 1}, config=CONFIG).data == b"again"
        assert host.status(GROUP).last_index == 1


def test_a_compacted_log_reopens_at_its_snapshot(tmp_path: Path) -> None:
    payloads = write(tmp_path, 20)
    with opened(tmp_path) as host:
        host.open_group(GROUP, 11, {11: 1}, config=CONFIG)
        settle(host, [], 22)
        host.compact(GROUP, 12, b"state")
        host.pump()
    with opened(tmp_path) as host:
        installed = host.open_group(GROUP, 11, {11: 1}, config=CONFIG)
        assert (installed.index, installed.data) == (12, b"state")
        applied: list[bytes] = []
        settle(host, applied, 22)
        assert applied == payloads[10:]
        host.compact(GROUP, 22, b"all of it")
        host.pump()
    with opened(tmp_path) as host:
        assert host.open_group(GROUP, 11, {11: 1}, config=CONFIG).index == 22
        host.campaign(GROUP)
        settle(host, [], host.status(GROUP).last_index)


def test_a_group_closed_and_reopened_at_once_sees_its_writes(tmp_path: Path) -> None:
    with opened(tmp_path) as host:
        lead_alone(host)
        for n in range(100):
            host.propose(GROUP, b"%d" % n)
        host.pump()
        host.close_group(GROUP)
        host.open_group(GROUP, 11, {11: 1}, config=CONFIG)
        assert host.status(GROUP).last_index == 102


def test_entries_older_than_the_cache_are_read_from_the_log(tmp_path: Path) -> None:
    with opened(tmp_path) as host:
        lead_alone(host)
        for n in range(80):
            host.propose(GROUP, bytes([n]) * (1 << 20))
            if n % 20 == 19:
                settle(host, [], host.status(GROUP).last_index)
        read = host.entries(GROUP, 3, 83, 1 << 30)
        assert [entry.data[0] for entry in read] == list(range(80))
        assert len(host.entries(GROUP, 3, 83, 5 << 20)) == 4


def test_many_groups_share_the_log(tmp_path: Path) -> None:
    with opened(tmp_path) as host:
        for group in range(1, 101):
            host.create_group(group, 11, {11: 1}, voters=[11], config=CONFIG)
            host.campaign(group)
        deadline = time.monotonic() + DEADLINE_S
        while any(host.status(group).applied < 2 for group in range(1, 101)):
            assert time.monotonic() < deadline
            host.pump()
    with opened(tmp_path) as host:
        assert host.stored_groups() == list(range(1, 101))


def damaged(source: Path, target: Path, damage: Callable[[bytearray], None]) -> str:
    """Copies a directory, damages its log file, and returns how the copy opens."""
    shutil.copytree(source, target)
    (file,) = log_files(target)
    data = bytearray(file.read_bytes())
    damage(data)
    file.write_bytes(data)
    try:
        return outcome(target, bytes(data))
    finally:
        shutil.rmtree(target)


def outcome(path: Path, damaged_bytes: bytes) -> str:
    """The member state of the group in a damaged directory, or "gone"; checks what is told and kept."""
    with opened(path) as host:
        told = host.damage()
        if GROUP not in host.stored_groups():
            assert told is not None
            return "gone"
        host.open_group(GROUP, 11, {11: 1, 12: 2}, config=CONFIG)
        status = host.status(GROUP)
        host.entries(GROUP, status.first_index, status.last_index + 1, 1 << 20)
        assert (status.member_state == "full") == (told is None)
        assert (status.member_state == "retired") == (host.retirement() is not None)
        if told is None:
            assert status.last_index >= 42, "synced entries are gone without a word"
            return "full"
        (kept,) = [file for file in path.iterdir() if file.suffix == ".damaged"]
        assert kept.read_bytes() == damaged_bytes
        assert kept.stem in told
    with opened(path) as host:
        assert host.damage() is None
        host.open_group(GROUP, 11, {11: 1, 12: 2}, config=CONFIG)
        assert host.status(GROUP).member_state == status.member_state, "it outlives a restart"
    return status.member_state


@pytest.fixture(name="written", scope="module")
def written_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed log of 40 payloads, each synced on its own; the last write holds a commit index only."""
    path = tmp_path_factory.mktemp("written")
    write(path, 40, size=500)
    return path


@dataclass(frozen=True, slots=True)
class Batch:
    """Where one write lies in a log file."""

    start: int
    footer: int
    end: int


def batches_of(data: bytes) -> list[Batch]:
    """The writes in a log file, by raft-engine's format: length and kind, offset of the footer."""
    found, at = [], FILE_HEAD_BYTES
    while at + 16 <= len(data) and any(data[at : at + 16]):
        length, footer = int.from_bytes(data[at : at + 7]), int.from_bytes(data[at + 8 : at + 16])
        found.append(Batch(at, at + footer, at + length))
        at += length
    return found


def test_a_flipped_bit_anywhere_lowers_the_standing(written: Path, tmp_path: Path) -> None:
    """I1: header, head, entries, footer and checksum of the first, a middle and the last write; the hard state is in footers."""
    (file,) = log_files(written)
    batches = batches_of(file.read_bytes())
    last_group = batches[-2].start  # its mark, and what it made durable
    assert len(batches) > 80
    assert batches[-1].end == file.stat().st_size
    places = {0, 30, 53, FILE_HEAD_BYTES - 1}
    for batch in (batches[0], batches[len(batches) // 2], batches[-2], batches[-1]):
        places |= {batch.start + byte for byte in range(16)}
        places |= {min(batch.start + 16, batch.end - 1), (batch.start + batch.footer) // 2, batch.footer, batch.end - 1}
        places |= {(batch.footer + batch.end) // 2, batch.end - 4}
    rng = random.Random(1)
    places |= {rng.randrange(file.stat().st_size) for _ in range(30)}
    for number, position in enumerate(sorted(places)):

        def flip(data: bytearray, position: int = position) -> None:
            data[position] ^= 1 << rng.randrange(8)

        expected = "gone" if position < batches[1].end else "retired" if position < last_group else "probation"
        assert damaged(written, tmp_path / str(number), flip) == expected, position


def test_other_damage_lowers_the_standing_too(written: Path, tmp_path: Path) -> None:
    rng = random.Random(2)

    def scramble(data: bytearray) -> None:
        start = rng.randrange(len(data) // 2, len(data) - 700)
        data[start : start + 64] = rng.randbytes(64)

    def grow(data: bytearray) -> None:
        data += rng.randbytes(200)

    def tear(data: bytearray) -> None:
        del data[-rng.randrange(1, 20) :]

    def zeros(data: bytearray) -> None:
        data += bytes(1 << 20)

    for number in range(10):
        assert damaged(written, tmp_path / f"scramble{number}", scramble) == "retired"
        for damage in (grow, tear):
            assert damaged(written, tmp_path / f"{damage.__name__}{number}", damage) == "probation"
    assert damaged(written, tmp_path / "zeros", zeros) == "full"
    assert damaged(written, tmp_path / "unchanged", lambda _: None) == "full"


def test_what_a_file_held_before_it_was_used_again_is_no_damage(written: Path, tmp_path: Path) -> None:
    """Its batches are signed with the number of that time; a damaged batch of now is told from them by its head."""
    (file,) = log_files(written)
    fresh = file.read_bytes()
    batches = batches_of(fresh)
    former = fresh[FILE_HEAD_BYTES : batches[20].end]

    def used_again(data: bytearray, start: int) -> None:
        shifted = former[start:]
        data += shifted * (FULL_FILE_BYTES // len(shifted) + 1)
        del data[FULL_FILE_BYTES + 1000 :]

    def numbered(directory: Path, damage: Callable[[bytearray], None], start: int) -> str | None:
        """The same log under a number that no former batch has, in a full-sized file."""
        directory.mkdir()
        data = bytearray(fresh)
        for batch in batches:
            checksum = int.from_bytes(data[batch.end - 4 : batch.end], "little") ^ 1 ^ NUMBER
            data[batch.end - 4 : batch.end] = checksum.to_bytes(4, "little")
        damage(data)
        used_again(data, start)
        (directory / f"{NUMBER:016}.raftlog").write_bytes(data)
        with opened(directory) as host:
            host.open_group(GROUP, 11, {11: 1}, config=CONFIG)
            return host.damage()

    def flip(data: bytearray, position: int) -> None:
        data[position] ^= 4

    last = batches[-1]
    assert numbered(tmp_path / "aligned", lambda _: None, 0) is None
    assert numbered(tmp_path / "shifted", lambda _: None, 7) is None
    for position in (last.start + 6, last.start + 15, last.footer, last.end - 1):
        told = numbered(tmp_path / f"flip{position}", lambda data, at=position: flip(data, at), 7)  # type: ignore[misc]
        assert told is not None
        assert f"byte {last.start}" in told


def test_damage_in_an_older_file_keeps_what_is_before_it(tmp_path: Path) -> None:
    write(tmp_path, 150, size=1 << 20)
    files = log_files(tmp_path)
    assert len(files) == 3
    data = bytearray(files[1].read_bytes())
    last = batches_of(bytes(data))[-1]
    data[last.footer] ^= 1
    files[1].write_bytes(data)
    with opened(tmp_path) as host:
        told = host.damage() or ""
        assert f"{files[1].name} is damaged at byte {last.start}" in told
        host.open_group(GROUP, 11, {11: 1}, config=CONFIG)
        assert host.status(GROUP).member_state == "retired"
        assert 64 < host.status(GROUP).last_index < 130
    assert {file.stem for file in tmp_path.iterdir() if file.suffix == ".damaged"} == {files[1].name, files[2].name}


@pytest.mark.parametrize("state", ["probation", "retired", "what cannot be read"])
def test_a_crash_while_damage_is_quarantined_forgets_nothing(written: Path, tmp_path: Path, state: str) -> None:
    path = tmp_path / "log"
    shutil.copytree(written, path)
    (path / "DAMAGED").write_text(f"{state}\nseen before the crash")
    is_retired = state != "probation"
    with opened(path) as host:
        assert (host.retirement() or host.damage()) == "seen before the crash"
        host.open_group(GROUP, 11, {11: 1}, config=CONFIG)
        assert host.status(GROUP).member_state == ("retired" if is_retired else "probation")
    assert (path / "DAMAGED").exists() == is_retired
    with opened(path) as host:
        assert (host.retirement() is not None) == is_retired
        host.forget_retirement()
    with opened(path) as host:
        assert host.retirement() is None
        host.open_group(GROUP, 11, {11: 1}, config=CONFIG)
        assert host.status(GROUP).member_state == ("retired" if is_retired else "probation")


def test_a_log_that_has_no_markers_retires_its_members(written: Path, tmp_path: Path) -> None:
    """It was written by an older version: nobody can tell what the damage took."""
    path = tmp_path / "log"
    shutil.copytree(written, path)
    (file,) = log_files(path)
    data = file.read_bytes()
    batches = batches_of(data)
    old = b"".join(data[batch.start : batch.end] for batch in batches if batch.end - batch.start > 80)
    file.write_bytes(data[:FILE_HEAD_BYTES] + old[:-3])
    with opened(path) as host:
        host.open_group(GROUP, 11, {11: 1, 12: 2}, config=CONFIG)
        assert host.status(GROUP).member_state == "retired"


def test_a_new_group_of_a_damaged_host_is_on_probation(written: Path, tmp_path: Path) -> None:
    """Its founding may be what the damaged log no longer tells of, votes included."""
    path = tmp_path / "log"
    shutil.copytree(written, path)
    (file,) = log_files(path)
    data = bytearray(file.read_bytes())
    data[FILE_HEAD_BYTES + 20] ^= 1
    file.write_bytes(data)
    with opened(path) as host:
        assert host.stored_groups() == []
        host.create_group(GROUP, 11, {11: 1, 12: 2}, voters=[11, 12], config=CONFIG)
        assert host.status(GROUP).member_state == "probation"


def test_a_torn_last_write_is_cut_off(tmp_path: Path) -> None:
    """A lone voter asks nobody: it goes on with what is valid."""
    payloads = write(tmp_path, 5)
    (file,) = log_files(tmp_path)
    data = file.read_bytes()
    file.write_bytes(data[:-3])
    with opened(tmp_path) as host:
        host.open_group(GROUP, 11, {11: 1}, config=CONFIG)
        assert host.status(GROUP).member_state == "probation"
        applied: list[bytes] = []
        host.campaign(GROUP)
        settle(host, applied, 7)
        assert applied[:5] == payloads
        assert host.status(GROUP).member_state == "full"


HEADER_OF_A_FILE = b"RAFT-LOG-FILE-HEADER-9986AB3E47F320B394C8E84916EB0ED5" + bytes([*[0] * 7, 2, *[0] * 8])


@pytest.mark.parametrize("content", [b"", bytes(8192), HEADER_OF_A_FILE[:30], HEADER_OF_A_FILE[:61], HEADER_OF_A_FILE])
def test_a_crash_while_a_file_is_made_costs_nothing_later(tmp_path: Path, content: bytes) -> None:
    """raft-engine goes on in such a file in an older format, which looks like damage at the next start."""
    for name in ("0000000000000001.raftlog", "0000000000000001.rewrite"):
        (tmp_path / name).write_bytes(content)
    payloads = write(tmp_path, 3)
    with opened(tmp_path) as host:
        assert host.damage() is None
        host.open_group(GROUP, 11, {11: 1}, config=CONFIG)
        applied: list[bytes] = []
        settle(host, applied, 5)
        assert applied == payloads
    for file in tmp_path.glob("*.r*"):
        assert file.read_bytes().startswith(HEADER_OF_A_FILE)


def test_a_file_of_zeros_before_one_that_was_never_begun_is_damage(tmp_path: Path) -> None:
    write(tmp_path, 3)
    (file,) = log_files(tmp_path)
    file.write_bytes(bytes(file.stat().st_size))
    (tmp_path / f"{int(file.stem) + 1:016}.raftlog").touch()
    with opened(tmp_path) as host:
        assert f"{file.name} is damaged at byte 0" in (host.damage() or "")


def test_a_log_with_a_file_missing_keeps_what_is_before_the_hole(tmp_path: Path) -> None:
    # raft-engine would forget what lies before the hole, votes included, without a word.
    write(tmp_path, 5)
    (first,) = log_files(tmp_path)
    number = int(first.stem)
    shutil.copy(first, tmp_path / f"{number + 2:016}.raftlog")
    with opened(tmp_path) as host:
        assert f"file {number + 1} is missing" in (host.damage() or "")
        host.open_group(GROUP, 11, {11: 1}, config=CONFIG)
        assert host.status(GROUP).member_state == "retired"
        assert host.status(GROUP).last_index == 7
