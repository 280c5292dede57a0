"""How long a data plane that was killed or stopped takes until its streams serve again, with 1 GB of log.

One stream whose only member is measured, so that the figure is the restart and nothing else: in a larger group the others
would serve meanwhile. Each round fills a directory in a process of its own, ends that process, drops the files from the page
cache, and starts another one; the clock starts before Python does. Serving means: it leads (its election is part of the
figure), and a linearizable read has brought the last batch and one from the beginning. Leaves out: lanes and the other
services, which do not wait for the log.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import mesh_data.main  # noqa: F401 - a data plane imports all of it
from mesh_data.core.disk_room import RoomLimits
from mesh_data.core.stream_timing import StreamTiming
from mesh_data.core.view import Member, Node, NodeState, Stream, StreamPhase, View
from mesh_data.shell.groups.groups import Groups
from mesh_data.shell.groups.replica import Replica
from mesh_data.shell.streams.byte_room import ByteRoom
from mesh_data.shell.streams.read_call import FETCH_COST_BYTES, confirmed_end, fetch_local
from meshcommon.admin import Readiness
from meshcommon.ids import MemberId, NodeId, StreamId
from meshtest.fake_overlay import FakeNetwork, FakeOverlay
from meshwire.batch import decode_header
from meshwire.records import Record, encode_batch

ROOT: Final = Path(__file__).resolve().parents[2]
BUILD: Final = ROOT / "build"
BAR_S: Final = 5.0
NODE: Final = NodeId(1)
STREAM: Final = StreamId(1)
_IN_FLIGHT: Final = 256
_PATIENCE_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Case:
    """What is in the log, and how the process ended."""

    name: str
    records: int
    record_bytes: int
    is_killed: bool = True
    has_checkpoints: bool = True


CASES: Final = (
    Case("1 GB, killed", 500, 128),
    Case("1 GB, stopped", 500, 128, is_killed=False),
    Case("1 GB in batches of one 1 KiB record, killed", 1, 1024),
    Case("1 GB, killed, without checkpoints", 500, 128, has_checkpoints=False),
)


def main() -> None:
    """`python -m tests.bench.restart [--rounds N]`; `fill` and `serve` are the processes that it starts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", nargs="?", choices=("fill", "serve"))
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--case", type=int, default=0)
    parser.add_argument("--bytes", type=int, default=10**9)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    if asked.step == "fill":
        asyncio.run(fill(asked.directory, CASES[asked.case], asked.bytes))
    elif asked.step == "serve":
        asyncio.run(serve(asked.directory))
    else:
        measure(asked.bytes, asked.rounds)


def measure(size_bytes: int, rounds: int) -> None:
    """All cases in turn, `rounds` times."""
    BUILD.mkdir(exist_ok=True)
    taken: dict[str, list[float]] = {case.name: [] for case in CASES}
    for number in range(rounds):
        for at, case in enumerate(CASES):
            taken[case.name].append(one_round(at, case, size_bytes))
            print(f"round {number + 1} of {rounds}: {case.name}: {taken[case.name][-1]:.2f} s", flush=True)
    print(write_report(taken))


def write_report(taken: dict[str, list[float]]) -> Path:
    """Writes build/bench/restart.json in the form of every figure; returns where it is."""
    rows = []
    for case in CASES:
        median_s = statistics.median(taken[case.name])
        bar_s = BAR_S if case.has_checkpoints else None
        rows.append(
            {
                "case": case.name,
                "unit": "s",
                "ours": round(median_s, 2),
                "peer": None,
                "ratio": None,
                "bar": bar_s,
                "better": "lower",
                "met": None if bar_s is None else median_s <= bar_s,
                "runs": [{"ours": round(seconds, 2), "peer": None} for seconds in taken[case.name]],
            }
        )
    report = {
        "name": "restart",
        "taken_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "kernel": platform.release(), "load_1m": round(os.getloadavg()[0], 2)},
        "versions": {"python": platform.python_version()},
        "raw_disk_mb_per_s": round(raw_disk_mb_per_s()),
        "rows": rows,
    }
    path = BUILD / "bench" / "restart.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    return path


def raw_disk_mb_per_s() -> float:
    """What one writer gets that syncs every megabyte, for two seconds."""
    block = os.urandom(1 << 20)
    started, written = time.monotonic(), 0
    with tempfile.TemporaryFile(dir=BUILD) as file:
        while (elapsed_s := time.monotonic() - started) < 2:
            written += os.write(file.fileno(), block)
            os.fdatasync(file.fileno())
    return written / 1e6 / elapsed_s


def one_round(at: int, case: Case, size_bytes: int) -> float:
    """Seconds from the start of the process until it serves."""
    directory = Path(tempfile.mkdtemp(prefix="restart-", dir=BUILD))
    try:
        _step("fill", directory, f"--case={at}", f"--bytes={size_bytes}")
        if not case.has_checkpoints:
            shutil.rmtree(directory / "checkpoints", ignore_errors=True)
        _drop_from_cache(directory)
        started = time.monotonic()
        _step("serve", directory)
        return time.monotonic() - started
    finally:
        shutil.rmtree(directory)


async def fill(directory: Path, case: Case, size_bytes: int) -> None:
    """Publishes until the log holds so many bytes, then stops, or ends on the spot."""
    groups, running = _start(directory, StreamPhase.FORMING)
    replica = await _leading(groups)
    batch = encode_batch([Record(os.urandom(case.record_bytes)) for _ in range(case.records)])
    header = decode_header(batch)
    for _ in range(size_bytes // (len(batch) * _IN_FLIGHT)):
        for answer in await asyncio.gather(*(replica.publish(batch, header) for _ in range(_IN_FLIGHT))):
            await replica.published(answer, header)
    if case.is_killed:
        os._exit(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def serve(directory: Path) -> None:
    """Opens the groups and reads."""
    groups, _running = _start(directory, StreamPhase.ACTIVE)
    replica = await _leading(groups)
    seen = await confirmed_end(replica, _PATIENCE_S)
    assert seen.is_confirmed
    for offset in (seen.next_offset - 1, seen.floor_offset):
        assert (await fetch_local(ByteRoom(FETCH_COST_BYTES), replica, offset, 1)).batches
    os._exit(0)


def _step(name: str, directory: Path, *options: str) -> None:
    command = [sys.executable, "-m", "tests.bench.restart", name, f"--directory={directory}", *options]
    subprocess.run(command, cwd=ROOT, check=True, timeout=600, stdout=subprocess.DEVNULL)


def _drop_from_cache(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def _start(directory: Path, state: StreamPhase) -> tuple[Groups, asyncio.Task[None]]:
    overlay = FakeOverlay(FakeNetwork(), NODE)
    timing = StreamTiming.preset("lan")
    groups = Groups(
        overlay,
        directory,
        timing,
        seed=1,
        wall_clock_ms=lambda: time.time_ns() // 1_000_000,
        readiness=Readiness(),
        room=RoomLimits(),
    )
    running = asyncio.create_task(groups.run(), name="stream groups")
    member = Member(NODE, MemberId(11), is_voter=True)
    stream = Stream(STREAM, "bench/restart", (member,), state, 1, 0)
    overlay.set_view(View(1, "mesh", 1, {NODE: Node(NODE, "n1", bytes(32), "", NodeState.ACTIVE)}, {STREAM: stream}))
    return groups, running


async def _leading(groups: Groups) -> Replica:
    while (replica := groups.replica(STREAM)) is None or not replica.is_leading:
        assert not groups.failure, groups.failure
        await asyncio.sleep(0.005)
    return replica


if __name__ == "__main__":
    main()
