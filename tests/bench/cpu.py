"""Processor time of a process, in all its threads.

On a machine that others use too, a rate says as much about them as about us; time on the processor wanders far less.
Source: /proc/PID/task/*/schedstat, nanoseconds; the times in /proc/PID/stat count ticks of 10 ms.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def used_s(pid: int) -> float:
    """Seconds that the threads which the process has now have run."""
    total_ns = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        try:
            total_ns += int((thread / "schedstat").read_text().split()[0])
        except FileNotFoundError:
            continue  # it ended meanwhile
    return total_ns / 1e9


class Stopwatch:
    """Seconds that processes have run since it was made."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._before = {pid: used_s(pid) for pid in pids}

    def used_s(self) -> list[float]:
        """One figure a process, in the order in which they were given."""
        return [used_s(pid) - before for pid, before in self._before.items()]
