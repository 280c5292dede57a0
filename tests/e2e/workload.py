"""A steady publisher whose records name themselves, and the checks C1, C2, C4 and C5 over what every member holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
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
from meshtest.histories import Publish, check_progress
from meshtest.line_stream import Batch, RecordingPublisher
from meshtest.trio import Trio
from meshtest.waiting import eventually

PAUSE_S = 0.01
PRODUCER = 1
PROGRESS_BOUND_S = 15.0
"""Invariant I9 allows 5 s (preset `lan`) on machines of their own; all sites of a test share one with other work."""


class Workload:
    """Publishes `PRODUCER:sequence` records at one gateway until stopped."""

    def __init__(self, gateway: Gateway, stream: str, batch_records: int = 5) -> None:
        self.stream = stream
        self.publisher = RecordingPublisher(gateway, stream)
        self._batch_records = batch_records
        self._healed_at: list[float] = []
        self._is_stopping = False

    async def _submit(self) -> None:
        while not self._is_stopping:
            first = self.publisher.submitted
            await self.publisher.submit(
                [b"%d:%d" % (PRODUCER, first + number) for number in range(self._batch_records)]
            )
            await asyncio.sleep(PAUSE_S)
        self.publisher.close()

    async def progress(self, records: int = 50, timeout_s: float = 20.0) -> None:
        """Returns when so many more records are committed."""
        target = self.publisher.committed + records

        async def is_reached() -> bool:
            return self.publisher.committed >= target

        await eventually(f"{records} more records are committed on {self.stream}", is_reached, timeout_s)

    def healed(self) -> None:
        """A fault has just ended, and no other is there: from now on C5 expects progress."""
        self._healed_at.append(time.monotonic())

    def stalls(self) -> list[str]:
        """Findings of C5."""
        return stalls_after(self._healed_at, self.publisher.batches)

    @property
    def recoveries_s(self) -> list[float]:
        """Time from each healing to the next commit."""
        found = (_recovery_s(healed_s, self.publisher.batches) for healed_s in self._healed_at)
        return [wait_s for wait_s in found if wait_s is not None]

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


def stalls_after(healed_at_s: Sequence[float], batches: Sequence[Batch]) -> list[str]:
    """Findings of C5: after a fault had healed a batch waited, and for too long none was answered."""
    calls = [
        Publish(batch.sent_at, batch.committed_at if batch.base_offset >= 0 else None, (), batch.base_offset)
        for batch in batches
        if batch.sent_at
    ]
    findings: list[str] = []
    for healed_s in healed_at_s:
        wait_s = _recovery_s(healed_s, batches)
        ended_s = healed_s + (2 * PROGRESS_BOUND_S if wait_s is None else wait_s)
        findings += check_progress({f"after {healed_s:.2f} s": calls}, healed_s, ended_s, PROGRESS_BOUND_S)
    return findings


def _recovery_s(healed_s: float, batches: Sequence[Batch]) -> float | None:
    answers_s = (batch.committed_at for batch in batches if batch.base_offset >= 0)
    first_s = min((answer_s for answer_s in answers_s if answer_s > healed_s), default=None)
    return None if first_s is None else first_s - healed_s


@asynccontextmanager
async def publishing(gateway: Gateway, stream: str, batch_records: int = 5) -> AsyncIterator[Workload]:
    """Publishes in the background while the body runs; afterwards everything submitted is committed."""
    workload = Workload(gateway, stream, batch_records)
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
    """Zero findings of C1, C2, C4 and C5 over all three members."""
    acknowledged = workload.acknowledged()
    assert len(acknowledged) == workload.publisher.submitted
    members = {
        name: await held_by(gateway, workload.stream, len(acknowledged)) for name, gateway in trio.gateways.items()
    }
    findings = check_acknowledged_readable(acknowledged, members) + check_exactly_once(acknowledged, members)
    findings += workload.stalls()
    findings += check_state_hashes(
        [
            StateHash(name, described.applied_index, described.state_hash)
            for name, gateway in trio.gateways.items()
            for described in [await gateway.describe(workload.stream, is_local=True)]
        ]
    )
    assert findings == []
