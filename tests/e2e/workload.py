"""A steady publisher whose records name themselves, and the checks C1, C2 and C4 over what every member holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from meshapi.supervisor.v1 import data_pb2
from meshtest.checkers import (
    Acknowledged,
    Held,
    StateHash,
    check_acknowledged_readable,
    check_exactly_once,
    check_state_hashes,
)
from meshtest.gateway_client import Gateway
from meshtest.line_stream import RecordingPublisher
from meshtest.trio import Trio
from meshtest.waiting import eventually

PAUSE_S = 0.01
PRODUCER = 1


class Workload:
    """Publishes `PRODUCER:sequence` records at one gateway until stopped."""

    def __init__(self, gateway: Gateway, stream: str) -> None:
        self.stream = stream
        self.publisher = RecordingPublisher(gateway, stream)
        self._is_stopping = False

    async def _submit(self) -> None:
        while not self._is_stopping:
            first = self.publisher.submitted
            await self.publisher.submit([b"%d:%d" % (PRODUCER, first + number) for number in range(5)])
            await asyncio.sleep(PAUSE_S)
        self.publisher.close()

    async def progress(self, records: int = 50, timeout_s: float = 20.0) -> None:
        """Returns when so many more records are committed."""
        target = self.publisher.committed + records

        async def is_reached() -> bool:
            return self.publisher.committed >= target

        await eventually(f"{records} more records are committed on {self.stream}", is_reached, timeout_s)

    def acknowledged(self) -> list[Acknowledged]:
        """Every record with the offset that was acknowledged."""
        return [
            Acknowledged(PRODUCER, batch.base_sequence + number, batch.base_offset + number, value)
            for batch in self.publisher.batches
            if batch.base_offset >= 0
            for number, value in enumerate(batch.values)
        ]

    async def run(self) -> None:
        """Publishes until `stop`, then until all is committed."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.publisher.run(), name="publisher")
            group.create_task(self._submit(), name="submit")

    def stop(self) -> None:
        """No new records."""
        self._is_stopping = True


@asynccontextmanager
async def publishing(gateway: Gateway, stream: str) -> AsyncIterator[Workload]:
    """Publishes in the background while the body runs; afterwards everything submitted is committed."""
    workload = Workload(gateway, stream)
    async with asyncio.TaskGroup() as group:
        group.create_task(workload.run(), name=f"workload on {stream}")
        try:
            await workload.progress()
            yield workload
        finally:
            workload.stop()


async def held_by(gateway: Gateway, stream: str, expected: int) -> list[Held]:
    """All records that the node's own replica serves, once it has as many as expected."""

    async def read_all() -> list[Held] | None:
        records = [record async for record in gateway.read(stream)]
        if len(records) < expected:
            return None
        return [Held(record.offset, record.value, _identity(record)) for record in records]

    return await eventually(f"{gateway.target} holds {expected} records of {stream}", read_all)


def _identity(record: data_pb2.ReadRecord) -> tuple[int, int]:
    producer, _, sequence = record.value.partition(b":")
    return int(producer), int(sequence)


async def check(trio: Trio, workload: Workload) -> None:
    """Zero findings of C1, C2 and C4 over all three members."""
    acknowledged = workload.acknowledged()
    assert len(acknowledged) == workload.publisher.submitted
    members = {
        name: await held_by(gateway, workload.stream, len(acknowledged)) for name, gateway in trio.gateways.items()
    }
    findings = check_acknowledged_readable(acknowledged, members) + check_exactly_once(acknowledged, members)
    findings += check_state_hashes(
        [
            StateHash(name, described.applied_index, described.state_hash)
            for name, gateway in trio.gateways.items()
            for described in [await gateway.describe(workload.stream, is_local=True)]
        ]
    )
    assert findings == []
