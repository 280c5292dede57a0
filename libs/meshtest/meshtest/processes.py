"""Child processes that are always ended: by `stop`, by `kill`, or by the kernel when their parent dies.

A process that must outlive its parent (`make up`) is started detached; it is then found again by its pid and start time,
so that a pid that the kernel gave to somebody else is never signalled.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM
from typing import Final

# util-linux: the kernel signals the child when its parent dies, however it dies. A preexec_fn could do the same, but runs
# Python between fork and exec, which deadlocks where other threads (gRPC's) hold locks.
_DIE_WITH_PARENT: Final = ("setpriv", "--pdeathsig", "TERM", "--")


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A pid together with the process's start time in clock ticks since boot: unique until the next boot."""

    pid: int
    started: int

    def is_alive(self) -> bool:
        """Whether exactly this process still runs (a zombie does not)."""
        return _stat(self.pid) == (self.started, True)

    def signal(self, number: int) -> None:
        """Signals the process if it is still this one."""
        if self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def _stat(pid: int) -> tuple[int, bool] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return int(fields[19]), fields[0] not in {"Z", "X"}


def identify(pid: int) -> ProcessId:
    """The process that has this pid now. Raises ProcessLookupError when there is none."""
    stat = _stat(pid)
    if stat is None:
        raise ProcessLookupError(pid)
    return ProcessId(pid, stat[0])


def start(
    command: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str],
    user: str | None = None,
    is_detached: bool = False,
) -> Child:
    """Starts a process in a session of its own, so that Ctrl-C reaches only us; output is appended to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)

    with log.open("ab") as output:
        popen = subprocess.Popen(
            [*command] if is_detached else [*_DIE_WITH_PARENT, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(environment),
            start_new_session=True,
            user=user,
            group=user,
            extra_groups=[] if user else None,
        )
    return Child(popen, identify(popen.pid), log)


class Child:
    """A process that we started."""

    def __init__(self, popen: subprocess.Popen[bytes], process_id: ProcessId, log: Path) -> None:
        self._popen = popen
        self.process_id = process_id
        self.log = log

    @property
    def pid(self) -> int:
        """Its pid."""
        return self.process_id.pid

    @property
    def exit_status(self) -> int | None:
        """Exit status, negative for a signal, None while it runs."""
        return self._popen.poll()

    def kill(self) -> None:
        """SIGKILL, and waits until it is gone."""
        self._popen.kill()
        self._popen.wait()

    def signal(self, number: int) -> None:
        """Sends a signal."""
        self._popen.send_signal(number)

    def wait(self, timeout_s: float) -> int:
        """Exit status. Raises subprocess.TimeoutExpired."""
        return self._popen.wait(timeout_s)

    def stop(self, timeout_s: float = 10.0, number: int = SIGTERM) -> int:
        """Asks it to end, then kills it; returns the exit status."""
        if self._popen.poll() is None:
            self._popen.send_signal(number)
            try:
                return self._popen.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()
        return self._popen.wait()

    def log_tail(self, lines: int = 15) -> str:
        """The last lines that it printed."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


def stop_detached(process_id: ProcessId, timeout_s: float = 10.0, number: int = SIGTERM) -> None:
    """Ends a process that an earlier run started: asks, waits, kills."""
    process_id.signal(number)
    deadline = time.monotonic() + timeout_s
    while process_id.is_alive():
        if time.monotonic() > deadline:
            process_id.signal(signal.SIGKILL)
        _pause()


def _pause() -> None:
    """Between two looks at a process that is not our child, which cannot be awaited."""
    with contextlib.suppress(InterruptedError):
        signal.sigtimedwait([], 0.02)
