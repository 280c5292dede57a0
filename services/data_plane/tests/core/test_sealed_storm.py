"""Three nodes and a network that loses, repeats, reorders, misroutes and forges, while nodes start again.

After any steps: what a node delivers was sent by the node that it names, to it, as that protocol and class, and only once;
no nonce is used twice with one key. At the end, on a network that behaves, all talk with all again.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from data_plane_testing.identities import delegations, entropy, local_node, view_of
from mesh_data.core.forwarder import Delivery, Forwarder, Transmission
from mesh_data.core.packet_session import PacketSession
from mesh_data.core.timing import OverlayTiming
from meshapi.data.v1 import data_pb2
from meshcommon.ids import NodeId
from meshtest.effort import scaled
from meshwire.buffers import Buffer
from meshwire.packet import FLAG_SEALED, Protocol, TrafficClass, nonce_of

NODES = (1, 2, 3)
PATHS = {1: ([1, 2], [1, 2, 3]), 2: ([2, 1], [2, 3]), 3: ([3, 2], [3, 2, 1])}
SENT = (Protocol.RAFT_MCG, Protocol.REQUEST, Protocol.JOIN)
_used: set[tuple[bytes, bytes]] = set()
"""Keys (by a tag that they make) and nonces that sealed something."""


class Storm(RuleBasedStateMachine):
    """The adversary holds every packet and delivers what it wants to whom it wants, changed if it wants."""

    def __init__(self) -> None:
        super().__init__()
        _used.clear()
        self.now = 100.0
        self.boots = 0
        self.nodes: dict[int, Forwarder] = {}
        self.pool: list[tuple[int, Transmission]] = []
        self.sent: dict[bytes, tuple[int, int, Protocol, TrafficClass]] = {}
        self.delivered: set[bytes] = set()

    @initialize()
    def start(self) -> None:
        for node in NODES:
            self.restart(node)

    @rule(node=st.sampled_from(NODES))
    def restart(self, node: int) -> None:
        self.boots += 1
        forwarder = Forwarder(OverlayTiming(), self.boots << 32, entropy(self.boots), delegations())
        forwarder.configure(local_node(node), view_of(*NODES))
        routes = [data_pb2.Route(destination=path[-1], paths=[data_pb2.Path(nodes=path)]) for path in PATHS[node]]
        forwarder.paths.routes.apply(data_pb2.PushRoutesRequest(version=1, changed=routes))
        self.nodes[node] = forwarder
        for peer in NODES:
            if abs(peer - node) == 1:
                forwarder.set_link(NodeId(peer), True, self.now)
                if peer in self.nodes:
                    self.nodes[peer].set_link(NodeId(node), True, self.now)
        self.collect()

    @rule(
        ends=st.permutations(NODES).map(lambda nodes: nodes[:2]),
        cls=st.sampled_from(TrafficClass),
        protocol=st.sampled_from(SENT),
        count=st.integers(1, 3),
    )
    def send(self, ends: list[int], cls: TrafficClass, protocol: Protocol, count: int) -> None:
        source, destination = ends
        for _ in range(count):
            payload = len(self.sent).to_bytes(4, "big")
            self.sent[payload] = (source, destination, protocol, cls)
            result = self.nodes[source].send(protocol, cls, NodeId(destination), payload, 0, self.now)
            if isinstance(result, Transmission):
                self.pool.append((source, result))
        self.collect()

    @rule(seconds=st.sampled_from([0.05, 0.2, 1.1, 3.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for node in self.nodes.values():
            node.tick(self.now)
        self.collect()

    @precondition(lambda self: self.pool)
    @rule(data=st.data(), is_kept=st.booleans())
    def deliver(self, data: st.DataObject, is_kept: bool) -> None:
        at = data.draw(st.integers(0, len(self.pool) - 1))
        sender, transmission = self.pool[at] if is_kept else self.pool.pop(at)
        self.arrive(sender, transmission.next_hop, transmission.data)

    @precondition(lambda self: self.pool)
    @rule(count=st.integers(1, 20))
    def deliver_in_order(self, count: int) -> None:
        for _ in range(count):
            if self.pool:
                sender, transmission = self.pool.pop(0)
                self.arrive(sender, transmission.next_hop, transmission.data)

    @precondition(lambda self: self.pool)
    @rule(data=st.data(), value=st.integers(1, 255))
    def deliver_changed(self, data: st.DataObject, value: int) -> None:
        sender, transmission = data.draw(st.sampled_from(self.pool[-20:]))
        changed = bytearray(transmission.data)
        changed[data.draw(st.integers(0, len(changed) - 1))] ^= value
        self.arrive(sender, transmission.next_hop, bytes(changed))

    @precondition(lambda self: self.pool)
    @rule(data=st.data(), ends=st.permutations(NODES).map(lambda nodes: nodes[:2]))
    def misroute(self, data: st.DataObject, ends: list[int]) -> None:
        """A member takes a packet of another as its own, or gives it to somebody else."""
        _, transmission = data.draw(st.sampled_from(self.pool[-20:]))
        source, destination = ends
        packet = bytearray(transmission.data)
        packet[5:13], packet[13:21] = source.to_bytes(8, "big"), destination.to_bytes(8, "big")
        rest = packet[47 + 8 * packet[45] :]
        packet[45:47] = b"\x00\x00"
        self.arrive(source, destination, bytes(packet[:47] + rest))

    def arrive(self, peer: int, at: int, data: bytes) -> None:
        result = self.nodes[at].receive(NodeId(peer), data, self.now)
        if isinstance(result, Transmission):
            self.pool.append((at, result))
        elif result is not None:
            self.check(at, result)
        self.collect()

    def check(self, at: int, delivery: Delivery) -> None:
        payload = bytes(delivery.payload)
        assert payload in self.sent, "something was delivered that nobody sent"
        assert self.sent[payload] == (delivery.source, at, delivery.protocol, delivery.cls)
        assert payload not in self.delivered, "delivered twice"
        self.delivered.add(payload)

    def collect(self) -> None:
        for number, node in self.nodes.items():
            self.pool += [(number, transmission) for transmission in node.take_outgoing()]
        del self.pool[:-200]

    @invariant()
    def what_waits_is_bounded(self) -> None:
        for node in self.nodes.values():
            assert len(node.keys._sessions) <= 2 * self.boots + 2

    def teardown(self) -> None:
        """The network behaves from now on: within a few seconds everybody reaches everybody."""
        if not self.nodes:
            return
        for _ in range(8):
            self.wait(1.0)
            while self.pool:
                self.deliver_in_order(20)
            for source in NODES:
                for destination in NODES:
                    if source != destination:
                        self.send([source, destination], TrafficClass.CONTROL, Protocol.REQUEST, 1)
        while self.pool:
            self.deliver_in_order(20)
        last = list(self.sent)[-6:]
        assert set(last) <= self.delivered


@pytest.fixture(autouse=True)
def unique_nonces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Watches every seal: a nonce must not come twice under one key."""
    seal = PacketSession.seal

    def watched(self: PacketSession, cls: TrafficClass, counter: int, payload: Buffer, associated: bytes) -> bytes:
        # Two sealers of the same key make the same tag of nothing.
        key = self._sealers.cipher(counter).encrypt(bytes(12), b"", b"")
        nonce = nonce_of(cls, counter)
        assert (key, nonce) not in _used, "a nonce was used twice"
        _used.add((key, nonce))
        return seal(self, cls, counter, payload, associated)

    monkeypatch.setattr(PacketSession, "seal", watched)
    yield
    _used.clear()


def test_nothing_forged_repeated_or_misrouted_is_accepted() -> None:
    run_state_machine_as_test(Storm, settings=settings(max_examples=scaled(25), stateful_step_count=40, deadline=None))


def test_the_flag_is_what_makes_the_machine_see_sealed_packets() -> None:
    """Guards the machine itself: its packets are sealed ones."""
    machine = Storm()
    machine.start()
    machine.teardown()
    assert machine.delivered
    machine.send([1, 2], TrafficClass.CONTROL, Protocol.REQUEST, 1)
    assert machine.pool[-1][1].data[3] == FLAG_SEALED
