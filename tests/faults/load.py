"""Producers and linearizable readers beside a fault, every call recorded, and the five checkers over what was recorded.

A record's value names its producer and its number (`producer:number`), so that the checkers know what was meant once.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from meshclient import MeshClient, Producer
from meshcommon.errors import MeshError
from meshtest.checkers import (
    Acknowledged,
    Held,
    StateHash,
    check_acknowledged_readable,
    check_exactly_once,
    check_state_hashes,
)
from meshtest.gateway_client import Gateway
from meshtest.histories import Publish, Read, check_linearizable, check_progress
from meshtest.waiting import ConditionNotMetError, eventually

CHECKERS: Final = ("C1", "C2", "C3", "C4", "C5")
PROGRESS_BOUND_S: Final = 15.0
"""Invariant I9 allows 5 s (preset `lan`) on machines of their own; here three nodes share one with other work."""
GIVE_UP_AFTER_S: Final = 120.0
_UNANSWERED_MAX: Final = 40
_BATCH_RECORDS: Final = 5
_PAUSE_S: Final = 0.004
_READ_TIMEOUT_S: Final = 20.0


@dataclass(slots=True)
class _Call:
    """One batch on its way; times of `time.monotonic`."""

    producer: int
    first: int
    values: tuple[bytes, ...]
    invoked_s: float
    responded_s: float | None = None
    offset: int | None = None


@dataclass(slots=True)
class Load:
    """What was asked and answered so far on one stream."""

    stream: str
    calls: list[_Call] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    healed_s: list[float] = field(default_factory=list)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def committed(self) -> int:
        """Records that were acknowledged."""
        return sum(len(call.values) for call in self.calls if call.offset is not None)

    async def progress(self, records: int = 200, timeout_s: float = 60.0) -> None:
        """Waits until so many more records are acknowledged."""
        goal = self.committed + records

        async def is_reached() -> bool:
            return self.committed >= goal

        await eventually(f"{records} more records are committed on {self.stream}", is_reached, timeout_s)

    def healed(self) -> None:
        """A fault has just ended, and no other is there: from now on C5 expects progress."""
        self.healed_s.append(time.monotonic())

    async def publish(self, number: int, producer: Producer) -> None:
        """One producer's records until the load stops, then until all are answered."""
        slots = asyncio.Semaphore(_UNANSWERED_MAX)
        first = 0
        async with asyncio.TaskGroup() as answers:
            while not self._stopping.is_set():
                await slots.acquire()
                values = tuple(b"%d:%d" % (number, first + place) for place in range(_BATCH_RECORDS))
                call = _Call(number, first, values, time.monotonic())
                self.calls.append(call)
                answers.create_task(self._answer(call, producer, slots), name=f"answer to {number}:{first}")
                first += _BATCH_RECORDS
                await asyncio.sleep(_PAUSE_S)

    async def _answer(self, call: _Call, producer: Producer, slots: asyncio.Semaphore) -> None:
        receipts = [await producer.send(value) for value in call.values]
        offsets = [await receipt for receipt in receipts]
        call.responded_s, call.offset = time.monotonic(), offsets[0]
        # Records of one call travel together unless a batch fills up; then the call has no one offset.
        assert offsets == [*range(offsets[0], offsets[0] + len(offsets))], offsets
        slots.release()

    async def read(self, gateways: Sequence[Gateway], rng: random.Random) -> None:
        """Linearizable reads, one after the other, from wherever the last one ended, at a node drawn each time."""
        offset = 0
        while not self._stopping.is_set():
            invoked_s = time.monotonic()
            try:
                async with asyncio.timeout(_READ_TIMEOUT_S):
                    found = [item async for item in rng.choice(gateways).read(self.stream, offset)]
            except (MeshError, TimeoutError):
                await asyncio.sleep(_PAUSE_S)  # no answer says nothing
                continue
            values = tuple(item.value for item in found)
            self.reads.append(Read(invoked_s, time.monotonic(), offset, values))
            if [item.offset for item in found] != [*range(offset, offset + len(found))]:
                self.gaps.append(f"C3 a read from {offset} returned offsets {[item.offset for item in found]}")
            offset += len(values)
            await asyncio.sleep(_PAUSE_S)

    def stop(self) -> None:
        """No new calls."""
        self._stopping.set()

    def acknowledged(self) -> list[Acknowledged]:
        """Every record whose publisher was told its offset."""
        return [
            Acknowledged(call.producer, call.first + place, call.offset + place, value)
            for call in self.calls
            if call.offset is not None
            for place, value in enumerate(call.values)
        ]

    async def findings(self, members: Mapping[str, Gateway], timeout_s: float = 60.0) -> list[str]:
        """All five checkers over what the members hold; each has `timeout_s` to hold what was acknowledged."""
        acknowledged = self.acknowledged()
        expected = max((item.offset + 1 for item in acknowledged), default=0)
        held = {name: await held_by(gateway, self.stream, expected, timeout_s) for name, gateway in members.items()}
        found = check_acknowledged_readable(acknowledged, held) + check_exactly_once(acknowledged, held)
        publishes = [Publish(item.invoked_s, item.responded_s, item.values, item.offset) for item in self.calls]
        log = {record.offset: record.value for records in held.values() for record in records}
        found += self.gaps + check_linearizable(publishes, self.reads, log)
        found += check_state_hashes(
            [await _state_hash(name, gateway, self.stream) for name, gateway in members.items()]
        )
        ended_s = time.monotonic()
        for healed_s in self.healed_s:
            found += check_progress({self.stream: publishes}, healed_s, ended_s, PROGRESS_BOUND_S)
        return found


