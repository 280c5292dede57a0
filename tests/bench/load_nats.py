"""The load generator of the peer's side: JetStream publishes with an awaited acknowledgement each; prints one JSON line.

flood    keeps `--window` messages unacknowledged for so many seconds
single   one message at a time, each awaited before the next
paced    so many messages a second, whatever the answers do, each counted from when it was due
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Callable
from typing import Any, Final, cast

import uvloop

from tests.bench.nats_nodes import NatsConnection
from tests.bench.paced import Answered, Pace, percentiles

_WARM_UP_S: Final = 1.0
_BURST: Final = 4096
_TICK_S: Final = 0.0005
_ACK: Final = b'"seq":'


class _Acks(asyncio.Protocol):
    """Counts acknowledgements in whatever comes, without taking messages apart; failures count apart."""

    def __init__(self) -> None:
        self.acked = 0
        self.failed = 0
        self.on_acked: Callable[[], None] | None = None
        self.is_writable = asyncio.Event()
        self.is_writable.set()
        self.changed = asyncio.Event()
        self.transport: asyncio.Transport | None = None
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not subclasses of asyncio's.
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        cut = data.rfind(b"\r\n") + 2
        whole, self._rest = data[:cut], data[cut:]
        self.acked += whole.count(_ACK)
        self.failed += whole.count(b'"error"')
        if b"PING\r\n" in whole and self.transport is not None:
            self.transport.write(b"PONG\r\n")
        self.changed.set()
        if self.on_acked is not None:
            self.on_acked()

    def pause_writing(self) -> None:
        self.is_writable.clear()

    def resume_writing(self) -> None:
        self.is_writable.set()


async def flood(address: str, streams: list[str], size: int, seconds: float, window: int) -> dict[str, Any]:
    """Messages a second, acknowledged."""
    host, _, port = address.rpartition(":")
    transport, acks = await asyncio.get_running_loop().create_connection(_Acks, host, int(port))
    transport.write(b'CONNECT {"verbose":false,"pedantic":false}\r\nSUB a 1\r\n')
    payload = os.urandom(size // 2).hex().encode()[:size].ljust(size, b"x")
    lines = [b"PUB %s a %d\r\n%s\r\n" % (stream.encode(), size, payload) for stream in streams]
    sent = 0

    async def run(until: float) -> None:
        nonlocal sent
        while time.monotonic() < until:
            room = window - (sent - acks.acked)
            if room <= 0 or not acks.is_writable.is_set():
                acks.changed.clear()
                await (acks.changed.wait() if room <= 0 else acks.is_writable.wait())
                continue
            burst = min(room, max(1, 131_072 // size))
            transport.write(
                lines[0] * burst
                if len(lines) == 1
                else b"".join(lines[(sent + at) % len(lines)] for at in range(burst))
            )
            sent += burst
            await asyncio.sleep(0)
        async with asyncio.timeout(30):
            while acks.acked + acks.failed < sent:
                acks.changed.clear()
                await acks.changed.wait()

    await run(time.monotonic() + _WARM_UP_S)
    started, before = time.monotonic(), acks.acked
    await run(started + seconds)
    elapsed_s = time.monotonic() - started
    transport.close()
    return {
        "rate": (acks.acked - before) / elapsed_s,
        "messages": acks.acked - before,
        "seconds": elapsed_s,
        "failed": acks.failed,
    }


async def single(address: str, stream: str, size: int, seconds: float) -> dict[str, Any]:
    """Latencies of one message at a time, in milliseconds."""
    payload = os.urandom(size // 2).hex().encode()[:size].ljust(size, b"x")
    line = b"PUB %s a %d\r\n%s\r\n" % (stream.encode(), size, payload)
    latencies: list[float] = []
    async with NatsConnection(address) as connection:
        connection.write(b"SUB a 1\r\n")
        count = 0
        until = time.monotonic() + seconds
        while (started := time.monotonic()) < until:
            connection.write(line)
            if b'"error"' in await connection.message():
                raise RuntimeError("the publish was refused")
            count += 1
            if count > 200:
                latencies.append((time.monotonic() - started) * 1000)
    latencies.sort()
    return {
        "p50": latencies[len(latencies) // 2],
        "p99": latencies[int(len(latencies) * 0.99)],
        "count": len(latencies),
    }


async def paced(address: str, stream: str, size: int, seconds: float, rate: float) -> dict[str, Any]:
    """Latencies at a fixed rate, in milliseconds. Acknowledgements of one stream come in the order of its messages."""
    host, _, port = address.rpartition(":")
    transport, acks = await asyncio.get_running_loop().create_connection(_Acks, host, int(port))
    transport.write(b'CONNECT {"verbose":false,"pedantic":false}\r\nSUB a 1\r\n')
    payload = os.urandom(size // 2).hex().encode()[:size].ljust(size, b"x")
    line = b"PUB %s a %d\r\n%s\r\n" % (stream.encode(), size, payload)
    pace, answers = Pace(rate), list[Answered]()
    answered = 0
    started = time.monotonic()

    def take_answers() -> None:
        nonlocal answered
        if acks.acked > answered:
            answers.append(Answered(answered, acks.acked - answered, time.monotonic() - started))
            answered = acks.acked

    acks.on_acked = take_answers
    while (elapsed_s := time.monotonic() - started) < _WARM_UP_S + seconds:
        count = pace.take_due(elapsed_s, _BURST) if acks.is_writable.is_set() else 0
        if count:
            transport.write(line * count)
        await asyncio.sleep(_TICK_S)
    async with asyncio.timeout(60):
        while acks.acked + acks.failed < pace.sent:
            acks.changed.clear()
            await acks.changed.wait()
    transport.close()
    return {**percentiles(pace.latencies_ms(answers, _WARM_UP_S)), "failed": acks.failed}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("flood", "single", "paced"))
    parser.add_argument("address")
    parser.add_argument("streams", help="names, separated by commas")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--window", type=int, default=4000)
    parser.add_argument("--rate", type=float, default=1000.0, help="of paced messages a second")
    given = parser.parse_args()
    streams = given.streams.split(",")
    if given.kind == "flood":
        figures = uvloop.run(flood(given.address, streams, given.size, given.seconds, given.window))
    elif given.kind == "paced":
        figures = uvloop.run(paced(given.address, streams[0], given.size, given.seconds, given.rate))
    else:
        figures = uvloop.run(single(given.address, streams[0], given.size, given.seconds))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
