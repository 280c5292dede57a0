"""A thin asynchronous face of one gateway's gRPC services for tests and the demo: calls raise MeshError."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from types import TracebackType
from typing import Self, TypeVar

import grpc
import grpc.aio

from meshapi.common.v1 import view_pb2
from meshapi.supervisor.v1 import (
    ca_pb2_grpc,
    data_pb2,
    data_pb2_grpc,
    mesh_pb2,
    mesh_pb2_grpc,
    topology_pb2,
    topology_pb2_grpc,
)
from meshcommon.grpc_client import from_detail, mesh_error, open_channel

ResultT = TypeVar("ResultT")


class Gateway:
    """Calls of one node's gateway. Use as an async context manager; `target` is `host:port`, in clear unless told.

    `token` is the operator's, where the gateway asks for it.
    """

    def __init__(self, target: str, credentials: grpc.ChannelCredentials | None = None, token: str = "") -> None:
        self.target = target
        self._channel = open_channel(target, credentials, token)
        self.mesh: mesh_pb2_grpc.MeshServiceAsyncStub = mesh_pb2_grpc.MeshServiceStub(self._channel)
        self.ca: ca_pb2_grpc.CaServiceAsyncStub = ca_pb2_grpc.CaServiceStub(self._channel)
        self.topology: topology_pb2_grpc.TopologyServiceAsyncStub = topology_pb2_grpc.TopologyServiceStub(self._channel)
        self.data: data_pb2_grpc.MeshDataServiceAsyncStub = data_pb2_grpc.MeshDataServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection."""
        await self._channel.close()

    async def status(self) -> mesh_pb2.GetStatusResponse:
        """What the node knows."""
        return await _call(self.mesh.GetStatus(mesh_pb2.GetStatusRequest(), timeout=5))

    async def seed(
        self, name: str = "", policy: view_pb2.JoinPolicy.ValueType = view_pb2.JOIN_POLICY_KEY_REQUIRED
    ) -> mesh_pb2.SeedResponse:
        """Founds a mesh."""
        return await _call(self.mesh.Seed(mesh_pb2.SeedRequest(name=name, policy=policy), timeout=30))

    async def join(self, address: str = "", mesh_id: str = "", token: str = "") -> mesh_pb2.JoinResponse:
        """Joins a mesh; without a token it trusts whatever answers at `address`."""
        request = mesh_pb2.JoinRequest(address=address, mesh_id=mesh_id, token=token, trust_first=not token)
        return await _call(self.mesh.Join(request, timeout=30))

    async def issue_token(self, uses: int = 1, ttl_s: int = 900, name: str = "") -> str:
        """A join token of the node's mesh."""
        request = mesh_pb2.IssueTokenRequest(uses=uses, ttl_s=ttl_s, name=name)
        return (await _call(self.mesh.IssueToken(request, timeout=30))).token

    async def forget_node(self, name: str, *, accept_risk: bool = False) -> mesh_pb2.ForgetNodeResponse:
        """Removes a node that is lost."""
        request = mesh_pb2.ForgetNodeRequest(name=name, accept_risk=accept_risk)
        return await _call(self.mesh.ForgetNode(request, timeout=30))

    async def leave(self) -> mesh_pb2.LeaveResponse:
        """Leaves the mesh for good."""
        return await _call(self.mesh.Leave(mesh_pb2.LeaveRequest(), timeout=30))

    async def stop(self) -> mesh_pb2.StopResponse:
        """Stops the node on purpose."""
        return await _call(self.mesh.Stop(mesh_pb2.StopRequest(), timeout=30))

    async def start(self) -> mesh_pb2.StartResponse:
        """Starts the node again."""
        return await _call(self.mesh.Start(mesh_pb2.StartRequest(), timeout=30))

    async def create_stream(
        self, name: str, members: list[str], retained_bytes_max: int = 0
    ) -> mesh_pb2.CreateStreamResponse:
        """Creates a stream and waits until it has formed."""
        request = mesh_pb2.CreateStreamRequest(name=name, members=members, retained_bytes_max=retained_bytes_max)
        return await _call(self.mesh.CreateStream(request, timeout=30))

    async def change_members(
        self, name: str, *, add: Sequence[str] = (), remove: Sequence[str] = (), renew: Sequence[str] = ()
    ) -> view_pb2.StreamView:
        """Commits the members that a stream should have."""
        request = mesh_pb2.ChangeStreamMembersRequest(name=name, add=add, remove=remove, renew=renew)
        response = await _call(self.mesh.ChangeStreamMembers(request, timeout=30))
        return response.stream

    async def transfer_leader(self, stream: str, node: str) -> int:
        """Hands a leadership over; returns the term."""
        request = data_pb2.TransferLeaderRequest(stream=stream, node=node)
        response = await _call(self.data.TransferLeader(request, timeout=30))
        return response.term

    async def replicas(self) -> data_pb2.ListReplicasResponse:
        """Replicas of the node."""
        return await _call(self.data.ListReplicas(data_pb2.ListReplicasRequest(), timeout=30))

    async def audit(self, stream: str) -> data_pb2.AuditStreamResponse:
        """Compares the members of a stream and verifies their logs."""
        return await _call(self.data.AuditStream(data_pb2.AuditStreamRequest(stream=stream), timeout=30))

    async def delete_stream(self, name: str) -> mesh_pb2.DeleteStreamResponse:
        """Deletes a stream."""
        return await _call(self.mesh.DeleteStream(mesh_pb2.DeleteStreamRequest(name=name), timeout=30))

    async def streams(self) -> list[view_pb2.StreamView]:
        """The catalogue."""
        response = await _call(self.mesh.ListStreams(mesh_pb2.ListStreamsRequest(), timeout=5))
        return list(response.streams)

    async def describe(self, stream: str, *, is_local: bool = False) -> data_pb2.DescribeStreamResponse:
        """Live state of a stream, from its leader or from this node's own replica."""
        request = data_pb2.DescribeStreamRequest(stream=stream, is_local=is_local)
        return await _call(self.data.DescribeStream(request, timeout=5))

    async def init_producer(self, stream: str, producer_name: str = "") -> data_pb2.InitProducerResponse:
        """A producer id."""
        request = data_pb2.InitProducerRequest(stream=stream, producer_name=producer_name)
        return await _call(self.data.InitProducer(request, timeout=15))

    async def publish(self, stream: str, values: list[bytes]) -> data_pb2.PublishResponse:
        """Publishes one batch without a producer id (at least once) and waits until it is committed."""
        return await self.publish_request(
            data_pb2.PublishRequest(
                stream=stream,
                wait=data_pb2.PUBLISH_WAIT_COMMITTED,
                records=[data_pb2.PublishRecord(value=value) for value in values],
            )
        )

    async def publish_request(self, request: data_pb2.PublishRequest) -> data_pb2.PublishResponse:
        """Sends one batch; an error in its answer is raised like one of the call."""

        async def requests() -> AsyncIterator[data_pb2.PublishRequest]:
            yield request

        try:
            async for response in self.data.Publish(requests(), timeout=20):
                if response.HasField("error"):
                    raise from_detail(response.error)
                return response
        except grpc.aio.AioRpcError as error:
            raise mesh_error(error, "gateway") from error
        raise ConnectionError("the call ended without an answer")

    async def read(
        self, stream: str, from_offset: int = 0, records_max: int = 0, *, follow: bool = False
    ) -> AsyncIterator[data_pb2.ReadRecord]:
        """Records from an offset on."""
        request = data_pb2.ReadRequest(stream=stream, from_offset=from_offset, records_max=records_max, follow=follow)
        try:
            async for response in self.data.Read(request):
                for record in response.records:
                    yield record
        except grpc.aio.AioRpcError as error:
            raise mesh_error(error, "gateway") from error

    async def forwarding(self) -> data_pb2.GetForwardingResponse:
        """Lanes and routes."""
        return await _call(self.data.GetForwarding(data_pb2.GetForwardingRequest(), timeout=5))

    async def path_in_use(self, destination: str) -> list[str]:
        """Names along the path that packets to `destination` take now; empty when there is none."""
        for route in (await self.forwarding()).routes:
            if route.destination == destination:
                return list(route.path)
        return []

    async def paths(self, from_node: str, to_node: str) -> list[list[str]]:
        """Paths that routing computed."""
        request = topology_pb2.ListPathsRequest(to=to_node)
        # `from` is a keyword of Python, so the generated constructor cannot take it by name.
        setattr(request, "from", from_node)
        response = await _call(self.topology.ListPaths(request, timeout=5))
        return [list(path.nodes) for path in response.paths]

    async def ping(self, node: str) -> data_pb2.PingResponse:
        """Echo through the overlay."""
        return await _call(self.data.Ping(data_pb2.PingRequest(node=node), timeout=5))


async def _call(call: Awaitable[ResultT]) -> ResultT:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise mesh_error(error, "gateway") from error
