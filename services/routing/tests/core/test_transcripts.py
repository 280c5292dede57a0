"""Golden transcripts of flooding: every message on a line, a ring, a full mesh and a grid (RFC 2328 §13).

The nodes start with all links up; then a link dies, which its two ends advertise, and a message is lost, which is
repeated. `UPDATE_TRANSCRIPTS=1 pytest` on this file writes the files anew; read the difference.
"""

from __future__ import annotations

import os
from itertools import combinations
from pathlib import Path

import pytest

from meshcommon.ids import NodeId
from tests.core.test_router_network import Network, Pair, pair, ring
from tests.core.transcript import Transcript

DIRECTORY = Path(__file__).parent / "transcripts"


class RecordedNetwork(Network):
    """A network of even delays that writes down what is sent."""

    def __init__(self, count: int, links: list[Pair]) -> None:
        self.transcript = Transcript()
        self.drops = 0
        super().__init__(count, links, seed=1)
        self.delay_s = (0.001, 0.001)

    def _aged(self, node: NodeId, payload: bytes) -> bytes:
        return payload

    def on_sent(self, node: NodeId, peer: NodeId, payload: bytes) -> bool:
        self.transcript.sent(self.now, node, peer, payload)
        if self.drops:
            self.drops -= 1
            self.transcript.note("that one is lost")
            return False
        return True


def lsdb_of(network: Network, node: NodeId) -> set[tuple[int, tuple[int, ...]]]:
    """What the database of a node holds of its component."""
    component = network.component(node)
    return {(lsa.sequence, tuple(lsa.peers)) for lsa in network.routers[node].lsdb.lsas() if lsa.origin in component}


TOPOLOGIES: dict[str, tuple[int, list[Pair], Pair]] = {
    "line": (4, [pair(1, 2), pair(2, 3), pair(3, 4)], pair(2, 3)),
    "ring": (4, ring(4), pair(1, 2)),
    "full_mesh": (4, [pair(left, right) for left, right in combinations(range(1, 5), 2)], pair(1, 2)),
    "grid": (6, [pair(1, 2), pair(2, 3), pair(4, 5), pair(5, 6), pair(1, 4), pair(2, 5), pair(3, 6)], pair(2, 5)),
}


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_flooding_says_what_the_transcript_says(name: str) -> None:
    count, links, dying = TOPOLOGIES[name]
    network = RecordedNetwork(count, links)
    network.run(5)
    network.assert_converged()
    network.transcript.note(
        f"the link {'-'.join(map(str, sorted(dying)))} dies, and the first message about it is lost"
    )
    network.drops = 1
    network.set_link(dying, is_up=False)
    network.run(5)
    # A component agrees with itself; the line has two of them now.
    databases = {node: lsdb_of(network, node) for node in network.members}
    for node in network.members:
        assert all(databases[node] == databases[peer] for peer in network.component(node))
    if name == "line":
        network.transcript.note("the link comes back")
        network.set_link(dying, is_up=True)
        network.run(5)
    network.assert_converged()
    golden = DIRECTORY / f"{name}.txt"
    if os.environ.get("UPDATE_TRANSCRIPTS"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(network.transcript.text)
    assert network.transcript.text == golden.read_text()
