"""The whole service against the other services of its site, which are gRPC servers in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest

from mesh_control import main as control_main
from mesh_control.core.timing import TIMINGS, Timing
from mesh_control.core.versions import MESH_VERSION
from mesh_control.main import main
from mesh_control.shell import config_push
from mesh_control.shell.leadership import Leadership
from mesh_control.shell.peer_calls import Method
from meshapi.common.v1 import view_pb2
from meshapi.control.v1 import join_pb2
from meshapi.data.v1 import data_pb2, data_pb2_grpc
from meshapi.overlay.v1 import overlay_pb2, overlay_pb2_grpc
from meshapi.routing.v1 import routing_pb2, routing_pb2_grpc
from meshapi.supervisor.v1 import mesh_pb2, mesh_pb2_grpc
from meshcommon.delegation import RENEW_AFTER_S, DelegatedSigner, Use
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.grpc_client import mesh_error, open_channel
from meshcommon.grpc_server import GrpcServer
from meshcommon.ids import NodeId
from meshcommon.key_signer import IDENTITY_KEY, PRIVATE_KEY_BYTES, KeySigner
from meshcommon.lifecycle import Stop
from meshcommon.membership import Membership, Vouch
from meshcommon.requests import Requests
from meshtest.ports import free_ports
from meshwire.packet import Protocol
from meshwire.request import OkResponse, Request

OPEN, DESTROYED = data_pb2.GROUP_STATE_OPEN, data_pb2.GROUP_STATE_DESTROYED


DATA_KEY, ROUTING_KEY = KeySigner(b"d" * 32), KeySigner(b"r" * 32)


@dataclass
class FakeDataPlane(data_pb2_grpc.DataPlaneServiceServicer, overlay_pb2_grpc.OverlayServiceServicer):
    """Takes configurations, carries packets by hand, reports the groups that the test names."""

    configured: list[data_pb2.ConfigureRequest] = field(default_factory=list)
    sent: list[overlay_pb2.OutPacket] = field(default_factory=list)
    bound: list[int] = field(default_factory=list)
    incoming: asyncio.Queue[overlay_pb2.InPacket] = field(default_factory=asyncio.Queue)
    groups: asyncio.Queue[data_pb2.WatchGroupsResponse] = field(default_factory=asyncio.Queue)
    lane: overlay_pb2.OpenJoinLaneResponse | None = None
    key: bytes = DATA_KEY.public_key
    made_at_s: int = field(default_factory=lambda: int(time.time()))
    joining: list[overlay_pb2.OpenJoinLaneRequest] = field(default_factory=list)

    async def Configure(self, request: Any, context: Any) -> data_pb2.ConfigureResponse:  # noqa: N802
        self.configured.append(request)
        return data_pb2.ConfigureResponse(revision=request.view.revision)

    async def GetDelegatedKey(self, request: Any, context: Any) -> data_pb2.GetDelegatedKeyResponse:  # noqa: N802
        return data_pb2.GetDelegatedKeyResponse(public_key=self.key, made_at_s=self.made_at_s)

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
        self.joining.append(request)
        if self.lane is None:
            raise MeshError(ErrorCode.ADDRESS_UNREACHABLE, "Nothing answers there: check the address.")
        return self.lane

    async def CloseJoinLane(self, request: Any, context: Any) -> overlay_pb2.CloseJoinLaneResponse:  # noqa: N802
        return overlay_pb2.CloseJoinLaneResponse()

    def report(self, stream_id: int, state: data_pb2.GroupState.ValueType, leader_node: int = 1) -> None:
        """Says what the local replica, which is member 1, does."""
        report = data_pb2.GroupReport(stream_id=stream_id, state=state, leader_node=leader_node, member_id=1)
        self.groups.put_nowait(data_pb2.WatchGroupsResponse(groups=[report]))


@dataclass
class FakeRouting(routing_pb2_grpc.RoutingServiceServicer):
    """Takes configurations."""

    configured: list[routing_pb2.ConfigureRequest] = field(default_factory=list)
    key: bytes = ROUTING_KEY.public_key
    made_at_s: int = field(default_factory=lambda: int(time.time()))

    async def GetDelegatedKey(self, request: Any, context: Any) -> routing_pb2.GetDelegatedKeyResponse:  # noqa: N802
        return routing_pb2.GetDelegatedKeyResponse(public_key=self.key, made_at_s=self.made_at_s)

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
        """Joins another node by packets, as its lane would carry them; returns its id when the leader has it as heard."""
        key = name.encode() * 32
        body = join_pb2.JoinRequest(name=name, public_key=key, mesh_version=MESH_VERSION).SerializeToString()
        answer = await self._ask(Method.JOIN, body, overlay_pb2.InPacket(lane_id=7, lane_public_key=key))
        node_id = join_pb2.JoinResponse.FromString(answer).node_id
        await self.eventually(lambda: self._is_active(node_id))
        return node_id

    def _is_active(self, node_id: int) -> bool:
        nodes = self.data.configured[-1].view.nodes
        return any(node.node_id == node_id and node.state == view_pb2.NODE_STATE_ACTIVE for node in nodes)

    async def _ask(self, method: Method, body: bytes, packet: overlay_pb2.InPacket) -> bytes:
        """Asks as the sender of `packet` would; returns the body of the answer."""
        asker, before = Requests(first_id=len(self.data.sent) + 1), len(self.data.sent)
        _, outgoing = asker.start(0, Request(int(method), 5000, body), 5.0, 0.0, lane_id=packet.lane_id)
        packet.protocol, packet.payload = Protocol.JOIN, outgoing.payload
        self.data.incoming.put_nowait(packet)

        def answers() -> list[overlay_pb2.OutPacket]:
            return [item for item in self.data.sent[before:] if item.protocol == Protocol.JOIN]

        await self.eventually(lambda: bool(answers()))
        taken = asker.receive(0, packet.lane_id, answers()[0].payload)
        assert isinstance(taken, tuple)
        assert isinstance(taken[1], OkResponse)
        return bytes(taken[1].body)


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
    # The logging of a process, which structlog keeps, would stay that of all tests after these.
    monkeypatch.setattr(control_main, "configure_logging", lambda *_: None)
    # Nobody answers for the other nodes here: they count as heard at once.
    monkeypatch.setattr(Leadership, "_heard", lambda self: {NodeId(2)})
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
        seeded = await site.api.Seed(mesh_pb2.SeedRequest(policy=view_pb2.JOIN_POLICY_OPEN))
        await site.eventually(lambda: bool(site.routing.configured) and site.routing.configured[-1].node_id == 1)
        told_routing = site.routing.configured[-1].identity
        told = site.data.configured[-1]
        assert (told.identity.node_id, told.identity.name, told.is_running) == (1, "a", True)
        assert told.view.mesh_id == seeded.mesh_id
        node = told.view.nodes[0]
        for identity, key, use in (
            (told.identity, DATA_KEY, Use.LANES),
            (told_routing, ROUTING_KEY, Use.LINK_STATES),
        ):
            assert identity.public_key == node.public_key
            signer = DelegatedSigner.from_proto(
                identity, {key.public_key: key}.get, use, seeded.mesh_id, told.view.mesh_epoch
            )
            assert signer.delegation.counts_at(time.time())
        assert set(site.data.bound) == {Protocol.JOIN, Protocol.RAFT_MCG}

        assert await site.admit("b") == 2
        await site.eventually(lambda: len(site.data.configured[-1].view.nodes) == 2)
        for told in site.data.configured:
            # Each view comes with this node's word for its members, which other data planes may ask for.
            vouch = Vouch.from_proto(told.vouch)
            assert (vouch is None) is not told.HasField("view")
            if vouch is not None:
                assert vouch.digest == Membership.of_view(told.view).digest
                assert (vouch.node_id, vouch.revision) == (1, told.view.revision)
                assert vouch.is_signed_by(node.public_key, seeded.mesh_id, told.view.mesh_epoch)
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
        await site.api.Seed(mesh_pb2.SeedRequest(policy=view_pb2.JOIN_POLICY_OPEN))
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


async def test_the_status_warns_of_a_stream_without_a_leader_until_it_has_one(
    site: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TIMINGS, "lan", replace(Timing(), leaderless_after_s=0.3))
    async with running(site):
        await site.api.Seed(mesh_pb2.SeedRequest(policy=view_pb2.JOIN_POLICY_OPEN))
        await site.admit("b")
        creating = asyncio.ensure_future(
            site.api.CreateStream(mesh_pb2.CreateStreamRequest(name="demo/lines", members=["a", "b"]))
        )
        await site.eventually(lambda: bool(site.data.configured[-1].view.streams))
        site.data.report(1, OPEN)
        await creating

        async def warned(expected: bool) -> None:
            async with asyncio.timeout(15):
                while True:
                    warnings = (await site.api.GetStatus(mesh_pb2.GetStatusRequest())).warnings
                    assert any("has two members" in warning for warning in warnings)
                    if any("'demo/lines' has had no leader since" in warning for warning in warnings) is expected:
                        return
                    await asyncio.sleep(0.02)

        await warned(False)
        site.data.report(1, OPEN, leader_node=0)
        await warned(True)
        site.data.report(1, OPEN, leader_node=2)
        await warned(False)


async def test_bad_calls_have_their_codes(site: FakeSite) -> None:
    async with running(site):
        join = mesh_pb2.JoinRequest
        early: list[tuple[Any, ErrorCode]] = [
            (site.api.Leave(mesh_pb2.LeaveRequest()), ErrorCode.NOT_A_MEMBER),
            (site.api.Stop(mesh_pb2.StopRequest()), ErrorCode.NOT_A_MEMBER),
            (site.api.Start(mesh_pb2.StartRequest()), ErrorCode.NOT_A_MEMBER),
            (site.api.ListStreams(mesh_pb2.ListStreamsRequest()), ErrorCode.NOT_A_MEMBER),
            (site.api.Join(join(address="http://x:1", trust_first=True)), ErrorCode.INVALID_ARGUMENT),
            (site.api.Join(join(address="ws://127.0.0.1:1", trust_first=True)), ErrorCode.ADDRESS_UNREACHABLE),
        ]
        for call, code in early:
            assert (await refused(call)).code is code
        joining = site.data.joining[-1].identity
        assert (joining.node_id, joining.name) == (0, "a")
        assert DelegatedSigner.from_proto(joining, {DATA_KEY.public_key: DATA_KEY}.get, Use.LANES).delegation.counts_at(
            time.time()
        )
        site.data.lane = overlay_pb2.OpenJoinLaneResponse(lane_id=3, mesh_id="another", node_id=1, name="x")
        error = await refused(
            site.api.Join(
                join(address="ws://127.0.0.1:1", mesh_id="00000000-0000-4000-8000-000000000000", trust_first=True)
            )
        )
        assert error.code is ErrorCode.MESH_ID_MISMATCH
        assert error.details == {"expected": "00000000-0000-4000-8000-000000000000", "actual": "another"}

        await site.api.Seed(mesh_pb2.SeedRequest())
        create = mesh_pb2.CreateStreamRequest
        calls: list[tuple[Any, ErrorCode]] = [
            (site.api.Seed(mesh_pb2.SeedRequest(name="other")), ErrorCode.ALREADY_MEMBER),
            (site.api.Join(join(address="ws://127.0.0.1:1", trust_first=True)), ErrorCode.ALREADY_MEMBER),
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
        for fragment in ("routing", "Postgres"):
            assert any(fragment in warning for warning in status.warnings), fragment
        assert "mesh_control_is_leader 1.0" in (await admin.get("/metrics")).text


async def test_restart_keeps_the_place_and_the_key(site: FakeSite) -> None:
    async with running(site):
        seeded = await site.api.Seed(mesh_pb2.SeedRequest())
        key = site.data.configured[-1].identity.public_key
    site.data.configured.clear()
    async with running(site):
        status = await site.api.GetStatus(mesh_pb2.GetStatusRequest())
        assert (status.node_id, status.view.mesh_id) == (1, seeded.mesh_id)
        await site.eventually(lambda: bool(site.data.configured))
        assert site.data.configured[-1].identity.public_key == key


async def test_services_are_asked_for_another_key_at_half_life_and_when_they_start_again(
    site: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead_s = 0

    class Clock:
        """The wall clock, which the test sets."""

        @staticmethod
        def time_ns() -> int:
            return time.time_ns() + ahead_s * 10**9

    monkeypatch.setattr(control_main, "time", Clock)
    monkeypatch.setattr(config_push, "AGING_CHECK_S", 0.05)
    async with running(site):
        await site.api.Seed(mesh_pb2.SeedRequest())
        both: tuple[FakeDataPlane | FakeRouting, ...] = (site.data, site.routing)
        await site.eventually(lambda: all(service.configured for service in both))
        first = [service.configured[-1].identity for service in both]
        ahead_s = RENEW_AFTER_S + 60
        for service in both:
            service.key, service.made_at_s = KeySigner(service.key).public_key, int(time.time()) + ahead_s
        await site.eventually(lambda: all(s.configured[-1].identity != f for s, f in zip(both, first, strict=True)))
        for service, before in zip(both, first, strict=True):
            now = service.configured[-1].identity.delegation
            assert now.not_after_s >= before.delegation.not_after_s + RENEW_AFTER_S
            assert now.public_key == service.key
        # A service that lost its directory starts again with another key.
        for name, start in (("data", site.start_data), ("routing", site.start_routing)):
            await site.kill(name)
            getattr(site, name).key = KeySigner(name.encode().ljust(32)).public_key
            await start()
        await site.eventually(lambda: all(s.configured[-1].identity.delegation.public_key == s.key for s in both))


def _seed_in(directory: Path) -> bytes:
    (path,) = directory.rglob(IDENTITY_KEY)
    return path.read_bytes()


async def test_identity_key_crosses_no_call(site: FakeSite, tmp_path: Path) -> None:
    """ID2: nothing that the control plane sends to its site has the seed in it."""
    async with running(site):
        await refused(site.api.Join(mesh_pb2.JoinRequest(address="ws://127.0.0.1:1")))
        await site.api.Seed(mesh_pb2.SeedRequest())
        await site.eventually(lambda: bool(site.data.configured) and bool(site.routing.configured))
    seed = _seed_in(tmp_path)
    assert len(seed) == PRIVATE_KEY_BYTES
    sent = [*site.data.configured, *site.routing.configured, *site.data.joining, *site.data.sent]
    assert len(sent) >= 3
    assert not any(seed in message.SerializeToString() for message in sent)


async def test_port_in_use_ends_the_start(site: FakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_CONTROL_GRPC_LISTEN", f"127.0.0.1:{site.data_port}")
    with pytest.raises(BaseExceptionGroup) as caught:
        await main(Stop())
    found = caught.value.subgroup(MeshError)
    assert found is not None
    assert "ADDRESS_IN_USE" in str(found.exceptions[0])
