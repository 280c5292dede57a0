"""The service's shell against a data plane that is a gRPC server in this process."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from mesh_routing.core.config import preset
from mesh_routing.core.lsa import Lsa, LsaLink, LsaMessage
from mesh_routing.core.lsa_codec import decode_message, encode_message
from mesh_routing.core.router import Router
from mesh_routing.shell.driver import RoutingDriver
from mesh_routing.shell.metrics import RoutingMetrics
from mesh_routing.shell.overlay_client import OverlayClient
from mesh_routing.shell.routes_pusher import RoutesPusher
from mesh_routing.shell.routing_service import RoutingService
from mesh_routing.shell.topology_service import TopologyService
from mesh_routing.shell.view_store import ViewStore
from meshapi.common.v1 import view_pb2
from meshapi.data.v1 import data_pb2, data_pb2_grpc
from meshapi.overlay.v1 import overlay_pb2, overlay_pb2_grpc
from meshapi.routing.v1 import routing_pb2, routing_pb2_grpc
from meshapi.supervisor.v1 import topology_pb2, topology_pb2_grpc
from meshcommon.admin import Readiness
from meshcommon.datadir import DataDir
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.grpc_client import mesh_error, open_channel
from meshcommon.grpc_server import GrpcServer
from meshcommon.ids import NodeId
from meshwire.packet import Protocol

DEADLINE_S = 10.0
A, B, C = NodeId(1), NodeId(2), NodeId(3)


async def eventually(condition: Callable[[], bool]) -> None:
    """Waits until `condition` holds."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


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
        lsa = Lsa(origin, sequence, tuple(LsaLink(peer, 1_000) for peer in peers))
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
    restart_data_plane: Callable[[], Any]
    names: tuple[str, ...] = field(default=("a", "b", "c"))

    async def configure(self, revision: int = 1, node_id: int = A, mesh_id: str = "m") -> int:
        nodes = [view_pb2.NodeView(node_id=index + 1, name=name) for index, name in enumerate(self.names)]
        view = view_pb2.MeshView(revision=revision, mesh_id=mesh_id, nodes=nodes)
        response = await self.routing.Configure(routing_pb2.ConfigureRequest(node_id=node_id, view=view))
        return response.revision


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
    driver = RoutingDriver(Router(preset("test"), data_dir.marker.boot, random.Random(1)), metrics)
    channel = open_channel(f"127.0.0.1:{port}")
    pusher = RoutesPusher(channel, driver, readiness, metrics)
    overlay = OverlayClient(channel, driver, readiness, metrics, pusher.resynchronise)
    service = RoutingService(driver, ViewStore(data_dir), readiness)
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
                restart_data_plane=restart_data_plane,
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


@pytest.mark.parametrize("payload", [b"\xff\xff", encode_message(LsaMessage((Lsa(A, 2**63, ()),)))])
async def test_malformed_message_is_counted_and_changes_nothing(tmp_path: Path, payload: bytes) -> None:
    async with running_site(tmp_path) as site:
        await triangle(site)
        before = site.driver.router.lsdb.digest()
        site.data_plane.deliver_packet(overlay_pb2.InPacket(protocol=Protocol.LSA, source=B, payload=payload))
        counter = site.metrics.messages_malformed.labels("BAD_FIELD")
        await eventually(lambda: counter._value.get() == 1)
        assert site.driver.router.lsdb.digest() == before


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
        assert await site.configure(revision=1, node_id=2, mesh_id="other") == 1
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


async def test_topology_by_name(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        await triangle(site)
        links = await site.topology.ListLinks(topology_pb2.ListLinksRequest())
        ends = [(getattr(link, "from"), link.to, link.is_two_way) for link in links.links]
        assert ends == [(left, right, True) for left in "abc" for right in "abc" if left != right]
        paths = await site.topology.ListPaths(topology_pb2.ListPathsRequest(**{"from": "b"}, to="c"))
        assert [list(path.nodes) for path in paths.paths] == [["b", "c"], ["b", "a", "c"]]
        assert links.topology_version == site.driver.router.lsdb.version


@pytest.mark.parametrize(
    ("start", "end", "code"),
    [
        ("a", "z", ErrorCode.UNKNOWN_NODE),
        ("z", "a", ErrorCode.UNKNOWN_NODE),
        ("a", "c", ErrorCode.NO_PATH),
        ("a", "a", ErrorCode.INVALID_ARGUMENT),
    ],
)
async def test_topology_refuses(tmp_path: Path, start: str, end: str, code: ErrorCode) -> None:
    async with running_site(tmp_path) as site:
        await site.configure()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await site.topology.ListPaths(topology_pb2.ListPathsRequest(**{"from": start}, to=end))
        assert mesh_error(caught.value, "routing").code == code


async def test_topology_outside_a_mesh(tmp_path: Path) -> None:
    async with running_site(tmp_path) as site:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await site.topology.ListLinks(topology_pb2.ListLinksRequest())
        assert mesh_error(caught.value, "routing").code == ErrorCode.NOT_A_MEMBER
