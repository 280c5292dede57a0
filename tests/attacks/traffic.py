"""Honest traffic beside the attacks: one producer at each node, and the checkers C1 and C2 over what every member holds.

A record's value names its producer and its number (`producer:number`). What members hold is read on from where the last
look ended, so that looking after each attack stays cheap.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from meshclient import MeshClient
from meshcommon.errors import MeshError
from meshtest.checkers import Acknowledged, Held, check_acknowledged_readable, check_exactly_once
from meshtest.gateway_client import Gateway
from meshtest.waiting import eventually

_BATCH_RECORDS: Final = 3
_PAUSE_S: Final = 0.04
_HELD_TIMEOUT_S: Final = 30.0


@dataclass(slots=True)
class Traffic:
    """What was acknowledged so far on one stream, and what each member was seen to hold."""

    stream: str
    acknowledged: list[Acknowledged] = field(default_factory=list)
    per_producer: dict[int, int] = field(default_factory=dict)
    held: dict[str, list[Held]] = field(default_factory=dict)

    async def publish(self, number: int, address: str) -> None:
        """Publishes at one node until cancelled."""
        sequence = 0
        async with MeshClient(address, give_up_after_s=120) as client, client.producer(self.stream) as producer:
            while True:
                values = [b"%d:%d" % (number, sequence + place) for place in range(_BATCH_RECORDS)]
                receipts = [await producer.send(value) for value in values]
                for value, receipt in zip(values, receipts, strict=True):
                    self.acknowledged.append(Acknowledged(number, sequence, await receipt, value))
                    sequence += 1
                    self.per_producer[number] = sequence
                await asyncio.sleep(_PAUSE_S)

    async def progress(self, records: int = 6, timeout_s: float = 20.0) -> None:
        """Waits until every producer has so many more records acknowledged."""
        goals = {number: count + records for number, count in self.per_producer.items()}

        async def is_reached() -> bool:
            return all(self.per_producer[number] >= goal for number, goal in goals.items())

        await eventually(f"honest producers get {records} more records acknowledged", is_reached, timeout_s)

    async def findings(self, members: Mapping[str, Gateway]) -> list[str]:
        """C1 and C2 over everything that was acknowledged until now, on every member."""
        acknowledged = list(self.acknowledged)
        expected = max((item.offset + 1 for item in acknowledged), default=0)
        await asyncio.gather(*(self._read_on(name, gateway, expected) for name, gateway in members.items()))
        return record_findings(acknowledged, self.held)

    async def _read_on(self, name: str, gateway: Gateway, expected: int) -> None:
        held = self.held.setdefault(name, [])

        async def look() -> bool:
            start = held[-1].offset + 1 if held else 0
            async for record in gateway.read(self.stream, start):
                producer, _, sequence = record.value.partition(b":")
                held.append(Held(record.offset, record.value, (int(producer), int(sequence))))
            return bool(held) and held[-1].offset + 1 >= expected

        await eventually(f"node {name} holds {expected} records", look, _HELD_TIMEOUT_S)


def record_findings(acknowledged: Sequence[Acknowledged], held: Mapping[str, Sequence[Held]]) -> list[str]:
    """What the checkers say."""
    return check_acknowledged_readable(acknowledged, held) + check_exactly_once(acknowledged, held)


@asynccontextmanager
async def flowing(stream: str, addresses: Sequence[str]) -> AsyncIterator[Traffic]:
    """Honest traffic while the body runs."""
    traffic = Traffic(stream)
    tasks = [
        asyncio.create_task(traffic.publish(number, address), name=f"honest producer {number}")
        for number, address in enumerate(addresses, 1)
    ]
    traffic.per_producer = dict.fromkeys(range(1, len(addresses) + 1), 0)
    try:
        await traffic.progress()
        yield traffic
        failed = [task.exception() for task in tasks if task.done() and not task.cancelled()]
        assert not failed, failed
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        unexpected = [item for item in results if isinstance(item, Exception) and not isinstance(item, MeshError)]
        assert not unexpected, unexpected