async def held_by(gateway: Gateway, stream: str, expected: int, timeout_s: float) -> list[Held]:
    """All records that the node's own replica serves, once it has as many as expected, or when the time is over."""
    held: list[Held] = []

    async def holds_all() -> bool:
        try:
            records = [record async for record in gateway.read(stream)]
        except MeshError as error:
            if error.retryable:
                return False
            raise
        held[:] = [Held(record.offset, record.value, _identity(record.value)) for record in records]
        return len(held) >= expected

    with suppress(ConditionNotMetError):
        await eventually(f"{gateway.target} holds {expected} records of {stream}", holds_all, timeout_s)
    return held


def _identity(value: bytes) -> tuple[int, int]:
    producer, _, number = value.partition(b":")
    return int(producer), int(number)


async def _state_hash(name: str, gateway: Gateway, stream: str) -> StateHash:
    described = await gateway.describe(stream, is_local=True)
    return StateHash(name, described.applied_index, described.state_hash)


@asynccontextmanager
async def under_load(
    stream: str, addresses: Sequence[str], gateways: Sequence[Gateway], seed: int
) -> AsyncIterator[Load]:
    """Two named producers and two readers while the body runs; afterwards everything sent is acknowledged.

    Args:
        stream: Its name.
        addresses: Client listeners; producers begin at different ones.
        gateways: Where readers read.
        seed: Of the readers' choices.
    """
    load = Load(stream)
    async with asyncio.TaskGroup() as tasks:
        for number in (1, 2):
            turned = [*addresses[number - 1 :], *addresses[: number - 1]]
            tasks.create_task(_produce(load, turned, number), name=f"producer {number}")
            tasks.create_task(load.read(gateways, random.Random(seed * 2 + number)), name=f"reader {number}")
        try:
            await load.progress()
            yield load
        finally:
            load.stop()


async def _produce(load: Load, addresses: Sequence[str], number: int) -> None:
    async with (
        MeshClient(*addresses, give_up_after_s=GIVE_UP_AFTER_S) as client,
        client.producer(load.stream, name=f"p{number}") as producer,
    ):
        await load.publish(number, producer)
