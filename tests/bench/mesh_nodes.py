"""Three data planes as processes, with lanes on the loopback and real disks; what a control plane would tell them is told here."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshapi.common.v1 import view_pb2
from meshapi.data.v1 import data_pb2, data_pb2_grpc
from meshcommon.grpc_client import open_channel
from meshtest.delegated import local_identity
from meshtest.ports import free_ports
from meshtest.processes import Child, start
from meshtest.waiting import eventually

NODES: Final = (1, 2, 3)
RETAINED_BYTES_MAX: Final = 1 << 30
_MESH_ID: Final = "00000000-0000-4000-8000-00000000be7c"
_SEEDS: Final = {node: bytes([node]) * 32 for node in NODES}


class MeshNode:
    """One data plane process."""

    def __init__(
        self,
        directory: Path,
        number: int,
        python: Sequence[str] = (sys.executable,),
        environment: Mapping[str, str] | None = None,
        *,
        is_tls: bool,
    ) -> None:
        """`python` starts the interpreter, for instance under a profiler; `environment` is added to its variables.

        `is_tls`: whether lanes run in TLS, as they do by default; peers are compared with in clear.
        """
        self.number = number
        self._is_tls = is_tls
        self._directory = directory
        self._python = python
        self._environment = environment or {}
        self._grpc, self._admin, self._peer, self._client = free_ports(4)
        self.child: Child | None = None
        self.channel = open_channel(f"127.0.0.1:{self._grpc}")
        self.data: data_pb2_grpc.DataPlaneServiceAsyncStub = data_pb2_grpc.DataPlaneServiceStub(self.channel)

    @property
    def grpc(self) -> str:
        """Address for the services of its site; it answers the public data calls, too."""
        return f"127.0.0.1:{self._grpc}"

    @property
    def admin(self) -> str:
        """Address of its health, readiness and metrics."""
        return f"127.0.0.1:{self._admin}"

    @property
    def client(self) -> str:
        """Address for `meshclient`."""
        return f"ws://127.0.0.1:{self._client}"

    @property
    def peer(self) -> str:
        """Address for other nodes."""
        return f"{'wss' if self._is_tls else 'ws'}://127.0.0.1:{self._peer}"

    async def start(self) -> None:
        """Starts the process and waits until it answers."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MESH_")} | {
            "MESH_NODE_NAME": f"n{self.number}",
            "MESH_NODE_DATA_DIR": str(self._directory / f"n{self.number}"),
            "MESH_INSECURE_DEV": "0" if self._is_tls else "1",
            "MESH_DATA_PEER_TLS": "true" if self._is_tls else "false",
            "MESH_DATA_GRPC_LISTEN": f"127.0.0.1:{self._grpc}",
            "MESH_DATA_ADMIN_LISTEN": f"127.0.0.1:{self._admin}",
            "MESH_DATA_PEER_LISTEN": f"127.0.0.1:{self._peer}",
            "MESH_DATA_CLIENT_LISTEN": f"127.0.0.1:{self._client}",
            **self._environment,
        }
        log = self._directory / f"n{self.number}.log"
        self.child = start([*self._python, "-m", "mesh_data"], log=log, environment=environment)
        child = self.child

        async def is_ready() -> bool:
            assert child.exit_status is None, child.log_tail()
            return self.channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY

        await eventually(f"node {self.number} answers", is_ready, timeout_s=60)

    @property
    def pid(self) -> int:
        """The process that runs."""
        if self.child is None:
            raise AssertionError("the node does not run")
        return self.child.pid

    async def stop(self) -> None:
        """Ends the process."""
        if self.child is not None:
            await asyncio.to_thread(self.child.stop)
            self.child = None


