"""Entries of this node's groups for readers: recent ones from memory at once, older ones by a few threads.

An old entry may have to come from the disk, and the event loop drives lanes and elections: it never waits for that. The
threads are few, so that readers of the past cannot keep the disk from the log's own writes; who comes later waits. A group
that is compacted, closed or destroyed meanwhile makes the read fail; closing the host waits for reads under way, each of a
bounded size. Leaves out: offsets (`replica_log`).
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from meshraft import Entry, RaftHost

THREADS: Final = 2


class EntryReader:
    """Reads for one host. For the event loop's thread."""

    def __init__(self, host: RaftHost) -> None:
        self._host = host
        self._log = host.reader()
        self._threads = ThreadPoolExecutor(THREADS, "log-read")

    async def entries(self, group: int, low: int, high: int, max_bytes: int) -> list[Entry]:
        """As `RaftHost.entries`.

        Raises:
            RaftError: LogCompacted, UnknownGroup (also when it was closed meanwhile), LogCorrupt, HostPoisoned.
        """
        if low >= self._host.first_in_memory(group):
            return self._host.entries(group, low, high, max_bytes)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._log.entries, group, low, high, max_bytes)

    def close(self) -> None:
        """Lets the threads end; reads that still wait for one fail, because the host is closed before."""
        self._threads.shutdown(wait=False)
