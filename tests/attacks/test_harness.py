"""The harness itself can fail: a killed process, grown memory, a changed state and a lost or doubled record are noticed."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

from meshtest.checkers import Acknowledged, Held
from meshtest.processes import Child, start
from tests.attacks.report import Attack, Tally
from tests.attacks.target import (
    LOG_LINE_BYTES_MAX,
    Process,
    log_findings,
    memory_findings,
    memory_mb,
    process_findings,
    state_findings,
)
from tests.attacks.test_secrets import secret_findings
from tests.attacks.traffic import record_findings

_GROW = "import select, signal; select.select([], [], [], 0.5); data = bytearray(b'x') * (60 << 20); signal.pause()"
_STAY = "import signal; signal.pause()"


def looked_at(child: Child) -> Process:
    return Process(child.process_id, child.exit_status is None and child.process_id.is_alive(), memory_mb(child.pid))


async def test_a_killed_process_is_noticed(tmp_path: Path) -> None:
    child = start([sys.executable, "-c", _STAY], log=tmp_path / "log", environment={})
    before = {"a/data": looked_at(child)}
    assert process_findings(before, {"a/data": looked_at(child)}) == []
    child.kill()
    assert process_findings(before, {"a/data": looked_at(child)}) == ["process a/data has ended"]
    successor = start([sys.executable, "-c", _STAY], log=tmp_path / "log", environment={})
    assert process_findings(before, {"a/data": looked_at(successor)}) == ["process a/data is another one than before"]
    successor.kill()


async def test_grown_memory_is_noticed(tmp_path: Path) -> None:
    child = start([sys.executable, "-c", _GROW], log=tmp_path / "log", environment={})
    before = {"a/data": replace(looked_at(child), memory_mb=memory_mb(child.pid))}
    findings: list[str] = []
    for _ in range(100):
        await asyncio.sleep(0.1)
        findings = memory_findings(before, {"a/data": looked_at(child)})
        if findings:
            break
    child.kill()
    assert len(findings) == 1
    assert findings[0].startswith("process a/data went from ")


def test_changed_state_is_noticed() -> None:
    before = {"nodes seen by a": ["a", "b"], "quorum seen by a": True}
    assert state_findings(before, dict(before)) == []
    assert len(state_findings(before, {**before, "nodes seen by a": ["a", "b", "x"]})) == 1
    assert len(state_findings(before, {"quorum seen by a": True})) == 1


def test_an_unwanted_log_line_is_noticed(tmp_path: Path) -> None:
    log = tmp_path / "a" / "log" / "data.log"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"Traceback (most recent call last)\n")
    before = {log: log.stat().st_size}
    assert log_findings(before) == []
    for line in (b"Traceback (most recent call last)", b"a \x1b[2J b", b"x" * (LOG_LINE_BYTES_MAX + 1)):
        log.write_bytes(b"Traceback (most recent call last)\n" + line)
        assert len(log_findings(before)) == 1


def test_lost_and_doubled_records_are_noticed() -> None:
    acknowledged = [Acknowledged(1, 0, 0, b"1:0"), Acknowledged(1, 1, 1, b"1:1")]
    whole = [Held(0, b"1:0", (1, 0)), Held(1, b"1:1", (1, 1))]
    assert record_findings(acknowledged, {"a": whole, "b": whole}) == []
    assert record_findings(acknowledged, {"a": whole, "b": whole[:1]})[0].startswith("C1 b lacks offset 1")
    doubled = [*whole, Held(2, b"1:1", (1, 1))]
    assert any(text.startswith("C2 ") for text in record_findings(acknowledged, {"a": doubled}))


def test_a_leaked_secret_is_noticed(tmp_path: Path) -> None:
    secret = bytes(range(40, 72))
    log = tmp_path / "data.log"
    log.write_text("nothing\n")
    assert secret_findings({"key of a": secret}, [log], []) == []
    log.write_text(f"key {secret.hex()}\n")
    assert secret_findings({"key of a": secret}, [log], []) == [f"key of a stands in {log}"]
    assert secret_findings({"key of a": secret}, [], [b"--" + secret]) == ["key of a stands in an answer"]


def test_a_failure_reaches_the_report(tmp_path: Path) -> None:
    tally = Tally()
    tally.attacks = {"test_one": Attack("test_one"), "test_two": Attack("test_two")}
    tally.failed = {"test_two"}
    tally.write(tmp_path / "attacks.json")
    assert [attack.passed for attack in tally.attacks.values()] == [True, False]
    assert '"name": "attacks"' in (tmp_path / "attacks.json").read_text()