class MeshNodes:
    """The three, and the streams that they hold."""

    def __init__(self, nodes: Sequence[MeshNode]) -> None:
        self.nodes = {node.number: node for node in nodes}
        self._revision = 0
        self._streams_made = 0
        self._streams: list[view_pb2.StreamView] = []

    async def create(self, names: Sequence[str], retained_bytes_max: int = RETAINED_BYTES_MAX) -> None:
        """Makes streams of three members, led by each node in turn, and waits until they have formed."""
        for place, name in enumerate(names):
            self._streams_made += 1
            number = self._streams_made
            order = [NODES[(place + step) % len(NODES)] for step in range(len(NODES))]
            self._streams.append(
                view_pb2.StreamView(
                    stream_id=number,
                    name=name,
                    members=[
                        view_pb2.StreamMember(node_id=node, member_id=10 * number + node, is_voter=True)
                        for node in order
                    ],
                    state=view_pb2.STREAM_STATE_FORMING,
                    revision=number,
                    retained_bytes_max=retained_bytes_max,
                )
            )
        await self.configure()
        await self._formed({stream.stream_id: stream.members[0].node_id for stream in self._streams[-len(names) :]})
        for stream in self._streams:
            stream.state = view_pb2.STREAM_STATE_ACTIVE
        await self.configure()

    async def delete(self, names: Sequence[str]) -> None:
        """Ends streams, and waits until nothing of them is left: what is kept of old ones costs new ones their share of the disk."""
        for name in names:
            await self.change(name, view_pb2.STREAM_STATE_DELETING, is_sealed=True)
        ended = {stream.stream_id for stream in self._streams if stream.name in names}

        async def are_gone() -> bool:
            for node in self.nodes.values():
                found = await self._reports(node)
                if found is None or any(
                    found[stream_id].state != data_pb2.GROUP_STATE_DESTROYED for stream_id in ended & found.keys()
                ):
                    return False
            return True

        await eventually(f"{len(names)} streams are destroyed", are_gone, timeout_s=60)
        self._streams = [stream for stream in self._streams if stream.stream_id not in ended]
        await self.configure()

    async def change(self, name: str, state: view_pb2.StreamState.ValueType, *, is_sealed: bool = False) -> None:
        """Puts a stream into another state of the catalogue."""
        stream = next(found for found in self._streams if found.name == name)
        stream.state, stream.is_sealed = state, is_sealed
        stream.revision = self._revision + 1
        await self.configure()

    async def configure(self, clock_s: float = 0.0) -> None:
        """Tells every node who it is, who the others are, and which streams there are, as a clock ahead by `clock_s` would."""
        self._revision += 1
        view = view_pb2.MeshView(
            revision=self._revision, mesh_id=_MESH_ID, status=view_pb2.MESH_STATUS_HEALTHY, streams=self._streams
        )
        for number, node in self.nodes.items():
            key = Ed25519PrivateKey.from_private_bytes(_SEEDS[number]).public_key().public_bytes_raw()
            view.nodes.add(
                node_id=number,
                name=f"n{number}",
                public_key=key,
                peer_address=node.peer,
                state=view_pb2.NODE_STATE_ACTIVE,
            )
        for number, node in self.nodes.items():
            key = (await node.data.GetDelegatedKey(data_pb2.GetDelegatedKeyRequest(), timeout=10)).public_key
            identity = local_identity(_SEEDS[number], key, f"n{number}", _MESH_ID, number, clock_s=clock_s)
            request = data_pb2.ConfigureRequest(identity=identity, view=view, is_running=True)
            await node.data.Configure(request, timeout=10)

    async def _formed(self, leaders: Mapping[int, int]) -> None:
        """Waits until every node has these streams open, each under its leader. One report tells of all of them."""

        async def look() -> bool:
            for node in self.nodes.values():
                reports = await self._reports(node) or {}
                for stream_id, leader in leaders.items():
                    report = reports.get(stream_id)
                    if report is None or report.state != data_pb2.GROUP_STATE_OPEN or report.leader_node != leader:
                        return False
            return True

        timeout_s = 60 + 0.2 * len(leaders)
        await eventually(f"{len(leaders)} streams form under their nodes", look, timeout_s=timeout_s)

    @staticmethod
    async def _reports(node: MeshNode) -> dict[int, data_pb2.GroupReport] | None:
        """What a node says of its groups, by stream; None when it does not answer."""
        call = node.data.WatchGroups(data_pb2.WatchGroupsRequest())
        try:
            response = await call.read()
        finally:
            call.cancel()
        if not isinstance(response, data_pb2.WatchGroupsResponse):
            return None
        return {report.stream_id: report for report in response.groups}


@asynccontextmanager
async def running_mesh(
    directory: Path,
    python: Sequence[str] = (sys.executable,),
    environments: Mapping[int, Mapping[str, str]] | None = None,
    *,
    is_tls: bool = False,
) -> AsyncIterator[MeshNodes]:
    """Three nodes that reach each other; ended afterwards. `environments`: variables to add, by node; `is_tls`: of lanes."""
    nodes = [MeshNode(directory, number, python, (environments or {}).get(number), is_tls=is_tls) for number in NODES]
    async with AsyncExitStack() as stack:
        for node in nodes:
            stack.push_async_callback(_end, node)
        await asyncio.gather(*(node.start() for node in nodes))
        mesh = MeshNodes(nodes)
        await mesh.configure()
        yield mesh


async def _end(node: MeshNode) -> None:
    await node.channel.close(None)
    await node.stop()
