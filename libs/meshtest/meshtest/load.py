"""Publishes messages as fast as they go, in a process of its own, and prints the figures as one JSON line.

Its own process, because at full speed the publisher needs a core, and whoever measures (and holds the links' proxies) must
not stand still meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from typing import Final

from meshtest.gateway_client import Gateway
from meshtest.line_stream import RecordingPublisher

IN_FLIGHT: Final = 8


class LoadFailedError(Exception):
    """The load's process failed; the message is what it printed."""


@dataclass(frozen=True, slots=True)
class LoadFigures:
    """A run at full speed; latencies are from handing in a batch to its commit, in milliseconds."""

    messages_per_s: float
    publish_p50_ms: float
    publish_p99_ms: float


async def publish_at_full_speed(target: str, stream: str, messages: int, size: int, batch: int) -> LoadFigures:
    """Publishes `messages` of `size` bytes in batches of `batch`, every one committed, `IN_FLIGHT` batches at a time."""
    values = [bytes(size)] * batch
    async with Gateway(target) as gateway, asyncio.TaskGroup() as group:
        publisher = RecordingPublisher(gateway, stream, IN_FLIGHT)
        started = time.monotonic()
        running = group.create_task(publisher.run(), name="publisher")
        for _ in range(messages // batch):
            await publisher.submit(values)
        publisher.close()
        await running
    elapsed_s = time.monotonic() - started
    latencies = sorted((item.committed_at - item.sent_at) * 1000 for item in publisher.batches)
    return LoadFigures(
        messages_per_s=publisher.committed / elapsed_s,
        publish_p50_ms=statistics.median(latencies),
        publish_p99_ms=latencies[int(len(latencies) * 0.99)],
    )


async def run_in_process(target: str, stream: str, messages: int, size: int, batch: int) -> LoadFigures:
    """The same in another process.

    Raises:
        LoadFailedError: It failed.
    """
    arguments = [target, stream, str(messages), str(size), str(batch)]
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "TERM", "--", sys.executable, "-m", "meshtest.load", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        output, errors = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        raise LoadFailedError(f"the load ended with status {process.returncode}:\n{errors.decode()}")
    return LoadFigures(**json.loads(output))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m meshtest.load", description=__doc__)
    parser.add_argument("target", help="gateway, host:port")
    parser.add_argument("stream")
    parser.add_argument("messages", type=int)
    parser.add_argument("size", type=int, help="bytes")
    parser.add_argument("batch", type=int, help="messages in a batch")
    given = parser.parse_args()
    figures = asyncio.run(publish_at_full_speed(given.target, given.stream, given.messages, given.size, given.batch))
    print(json.dumps(asdict(figures)))


if __name__ == "__main__":
    main()
