"""The whole service against the other services of its site, which are gRPC servers in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest

from mesh_control.main import main
from mesh_control.shell.peer_calls import Method
from meshapi.control.v1 import join_pb2
from meshapi.data.v1 import data_pb2, data_pb2_grpc
from meshapi.overlay.v1 import overlay_pb2, overlay_pb2_grpc
from meshapi.routing.v1 import routing_pb2, routing_pb2_grpc
from meshapi.supervisor.v1 import mesh_pb2, mesh_pb2_grpc
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.grpc_client import mesh_error, open_channel
from meshcommon.grpc_server import GrpcServer
from meshcommon.lifecycle import Stop
from meshcommon.requests import Requests
from meshtest.ports import free_ports
from meshwire.packet import Protocol
from meshwire.request import OkResponse, Request

OPEN, DESTROYED = data_pb2.GROUP_STATE_OPEN, data_pb2.GROUP_STATE_DESTROYED


@dataclass
class FakeDataPlane(data_pb2_grpc.DataPlaneServiceServicer, overlay_pb2_grpc.OverlayServiceServicer):
    """Takes configurations, carries packets by hand, reports the groups that the test names."""

    configured: list[data_pb2.ConfigureRequest] = field(default_factory=list)
    sent: list[overlay_pb2.OutPacket] = field(default_factory=list)
    bound: list[int] = field(default_factory=list)
    incoming: asyncio.Queue[overlay_pb2.InPacket] = field(default_factory=asyncio.Queue)
    groups: asyncio.Queue[data_pb2.WatchGroupsResponse] = field(default_factory=asyncio.Queue)
    lane: overlay_pb2.OpenJoinLaneResponse | None = None

    async def Configure(self, request: Any, context: Any) -> data_pb2.ConfigureResponse:  # noqa: N802
        self.configured.append(request)
        return data_pb2.ConfigureResponse(revision=request.view.revision)

    async def WatchGroups(self, request: Any, context: Any) -> AsyncIterator[data_pb2.WatchGroupsResponse]:  # noqa: N802
        yield data_pb2.WatchGroupsResponse()
        while True:
            yield await self.groups.get()

    async def Attach(self, request_iterator: Any, context: Any) -> AsyncIterator[overlay_pb2.AttachResponse]:  # noqa: N802
        async def listen() -> None:
            async for request in request_iterator:
                self.bound.extend(request.bind.protocols)
                self.sent.extend(request.send.packets)

        listening = asyncio.create_task(listen())
        try:
            while True:
                packet = await self.incoming.get()
                yield overlay_pb2.AttachResponse(deliver=overlay_pb2.AttachDeliver(packets=[packet]))
        finally:
            listening.cancel()

    async def OpenJoinLane(self, request: Any, context: Any) -> overlay_pb2.OpenJoinLaneResponse:  # noqa: N802
        if self.lane is None:
            raise MeshError(ErrorCode.ADDRESS_UNREACHABLE, "Nothing answers there: check the address.")
        return self.lane

    async def CloseJoinLane(self, request: Any, context: Any) -> overlay_pb2.CloseJoinLaneResponse:  # noqa: N802
        return overlay_pb2.CloseJoinLaneResponse()

    def report(self, stream_id: int, state: data_pb2.GroupState.ValueType) -> None:
        """Says what the local replica does."""
        report = data_pb2.GroupReport(stream_id=stream_id, state=state, leader_node=1)
        self.groups.put_nowait(data_pb2.WatchGroupsResponse(groups=[report]))


@dataclass
class FakeRouting(routing_pb2_grpc.RoutingServiceServicer):
    """Takes configurations."""

    configured: list[routing_pb2.ConfigureRequest] = field(default_factory=list)

    async def Configure(self, request: Any, context: Any) -> routing_pb2.ConfigureResponse:  # noqa: N802
        self.configured.append(request)
        return routing_pb2.ConfigureResponse(revision=request.view.revision)


@dataclass
class FakeSite:
    """A control plane and its stand-in neighbours."""

    data_port: int
    routing_port: int
    admin_port: int
    api: mesh_pb2_grpc.MeshServiceAsyncStub
    data: FakeDataPlane = field(default_factory=FakeDataPlane)
    routing: FakeRouting = field(default_factory=FakeRouting)
    servers: dict[str, GrpcServer] = field(default_factory=dict)

    async def start_data(self) -> None:
        """Starts the data plane (again)."""
        server = GrpcServer()
        data_pb2_grpc.add_DataPlaneServiceServicer_to_server(self.data, server.server)
        overlay_pb2_grpc.add_OverlayServiceServicer_to_server(self.data, server.server)
        await server.start(f"127.0.0.1:{self.data_port}", "data plane")
        await server.set_serving(True)
        self.servers["data"] = server

    async def start_routing(self) -> None:
        """Starts routing (again)."""
        server = GrpcServer()
        routing_pb2_grpc.add_RoutingServiceServicer_to_server(self.routing, server.server)
        await server.start(f"127.0.0.1:{self.routing_port}", "routing")
        await server.set_serving(True)
        self.servers["routing"] = server

    async def kill(self, name: str) -> None:
        """Ends a service without grace."""
        await self.servers.pop(name).server.stop(0)

    async def eventually(self, condition: Callable[[], bool]) -> None:
        """Waits until `condition` holds; fails at the deadline."""
        deadline = asyncio.get_running_loop().time() + 15
        while not condition():
            assert asyncio.get_running_loop().time() < deadline, "the condition did not become true in time"
            await asyncio.sleep(0.02)

    async def admit(self, name: str) -> int:
        """Joins another node by packets, as its lane would carry them; returns its id."""
        joiner = Requests(first_id=1)
        body = join_pb2.JoinRequest(name=name, public_key=name.encode() * 32).SerializeToString()
        _, outgoing = joiner.start(0, Request(int(Method.JOIN), 5000, body), 5.0, 0.0, lane_id=7)
        packet = overlay_pb2.InPacket(protocol=Protocol.JOIN, source=0, lane_id=7, payload=outgoing.payload)
        self.data.incoming.put_nowait(packet)
        await self.eventually(lambda: any(packet.lane_id == 7 for packet in self.data.sent))
        answer = next(packet for packet in self.data.sent if packet.lane_id == 7)
        taken = joiner.receive(0, 7, answer.payload)
        assert isinstance(taken, tuple)
        assert isinstance(taken[1], OkResponse)
        return join_pb2.JoinResponse.FromString(bytes(taken[1].body)).node_id


@asynccontextmanager
async def running(site: FakeSite) -> AsyncIterator[None]:
    """The control plane while inside; its failure fails the test."""
    stop = Stop()
    task = asyncio.create_task(main(stop))
    try:
        await site.api.GetStatus(mesh_pb2.GetStatusRequest(), wait_for_ready=True, timeout=15)
        yield
    finally:
        stop.request()
        await task


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeSite]:
    """A site whose control plane does not run yet."""
    control, admin, data, routing = free_ports(4)
    values = {
        "NODE_NAME": "a",
        "NODE_DATA_DIR": str(tmp_path),
        "NODE_LOG_LEVEL": "warning",
        "CONTROL_GRPC_LISTEN": f"127.0.0.1:{control}",
        "CONTROL_ADMIN_LISTEN": f"127.0.0.1:{admin}",
        "CONTROL_DATA_TARGET": f"127.0.0.1:{data}",
        "CONTROL_ROUTING_TARGET": f"127.0.0.1:{routing}",
        "CONTROL_PEER_ADDRESS": "ws://127.0.0.1:1",
        "INSECURE_DEV": "1",
    }
    for key, value in values.items():
        monkeypatch.setenv(f"MESH_{key}", value)
    channel = open_channel(f"127.0.0.1:{control}")
    site = FakeSite(data, routing, admin, mesh_pb2_grpc.MeshServiceStub(channel))
    await site.start_data()
    await site.start_routing()
    yield site
    await channel.close()
    for name in list(site.servers):
        await site.kill(name)


async def refused(call: Any) -> MeshError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return mesh_error(caught.value, "control plane")


async def test_services_are_told_again_after_each_change_and_restart(site: FakeSite) -> None:
    async with running(site):
        seeded = await site.api.Seed(mesh_pb2.SeedRequest())
        await site.eventually(lambda: bool(site.routing.configured) and site.routing.configured[-1].node_id == 1)
        told = site.data.configured[-1]
        assert (told.identity.node_id, told.identity.name, told.is_running) == (1, "a", True)
        assert (len(told.identity.private_key), told.view.mesh_id) == (32, seeded.mesh_id)
        assert set(site.data.bound) == {Protocol.JOIN, Protocol.RAFT_MCG}

        assert await site.admit("b") == 2
        await site.eventually(lambda: len(site.data.configured[-1].view.nodes) == 2)
        await site.eventually(lambda: len(site.routing.configured[-1].view.nodes) == 2)

        for name, start, configured in (
            ("data", site.start_data, site.data.configured),
            ("routing", site.start_routing, site.routing.configured),
        ):
            await site.kill(name)
            configured.clear()
            await start()
            await site.eventually(lambda configured=configured: bool(configured))  # type: ignore[misc]
            assert len(configured[-1].view.nodes) == 2
        await site.eventually(lambda: any(packet.destination == 2 for packet in site.data.sent))


async def test_node_that_is_in_no_mesh_says_so_to_its_services(site: FakeSite) -> None:
    """Also after a crash in the middle of leaving."""
    async with running(site):
        await site.eventually(lambda: bool(site.data.configured and site.routing.configured))
        assert not site.data.configured[-1].HasField("identity")
        assert not site.data.configured[-1].HasField("view")
        assert site.routing.configured[-1].node_id == 0


async def test_stream_is_active_when_its_replica_is_open_and_gone_when_destroyed(site: FakeSite) -> None:
    async with running(site):
        await site.api.Seed(mesh_pb2.SeedRequest())
        await site.admit("b")
        creating = asyncio.ensure_future(
            site.api.CreateStream(mesh_pb2.CreateStreamRequest(name="demo/lines", members=["a", "b"]))
        )
        await site.eventually(lambda: bool(site.data.configured[-1].view.streams))
        site.data.report(1, OPEN)
        created = await creating
        assert created.stream.state == 2
        assert "two members" in created.warnings[0]
        listed = await site.api.ListStreams(mesh_pb2.ListStreamsRequest())
        assert [stream.name for stream in listed.streams] == ["demo/lines"]
        await site.api.DeleteStream(mesh_pb2.DeleteStreamRequest(name="demo/lines"))
        site.data.report(1, DESTROYED)
        # The other member never confirms: the tombstone stays, and the stream is gone for everybody who asks.
        await site.eventually(lambda: site.data.configured[-1].view.streams[0].state == 3)
        error = await refused(site.api.GetStream(mesh_pb2.GetStreamRequest(name="demo/lines")))
        assert error.code is ErrorCode.STREAM_NOT_FOUND
        assert not (await site.api.ListStreams(mesh_pb2.ListStreamsRequest())).streams


async def test_bad_calls_have_their_codes(site: FakeSite) -> None:
    async with running(site):
        join = mesh_pb2.JoinRequest
        early: list[tuple[Any, ErrorCode]] = [
            (site.api.Leave(mesh_pb2.LeaveRequest()), ErrorCode.NOT_A_MEMBER),
            (site.api.Stop(mesh_pb2.StopRequest()), ErrorCode.NOT_A_MEMBER),
            (site.api.Start(mesh_pb2.StartRequest()), ErrorCode.NOT_A_MEMBER),
            (site.api.ListStreams(mesh_pb2.ListStreamsRequest()), ErrorCode.NOT_A_MEMBER),
            (site.api.Join(join(address="http://x:1")), ErrorCode.INVALID_ARGUMENT),
            (site.api.Join(join(address="ws://127.0.0.1:1")), ErrorCode.ADDRESS_UNREACHABLE),
        ]
        for call, code in early:
            assert (await refused(call)).code is code
        site.data.lane = overlay_pb2.OpenJoinLaneResponse(lane_id=3, mesh_id="another", node_id=1, name="x")
        error = await refused(site.api.Join(join(address="ws://127.0.0.1:1", mesh_id="mine")))
        assert error.code is ErrorCode.MESH_ID_MISMATCH
        assert error.details == {"expected": "mine", "actual": "another"}

        await site.api.Seed(mesh_pb2.SeedRequest())
        create = mesh_pb2.CreateStreamRequest
        calls: list[tuple[Any, ErrorCode]] = [
            (site.api.Seed(mesh_pb2.SeedRequest()), ErrorCode.ALREADY_MEMBER),
            (site.api.Join(join(address="ws://127.0.0.1:1")), ErrorCode.ALREADY_MEMBER),
            (site.api.Leave(mesh_pb2.LeaveRequest()), ErrorCode.LAST_NODE),
            (site.api.CreateStream(create(name="x/y", members=["a"])), ErrorCode.MEMBER_COUNT),
            (site.api.CreateStream(create(name="x/y", members=["a"] * 11)), ErrorCode.MEMBER_COUNT),
            (site.api.CreateStream(create(name="x/y", members=["a", "z"])), ErrorCode.UNKNOWN_NODE),
            (site.api.CreateStream(create(name="x", members=["a", "z"])), ErrorCode.ILLEGAL_NAME),
            (site.api.GetStream(mesh_pb2.GetStreamRequest(name="x/y")), ErrorCode.STREAM_NOT_FOUND),
            (site.api.GetStream(mesh_pb2.GetStreamRequest(name="x")), ErrorCode.ILLEGAL_NAME),
            (site.api.DeleteStream(mesh_pb2.DeleteStreamRequest(name="x/y")), ErrorCode.STREAM_NOT_FOUND),
        ]
        for call, code in calls:
            assert (await refused(call)).code is code


async def test_admin_pages_tell_what_is_missing(site: FakeSite) -> None:
    await site.kill("routing")
    async with running(site), httpx.AsyncClient(base_url=f"http://127.0.0.1:{site.admin_port}") as admin:
        await site.api.Seed(mesh_pb2.SeedRequest())
        ready = await admin.get("/readyz")
        assert ready.status_code == 200
        status = await site.api.GetStatus(mesh_pb2.GetStatusRequest())
        for fragment in ("routing", "Postgres", "MESH_INSECURE_DEV"):
            assert any(fragment in warning for warning in status.warnings), fragment
        assert "mesh_control_is_leader 1.0" in (await admin.get("/metrics")).text


async def test_restart_keeps_the_place_and_the_key(site: FakeSite) -> None:
    async with running(site):
        seeded = await site.api.Seed(mesh_pb2.SeedRequest())
        key = site.data.configured[-1].identity.private_key
    site.data.configured.clear()
    async with running(site):
        status = await site.api.GetStatus(mesh_pb2.GetStatusRequest())
        assert (status.node_id, status.view.mesh_id) == (1, seeded.mesh_id)
        await site.eventually(lambda: bool(site.data.configured))
        assert site.data.configured[-1].identity.private_key == key


async def test_port_in_use_ends_the_start(site: FakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_CONTROL_GRPC_LISTEN", f"127.0.0.1:{site.data_port}")
    with pytest.raises(BaseExceptionGroup) as caught:
        await main(Stop())
    found = caught.value.subgroup(MeshError)
    assert found is not None
    assert "ADDRESS_IN_USE" in str(found.exceptions[0])
