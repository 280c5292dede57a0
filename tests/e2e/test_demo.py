"""The demo as a user runs it: its exit status, its report, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from meshtest.waiting import eventually

KEYS = {
    *("nodes", "messages", "bytes", "sha256_in", "sha256_out", "lost", "duplicated"),
    *("publish_p50_ms", "publish_p99_ms", "messages_per_s", "hops_before", "hops_after", "reroute_ms", "restart_ms"),
}
# Blank lines, CRLF, bytes that are no text, a long line, no newline at the end.
AWKWARD = (
    b"\n\n" + b"first\r\n" + bytes(range(256)) + b"\n" + b"x" * 100_000 + b"\n" + "größer\n".encode()
) * 40 + b"end"


def start_demo(directory: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with (directory / "output").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "meshtest.demo", *arguments], cwd=directory, stdout=output, stderr=output
        )


def processes_in(directory: Path) -> list[str]:
    """Command lines of processes that name the directory or run in it."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            place = str((entry / "cwd").readlink())
        except OSError:
            continue
        if str(directory) in command or place.startswith(str(directory)):
            found.append(command)
    return found


def test_awkward_bytes_arrive_unchanged(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(AWKWARD)
    status = start_demo(tmp_path, "--file", str(tmp_path / "file")).wait(240)
    assert status == 0, (tmp_path / "output").read_text()
    report = json.loads((tmp_path / "build/demo/report.json").read_text())
    assert set(report) == KEYS
    assert report["sha256_in"] == report["sha256_out"]
    assert (report["lost"], report["duplicated"]) == (0, 0)
    assert (report["hops_before"], report["hops_after"]) == (1, 2)
    assert report["messages"] == AWKWARD.count(b"\n") + 1
    assert report["restart_ms"] > 0
    assert processes_in(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupt_stops_everything_that_was_started(tmp_path: Path, number: int) -> None:
    demo = start_demo(tmp_path)

    async def is_publishing() -> bool:
        return b"publishing" in (tmp_path / "output").read_bytes()

    await eventually("the demo publishes", is_publishing, timeout_s=60)
    demo.send_signal(number)
    assert demo.wait(30) != 0
    assert "interrupted" in (tmp_path / "output").read_text()
    assert processes_in(tmp_path) == []


def test_a_missing_file_is_said_before_anything_starts(tmp_path: Path) -> None:
    assert start_demo(tmp_path, "--file", "nowhere").wait(30) != 0
    assert "cannot read nowhere" in (tmp_path / "output").read_text()
