"""Overlays over real sockets on the loopback: links, relays, a silent cut, requests, joining, stop and start."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mesh_data.core.forwarder import Delivery, DropReason
from mesh_data.core.handshake import Handshake, LocalNode, PeerNode
from mesh_data.core.join_limits import JOIN_LANES_MAX, JOIN_LANES_PER_ADDRESS_MAX
from mesh_data.core.timing import OverlayTiming
from mesh_data.core.view import Node, NodeState, View
from mesh_data.shell.overlay import lane_handshakes
from mesh_data.shell.overlay import overlay as overlay_module
from mesh_data.shell.overlay.dialler import connect_lane
from mesh_data.shell.overlay.lane_session import shake_hands
from mesh_data.shell.overlay.listener import PeerListener
from mesh_data.shell.overlay.overlay import Overlay
from meshapi.data.v1 import data_pb2
from meshcommon.boot_certificate import BootCertificate
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.frame_socket import FrameSocket
from meshcommon.ids import NO_NODE, NodeId
from meshtest.delegated import delegated_signer
from meshtest.ports import free_ports
from meshtest.proxy import FaultProxy
from meshtest.waiting import eventually
from meshwire.packet import Protocol, TrafficClass

MESH = "0b8e1f0a-5c1d-4e0f-9a53-2f6f0e6d9c01"
OTHER_MESH = "0b8e1f0a-5c1d-4e0f-9a53-2f6f0e6d9c02"
CONTROL, BULK = TrafficClass.CONTROL, TrafficClass.BULK
JOINER_KEY = b"\x77" * 32


def local_node(node: int, mesh_id: str = MESH) -> LocalNode:
    return LocalNode(NodeId(node), f"n{node}", delegated_signer(seed_of(node), mesh_id, node), mesh_id)


def seed_of(node: int) -> bytes:
    return bytes((node,)) * 32


def public_key(node: int) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed_of(node)).public_key().public_bytes_raw()


@dataclass
class Site:
    """One running overlay. `received` are packets of protocol SWIM, which nothing else uses here."""

    node: NodeId
    overlay: Overlay
    listener: PeerListener
    task: asyncio.Task[None]
    received: list[Delivery] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"wss://127.0.0.1:{self.listener.port}"

    def payloads(self) -> list[bytes]:
        return [bytes(item.payload) for item in self.received]

    def send(self, destination: int, payload: bytes, cls: TrafficClass = CONTROL) -> bool:
        return self.overlay.send(Protocol.SWIM, cls, NodeId(destination), payload)

    def routes(self, *paths: list[int]) -> None:
        by_destination: dict[int, list[data_pb2.Path]] = {}
        for path in paths:
            by_destination.setdefault(path[-1], []).append(data_pb2.Path(nodes=path))
        changed = [data_pb2.Route(destination=d, paths=p) for d, p in by_destination.items()]
        self.overlay.push_routes(data_pb2.PushRoutesRequest(version=1, changed=changed))

    def has_keys_of(self, node: int) -> bool:
        return self.overlay.core.forwarder.keys.session(NodeId(node)) is not None

    def links_up(self) -> set[int]:
        return {link.peer for link in self.overlay.core.links() if link.is_up}


@dataclass
class Sites:
    """Starts and configures overlays."""

    running: dict[int, Site] = field(default_factory=dict)

    async def start(self, node: int, dial: dict[str, str] | None = None) -> Site:
        listener = PeerListener("127.0.0.1:0", BootCertificate())
        overlay = Overlay(OverlayTiming(), dial or {}, listener)
        site = Site(NodeId(node), overlay, listener, asyncio.create_task(overlay.run(), name=f"overlay {node}"))
        overlay.bind(Protocol.SWIM, site.received.append)
        self.running[node] = site
        # Lets `run` begin.
        await asyncio.sleep(0)
        return site

    def view(self, *advertised: int) -> View:
        nodes = {
            NodeId(i): Node(
                NodeId(i), f"n{i}", public_key(i), site.address if i in advertised else "", NodeState.ACTIVE
            )
            for i, site in self.running.items()
        }
        return View(1, MESH, 0, nodes, {})

    def configure(self, view: View, *nodes: int) -> None:
        for node in nodes or tuple(self.running):
            local = local_node(node)
            self.running[node].overlay.configure(local, view, is_running=True)

    async def stop(self) -> None:
        for site in self.running.values():
            site.task.cancel()
        for site in self.running.values():
            with contextlib.suppress(asyncio.CancelledError):
                await site.task


@pytest.fixture
async def sites() -> AsyncIterator[Sites]:
    """Overlays that are stopped at the end."""
    started = Sites()
    yield started
    await started.stop()


async def until(what: str, condition: Callable[[], object]) -> None:
    async def look() -> bool:
        return bool(condition())

    await eventually(what, look, timeout_s=20.0, poll_s=0.01)


async def pair(sites: Sites) -> tuple[Site, Site]:
    """Nodes 1 and 2 with a link; node 2 dials."""
    one, two = await sites.start(1), await sites.start(2)
    sites.configure(sites.view(1))
    await until("the link", lambda: one.links_up() == {2} and two.links_up() == {1})
    await until("the keys", lambda: one.has_keys_of(2) and two.has_keys_of(1))
    return one, two


async def test_two_nodes_find_each_other_and_talk(sites: Sites) -> None:
    one, two = await pair(sites)
    assert one.send(2, b"hello")
    assert two.send(1, b"back")
    await until("both packets", lambda: two.payloads() == [b"hello"] and one.payloads() == [b"back"])
    assert two.received[0].source == 1


async def test_link_between_nodes_that_both_dial_ends_as_one_lane(sites: Sites) -> None:
    one, two = await sites.start(1), await sites.start(2)
    sites.configure(sites.view(1, 2))

    def is_agreed() -> bool:
        at_one, at_two = one.overlay.core.control_lane(NodeId(2)), two.overlay.core.control_lane(NodeId(1))
        sessions = (len(one.overlay._sessions), len(two.overlay._sessions))
        return (
            sessions == (1, 1) and at_one is not None and at_two is not None and at_one.is_dialled != at_two.is_dialled
        )

    await until("one lane that both use", is_agreed)
    await until("the keys", lambda: one.has_keys_of(2) and two.has_keys_of(1))
    assert one.send(2, b"over it")
    await until("the packet", lambda: two.payloads() == [b"over it"])


async def test_packet_reaches_a_node_without_a_link_through_a_relay(sites: Sites) -> None:
    one, two, three = [await sites.start(node) for node in (1, 2, 3)]
    view = sites.view(2)
    sites.configure(view)
    await until("the links", lambda: two.links_up() == {1, 3} and one.links_up() == three.links_up() == {2})
    assert not one.send(3, b"nobody knows the way")
    assert not one.overlay.is_reachable(NodeId(3))
    one.routes([1, 2, 3])
    three.routes([3, 2, 1])
    assert one.send(3, b"through")
    await until("the packet", lambda: three.payloads() == [b"through"])
    # With the ask for keys, its answer, and the answer to that.
    assert two.overlay.core.forwarder.counters.forwarded == 4
    assert one.links_up() == {2}


async def test_relay_sees_no_byte_of_the_payload(sites: Sites, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, three = [await sites.start(node) for node in (1, 2, 3)]
    sites.configure(sites.view(2))
    await until("the links", lambda: one.links_up() == three.links_up() == {2})
    one.routes([1, 2, 3])
    three.routes([3, 2, 1])
    captured: list[bytes] = []
    receive = two.overlay.core.receive

    def capture(lane_id: int, data: bytes, now: float) -> list[Delivery]:
        captured.append(bytes(data))
        return receive(lane_id, data, now)

    monkeypatch.setattr(two.overlay.core, "receive", capture)
    secret = bytes(random.Random(7).randrange(256) for _ in range(64))
    assert one.send(3, secret * 100)
    await until("the packet", lambda: three.payloads() == [secret * 100])
    seen = b"".join(captured)
    assert len(seen) > 6400, "the relay must have passed the packet"
    # Eight bytes in a row do not come by chance.
    assert not any(secret[at : at + 8] in seen for at in range(len(secret) - 7))


async def test_bulk_of_many_megabytes_arrives_in_order(sites: Sites) -> None:
    one, two = await pair(sites)
    sent = 0
    while sent < 200:
        if one.overlay.queued_bytes(NodeId(2)) < 4 << 20:
            assert one.send(2, sent.to_bytes(4, "big") + bytes(200_000), BULK)
            sent += 1
        else:
            await asyncio.sleep(0)
    await until("all packets", lambda: len(two.received) == 200)
    assert [int.from_bytes(payload[:4], "big") for payload in two.payloads()] == list(range(200))


async def test_packet_to_itself_is_local(sites: Sites) -> None:
    one = await sites.start(1)
    sites.configure(sites.view())
    assert one.send(1, b"me")
    await until("the packet", lambda: one.payloads() == [b"me"])
    assert one.overlay.is_reachable(NodeId(1))


async def test_silent_cut_moves_traffic_to_the_backup(sites: Sites) -> None:
    one, two = await sites.start(1), await sites.start(2)
    async with FaultProxy(free_ports(1)[0], one.listener.port, "wss") as proxy:
        three = await sites.start(3, {"n1": proxy.address})
        sites.configure(sites.view(1, 2))
        await until("all links", lambda: one.links_up() == {2, 3} and three.links_up() == {1, 2})
        await until("the keys", lambda: one.has_keys_of(3) and three.has_keys_of(1))
        one.routes([1, 3], [1, 2, 3], [1, 2])
        two.routes([2, 1], [2, 3])
        changes: list[set[int]] = []
        one.overlay.on_links(lambda: changes.append(one.links_up()))
        proxy.silence()
        await until("the detection", lambda: 3 not in one.links_up())
        assert changes == [{2}]
        assert "silent" in next(link.down_reason for link in one.overlay.core.links() if link.peer == 3)
        assert one.send(3, b"around")
        await until("the packet", lambda: three.payloads() == [b"around"])
        proxy.heal()
        await until("the link again", lambda: one.links_up() == {2, 3})


async def test_reset_link_comes_back_by_itself(sites: Sites) -> None:
    one = await sites.start(1)
    async with FaultProxy(free_ports(1)[0], one.listener.port, "wss") as proxy:
        two = await sites.start(2, {"n1": proxy.address})
        sites.configure(sites.view(1))
        await until("the link", lambda: one.links_up() == {2})
        proxy.cut()
        await until("both ends know", lambda: not one.links_up() and not two.links_up())
        proxy.heal()
        await until("the link again", lambda: one.links_up() == {2} and two.links_up() == {1})


async def test_request_is_answered_and_its_errors_travel(sites: Sites) -> None:
    one, two = await pair(sites)

    async def echo(source: NodeId, body: bytes) -> bytes:
        if body == b"bad":
            raise MeshError(ErrorCode.NOT_LEADER, "ask another", {"leader": "7"})
        return body.upper() + str(source).encode()

    async def broken(_source: NodeId, _body: bytes) -> bytes:
        raise ValueError("a fault of the handler")

    two.overlay.serve(3, echo)
    two.overlay.serve(4, broken)
    assert await one.overlay.call(NodeId(2), 3, b"hi", 5.0) == b"HI1"
    assert await two.overlay.call(NodeId(2), 3, b"me", 5.0) == b"ME2"
    with pytest.raises(MeshError) as refusal:
        await one.overlay.call(NodeId(2), 3, b"bad", 5.0)
    assert (refusal.value.code, refusal.value.details) == (ErrorCode.NOT_LEADER, {"leader": "7"})
    with pytest.raises(MeshError) as fault:
        await one.overlay.call(NodeId(2), 4, b"", 5.0)
    assert fault.value.code is ErrorCode.INTERNAL
    with pytest.raises(MeshError) as unknown:
        await one.overlay.call(NodeId(2), 99, b"", 5.0)
    assert unknown.value.code is ErrorCode.INVALID_ARGUMENT


async def test_request_without_answer_ends_at_its_deadline(sites: Sites) -> None:
    one, two = await pair(sites)

    async def never(_source: NodeId, _body: bytes) -> bytes:
        await asyncio.Event().wait()
        return b""

    two.overlay.serve(3, never)
    with pytest.raises(MeshError) as late:
        await one.overlay.call(NodeId(2), 3, b"", 0.1)
    assert late.value.code is ErrorCode.DEADLINE_EXCEEDED
    with pytest.raises(MeshError) as nowhere:
        await one.overlay.call(NodeId(9), 3, b"", 0.1)
    assert nowhere.value.code is ErrorCode.NO_PATH


async def test_request_is_repeated_until_the_link_is_there(sites: Sites) -> None:
    one, two = await sites.start(1), await sites.start(2)

    async def echo(_source: NodeId, body: bytes) -> bytes:
        return body

    two.overlay.serve(3, echo)
    sites.configure(sites.view(1), 1)
    call = asyncio.create_task(one.overlay.call(NodeId(2), 3, b"early", 20.0))
    await asyncio.sleep(0)
    sites.configure(sites.view(1), 2)
    assert await call == b"early"


async def test_joiner_talks_only_to_its_neighbour_and_only_join(sites: Sites) -> None:
    one, joiner = await sites.start(1), await sites.start(9)
    sites.configure(sites.view(1), 1)
    questions: list[Delivery] = []
    answers: list[Delivery] = []
    one.overlay.bind(Protocol.JOIN, questions.append)
    joiner.overlay.bind(Protocol.JOIN, answers.append)
    lane = await joiner.overlay.open_join_lane(one.address, "new", delegated_signer(JOINER_KEY))
    assert (lane.peer.node_id, lane.peer.mesh_id, lane.peer.name) == (1, MESH, "n1")
    assert joiner.overlay.send_join(lane.lane_id, CONTROL, b"may I?")
    await until("the question", lambda: questions)
    assert questions[0].source == NO_NODE
    joiner_key = Ed25519PrivateKey.from_private_bytes(JOINER_KEY).public_key().public_bytes_raw()
    assert questions[0].lane_public_key == joiner_key
    assert one.overlay.send_join(questions[0].lane_id, CONTROL, b"yes")
    await until("the answer", lambda: answers)
    assert (answers[0].source, answers[0].lane_id, bytes(answers[0].payload)) == (NO_NODE, lane.lane_id, b"yes")
    assert one.links_up() == set()
    joiner.overlay.close_join_lane(lane.lane_id)
    await until("the end", lambda: not one.overlay._sessions and not joiner.overlay._sessions)
    assert not joiner.overlay.send_join(lane.lane_id, CONTROL, b"late")


async def test_join_lanes_are_capped(sites: Sites) -> None:
    one, joiner = await sites.start(1), await sites.start(9)
    sites.configure(sites.view(1), 1)
    lanes = [
        await joiner.overlay.open_join_lane(one.address, "new", delegated_signer(JOINER_KEY))
        for _ in range(JOIN_LANES_PER_ADDRESS_MAX)
    ]
    await until("all lanes", lambda: one.overlay.core.join_lane_count() == JOIN_LANES_PER_ADDRESS_MAX)
    # The handshake is done when this side has checked the other; the refusal comes right behind.
    late = await joiner.overlay.open_join_lane(one.address, "new", delegated_signer(JOINER_KEY))
    await until("its refusal", lambda: late.lane_id not in joiner.overlay._sessions)
    assert one.overlay.refusals == {ErrorCode.HANDSHAKE_FAILED: 1}
    for lane in lanes:
        joiner.overlay.close_join_lane(lane.lane_id)
    await until("their end", lambda: one.overlay.core.join_lane_count() == 0)
    await until("their places", lambda: not one.overlay._join_lanes_from)
    await joiner.overlay.open_join_lane(one.address, "new", delegated_signer(JOINER_KEY))
    await until("the next", lambda: one.overlay.core.join_lane_count() == 1)


async def test_a_node_that_cannot_be_joined_through_any_more_says_so_at_once(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, joiner = await sites.start(1), await sites.start(9)
    sites.configure(sites.view(1), 1)
    monkeypatch.setattr(one.overlay.core, "join_lane_count", lambda: JOIN_LANES_MAX)
    with pytest.raises(MeshError) as refusal:
        await joiner.overlay.open_join_lane(one.address, "new", delegated_signer(JOINER_KEY))
    assert (refusal.value.code, refusal.value.retryable) == (ErrorCode.HANDSHAKE_FAILED, True)


async def test_joining_through_a_node_that_is_no_member_is_refused(sites: Sites) -> None:
    one, joiner = await sites.start(1), await sites.start(9)
    with pytest.raises(MeshError) as refusal:
        await joiner.overlay.open_join_lane(one.address, "new", delegated_signer(JOINER_KEY))
    assert refusal.value.code is ErrorCode.HANDSHAKE_FAILED
    await until("the count", lambda: one.overlay.refusals == {ErrorCode.HANDSHAKE_FAILED: 1})


async def test_join_address_where_nobody_answers_or_something_else_does(sites: Sites) -> None:
    joiner = await sites.start(9)

    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(MeshError) as foreign:
            await joiner.overlay.open_join_lane(f"wss://127.0.0.1:{port}", "new", delegated_signer(JOINER_KEY))
    assert foreign.value.code is ErrorCode.WRONG_PROTOCOL
    with pytest.raises(MeshError) as nobody:
        await joiner.overlay.open_join_lane(f"wss://127.0.0.1:{free_ports(1)[0]}", "new", delegated_signer(JOINER_KEY))
    assert nobody.value.code is ErrorCode.ADDRESS_UNREACHABLE
    for address in ("wss://", "wss://127.0.0.1:99999", "http://x"):
        with pytest.raises(MeshError) as bad:
            await joiner.overlay.open_join_lane(address, "new", delegated_signer(JOINER_KEY))
        assert bad.value.code in {ErrorCode.INVALID_ARGUMENT, ErrorCode.ADDRESS_UNREACHABLE}


async def test_stopped_node_says_so_refuses_lanes_and_comes_back(sites: Sites) -> None:
    one, two = await pair(sites)
    view = sites.view(1)
    local = local_node(1)
    one.overlay.configure(local, view, is_running=False)
    await until("the end of the link", lambda: not two.links_up())
    link = two.overlay.core.link(NodeId(1))
    assert link is not None
    assert "stopping" in link.down_reason
    await until("a refusal", lambda: ErrorCode.NODE_STOPPED in two.overlay.refusals)
    one.overlay.configure(local, view, is_running=True)
    await until("the link again", lambda: two.links_up() == {1})


async def test_evicted_node_is_cut_at_once_and_cannot_return(sites: Sites) -> None:
    one, two = await pair(sites)
    view = sites.view(1)
    without = replace(view, revision=2, nodes={NodeId(1): view.nodes[NodeId(1)]})
    sites.configure(without, 1)
    assert one.links_up() == set()
    await until("the other knows", lambda: not two.links_up())
    await until("a refusal", lambda: one.overlay.refusals.get(ErrorCode.HANDSHAKE_FAILED))


async def test_node_that_changes_its_mesh_keeps_no_lane_of_the_old_one(sites: Sites) -> None:
    one, two = await pair(sites)
    other = replace(sites.view(1), mesh_id=OTHER_MESH)
    one.overlay.configure(local_node(1, OTHER_MESH), other, is_running=True)
    assert one.links_up() == set()
    await until("the other knows", lambda: not two.links_up())
    await until("a refusal", lambda: ErrorCode.MESH_ID_MISMATCH in two.overlay.refusals)


async def test_node_that_left_forgets_links_and_routes(sites: Sites) -> None:
    one, two = await pair(sites)
    seen: list[tuple[View | None, bool]] = []
    one.overlay.on_view(lambda view, is_running: seen.append((view, is_running)))
    one.overlay.configure(None, None, is_running=False)
    assert seen[-1] == (None, False)
    assert one.overlay.node_id == NO_NODE
    assert list(one.overlay.core.links()) == []
    await until("the other knows", lambda: not two.links_up())


async def test_goodbye_reaches_the_neighbour_before_the_process_ends(sites: Sites) -> None:
    one, two = await pair(sites)
    await two.overlay.say_goodbye()
    await until("the end of the link", lambda: not one.links_up())
    link = one.overlay.core.link(NodeId(2))
    assert link is not None
    assert link.down_reason == "the node is stopping: the node is shutting down"
    assert not two.overlay._sessions


async def test_packet_for_nobody_is_dropped_and_counted(sites: Sites) -> None:
    one, two = await pair(sites)
    one.overlay.send(Protocol.RAFT_MCG, CONTROL, NodeId(2), b"?")
    dropped = two.overlay.core.forwarder.counters.dropped
    await until("the drop", lambda: dropped[DropReason.NO_RECEIVER] == 1)


async def test_what_is_no_address_in_the_view_is_not_dialled_and_ends_nothing(sites: Sites) -> None:
    """An older version committed whatever a joiner advertised; each data plane ended at it, and again at each start."""
    one, two = await sites.start(1), await sites.start(2)
    view = sites.view(1)
    odd = Node(NodeId(3), "odd", public_key(3), "wss://u@é:1", NodeState.ACTIVE)
    sites.configure(replace(view, nodes={**view.nodes, NodeId(3): odd}))
    await until("the link", lambda: one.links_up() == {2} and two.links_up() == {1})
    assert one.overlay.undiallable == two.overlay.undiallable == {NodeId(3): "wss://u@é:1"}
    assert not one.task.done()


async def test_dial_that_fails_for_no_expected_reason_is_tried_again(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = 0

    async def fail_first(address: str, timeout_s: float, tls: ssl.SSLContext | None) -> FrameSocket:
        nonlocal failures
        if failures < 3:
            failures += 1
            raise AssertionError("a parser that does not keep its word")
        return await connect_lane(address, timeout_s, tls)

    monkeypatch.setattr(overlay_module, "connect_lane", fail_first)
    one, two = await pair(sites)
    assert failures == 3
    assert not one.task.done()
    assert not two.task.done()


async def test_join_dial_that_fails_for_no_expected_reason_is_told(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    joiner = await sites.start(9)

    async def fail(_address: str, _timeout_s: float) -> FrameSocket:
        raise AssertionError("a parser that does not keep its word")

    monkeypatch.setattr(overlay_module, "connect_lane", fail)
    with pytest.raises(MeshError) as failure:
        await joiner.overlay.open_join_lane("wss://127.0.0.1:1", "new", delegated_signer(JOINER_KEY))
    assert failure.value.code is ErrorCode.INTERNAL
    assert not joiner.task.done()


async def test_receiver_and_watchers_that_fail_end_nothing(sites: Sites) -> None:
    """Packets of peers go through the stream groups' and the control plane's own code: its faults are contained."""
    one, two = await sites.start(1), await sites.start(2)

    def fail(*_arguments: object) -> None:
        raise ZeroDivisionError("a fault of ours")

    def fail_on(delivery: Delivery) -> None:
        failed.append(delivery)
        fail()

    received: list[Delivery] = []
    failed: list[Delivery] = []
    one.overlay.on_links(fail)
    one.overlay._view_callbacks.append(fail)
    one.overlay.bind(Protocol.SWIM, fail_on)
    sites.configure(sites.view(1))
    await until("the link", lambda: one.links_up() == {2} and two.links_up() == {1})
    assert two.send(1, b"that fails")
    await until("the packet", lambda: len(failed) == 1)
    one.overlay.bind(Protocol.SWIM, received.append)
    assert two.send(1, b"that does not")
    await until("the packet", lambda: [bytes(item.payload) for item in received] == [b"that does not"])
    assert one.links_up() == {2}


async def test_joiner_that_sends_much_stays_within_the_limits_of_a_stranger(sites: Sites) -> None:
    one, joiner = await sites.start(1), await sites.start(9)
    sites.configure(sites.view(1), 1)
    lane = await joiner.overlay.open_join_lane(one.address, "new", delegated_signer(JOINER_KEY))
    await until("the lane", lambda: one.overlay.core.join_lane_count() == 1)
    joiner.overlay.send_join(lane.lane_id, CONTROL, bytes(1 << 20))
    await until("its end", lambda: one.overlay.core.join_lane_count() == 0)
    assert not one.task.done()
    # The answer to a joiner may be large: it is the view of the whole mesh.
    answers: list[Delivery] = []
    joiner.overlay.bind(Protocol.JOIN, answers.append)
    lane = await joiner.overlay.open_join_lane(one.address, "new", delegated_signer(JOINER_KEY))
    await until("the lane", lambda: one.overlay.core.join_lane_count() == 1)
    [session] = one.overlay._sessions.values()
    assert one.overlay.send_join(session.lane_id, CONTROL, bytes(1 << 20))
    await until("the answer", lambda: [len(item.payload) for item in answers] == [1 << 20])


async def test_address_of_a_member_that_was_dialled_keeps_its_place_among_strangers(sites: Sites) -> None:
    """A node that has just started has accepted nobody yet: strangers could fill every place that is not reserved."""
    _, two = await pair(sites)
    held = 0
    while two.listener.gate.enter(f"192.0.2.{held}"):
        held += 1
    assert two.listener.gate.enter("127.0.0.1")


async def test_lane_of_another_membership_than_the_present_one_is_not_taken(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node changes to another mesh, where it has the same number, between a handshake's end and the lane's beginning."""
    one, _ = await sites.start(1), await sites.start(2)
    view, released, shaken = sites.view(1), asyncio.Event(), asyncio.Event()

    async def slow(socket: FrameSocket, handshake: Handshake, clock: Callable[[], float]) -> PeerNode:
        peer = await shake_hands(socket, handshake, clock)
        shaken.set()
        await released.wait()
        return peer

    monkeypatch.setattr(lane_handshakes, "shake_hands", slow)
    sites.configure(view)
    await until("the handshake", shaken.is_set)
    changes: list[set[int]] = []
    one.overlay.on_links(lambda: changes.append(one.links_up()))
    local = local_node(1, OTHER_MESH)
    one.overlay.configure(local, replace(view, mesh_id=OTHER_MESH), is_running=True)
    released.set()
    await until("the refusal", lambda: ErrorCode.MESH_ID_MISMATCH in one.overlay.refusals)
    assert changes == []
