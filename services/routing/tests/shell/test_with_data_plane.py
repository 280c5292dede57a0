"""The service's shell against a data plane that is a gRPC server in this process."""

from __future__ import annotations

import asyncio
import random
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from mesh_routing.core.config import preset
from mesh_routing.core.lsa import Lsa, LsaLink, LsaMessage
from mesh_routing.core.lsa_codec import decode_message, encode_message
from mesh_routing.core.lsa_signature import LsaSignatures
from mesh_routing.core.router import OutMessage, Router
from mesh_routing.shell.driver import RoutingDriver
from mesh_routing.shell.metrics import RoutingMetrics
from mesh_routing.shell.overlay_client import QUEUE_LIMITS, OverlayClient
from mesh_routing.shell.routes_pusher import RoutesPusher
from mesh_routing.shell.routing_service import RoutingService
from mesh_routing.shell.topology_service import TopologyService
from mesh_routing.shell.view_store import ViewStore
from meshapi.common.v1 import view_pb2
from meshapi.data.v1 import data_pb2, data_pb2_grpc
from meshapi.overlay.v1 import overlay_pb2, overlay_pb2_grpc
from meshapi.routing.v1 import routing_pb2, routing_pb2_grpc
from meshapi.supervisor.v1 import topology_pb2_grpc
from meshcommon.admin import Readiness
from meshcommon.barrier import UNEXPECTED_ERRORS
from meshcommon.datadir import DataDir
from meshcommon.delegated_keys import DELEGATED_KEY, DelegatedKeys
from meshcommon.delegation import Delegation, Delegations, Grantor, Use
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.grpc_client import mesh_error, open_channel
from meshcommon.grpc_server import GrpcServer
from meshcommon.ids import NodeId
from meshcommon.key_signer import KeySigner
from meshtest.delegated import delegated_signer, local_identity
from meshwire.packet import Protocol

DEADLINE_S = 10.0
A, B, C = NodeId(1), NodeId(2), NodeId(3)
SEEDS = {node: bytes([0xC0 + node]) * 32 for node in (A, B, C)}
MESH, OTHER_MESH = "0b0f9c4e-3c5a-4b6e-9a52-3d0b5f0a7c11", "7f0e4a52-91d6-4c58-8d2e-51a5f3f0c922"


