"""Child processes end when they are told to, and when their parent dies."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from meshtest.processes import ProcessId, identify, start, stop_detached
from meshtest.waiting import eventually

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)",
]


def test_stop_ends_a_process_and_tells_how(tmp_path: Path) -> None:
    child = start(SLEEP, log=tmp_path / "log", environment=os.environ)
    assert child.exit_status is None
    assert child.process_id.is_alive()
    assert child.stop() == -signal.SIGTERM
    assert not child.process_id.is_alive()


async def test_a_process_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    child = start(STUBBORN, log=tmp_path / "log", environment=os.environ)

    async def is_deaf() -> bool:
        return "deaf" in child.log_tail()

    await eventually("it ignores SIGTERM", is_deaf)
    assert child.stop(timeout_s=0.2) == -signal.SIGKILL


PARENT = """
import os, sys
from pathlib import Path
from meshtest.processes import start
log = Path(sys.argv[1])
child = start([sys.executable, "-c", "print('up', flush=True); import time; time.sleep(600)"], log=log, environment=os.environ)
while "up" not in child.log_tail():
    os.sched_yield()
print(child.pid, flush=True)
os.kill(os.getpid(), 9)
"""


async def test_children_die_with_their_parent(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path / "log")]
    parent = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    child = int(parent.stdout)

    async def is_gone() -> bool:
        try:
            return not identify(child).is_alive()
        except ProcessLookupError:
            return True

    await eventually("the child is gone", is_gone, timeout_s=5)


def test_a_detached_process_is_found_again_and_stopped(tmp_path: Path) -> None:
    child = start(SLEEP, log=tmp_path / "log", environment=os.environ, is_detached=True)
    again = ProcessId(child.process_id.pid, child.process_id.started)
    stop_detached(again)
    assert child.wait(5) == -signal.SIGTERM


def test_a_pid_with_another_start_time_is_not_ours() -> None:
    own = identify(os.getpid())
    assert own.is_alive()
    assert not ProcessId(own.pid, own.started + 1).is_alive()
