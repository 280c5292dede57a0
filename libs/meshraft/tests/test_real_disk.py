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
from pathlib import Path

import pytest

from libs.meshraft.tests.cluster import CONFIG, GROUP
from meshraft import KIND_NORMAL, HostPoisoned, LogCorrupt, RaftError, RaftHost

DEADLINE_S = 20.0

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
        print(acknowledged, error.code, again.code)
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
        applied += [entry.data for entry in host.pump().committed if entry.kind == KIND_NORMAL]


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
    acknowledged, *codes = done.stdout.split()
    assert codes == ["HOST_POISONED", "HOST_POISONED"]
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


def outcome(path: Path) -> str:
    """How a damaged directory opens: a typed error, or with what is left."""
    try:
        with opened(path) as host:
            for group in host.stored_groups():
                host.open_group(group, 11, {11: 1}, config=CONFIG)
                host.campaign(group)
                host.pump()
                status = host.status(group)
                host.entries(group, status.first_index, status.last_index + 1, 1 << 20)
                assert status.last_index >= 42, "synced entries are gone without a word"
    except RaftError as error:
        return error.code
    return "opened"


def damaged(source: Path, target: Path, damage: Callable[[bytearray], None]) -> str:
    """Copies a directory, damages its log file, and returns how the copy opens."""
    shutil.copytree(source, target)
    (file,) = log_files(target)
    data = bytearray(file.read_bytes())
    damage(data)
    file.write_bytes(data)
    try:
        return outcome(target)
    finally:
        shutil.rmtree(target)


@pytest.fixture(name="written", scope="module")
def written_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed log of 40 payloads, each synced on its own; the last write holds a commit index only."""
    path = tmp_path_factory.mktemp("written")
    write(path, 40, size=500)
    return path


def test_a_flipped_bit_before_the_last_write_is_never_silent(written: Path, tmp_path: Path) -> None:
    # raft-engine alone would cut the file there: one bit lost 512 synced entries and the votes after them.
    rng = random.Random(1)
    (file,) = log_files(written)
    size = file.stat().st_size
    for number in range(60):
        position = rng.randrange(size - 600)

        def flip(data: bytearray, position: int = position) -> None:
            data[position] ^= 1 << rng.randrange(8)

        assert damaged(written, tmp_path / str(number), flip) == "LOG_CORRUPT", position


def test_other_damage_gives_a_typed_error_or_recovers(written: Path, tmp_path: Path) -> None:
    rng = random.Random(2)

    def scramble(data: bytearray) -> None:
        start = rng.randrange(len(data) - 700)
        data[start : start + 64] = rng.randbytes(64)

    def grow(data: bytearray) -> None:
        data += rng.randbytes(200)

    def zeros(data: bytearray) -> None:
        data += bytes(1 << 20)

    for number in range(10):
        assert damaged(written, tmp_path / f"scramble{number}", scramble) == "LOG_CORRUPT"
        assert damaged(written, tmp_path / f"grow{number}", grow) == "opened"
    assert damaged(written, tmp_path / "zeros", zeros) == "opened"
    assert damaged(written, tmp_path / "unchanged", lambda _: None) == "opened"


def test_a_torn_last_write_is_cut_off(tmp_path: Path) -> None:
    payloads = write(tmp_path, 5)
    (file,) = log_files(tmp_path)
    data = file.read_bytes()
    file.write_bytes(data[:-3])
    with opened(tmp_path) as host:
        host.open_group(GROUP, 11, {11: 1}, config=CONFIG)
        applied: list[bytes] = []
        host.campaign(GROUP)
        settle(host, applied, 7)
        assert applied[:5] == payloads


def test_a_log_with_a_file_missing_in_the_middle_is_corrupt(tmp_path: Path) -> None:
    # raft-engine would forget what lies before the hole, votes included, without a word.
    for number in (1, 2, 4):
        (tmp_path / f"{number:016}.raftlog").write_bytes(b"")
    with pytest.raises(LogCorrupt, match="file 3 is missing") as caught:
        RaftHost.open(str(tmp_path), seed=1)
    assert caught.value.code == "LOG_CORRUPT"
