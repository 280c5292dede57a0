"""A reader of one stream: linearizable reads at changing members, each written down in virtual time for C3."""

from __future__ import annotations

from typing import Final

from meshtest.checkers import Held
from meshtest.histories import Read
from tests.sim.node import SimNode
from tests.sim.world import World

PAUSE_MAX_S: Final = 0.8
LIMIT_S: Final = 1.0


class Reader:
    """Reads one stream's end again and again; now and then all of it from the floor."""

    def __init__(self, world: World, nodes: list[SimNode], group: int) -> None:
        self._world = world
        self._nodes = nodes
        self._seen_end = 0
        self._turn = 0
        self._is_stopped = False
        self.group = group
        self.calls: list[Read] = []

    def stop(self) -> None:
        """Reads no more."""
        self._is_stopped = True

    def go(self) -> None:
        """Begins a read, and gives up the one before."""
        self._turn += 1
        if self._is_stopped:
            return
        turn, invoked_s = self._turn, self._world.now
        rng = self._world.rng
        running = [node for node in self._nodes if node.is_running]
        offset = 0 if rng.random() < 0.1 else max(0, self._seen_end - rng.randint(0, 3))

        def answered(start: int, held: list[Held]) -> None:
            if turn != self._turn:
                return
            self._turn += 1
            read = Read(invoked_s, self._world.now, start, tuple(item.value for item in held))
            self.calls.append(read)
            self._seen_end = read.end
            self._world.note("read", self.group, start, read.end)
            self._world.after(rng.uniform(0.05, PAUSE_MAX_S), self.go)

        def give_up() -> None:
            if turn == self._turn:
                self.go()

        self._world.after(LIMIT_S, give_up)
        if running:
            rng.choice(running).read(self.group, offset, answered)
