"""Reading from other threads while the host writes, compacts, destroys and closes."""

from __future__ import annotations

import select
import threading
from pathlib import Path

import pytest

from libs.meshraft.tests.cluster import CONFIG, GROUP, Cluster
from libs.meshraft.tests.test_real_disk import lead_alone, opened, settle
from meshraft import HostPoisoned, LogCompacted, RaftError, RaftHost, UnknownGroup

MEMBER = 11


def test_reads_what_is_applied_and_no_more() -> None:
    cluster = Cluster()
    cluster.elect(1)
    cluster.commit("a", "b")
    reader = cluster.hosts[1].reader()
    cluster.auto_sync = False
    cluster.propose("c")
    cluster.settle()
    applied = cluster.status(1).applied
    assert [entry.data for entry in reader.entries(GROUP, 3, 100, 1 << 20)] == [b"a", b"b"]
    assert [entry.index for entry in reader.entries(GROUP, 2, 100, 1 << 20)] == list(range(2, applied + 1))
    assert reader.entries(GROUP, applied + 1, 100, 1 << 20) == []
    assert [entry.data for entry in reader.entries(GROUP, 3, 100, 0)] == [b"a"]


def test_one_group_is_read_without_the_others_of_its_writes(tmp_path: Path) -> None:
    """Groups share an fsync, but who reads one of them must not read all: that is a hundred times too much for a hundred."""
    groups, rounds, payload = range(1, 41), 8, b"x" * (64 << 10)
    with opened(tmp_path) as host:
        for group in groups:
            host.create_group(group, MEMBER, {MEMBER: 1}, voters=[MEMBER], config=CONFIG)
            host.campaign(group)
        drain(host)
        for _ in range(rounds):
            for group in groups:
                host.propose(group, payload)
            drain(host)
        before = bytes_read()
        found = host.reader().entries(20, 3, 3 + rounds, 1 << 20)
        assert [entry.data for entry in found] == [payload] * rounds
        assert bytes_read() - before < 2 * rounds * len(payload)


def test_a_thread_that_has_read_one_log_reads_another_one_right(tmp_path: Path) -> None:
    """raft-engine keeps the last block of a thread under its place only, and in two young logs the places are the same."""
    for name in ("one", "another"):
        with opened(tmp_path / name) as host:
            lead_alone(host)
            payload = name.ljust(100).encode()
            host.propose(GROUP, payload)
            settle(host, [], 3)
            assert [entry.data for entry in host.reader().entries(GROUP, 3, 4, 1 << 20)] == [payload]


def drain(host: RaftHost) -> None:
    """Pumps until nothing is left to do and everything is durable."""
    while any(host.status(group).applied < host.status(group).last_index for group in host.stored_groups()):
        host.pump()
        if not host.has_work():
            select.select([host.fileno()], [], [], 1)


def bytes_read() -> int:
    """What this process has read by system calls so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_says_what_it_cannot_read(tmp_path: Path) -> None:
    with opened(tmp_path) as host:
        lead_alone(host)
        for n in range(10):
            host.propose(GROUP, b"%d" % n)
        settle(host, [], 12)
        reader = host.reader()
        host.compact(GROUP, 5, b"state")
        with pytest.raises(LogCompacted, match="below 6"):
            reader.entries(GROUP, 5, 12, 1 << 20)
        assert [entry.data for entry in reader.entries(GROUP, 6, 8, 1 << 20)] == [b"3", b"4"]
        with pytest.raises(UnknownGroup):
            reader.entries(GROUP + 1, 1, 2, 1)
        host.close_group(GROUP)
        with pytest.raises(UnknownGroup):
            reader.entries(GROUP, 6, 8, 1 << 20)
        host.open_group(GROUP, MEMBER, {MEMBER: 1}, config=CONFIG)
        assert reader.entries(GROUP, 6, 8, 1 << 20) == []  # nothing is applied again yet
        settle(host, [], 12)
        assert [entry.data for entry in reader.entries(GROUP, 6, 8, 1 << 20)] == [b"3", b"4"]
        host.destroy_group(GROUP)
        with pytest.raises(UnknownGroup):
            reader.entries(GROUP, 6, 8, 1 << 20)
    with pytest.raises(HostPoisoned, match="closed"):
        reader.entries(GROUP, 6, 8, 1 << 20)
    # The reader does not hold the directory: it can be opened again.
    with opened(tmp_path) as host:
        assert host.stored_groups() == []


def read_on(host: RaftHost, stop: threading.Event, wrong: list[str], reads: list[int]) -> None:
    reader, low = host.reader(), 3
    while not stop.is_set():
        try:
            entries = reader.entries(GROUP, low, 1 << 40, 64 << 10)
        except LogCompacted as error:
            low = int(str(error).split("below ")[1].split(";")[0])
            continue
        except (UnknownGroup, HostPoisoned):
            continue
        except RaftError as error:
            wrong.append(f"{error.code} {error}")
            return
        wrong += [f"{entry.index}" for entry in entries if entry.kind == 0 and entry.data != payload(entry.index)]
        reads.append(len(entries))
        low = entries[-1].index + 1 if entries else 3


def payload(index: int) -> bytes:
    return index.to_bytes(8, "big") * 512


def test_reads_hold_while_the_log_is_written_compacted_reopened_and_closed(tmp_path: Path) -> None:
    host = RaftHost.open(str(tmp_path), seed=1)
    lead_alone(host)
    stop, wrong, reads = threading.Event(), list[str](), list[int]()
    threads = [threading.Thread(target=read_on, args=(host, stop, wrong, reads)) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(30):
            last = host.status(GROUP).last_index + 20
            for index in range(last - 19, last + 1):
                host.propose(GROUP, payload(index))
            settle(host, [], last)
            if turn % 7 == 6:
                host.compact(GROUP, last - 30, b"")
            if turn % 10 == 9:
                host.close_group(GROUP)
                host.open_group(GROUP, MEMBER, {MEMBER: 1}, config=CONFIG)
                settle(host, [], last)
                host.campaign(GROUP)
                settle(host, [], last + 1)
    finally:
        host.close()
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert sum(reads) > 0
