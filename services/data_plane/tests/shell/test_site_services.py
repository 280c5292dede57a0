"""The data plane as its own site's services see it: real processes, gRPC, restarts alone."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshapi.common.v1 import view_pb2
from meshapi.data.v1 import data_pb2, data_pb2_grpc
from meshapi.overlay.v1 import overlay_pb2, overlay_pb2_grpc
from meshapi.supervisor.v1 import data_pb2 as public_pb2
from meshapi.supervisor.v1 import data_pb2_grpc as public_pb2_grpc
from meshclient import MeshClient
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.grpc_client import mesh_error, open_channel
from meshtest.certificates import Authority
from meshtest.delegated import local_identity
from meshtest.ports import free_ports
from meshtest.waiting import eventually
from meshwire.packet import Protocol, TrafficClass

MESH = "0b8e1f0a-5c1d-4e0f-9a53-2f6f0e6d9c01"
SEEDS = {1: b"\x01" * 32, 2: b"\x02" * 32, 3: b"\x03" * 32}


class DataPlane:
    """One data plane process of node `n<number>` and its stubs."""

    def __init__(self, directory: Path, number: int) -> None:
        self.number = number
        self.log = directory / f"n{number}.log"
        grpc_port, admin_port, peer_port = free_ports(3)
        self.peer_address = f"wss://127.0.0.1:{peer_port}"
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("MESH_")},
            "MESH_NODE_NAME": f"n{number}",
            "MESH_NODE_DATA_DIR": str(directory / f"n{number}"),
            "MESH_NODE_PRESET": "test",
            "MESH_DATA_GRPC_LISTEN": f"127.0.0.1:{grpc_port}",
            "MESH_DATA_ADMIN_LISTEN": f"127.0.0.1:{admin_port}",
            "MESH_DATA_PEER_LISTEN": f"127.0.0.1:{peer_port}",
        }
        self.admin_port = admin_port
        self.channel = open_channel(f"127.0.0.1:{grpc_port}")
        self.data: data_pb2_grpc.DataPlaneServiceAsyncStub = data_pb2_grpc.DataPlaneServiceStub(self.channel)
        self.overlay: overlay_pb2_grpc.OverlayServiceAsyncStub = overlay_pb2_grpc.OverlayServiceStub(self.channel)
        self.public: public_pb2_grpc.MeshDataServiceAsyncStub = public_pb2_grpc.MeshDataServiceStub(self.channel)
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        # To a file: a pipe that nobody reads would block the process when it is full.
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "mesh_data", env=self.environment, stderr=log
            )
        async with asyncio.timeout(60):
            await self.channel.channel_ready()

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        process = self.process
        assert process is not None
        if process.returncode is None:
            process.send_signal(number)
        async with asyncio.timeout(20):
            await process.wait()
        assert process.returncode is not None
        return process.returncode

    async def configure(
        self, *others: DataPlane, revision: int = 1, is_running: bool = True
    ) -> data_pb2.ConfigureResponse:
        view = view_pb2.MeshView(revision=revision, mesh_id=MESH, status=view_pb2.MESH_STATUS_HEALTHY)
        for item in (self, *others):
            key = Ed25519PrivateKey.from_private_bytes(SEEDS[item.number]).public_key().public_bytes_raw()
            view.nodes.add(
                node_id=item.number,
                name=f"n{item.number}",
                public_key=key,
                # Only node 1 can be dialled: the others reach each other through it.
                peer_address=item.peer_address if item.number == 1 else "",
                state=view_pb2.NODE_STATE_ACTIVE,
            )
        identity = await self.identity(self.number)
        return await self.data.Configure(
            data_pb2.ConfigureRequest(identity=identity, view=view, is_running=is_running), timeout=10
        )

    async def identity(self, seed_of: int, *, is_member: bool = True) -> view_pb2.LocalIdentity:
        """What the control plane of a node says, whose key is the one of `seed_of`."""
        key = (await self.data.GetDelegatedKey(data_pb2.GetDelegatedKeyRequest(), timeout=10)).public_key
        if not is_member:
            return local_identity(SEEDS[seed_of], key, "new")
        return local_identity(SEEDS[seed_of], key, f"n{self.number}", MESH, self.number)

    async def lanes(self) -> set[str]:
        forwarding = await self.public.GetForwarding(public_pb2.GetForwardingRequest(), timeout=10)
        return {lane.peer for lane in forwarding.lanes}

    async def push(self, *paths: list[int], version: int = 1) -> int:
        routes = [data_pb2.Route(destination=path[-1], paths=[data_pb2.Path(nodes=path)]) for path in paths]
        request = data_pb2.PushRoutesRequest(version=version, changed=routes)
        return (await self.data.PushRoutes(request, timeout=10)).version

    async def pings(self, *path: str) -> bool:
        """Waits until a ping to the last of `path` goes that way: on a busy machine a link may be down for a moment."""

        async def look() -> bool:
            return await self.ping(path[-1]) == list(path)

        return await eventually(f"the path {path}", look)

    async def ping(self, name: str) -> list[str]:
        try:
            answer = await self.public.Ping(public_pb2.PingRequest(node=name, timeout_ms=5000), timeout=10)
        except grpc.aio.AioRpcError as error:
            raise mesh_error(error, "data plane") from error
        assert answer.rtt_us > 0
        return list(answer.path)


@pytest.fixture
async def trio(tmp_path: Path) -> AsyncIterator[tuple[DataPlane, DataPlane, DataPlane]]:
    """Three processes; 2 and 3 dial 1 and share no link."""
    one, two, three = (DataPlane(tmp_path, number) for number in (1, 2, 3))
    everybody = (one, two, three)
    try:
        async with asyncio.TaskGroup() as tasks:
            for item in everybody:
                tasks.create_task(item.start())
        for item in everybody:
            await item.configure(*(other for other in everybody if other is not item))
        await links(one, {"n2", "n3"})
        yield everybody
    finally:
        for item in everybody:
            if item.process is not None and item.process.returncode is None:
                await item.stop(signal.SIGKILL)
            await item.channel.close()


async def links(node: DataPlane, expected: set[str]) -> None:
    async def look() -> bool:
        return await node.lanes() == expected

    await eventually(f"links of n{node.number}", look, timeout_s=30)


class Attached:
    """One Attach call."""

    def __init__(self, node: DataPlane, *protocols: Protocol) -> None:
        self.call = node.overlay.Attach()
        self._protocols = protocols

    async def begin(self) -> overlay_pb2.AttachLinks:
        await self.call.write(overlay_pb2.AttachRequest(bind=overlay_pb2.AttachBind(protocols=self._protocols)))
        return await self.links()

    async def send(self, packet: overlay_pb2.OutPacket) -> None:
        await self.call.write(overlay_pb2.AttachRequest(send=overlay_pb2.AttachSend(packets=[packet])))

    async def links(self) -> overlay_pb2.AttachLinks:
        async with asyncio.timeout(20):
            while (response := await self._read()).WhichOneof("kind") != "links":
                pass
        return response.links

    async def packet(self) -> overlay_pb2.InPacket:
        async with asyncio.timeout(20):
            while (response := await self._read()).WhichOneof("kind") != "deliver":
                pass
        return response.deliver.packets[0]

    async def _read(self) -> overlay_pb2.AttachResponse:
        response = await self.call.read()
        assert isinstance(response, overlay_pb2.AttachResponse), "the call has ended"
        return response


async def until_it_arrives(
    source: Attached, packet: overlay_pb2.OutPacket, destination: Attached
) -> overlay_pb2.InPacket:
    """Packets are best effort: sends one again and again until the first arrives."""
    arrival = asyncio.create_task(destination.packet(), name="arrival")
    while not arrival.done():
        await source.send(packet)
        await asyncio.wait([arrival], timeout=0.5)
    return await arrival


def out(protocol: Protocol, destination: int, payload: bytes, **more: bool) -> overlay_pb2.OutPacket:
    return overlay_pb2.OutPacket(
        protocol=protocol,
        traffic_class=TrafficClass.CONTROL,
        destination=destination,
        payload=payload,
        is_link_local=more.get("is_link_local", False),
    )


async def test_site_services_and_restart_alone(trio: tuple[DataPlane, DataPlane, DataPlane]) -> None:
    """One story, since processes are slow to start: attach, relay, kill -9, restart without a control plane."""
    one, two, three = trio
    assert await two.pings("n2", "n1")
    assert await two.pings("n2")
    with pytest.raises(MeshError) as no_path:
        await two.ping("n3")
    assert no_path.value.code is ErrorCode.NO_PATH
    with pytest.raises(MeshError) as unknown:
        await two.ping("nobody")
    assert unknown.value.code is ErrorCode.UNKNOWN_NODE
    assert await two.push([2, 1], [2, 1, 3]) == 1
    assert await three.push([3, 1], [3, 1, 2]) == 1
    assert await two.pings("n2", "n1", "n3")

    at_two, at_three = Attached(two, Protocol.RAFT_MCG), Attached(three, Protocol.RAFT_MCG, Protocol.LSA)
    first = await at_two.begin()
    assert (first.node_id, [(link.peer, link.is_up) for link in first.links]) == (2, [(1, True)])
    await at_three.begin()
    packet = await until_it_arrives(at_two, out(Protocol.RAFT_MCG, 3, b"vote for me"), at_three)
    assert (packet.source, packet.lane_id, packet.payload) == (2, 0, b"vote for me")
    # Link-local packets go to direct neighbours only: this one has nowhere to go.
    await at_two.send(out(Protocol.LSA, 3, b"lsa", is_link_local=True))
    again = Attached(three, Protocol.RAFT_MCG)
    await again.begin()
    newer = await until_it_arrives(at_two, out(Protocol.RAFT_MCG, 3, b"to the newer"), again)
    assert newer.payload == b"to the newer"

    assert await one.stop(signal.SIGKILL) == -signal.SIGKILL
    while any(link.is_up for link in (await at_two.links()).links):
        pass
    await one.start()
    await links(one, {"n2", "n3"})
    assert await two.pings("n2", "n1", "n3")

    assert await two.stop(signal.SIGKILL) == -signal.SIGKILL
    await two.start()
    assert (await two.public.GetForwarding(public_pb2.GetForwardingRequest(), timeout=10)).route_version == 1
    await links(two, {"n1"})
    assert await two.pings("n2", "n1", "n3")

    page = await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{one.admin_port}/metrics", None, 10)
    metrics = page.read().decode()
    assert 'mesh_link_up{peer="n3"} 1.0' in metrics
    assert "mesh_packets_forwarded_total" in metrics

    kept = await three.data.Configure(data_pb2.ConfigureRequest(), timeout=10)
    assert kept.revision > 0, "a control plane that knows no mesh costs the data plane nothing"
    await links(one, {"n2", "n3"})
    await three.data.Configure(data_pb2.ConfigureRequest(has_left=True), timeout=10)
    await links(one, {"n2"})
    assert await three.stop() == 0
    data_directory = Path(three.environment["MESH_NODE_DATA_DIR"]) / "data"
    assert not (data_directory / "view.bin").exists()
    assert not (data_directory / "routes.bin").exists()
    assert await one.stop() == 0
    assert await two.stop() == 0


async def test_what_is_refused(tmp_path: Path) -> None:
    node = DataPlane(tmp_path, 1)
    await node.start()
    try:
        with pytest.raises(grpc.aio.AioRpcError) as outside:
            await node.push([1, 2])
        assert mesh_error(outside.value, "data plane").code is ErrorCode.NOT_A_MEMBER
        assert (await node.configure(revision=5)).revision == 5
        assert (await node.configure(revision=4)).revision == 5
        with pytest.raises(grpc.aio.AioRpcError) as bad_path:
            await node.push([7, 2])
        assert mesh_error(bad_path.value, "data plane").code is ErrorCode.INVALID_ARGUMENT
        stranger = await node.identity(2)
        view = view_pb2.MeshView(revision=6, mesh_id=MESH)
        view.nodes.add(node_id=1, name="n1", public_key=b"k" * 32, state=view_pb2.NODE_STATE_ACTIVE)
        with pytest.raises(grpc.aio.AioRpcError) as wrong_key:
            await node.data.Configure(data_pb2.ConfigureRequest(identity=stranger, view=view), timeout=10)
        assert mesh_error(wrong_key.value, "data plane").code is ErrorCode.KEY_MISMATCH
        for first in (
            overlay_pb2.AttachRequest(send=overlay_pb2.AttachSend()),
            overlay_pb2.AttachRequest(bind=overlay_pb2.AttachBind(protocols=[Protocol.RAFT_DSG])),
            overlay_pb2.AttachRequest(bind=overlay_pb2.AttachBind(protocols=[77])),
        ):
            call = node.overlay.Attach()
            await call.write(first)
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await call.read()
            assert mesh_error(refusal.value, "data plane").code is ErrorCode.INVALID_ARGUMENT
        for address, code in (
            (f"wss://127.0.0.1:{free_ports(1)[0]}", ErrorCode.ADDRESS_UNREACHABLE),
            (f"wss://127.0.0.1:{node.admin_port}", ErrorCode.WRONG_PROTOCOL),
            ("mesh.example", ErrorCode.INVALID_ARGUMENT),
            # It answers, but the joiner here is the node itself.
            (node.peer_address, None),
        ):
            identity = await node.identity(3, is_member=False)
            request = overlay_pb2.OpenJoinLaneRequest(address=address, identity=identity)
            if code is None:
                assert (await node.overlay.OpenJoinLane(request, timeout=10)).node_id == 1
                continue
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await node.overlay.OpenJoinLane(request, timeout=10)
            assert mesh_error(refusal.value, "data plane").code is code
    finally:
        assert await node.stop() == 0
        await node.channel.close()


async def test_applications_are_served_over_tls(tmp_path: Path) -> None:
    authority, node = Authority(tmp_path), DataPlane(tmp_path, 1)
    pair = authority.issue("node")
    address = f"127.0.0.1:{free_ports(1)[0]}"
    node.environment |= {
        "MESH_DATA_CLIENT_LISTEN": address,
        "MESH_DATA_CLIENT_TLS_CERTIFICATE": str(pair.certificate),
        "MESH_DATA_CLIENT_TLS_KEY": str(pair.key),
    }
    await node.start()
    try:
        for client, code in (
            (MeshClient(f"wss://{address}", ca_file=authority.file), ErrorCode.NOT_A_MEMBER),
            (MeshClient(f"wss://{address}"), ErrorCode.TLS_FAILED),
        ):
            async with client:
                with pytest.raises(MeshError) as refusal:
                    await client.describe("demo/none")
                assert refusal.value.code is code
    finally:
        assert await node.stop() == 0
        await node.channel.close()


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"MESH_DATA_PEER_TLS": "false"}, 77, "INSECURE_NOT_ALLOWED"),
        ({"MESH_DATA_PEER_LISTEN": "nonsense"}, 78, "SETTING_INVALID"),
        ({"MESH_DATA_DIAL": "a=http://x"}, 78, "SETTING_INVALID"),
        ({"MESH_DATA_COLOUR": "red"}, 78, "SETTING_UNKNOWN"),
        ({"MESH_DATA_CLIENT_TLS_KEY": "/a.key"}, 78, "SETTING_INVALID"),
    ],
)
async def test_start_that_is_refused_says_why(tmp_path: Path, change: dict[str, str], status: int, code: str) -> None:
    environment = DataPlane(tmp_path, 1).environment | change
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mesh_data", env=environment, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        _, errors = await process.communicate()
    assert process.returncode == status
    assert code in errors.decode().splitlines()[-1]
