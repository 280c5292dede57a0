"""The producers of one stream: who they are, what they sent last, and what a repeated batch was answered with.

A producer's id is the log index of its InitProducer and its sequences never restart, so a repeated batch is recognised for
ever: everything below the next sequence is a repetition. *Where* the repetition was first appended is kept as runs: as
long as nobody else writes in between, sequence and offset advance together, so one run covers any number of batches.
Leaves out: what is appended where (`stream_state`). Source: architecture §8 "Exactly once, no window"; Kafka's idempotent
producer, whose window of five batches this replaces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from meshcommon.errors import ErrorCode

RUNS_MAX: Final = 16
"""Runs remembered for a producer. A retry of something older is still recognised; only its offset has to be looked up."""


@dataclass(slots=True)
class Run:
    """Records of consecutive sequences at consecutive offsets. Not frozen, because each batch makes one longer."""

    sequence: int
    offset: int
    count: int


@dataclass(slots=True)
class Producer:
    """What the group knows of one producer.

    Attributes:
        producer_id: log index of its first InitProducer.
        name: its stable name, empty for an anonymous one.
        epoch: raised by each InitProducer under the same name; earlier holders are fenced.
        next_sequence: sequence that its next record must have.
        used_index: log index at which it was last heard of; the longest unused goes first when there are too many.
        runs: where its latest records are, oldest first.
    """

    producer_id: int
    name: str
    epoch: int
    next_sequence: int
    used_index: int
    runs: list[Run] = field(default_factory=list)

    @property
    def last_offset_next(self) -> int:
        """Offset after its last record, 0 when it has none."""
        return self.runs[-1].offset + self.runs[-1].count if self.runs else 0

    def offset_of(self, sequence: int) -> int | None:
        """Offset of the record with that sequence, None when it is older than what is remembered."""
        for run in reversed(self.runs):
            if run.sequence <= sequence < run.sequence + run.count:
                return run.offset + sequence - run.sequence
        return None

    def append(self, offset: int, count: int, index: int) -> None:
        """Notes that the next `count` records were appended at `offset` by the entry at `index`."""
        last = self.runs[-1] if self.runs else None
        if last is not None and last.offset + last.count == offset:
            last.count += count
        else:
            self.runs.append(Run(self.next_sequence, offset, count))
            del self.runs[:-RUNS_MAX]
        self.next_sequence += count
        self.used_index = index


class IsNext(NamedTuple):
    """The batch continues its producer's sequence and is to be appended."""

    producer: Producer


@dataclass(frozen=True, slots=True)
class IsRepeated:
    """The batch was appended before, at `offset` (None when that is older than what is remembered)."""

    offset: int | None


@dataclass(frozen=True, slots=True)
class IsRefused:
    """The batch must not be appended."""

    code: ErrorCode
    message: str
    details: dict[str, str]


Verdict: TypeAlias = IsNext | IsRepeated | IsRefused


class ProducerTable:
    """All producers of a stream, at most `producers_max`. Deterministic: the same calls give the same table."""

    def __init__(self, producers_max: int) -> None:
        self._producers_max = producers_max
        self._by_id: dict[int, Producer] = {}
        self._by_name: dict[str, Producer] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Producer]:
        """Producers by id: ids are log indexes and a dictionary keeps the order of insertion."""
        return iter(self._by_id.values())

    def get(self, producer_id: int) -> Producer | None:
        """The producer of that id."""
        return self._by_id.get(producer_id)

    def load(self, producers: Iterable[Producer]) -> None:
        """Adds producers from a snapshot, by ascending id."""
        for producer in producers:
            self._add(producer)

    def init(self, name: str, index: int) -> Producer:
        """Applies an InitProducer: the next epoch for a known name, else a new producer whose id is `index`."""
        producer = self._by_name.get(name) if name else None
        if producer is not None:
            producer.epoch += 1
            producer.used_index = index
            return producer
        if len(self._by_id) >= self._producers_max:
            self._expire_longest_unused()
        producer = Producer(index, name, 1, 0, index)
        self._add(producer)
        return producer

    def check(self, producer_id: int, epoch: int, sequence: int, count: int) -> Verdict:
        """What to do with a batch; changes nothing."""
        producer = self._by_id.get(producer_id)
        if producer is None:
            return IsRefused(
                ErrorCode.PRODUCER_EXPIRED,
                f"Producer {producer_id} is not known (any more) to this stream: call InitProducer, and check which of "
                "its records are in the stream before sending them again.",
                {"producer_id": str(producer_id)},
            )
        if epoch != producer.epoch:
            return IsRefused(
                ErrorCode.PRODUCER_FENCED,
                f"Producer {producer_id} is at epoch {producer.epoch}, not {epoch}: another instance took over; "
                "stop this one, or call InitProducer to take over in turn.",
                {"producer_id": str(producer_id), "epoch": str(producer.epoch)},
            )
        expected = producer.next_sequence
        if sequence == expected:
            return IsNext(producer)
        if sequence + count <= expected:
            return IsRepeated(producer.offset_of(sequence))
        return IsRefused(
            ErrorCode.SEQUENCE_GAP,
            f"The next sequence of producer {producer_id} is {expected}, not {sequence}: send again from {expected}.",
            {"producer_id": str(producer_id), "next_sequence": str(expected)},
        )

    def _add(self, producer: Producer) -> None:
        self._by_id[producer.producer_id] = producer
        if producer.name:
            self._by_name[producer.name] = producer

    def _expire_longest_unused(self) -> None:
        # Anonymous ones first: a named producer belongs to somebody who means to come back.
        gone = min(self._by_id.values(), key=lambda producer: (producer.name != "", producer.used_index))
        del self._by_id[gone.producer_id]
        self._by_name.pop(gone.name, None)
