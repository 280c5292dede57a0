"""Three forwarders in a line, node 2 the relay between the others, for tests of what a relay can do to packets."""

from __future__ import annotations

from data_plane_testing.identities import entropy, local_node, view_of
from mesh_data.core.forwarder import Delivery, DropReason, Forwarder, Transmission
from mesh_data.core.timing import OverlayTiming
from meshapi.data.v1 import data_pb2
from meshcommon.delegation import Delegations
from meshcommon.ids import NodeId
from meshtest.delegated import NOW_S
from meshwire.packet import Protocol, TrafficClass

CONTROL = TrafficClass.CONTROL
MEMBERS = (1, 2, 3)
PATHS = {1: ([1, 2], [1, 2, 3]), 2: ([2, 1], [2, 3]), 3: ([3, 2], [3, 2, 1])}


class Line:
    """Nodes 1, 2 and 3 in a line: 2 is the relay between the others."""

    def __init__(self, *members: int) -> None:
        self.clock_s = NOW_S
        known = Delegations(lambda: self.clock_s)
        self.nodes = {NodeId(n): Forwarder(OverlayTiming(), n << 32, entropy(n), known) for n in MEMBERS}
        self.delivered: list[tuple[int, Delivery]] = []
        for number, node in self.nodes.items():
            node.configure(local_node(number), view_of(*(members or MEMBERS)))
            routes = [data_pb2.Route(destination=p[-1], paths=[data_pb2.Path(nodes=p)]) for p in PATHS[number]]
            node.paths.routes.apply(data_pb2.PushRoutesRequest(version=1, changed=routes))
        for one, other in ((1, 2), (2, 3)):
            self.nodes[NodeId(one)].set_link(NodeId(other), True, 0.0)
            self.nodes[NodeId(other)].set_link(NodeId(one), True, 0.0)
        self.run()

    def send(self, source: int, destination: int, protocol: Protocol = Protocol.RAFT_MCG, now: float = 0.0) -> bytes:
        """Node `source` makes a packet, which is not carried anywhere."""
        sent = self.nodes[NodeId(source)].send(protocol, CONTROL, NodeId(destination), b"heartbeat", 0, now)
        assert isinstance(sent, Transmission)
        return sent.data

    def agreed(self) -> Line:
        """After all have talked with all."""
        for source in MEMBERS:
            for destination in MEMBERS:
                if source != destination:
                    self.nodes[NodeId(source)].send(Protocol.SWIM, CONTROL, NodeId(destination), b"hello", 0, 0.0)
        self.run()
        self.delivered.clear()
        return self

    def carry(self, at: int, peer: int, data: bytes, now: float = 0.0) -> Delivery | Transmission | None:
        """What node `at` makes of a packet from its neighbour `peer`."""
        return self.nodes[NodeId(at)].receive(NodeId(peer), data, now)

    def run(self, now: float = 0.0) -> None:
        """Carries what the nodes send of their own accord."""
        while work := [(node, t) for node, item in self.nodes.items() for t in item.take_outgoing()]:
            for at, first in work:
                sender, transmission = at, first
                while True:
                    result = self.carry(transmission.next_hop, sender, transmission.data, now)
                    if not isinstance(result, Transmission):
                        break
                    sender, transmission = transmission.next_hop, result
                if result is not None:
                    self.delivered.append((transmission.next_hop, result))

    def dropped(self, node: int) -> dict[DropReason, int]:
        """What a node has dropped so far, by reason."""
        return dict(self.nodes[NodeId(node)].counters.dropped)


def at_destination(line: Line, data: bytes) -> bytes:
    """The packet of node 1 for node 3 as node 2 passes it on."""
    passed = line.carry(2, 1, data)
    assert isinstance(passed, Transmission)
    return passed.data
