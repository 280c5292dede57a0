"""What is asked of the simulated mesh: how an operation is repeated until it is answered, and the catalogue's client.

Leaves out: who writes streams (`publisher`) and reads them (`reader`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mesh_control.core.mcg_state import Result as McgResult
from meshapi.control.v1 import mcg_pb2
from tests.sim.node import SimNode
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
