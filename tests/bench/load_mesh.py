"""The load generator of our side: `meshclient` in a process of its own; prints one JSON line of figures.

flood    publishes as fast as it goes for so many seconds, message by message through `Producer.send`
single   one message at a time, each awaited before the next
paced    so many messages a second, whatever the answers do, each counted from when it was due
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from typing import Any, Final

import uvloop

from meshclient import Batching, MeshClient
from meshclient.producer import Receipt
from tests.bench.paced import Answered, Pace, percentiles

_WARM_UP_S: Final = 1.0
_BURST: Final = 4096
_TICK_S: Final = 0.0005


async def flood(
    address: str, streams: list[str], size: int, seconds: float, batching: Batching, progress_s: float = 0.0
) -> dict[str, Any]:
    """Messages a second, committed, over all streams together; the time runs until the last one is committed.

    Every `progress_s` a line tells how many were sent so far, if it is not 0.
    """
    value = os.urandom(size)
    in_all = 0

    async def tell() -> None:
        while True:
            await asyncio.sleep(progress_s)
            print(json.dumps({"at": time.monotonic(), "sent": in_all}), flush=True)

    telling = asyncio.create_task(tell(), name="progress") if progress_s else None
    async with MeshClient(address) as client:
        producers = [await client.producer(stream, batching=batching).__aenter__() for stream in streams]

        async def run(until: float) -> int:
            async def one(index: int) -> int:
                nonlocal in_all
                send = producers[index].send
                sent = 0
                while time.monotonic() < until:
                    # The clock is looked at once for many messages.
                    for _ in range(64):
                        await send(value)
                    sent += 64
                    in_all += 64
                await producers[index].flush()
                return sent

            return sum(await asyncio.gather(*(one(index) for index in range(len(producers)))))

        warming = await run(time.monotonic() + _WARM_UP_S)
        started, cpu = time.monotonic(), time.process_time()
        sent = await run(started + seconds)
        elapsed_s, cpu_s = time.monotonic() - started, time.process_time() - cpu
        for producer in producers:
            await producer.__aexit__(None, None, None)
        retries = sum(producer.retries for producer in producers)
    if telling is not None:
        telling.cancel()
    return {
        "rate": sent / elapsed_s,
        "messages": sent,
        "messages_in_all": warming + sent,
        "seconds": elapsed_s,
        "cpu_s": cpu_s,
        "retries": retries,
    }


async def single(address: str, stream: str, size: int, seconds: float) -> dict[str, Any]:
    """Latencies of one message at a time, in milliseconds."""
    value = os.urandom(size)
    latencies: list[float] = []
    async with MeshClient(address) as client, client.producer(stream) as producer:
        for _ in range(200):
            await producer.publish(value)
        until = time.monotonic() + seconds
        while (started := time.monotonic()) < until:
            await producer.publish(value)
            latencies.append((time.monotonic() - started) * 1000)
    latencies.sort()
    return {
        "p50": latencies[len(latencies) // 2],
        "p99": latencies[int(len(latencies) * 0.99)],
        "count": len(latencies),
    }


async def paced(address: str, stream: str, size: int, seconds: float, rate: float) -> dict[str, Any]:
    """Latencies at a fixed rate, in milliseconds. The stream must have no other producer meanwhile."""
    value = os.urandom(size)
    pace, answers = Pace(rate), list[Answered]()
    receipts: asyncio.Queue[Receipt | None] = asyncio.Queue()
    async with MeshClient(address) as client, client.producer(stream) as producer:
        answered = await producer.publish(value) + 1
        before = answered
        started = time.monotonic()

        async def take_answers() -> None:
            # In order, and each receipt is of the last record of a batch or of what was sent at once.
            nonlocal answered
            while (receipt := await receipts.get()) is not None:
                offset = await receipt
                answers.append(Answered(answered - before, offset + 1 - answered, time.monotonic() - started))
                answered = offset + 1

        taking = asyncio.create_task(take_answers(), name="answers")
        while (elapsed_s := time.monotonic() - started) < _WARM_UP_S + seconds:
            count = pace.take_due(elapsed_s, _BURST)
            if count:
                for sent in await producer.send_many([value] * count):
                    receipts.put_nowait(sent)
            await asyncio.sleep(_TICK_S)
        receipts.put_nowait(None)
        await taking
    return percentiles(pace.latencies_ms(answers, _WARM_UP_S))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("flood", "single", "paced"))
    parser.add_argument("address")
    parser.add_argument("streams", help="names, separated by commas")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--records", type=int, default=Batching().batch_records, help="largest batch, in records")
    parser.add_argument("--batch-bytes", type=int, default=Batching().batch_bytes)
    parser.add_argument("--in-flight", type=int, default=Batching().in_flight_max)
    parser.add_argument("--buffer-bytes", type=int, default=Batching().buffer_bytes)
    parser.add_argument("--progress", type=float, default=0.0, help="seconds between lines about a flood")
    parser.add_argument("--rate", type=float, default=1000.0, help="of paced messages a second")
    given = parser.parse_args()
    streams = given.streams.split(",")
    if given.kind == "flood":
        batching = Batching(
            batch_bytes=given.batch_bytes,
            batch_records=given.records,
            in_flight_max=given.in_flight,
            buffer_bytes=given.buffer_bytes,
        )
        figures = uvloop.run(
            flood(given.address, streams, given.size, given.seconds, batching, progress_s=given.progress)
        )
    elif given.kind == "paced":
        figures = uvloop.run(paced(given.address, streams[0], given.size, given.seconds, given.rate))
    else:
        figures = uvloop.run(single(given.address, streams[0], given.size, given.seconds))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
