"""What is asked of the simulated mesh: a catalogue client, and publishers that retry until each batch is acknowledged.

A publisher has one batch outstanding, keeps (producer, sequence) through every retry, and goes to another node when an
answer does not come. What was acknowledged is written down for the checkers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mesh_control.core.mcg_state import Result as McgResult
from mesh_data.core.stream_state import Appended, ProducerReady, Repeated
from meshapi.control.v1 import mcg_pb2
from meshtest.checkers import Acknowledged
from meshwire.batch import Record, encode_batch
from meshwire.entry import BatchEntry, InitProducerEntry, encode_entry
from tests.sim.node import MCG, SimNode
from tests.sim.world import World

TIMEOUT_S: Final = 2.0
PAUSE_S: Final = 0.05


class Retrier:
    """Repeats one operation at changing nodes until it has an answer."""

    def __init__(self, world: World, nodes: list[SimNode]) -> None:
        self.world = world
        self._nodes = nodes
        self._attempt = 0

    def run(
        self, ask: Callable[[SimNode, Callable[[object | None], None]], None], done: Callable[[object], None]
    ) -> None:
        """Calls `ask(node, answer)` until an answer is not None, then `done(answer)`, once."""
        self._attempt += 1
        attempt = self._attempt
        running = [node for node in self._nodes if node.is_running]

        def again() -> None:
            if attempt == self._attempt:
                self.run(ask, done)

        def answer(result: object | None) -> None:
            if attempt != self._attempt:
                return
            if result is None:
                self.world.after(PAUSE_S, again)
                return
            self._attempt += 1
            done(result)

        self.world.after(TIMEOUT_S, again)
        if running:
            ask(self.world.rng.choice(running), answer)


class CatalogueClient:
    """Founds the mesh, admits the nodes, then creates and deletes streams one after the other."""

    def __init__(self, world: World, nodes: list[SimNode]) -> None:
        self._world = world
        self._retrier = Retrier(world, nodes)
        self.acknowledged: list[tuple[mcg_pb2.Command, McgResult]] = []
        self.commands: list[mcg_pb2.Command] = []

    @property
    def is_idle(self) -> bool:
        """Whether all commands are acknowledged."""
        return not self.commands

    def go(self) -> None:
        """Proposes the next command."""
        if not self.commands:
            return
        command = self.commands[0]
        command.proposal_id = command.proposal_id or self._world.rng.getrandbits(60)

        def done(result: object) -> None:
            assert isinstance(result, McgResult)
            self._world.note("catalogue", command.WhichOneof("kind"), result.allocated_id)
            self.acknowledged.append((command, result))
            self.commands.pop(0)
            self._world.after(PAUSE_S, self.go)

        self._retrier.run(lambda node, answer: node.command(command, answer), done)


class Publisher:
    """Publishes batches of 1 to 3 records to one stream, each until it is acknowledged."""

    def __init__(self, world: World, nodes: list[SimNode], stream_id: int, name: str, batches: int) -> None:
        self._world = world
        self._retrier = Retrier(world, nodes)
        self.group = stream_id + MCG
        self._name = name
        self._batches = batches
        self._producer = 0
        self._epoch = 0
        self._sequence = 0
        self.acknowledged: list[Acknowledged] = []

    @property
    def is_idle(self) -> bool:
        """Whether everything is acknowledged."""
        return not self._batches

    def go(self) -> None:
        """Gets a producer id, then publishes."""
        entry = encode_entry(InitProducerEntry(int(self._world.now * 1000), self._name))

        def done(result: object) -> None:
            assert isinstance(result, ProducerReady), result
            # A retried InitProducer of a named producer raises the epoch: the latest answer is the one that counts.
            self._producer, self._epoch = result.producer_id, result.epoch
            self._publish()

        self._retrier.run(lambda node, answer: node.publish(self.group, entry, answer), done)

    def _publish(self) -> None:
        if not self._batches:
            return
        count = self._world.rng.randint(1, 3)
        first = self._sequence
        values = [b"%d:%d" % (self._producer, first + number) for number in range(count)]
        batch = encode_batch([Record(value) for value in values], self._producer, self._epoch, first)

        def done(result: object) -> None:
            if not isinstance(result, Appended | Repeated):
                # Fenced by an own InitProducer that was thought lost: begin again with a new epoch.
                self._world.note("publisher starts again", self._name, repr(result))
                self._world.after(PAUSE_S, self.go)
                return
            assert result.offset is not None
            self._world.note("acknowledged", self.group, self._producer, first, result.offset)
            self.acknowledged += [
                Acknowledged(self._producer, first + number, result.offset + number, value)
                for number, value in enumerate(values)
            ]
            self._sequence += count
            self._batches -= 1
            self._world.after(self._world.rng.uniform(0, 2 * PAUSE_S), self._publish)

        def ask(node: SimNode, answer: Callable[[object | None], None]) -> None:
            stamp_ms = int(self._world.now * 1000)
            node.publish(self.group, encode_entry(BatchEntry(stamp_ms, batch)), answer)

        self._retrier.run(ask, done)