async def eventually(condition: Callable[[], bool]) -> None:
    """Waits until `condition` holds."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


def signed(lsa: Lsa, by: NodeId) -> Lsa:
    """As routing of the node `by` signs it."""
    signer = delegated_signer(SEEDS[by], MESH, by, Use.LINK_STATES)
    return LsaSignatures(MESH, 0, Delegations(time.time)).sign(lsa, signer)


class FakeDataPlane(overlay_pb2_grpc.OverlayServiceServicer, data_pb2_grpc.DataPlaneServiceServicer):
    """One attached client, a route table, and neighbours that answer as they are told."""

    def __init__(self) -> None:
        self.node_id = A
        self.links: dict[NodeId, int] = {}
        self.sent: list[overlay_pb2.OutPacket] = []
        self.pushes: list[data_pb2.PushRoutesRequest] = []
        self.version = 0
        self.routes: dict[int, list[list[int]]] = {}
        self.refuses_pushes = False
        self._to_client: asyncio.Queue[overlay_pb2.AttachResponse] = asyncio.Queue()
        self.attachments = 0

    async def Attach(self, request_iterator: AsyncIterator[overlay_pb2.AttachRequest], context: Any) -> Any:  # noqa: N802
        self._to_client = asyncio.Queue()
        self.attachments += 1
        self.report_links()
        async with asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(self._read(request_iterator))
            try:
                while True:
                    yield await self._to_client.get()
            finally:
                reader.cancel()

    async def _read(self, requests: AsyncIterator[overlay_pb2.AttachRequest]) -> None:
        async for request in requests:
            self.sent.extend(request.send.packets)

    async def OpenJoinLane(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise AssertionError

    async def CloseJoinLane(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise AssertionError

    async def Configure(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise AssertionError

    async def GetDelegatedKey(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise AssertionError

    def WatchGroups(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise AssertionError

    async def PushRoutes(self, request: data_pb2.PushRoutesRequest, context: Any) -> Any:  # noqa: N802
        if self.refuses_pushes:
            raise MeshError(ErrorCode.NOT_A_MEMBER, "Not yet.")
        self.pushes.append(request)
        if request.base_version in {0, self.version}:
            if not request.base_version:
                self.routes.clear()
            for route in request.changed:
                self.routes[route.destination] = [list(path.nodes) for path in route.paths]
            for destination in request.removed:
                del self.routes[destination]
            self.version = request.version
        return data_pb2.PushRoutesResponse(version=self.version)

    def report_links(self) -> None:
        links = [overlay_pb2.LinkState(peer=peer, is_up=rtt > 0, rtt_us=rtt) for peer, rtt in self.links.items()]
        message = overlay_pb2.AttachLinks(node_id=self.node_id, links=links)
        self._to_client.put_nowait(overlay_pb2.AttachResponse(links=message))

    def deliver(self, source: NodeId, message: LsaMessage) -> None:
        packet = overlay_pb2.InPacket(protocol=Protocol.LSA, source=source, payload=encode_message(message))
        self.deliver_packet(packet)

    def deliver_packet(self, packet: overlay_pb2.InPacket) -> None:
        deliver = overlay_pb2.AttachDeliver(packets=[packet])
        self._to_client.put_nowait(overlay_pb2.AttachResponse(deliver=deliver))

    def advertise(self, source: NodeId, origin: NodeId, sequence: int, *peers: NodeId) -> None:
        """`source` floods an advertisement and a digest that says it holds what it could hold."""
        unsigned = Lsa(origin, sequence, tuple(LsaLink(peer, 1_000) for peer in peers))
        lsa = signed(unsigned, origin)
        self.deliver(source, LsaMessage((lsa,), (), (lsa.key,)))

    def own_lsas(self, peer: NodeId) -> list[Lsa]:
        messages = [decode_message(packet.payload) for packet in self.sent if packet.destination == peer]
        return [lsa for message in messages for lsa in message.lsas if lsa.origin == self.node_id]


@dataclass
class Site:
    """Routing and its fake data plane."""

    data_plane: FakeDataPlane
    driver: RoutingDriver
    readiness: Readiness
    metrics: RoutingMetrics
    routing: routing_pb2_grpc.RoutingServiceAsyncStub
    topology: topology_pb2_grpc.TopologyServiceAsyncStub
    service: RoutingService
    overlay: OverlayClient
    restart_data_plane: Callable[[], Any]
    public_key: bytes
    names: tuple[str, ...] = field(default=("a", "b", "c"))

    async def configure(self, revision: int = 1, node_id: int = A, mesh_id: str = MESH) -> int:
        response = await self.routing.Configure(self.request(revision, node_id, mesh_id))
        return response.revision

    def request(self, revision: int = 1, node_id: int = A, mesh_id: str = MESH) -> routing_pb2.ConfigureRequest:
        nodes = [
            view_pb2.NodeView(node_id=node, name=name, public_key=KeySigner(SEEDS[node]).public_key)
            for node, name in zip(SEEDS, self.names, strict=True)
        ]
        view = view_pb2.MeshView(revision=revision, mesh_id=mesh_id, nodes=nodes)
        request = routing_pb2.ConfigureRequest(node_id=node_id, view=view)
        if node_id:
            told = local_identity(SEEDS[NodeId(node_id)], self.public_key, "a", mesh_id, node_id, Use.LINK_STATES)
            request.identity.CopyFrom(told)
        return request


async def serve_data_plane(fake: FakeDataPlane, port: int = 0) -> GrpcServer:
    server = GrpcServer()
    overlay_pb2_grpc.add_OverlayServiceServicer_to_server(fake, server.server)
    data_pb2_grpc.add_DataPlaneServiceServicer_to_server(fake, server.server)
    await server.start(f"127.0.0.1:{port}", "fake data plane")
    return server


@asynccontextmanager
async def running_site(path: Path, fake: FakeDataPlane | None = None) -> AsyncIterator[Site]:
    fake = fake or FakeDataPlane()
    data_plane_server = await serve_data_plane(fake)
    port = data_plane_server.port
    data_dir = DataDir.open(path, "routing", "a")
    readiness, metrics = Readiness(), RoutingMetrics(CollectorRegistry())
    router = Router(preset("test"), data_dir.marker.boot, random.Random(1), Delegations(time.time))
    driver = RoutingDriver(router, metrics)
    channel = open_channel(f"127.0.0.1:{port}")
    pusher = RoutesPusher(channel, driver, readiness, metrics)
    overlay = OverlayClient(channel, driver, readiness, metrics, pusher.resynchronise)
    keys = DelegatedKeys.load(path)
    service = RoutingService(driver, ViewStore(data_dir, keys), readiness, keys)
    server = GrpcServer()
    routing_pb2_grpc.add_RoutingServiceServicer_to_server(service, server.server)
    topology_pb2_grpc.add_TopologyServiceServicer_to_server(TopologyService(driver), server.server)
    await server.start("127.0.0.1:0", "routing")
    client = open_channel(f"127.0.0.1:{server.port}")
    servers = [data_plane_server]

    async def restart_data_plane() -> None:
        await servers[0].server.stop(None)
        servers[0] = await serve_data_plane(fake, port)

    service.restore()
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(task) for task in (driver.run(), overlay.run(), pusher.run())]
        try:
            await eventually(lambda: fake.attachments == 1)
            yield Site(
                data_plane=fake,
                driver=driver,
                readiness=readiness,
                metrics=metrics,
                routing=routing_pb2_grpc.RoutingServiceStub(client),
                topology=topology_pb2_grpc.TopologyServiceStub(client),
                service=service,
                overlay=overlay,
                restart_data_plane=restart_data_plane,
                public_key=keys.offer()[0],
            )
        finally:
            for task in running:
                task.cancel()
            for channel_or in (client, channel):
                await channel_or.close()
            await server.server.stop(None)
            await servers[0].server.stop(None)
            data_dir.close()


async def triangle(site: Site) -> None:
    """Brings a–b, a–c, b–c up, with b as the only neighbour that speaks for both."""
    await site.configure()
    site.data_plane.links = {B: 1_000, C: 1_000}
    site.data_plane.report_links()
    site.data_plane.advertise(B, B, 1, A, C)
    site.data_plane.advertise(C, C, 1, A, B)
    await eventually(lambda: site.data_plane.routes == {B: [[A, B], [A, C, B]], C: [[A, C], [A, B, C]]})


async def test_links_and_advertisements_become_routes(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        await triangle(site)
        assert site.data_plane.pushes[0].base_version == 0
        packet = site.data_plane.sent[0]
        assert (packet.protocol, packet.traffic_class, packet.is_link_local) == (Protocol.LSA, 0, True)
        assert site.readiness.warnings() == []


async def test_link_down_is_pushed_as_a_difference(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        await triangle(site)
        before = site.data_plane.version
        site.data_plane.links[C] = 0
        site.data_plane.report_links()
        await eventually(lambda: site.data_plane.routes == {B: [[A, B]], C: [[A, B, C]]})
        assert site.data_plane.pushes[-1].base_version >= before > 0
        assert [link.peer for link in site.data_plane.own_lsas(B)[-1].links] == [B]


async def test_data_plane_that_lost_its_routes_gets_the_whole_table(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        await triangle(site)
        site.data_plane.version = 77
        site.data_plane.routes.clear()
        site.data_plane.links[C] = 0
        site.data_plane.report_links()
        await eventually(lambda: site.data_plane.routes == {B: [[A, B]], C: [[A, B, C]]})
        assert site.data_plane.pushes[-1].base_version == 0


async def test_data_plane_restart_is_followed_by_exchange_and_whole_table(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        await triangle(site)
        site.data_plane.sent.clear()
        site.data_plane.pushes.clear()
        site.data_plane.version = 0
        site.data_plane.routes.clear()
        await site.restart_data_plane()
        await eventually(lambda: len(site.data_plane.routes) == 2 and site.data_plane.attachments >= 2)
        assert site.data_plane.pushes[0].base_version == 0
        await eventually(
            lambda: any(decode_message(packet.payload).database is not None for packet in site.data_plane.sent)
        )
        await eventually(lambda: site.readiness.reasons() == ["The service is starting."])


async def test_data_plane_that_refuses_routes_is_asked_again(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        site.data_plane.refuses_pushes = True
        await site.configure()
        site.data_plane.links = {B: 1_000}
        site.data_plane.report_links()
        site.data_plane.advertise(B, B, 1, A)
        await eventually(lambda: any("Routes wait" in text for text in site.readiness.warnings()))
        site.data_plane.refuses_pushes = False
        await eventually(lambda: site.data_plane.routes == {B: [[A, B]]})
        await eventually(lambda: site.readiness.warnings() == [])


async def test_links_of_another_identity_are_ignored(tmp_path: Path) -> None:
    fake = FakeDataPlane()
    fake.node_id = C
    async with running_site(tmp_path, fake) as site:
        fake.links = {B: 1_000}
        await site.configure()
        fake.report_links()
        await eventually(lambda: site.driver.table.version == 1)
        assert site.driver.router.lsdb.link_rows() == []
        fake.node_id = A
        fake.report_links()
        await eventually(lambda: len(site.driver.router.lsdb.link_rows()) == 1)


@pytest.mark.parametrize(
    "payload", [b"\xff\xff", encode_message(LsaMessage((Lsa(A, 2**63, ()),)))], ids=["garbage", "sequence"]
)
async def test_malformed_message_is_counted_and_changes_nothing(tmp_path: Path, payload: bytes) -> None:
    async with running_site(tmp_path) as site:
        await triangle(site)
        before = site.driver.router.lsdb.digest(0.0)
        site.data_plane.deliver_packet(overlay_pb2.InPacket(protocol=Protocol.LSA, source=B, payload=payload))
        counter = site.metrics.messages_malformed.labels("BAD_FIELD")
        await eventually(lambda: counter._value.get() == 1)
        assert site.driver.router.lsdb.digest(0.0) == before


async def test_restart_without_control_plane_knows_the_view(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        assert await site.configure(revision=5) == 5
        first = site.driver.router.lsdb.get(A)
    async with running_site(tmp_path) as site:
        assert site.driver.view.revision == 5
        second = site.driver.router.lsdb.get(A)
        assert first is not None
        assert second is not None
        assert second.sequence > first.sequence


async def test_older_view_is_ignored_and_leaving_forgets(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        assert await site.configure(revision=5) == 5
        assert await site.configure(revision=4) == 5
        assert await site.configure(revision=0, node_id=0, mesh_id="") == 0
        assert not site.driver.view.is_member
        assert not (tmp_path / "view.bin").exists()
        # A new membership, in the same directory.
        assert await site.configure(revision=1, node_id=2, mesh_id=OTHER_MESH) == 1
        assert site.driver.router.node_id == B


async def test_damaged_view_is_ignored(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        await site.configure()
    stored = (tmp_path / "view.bin").read_bytes()
    (tmp_path / "view.bin").write_bytes(stored[:-1] + bytes([stored[-1] ^ 1]))
    async with running_site(tmp_path) as site:
        assert not site.driver.view.is_member
        assert site.readiness.warnings() == ["This node is in no mesh yet: seed one or join one."]
        assert await site.configure() == 1


async def test_own_advertisements_are_signed_with_the_key_of_the_node(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        await triangle(site)
        signatures = LsaSignatures(MESH, 0, Delegations(time.time))
        signatures.set_keys({A: KeySigner(SEEDS[A]).public_key})
        assert all(signatures.is_valid(lsa) for lsa in site.data_plane.own_lsas(B))


async def test_forged_advertisement_is_counted_and_changes_nothing(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        await triangle(site)
        before = site.driver.router.lsdb.digest(0.0)
        forged = signed(Lsa(C, 2**62, ()), B)
        for number in range(50):
            site.data_plane.deliver(B, LsaMessage((replace(forged, sequence=forged.sequence + number),)))
        counter = site.metrics.bad_signatures
        await eventually(lambda: counter._value.get() == 50)
        assert site.driver.router.lsdb.digest(0.0) == before


async def test_failure_over_one_message_ends_only_that_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_site(tmp_path) as site:
        await triangle(site)
        honest = site.driver.router.receive

        def fail_for_c(peer: NodeId, payload: bytes, now: float) -> None:
            if peer == C:
                raise ZeroDivisionError
            honest(peer, payload, now)

        monkeypatch.setattr(site.driver.router, "receive", fail_for_c)
        failures = UNEXPECTED_ERRORS.labels("routing_message")._value.get()
        site.data_plane.advertise(C, C, 2, A)
        site.data_plane.advertise(B, C, 3, A)
        await eventually(lambda: site.data_plane.routes == {B: [[A, B]], C: [[A, C]]})
        assert UNEXPECTED_ERRORS.labels("routing_message")._value.get() == failures + 1


async def test_failed_turn_is_tried_again_after_a_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_site(tmp_path) as site:
        await site.configure()
        honest, failed = site.driver.router.tick, 0

        def fail(_now: float) -> None:
            nonlocal failed
            failed += 1
            raise ZeroDivisionError

        monkeypatch.setattr(site.driver.router, "tick", fail)
        site.data_plane.links = {B: 1_000}
        site.data_plane.report_links()
        await eventually(lambda: failed > 0)
        await asyncio.sleep(0.3)
        # Each report of the links is a turn, and so is each deadline, but none at full speed.
        assert failed < 10
        monkeypatch.setattr(site.driver.router, "tick", honest)
        site.data_plane.advertise(B, B, 1, A)
        await eventually(lambda: site.data_plane.routes == {B: [[A, B]]})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda request: setattr(request.identity, "public_key", b"short"),
        lambda request: setattr(request.identity, "public_key", KeySigner(SEEDS[B]).public_key),
        lambda request: setattr(request.identity.delegation, "public_key", bytes(32)),
        lambda request: setattr(request.identity.delegation, "use", Use.LANES),
        lambda request: setattr(request.identity.delegation, "signature", bytes(64)),
        lambda request: setattr(request.view.nodes[0], "public_key", bytes(32)),
        lambda request: request.identity.ClearField("delegation"),
        lambda request: request.ClearField("identity"),
        lambda request: setattr(request.identity, "node_id", 2),
        lambda request: setattr(request, "node_id", 2**64 - 1),
        lambda request: setattr(request.view.nodes[1], "node_id", 2**63),
    ],
    ids=[
        *("short key", "key of another", "for another key", "for lanes", "not signed", "not the committed key"),
        *("no delegation", "no identity", "id of another", "own id beyond 2^63", "id beyond 2^63"),
    ],
)
async def test_refused_configuration_changes_nothing(
    tmp_path: Path, spoil: Callable[[routing_pb2.ConfigureRequest], None]
) -> None:
    async with running_site(tmp_path) as site:
        await site.configure(revision=5)
        stored = (tmp_path / "view.bin").read_bytes()
        request = site.request(revision=6)
        spoil(request)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await site.routing.Configure(request)
        assert mesh_error(caught.value, "routing").code == ErrorCode.INVALID_ARGUMENT
        assert site.driver.view.revision == 5
        assert (tmp_path / "view.bin").read_bytes() == stored


async def test_key_is_kept_for_the_owner_alone_and_told_to_nobody(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with running_site(tmp_path) as site:
        await triangle(site)
        assert (tmp_path / "view.bin").stat().st_mode & 0o777 == 0o600
        packets = b"".join(packet.payload for packet in site.data_plane.sent)
    seed = (tmp_path / DELEGATED_KEY).read_bytes()[8:]
    assert seed not in packets
    written = "".join(capfd.readouterr())
    assert seed.hex() not in written
    assert repr(seed)[2:-1] not in written


async def test_key_of_this_service_is_made_once_and_outlives_its_membership(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        answer = await site.routing.GetDelegatedKey(routing_pb2.GetDelegatedKeyRequest())
        assert answer.public_key == site.public_key
        await site.configure()
        # Another membership empties the directory.
        assert await site.configure(node_id=2, mesh_id=OTHER_MESH) == 1
        assert (tmp_path / DELEGATED_KEY).stat().st_mode & 0o777 == 0o600
    async with running_site(tmp_path) as again:
        assert again.public_key == site.public_key
        assert again.driver.router.node_id == B


@pytest.mark.parametrize("is_of_another_key", [False, True], ids=["with-a-seed", "of-another-key"])
async def test_view_that_cannot_be_used_is_removed(tmp_path: Path, is_of_another_key: bool) -> None:
    """Versions before delegated keys kept the seed of the identity key in it."""
    async with running_site(tmp_path) as site:
        await site.configure()
        kept = site.request()
    if is_of_another_key:
        (tmp_path / DELEGATED_KEY).unlink()
    else:
        kept.identity.Clear()
        old = kept.SerializeToString() + b"\x1a\x24\x08\x01\x1a\x20" + SEEDS[A]
        (tmp_path / "view.bin").write_bytes(b"MRV1" + zlib.crc32(old).to_bytes(4, "big") + old)
    async with running_site(tmp_path) as again:
        assert not again.driver.view.is_member
        assert not (tmp_path / "view.bin").exists()
        assert await again.configure() == 1


async def test_no_seed_of_an_identity_is_kept(tmp_path: Path) -> None:
    """ID2: not even when a control plane of an earlier version, or a later one, sends more than is known here."""
    async with running_site(tmp_path) as site:
        told = site.request().SerializeToString() + b"\x1a\x22\x1a\x20" + SEEDS[A]
        request = routing_pb2.ConfigureRequest.FromString(told)
        assert SEEDS[A] in request.SerializeToString()
        await site.routing.Configure(request)
        assert SEEDS[A] not in (tmp_path / "view.bin").read_bytes()


async def test_older_view_with_a_newer_delegation_lends_it_to_the_view_in_force(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        await site.configure(revision=5)
        older = site.request(revision=4)
        grantor = Grantor(KeySigner(SEEDS[A]).public_key, MESH, 0, A)
        newer = Delegation.signed(KeySigner(SEEDS[A]), grantor, Use.LINK_STATES, site.public_key, time.time() + 60)
        older.identity.delegation.CopyFrom(newer.to_proto())
        assert (await site.routing.Configure(older)).revision == 5
        assert [lsa.delegation for lsa in site.driver.router.lsdb.lsas()] == [newer]
    async with running_site(tmp_path) as again:
        assert again.driver.view.revision == 5


async def test_neighbour_that_is_not_read_takes_only_its_share_of_the_queue(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        await triangle(site)
        client = site.overlay
        before = site.metrics.messages_dropped._value.get()
        # No turn of the loop between: the writer takes nothing meanwhile.
        client.send([OutMessage(B, bytes(64_000))] * 200)
        client.send([OutMessage(C, b"honest")])
        assert site.metrics.messages_dropped._value.get() - before == 200 - QUEUE_LIMITS.destination_bytes_max // 64_128
        await eventually(
            lambda: [packet.payload for packet in site.data_plane.sent if packet.destination == C][-1] == b"honest"
        )
        client.send([OutMessage(B, b"again")])
        await eventually(lambda: site.data_plane.sent[-1].payload == b"again")


async def test_a_mesh_id_that_is_no_uuid_changes_nothing(tmp_path: Path) -> None:
    """It would become part of files: a control plane passes on what another node has told it."""
    async with running_site(tmp_path) as site:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await site.configure(mesh_id="../m")
        assert mesh_error(caught.value, "routing").code is ErrorCode.INVALID_ARGUMENT
        assert not site.driver.view.is_member
        assert not (tmp_path / "view.bin").exists()
