"""Gathers records into batches by size, count and time. Pure: bytes and time in, batches out.

A batch is due when it is full, when nothing is on its way (waiting would only cost latency then), or when its oldest
record has waited for the linger time. So a lone record goes out at once, and a stream of records gathers while the batches
before it travel. Leaves out: sequences, sending and answers (`window`). Source: Kafka's producer (`batch.size`, `linger.ms`);
Nagle's rule, RFC 896, for the idle case.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from meshwire.batch import MAX_BODY_BYTES, MAX_RECORDS, RECORD_OVERHEAD_BYTES, Codec
from meshwire.errors import WireError
from meshwire.records import BatchBuilder, Headers, headers_bytes

IN_FLIGHT_MAX: Final = 1024
"""Batches that a node takes of one producer before they are answered."""


@dataclass(frozen=True, slots=True)
class Batching:
    """How a producer batches.

    Attributes:
        batch_bytes: A batch is closed before it grows past this; a larger record travels alone. By default four records of
            64 KiB fit, with what each costs besides. Larger batches cost latency and memory, smaller ones throughput.
        batch_records: The same in records; 1 sends every record in a batch of its own.
        linger_s: Longest wait of a record for others while batches are on their way, seconds.
        in_flight_max: Batches sent and not answered. Order is kept whatever it is.
        buffer_bytes: Bytes that were handed in and are not answered before `send` waits; so much memory a producer may
            take. One node takes no more than 4 MiB or 1,024 batches of one producer at a time.
        codec: How batches are compressed. ZSTD spares links and disks what the records have in common, and costs this
            process and every reader processor time.
    """

    batch_bytes: int = 260 * 1024
    batch_records: int = 16_384
    linger_s: float = 0.005
    in_flight_max: int = 5
    buffer_bytes: int = 4 * 1024 * 1024
    codec: Codec = Codec.NONE

    def __post_init__(self) -> None:
        """Refuses values outside of their bounds."""
        bounds: dict[str, tuple[float, float]] = {
            "batch_bytes": (1, MAX_BODY_BYTES),
            "batch_records": (1, MAX_RECORDS),
            "linger_s": (0, 60),
            "in_flight_max": (1, IN_FLIGHT_MAX),
            "buffer_bytes": (1, 1 << 30),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}: use {low:g} to {high:g}")


class Gathered:
    """Records of one batch to be; the caller's own kind adds what it needs.

    Attributes:
        records: How they are encoded.
        opened_at: When the first one came, loop seconds.
    """

    __slots__ = ("opened_at", "records")

    def __init__(self, now: float) -> None:
        self.records = BatchBuilder()
        self.opened_at = now


GatheredT = TypeVar("GatheredT", bound=Gathered)


class Gatherer(Generic[GatheredT]):
    """Open and closed batches that were not taken yet. `now` is monotonic seconds."""

    def __init__(self, batching: Batching, make: Callable[[float], GatheredT]) -> None:
        """`make` makes an empty batch; it is given the time."""
        self._batching = batching
        self._make = make
        self._closed: deque[GatheredT] = deque()
        self._open: GatheredT | None = None
        self.body_bytes = 0
        """Bytes of records that were not taken yet."""

    def __bool__(self) -> bool:
        """Whether any record waits."""
        return self._open is not None or bool(self._closed)

    def append(self, value: bytes, key: bytes | None, now: float, headers: Headers = ()) -> tuple[GatheredT, int]:
        """Adds a record; returns its batch and its place there.

        Raises:
            WireError: TOO_LARGE for a record, key or headers beyond the limits, BAD_FIELD for a header that is not allowed;
                nothing was added.
        """
        batch = self._open
        added_bytes = RECORD_OVERHEAD_BYTES + len(value) + (len(key) if key is not None else 0)
        if headers:
            added_bytes += headers_bytes(headers)
        if batch is not None and batch.records.body_bytes + added_bytes > self._batching.batch_bytes:
            self._close()
            batch = None
        if batch is None:
            batch = self._make(now)
            batch.records.append(value, key, headers)
            self._open = batch
        else:
            batch.records.append(value, key, headers)
        self.body_bytes += added_bytes
        place = batch.records.count - 1
        if place + 1 >= self._batching.batch_records or batch.records.body_bytes >= self._batching.batch_bytes:
            self._close()
        return batch, place

    def extend(self, values: Sequence[bytes], start: int, now: float) -> tuple[GatheredT, int, int]:
        """Adds values from `values[start]` on to one batch.

        Returns:
            The batch, the place of the first value in it, and the index of the first value that was not added.

        Raises:
            WireError: TOO_LARGE for a value beyond the limit; those before it are in.
        """
        batching = self._batching
        while True:
            batch = self._open or self._make(now)
            place, before_bytes = batch.records.count, batch.records.body_bytes
            try:
                after = batch.records.extend(values, start, batching.batch_bytes, batching.batch_records)
            except WireError:
                self._keep(batch, before_bytes)
                raise
            self._keep(batch, before_bytes)
            if after < len(values) or batch.records.count >= batching.batch_records:
                self._close()
            if after > start:
                return batch, place, after

    def take(self, now: float, *, is_idle: bool) -> GatheredT | None:
        """The next batch that is due, in order; `is_idle`: nothing is on its way."""
        if self._closed:
            taken = self._closed.popleft()
        elif self._open is not None and (is_idle or now >= self._open.opened_at + self._batching.linger_s):
            taken, self._open = self._open, None
        else:
            return None
        self.body_bytes -= taken.records.body_bytes
        return taken

    def next_deadline(self) -> float | None:
        """When the open batch is due even if nothing else happens; None when there is none."""
        return None if self._open is None else self._open.opened_at + self._batching.linger_s

    def take_all(self) -> list[GatheredT]:
        """Everything, due or not."""
        self._close()
        taken = list(self._closed)
        self._closed.clear()
        self.body_bytes = 0
        return taken

    def _keep(self, batch: GatheredT, before_bytes: int) -> None:
        self.body_bytes += batch.records.body_bytes - before_bytes
        self._open = batch if batch.records.count else None

    def _close(self) -> None:
        if self._open is not None:
            self._closed.append(self._open)
            self._open = None
