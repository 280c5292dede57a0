"""How a service process starts, runs and stops: one place for signals, start-up errors and exit statuses.

Exit status: 0 after SIGTERM or SIGINT; the code's own status (docs/errors.md) for a start-up error; 1 when a task failed.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Final

import uvloop

from meshcommon.errors import MeshError
from meshcommon.heap import give_back
from meshcommon.logging import get_logger

_UMASK: Final = 0o077
LEAVE_S: Final = 2.0
"""How long what the service has left behind may hold up the end of its process."""


class Stop:
    """The request to stop: `wait` in the main task."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def request(self) -> None:
        """Asks the service to stop."""
        self._event.set()

    @property
    def is_requested(self) -> bool:
        """Whether somebody asked."""
        return self._event.is_set()

    async def wait(self) -> None:
        """Returns when somebody asked."""
        await self._event.wait()


def run_service(service: str, main: Callable[[Stop], Awaitable[None]]) -> None:
    """Runs `main(stop)` on uvloop until it returns, then exits the process.

    `main` sets everything up, awaits `stop.wait()`, then takes everything down. A MeshError that leaves it is printed as
    one JSON line (it may come before logging is configured) and gives the exit status of its code.

    Whatever the process makes (files, directories, sockets) belongs to its user alone: keys and logs of streams are in it.
    """
    os.umask(_UMASK)

    async def supervised() -> int:
        stop = Stop()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.request)
        status = 0
        heap = asyncio.create_task(give_back(), name="heap")
        try:
            await main(stop)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told before the loop waits for what is left
            status = _tell(service, error)
        finally:
            heap.cancel()
        _leave_within(LEAVE_S, status)
        return status

    sys.exit(uvloop.run(supervised()))


def _leave_within(seconds: float, status: int) -> None:
    """Ends the process in a while, whatever it waits for then.

    A name that is being resolved cannot be given up: where the store of a site stops first, its name is gone too, and the
    loop would wait for the resolver's own timeout before it closes, which is longer than a container is given.
    """
    timer = threading.Timer(seconds, os._exit, (status,))
    timer.daemon = True
    timer.start()


def _tell(service: str, error: Exception) -> int:
    """Says why the service ends; returns its exit status."""
    known = error if isinstance(error, MeshError) else None
    if isinstance(error, ExceptionGroup):
        expected, unexpected = error.split(MeshError)
        known = _first(expected) if expected is not None and unexpected is None else None
    if known is None:
        get_logger(__name__).error("service_failed", exc_info=error)
        return 1
    line = {"level": "error", "event": "start_failed", "service": service, "code": known.code, "message": known.message}
    sys.stderr.write(json.dumps(line) + "\n")
    sys.stderr.flush()
    return known.mapping.exit_status


def _first(group: ExceptionGroup[MeshError]) -> MeshError:
    for error in group.exceptions:
        return _first(error) if isinstance(error, ExceptionGroup) else error
    raise ValueError("an exception group is never empty")
