"""Publishers: each keeps up to three batches in flight, repeats them until they are answered, and is replaced in mid-flight.

One name is held by one *instance* after another. A new one calls InitProducer, which raises the epoch, and goes on at the
sequence that the answer names. The former one either died with it or lives on as a zombie that knows nothing and writes
until it is refused. Every value names producer, sequence, epoch and attempt, so that none is written twice on purpose. Calls
are written down in virtual time for C3 and C5, acknowledgements for C1 and C2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from mesh_data.core.stream_state import Appended, ProducerReady, Refused, Repeated
from meshcommon.errors import ErrorCode
from meshtest.checkers import Acknowledged
from meshtest.histories import Publish
from meshwire.entry import BatchEntry, InitProducerEntry, encode_entry
from meshwire.records import Record, encode_batch
from tests.sim.clients import PAUSE_S, Retrier
from tests.sim.node import SimNode
from tests.sim.world import World

IN_FLIGHT_MAX: Final = 3
ZOMBIE_BATCHES: Final = 4
"""A zombie writes so many batches after its replacement, unless it is refused before."""


class Publisher:
    """One name and the records under it."""

    def __init__(self, world: World, nodes: list[SimNode], group: int, name: str, batches: int) -> None:
        self.world = world
        self.nodes = nodes
        self.group = group
        self.name = name
        self.batches = batches
        self.acknowledged: list[Acknowledged] = []
        self.calls: list[Publish] = []
        self._current: _Instance | None = None

    @property
    def is_idle(self) -> bool:
        """Whether every batch is acknowledged that was not left behind by an instance that is gone."""
        return not self.batches and (self._current is None or not self._current.in_flight)

    def waiting_calls(self) -> list[Publish]:
        """What the present instance has not been answered."""
        return [self.calls[number] for number in sorted(self._current.in_flight)] if self._current else []

    def go(self) -> None:
        """Starts an instance; the one before it is fenced as soon as this one's InitProducer is committed."""
        self._current = _Instance(self)
        self._current.go()

    def replace(self) -> None:
        """Another instance takes over under the same name, in the middle of what the former one does."""
        former = self._current
        if former is None or self.is_idle:
            return
        lives_on = self.world.rng.random() < 0.5
        self.world.note("replaced", self.group, self.name, lives_on)
        former.leave(ZOMBIE_BATCHES if lives_on else 0)
        self.go()


class _Instance:
    """One life of a producer."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._world = publisher.world
        self._producer = 0
        self._epoch = 0
        self._sequence = 0
        self._left: int | None = None
        """Batches that a zombie may still begin; None for the instance that holds the name."""
        self._is_dead = False
        self.in_flight: set[int] = set()

    def leave(self, batches: int) -> None:
        """This instance no longer holds the name. It does not know, unless it is dead."""
        self._left = batches
        self._is_dead = batches == 0

    def go(self) -> None:
        """Gets a producer, then publishes."""
        publisher = self._publisher
        entry = encode_entry(InitProducerEntry(int(self._world.now * 1000), publisher.name))

        def done(result: object) -> None:
            if self._is_dead:
                return
            assert isinstance(result, ProducerReady), result
            # A retried InitProducer raises the epoch again: then this one is fenced by its own, and begins anew.
            self._producer, self._epoch, self._sequence = result.producer_id, result.epoch, result.next_sequence
            self._fill()

        retrier = Retrier(self._world, publisher.nodes)
        retrier.run(lambda node, answer: node.publish(publisher.group, entry, answer), done)

    def _fill(self) -> None:
        if self._is_dead:
            return
        while len(self.in_flight) < IN_FLIGHT_MAX and self._may_begin():
            self._publish()

    def _may_begin(self) -> bool:
        if self._left is None:
            publisher = self._publisher
            has_more = publisher.batches > 0
            publisher.batches -= has_more
            return has_more
        self._left -= 1
        return self._left >= 0

    def _publish(self) -> None:
        publisher, now = self._publisher, self._world.now
        count = self._world.rng.randint(1, 3)
        first = self._sequence
        self._sequence += count
        call = len(publisher.calls)
        values = tuple(
            b"%d:%d:%d:%d" % (self._producer, number, self._epoch, call) for number in range(first, first + count)
        )
        batch = encode_batch([Record(value) for value in values], self._producer, self._epoch, first)
        publisher.calls.append(Publish(now, None, values, None))
        self.in_flight.add(call)
        retrier = Retrier(self._world, publisher.nodes)

        def ask(node: SimNode, answer: Callable[[object | None], None]) -> None:
            stamp_ms = int(self._world.now * 1000)
            node.publish(publisher.group, encode_entry(BatchEntry(stamp_ms, batch)), answer)

        def again() -> None:
            if call in self.in_flight and not self._is_dead:
                retrier.run(ask, done)

        def done(result: object) -> None:
            if self._is_dead or call not in self.in_flight:
                return
            if isinstance(result, Refused) and result.code is ErrorCode.SEQUENCE_GAP:
                # An earlier batch is not there yet: it is being repeated, and this one is after it.
                self._world.after(PAUSE_S, again)
                return
            self._answered(call, first, result)

        retrier.run(ask, done)

    def _answered(self, call: int, first: int, result: object) -> None:
        publisher = self._publisher
        if not isinstance(result, Appended | Repeated):
            # Fenced. What is in flight may have been committed before: its outcome stays unknown.
            self._world.note("refused", publisher.group, publisher.name, repr(result))
            self._is_dead = True
            publisher.batches += len(self.in_flight) if self._left is None else 0
            if self._left is None:
                self._world.after(PAUSE_S, publisher.go)
            return
        self.in_flight.discard(call)
        # An offset that only the log knows is left to the log.
        if (offset := result.offset) is not None:
            begun = publisher.calls[call]
            publisher.calls[call] = replace(begun, responded_s=self._world.now, offset=offset)
            self._world.note("acknowledged", publisher.group, self._producer, first, offset)
            publisher.acknowledged += [
                Acknowledged(self._producer, first + number, offset + number, value)
                for number, value in enumerate(begun.values)
            ]
        self._world.after(self._world.rng.uniform(0, 2 * PAUSE_S), self._fill)
