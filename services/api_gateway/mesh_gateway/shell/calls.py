"""The calls that REST makes to the other services: each with its deadline, the correlation id, and errors as ours.

Streams with one request or one page are folded into plain calls here, so that the routes only translate.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeVar

import grpc
import grpc.aio

from mesh_gateway.core.byte_budget import ByteBudget
from mesh_gateway.shell.backends import Backend, Backends
from mesh_gateway.shell.record_exchanges import ReadExchange, batch_request, context_headers
from meshapi.common.v1 import weights_pb2
from meshapi.supervisor.v1 import ca_pb2, data_pb2, mesh_pb2, topology_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.grpc_client import call_metadata, from_detail, is_broken, site_error

RequestT = TypeVar("RequestT")
ResultT = TypeVar("ResultT")
if TYPE_CHECKING:
    Method = grpc.aio.UnaryUnaryMultiCallable[RequestT, ResultT]

PAGE_BYTES_MAX: Final = 4 * 1024 * 1024
PAGES_BYTES_MAX: Final = 32 * 1024 * 1024
"""Pages that are being read at a time, over all requests."""
_CONNECT_TIMEOUT_S: Final = 1.0
_AUDIT_EXTRA_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Page:
    """Records of one read, in order, the stream's end as known where it was read, and how new that is if it may be old."""

    records: list[data_pb2.ReadRecord]
    next_offset: int
    stream_id: int
    view: data_pb2.ReplicaView | None = None


class Calls:
    """Calls for REST. Every method raises MeshError: the other side's refusal, UNAVAILABLE or DEADLINE_EXCEEDED."""

    def __init__(self, backends: Backends, timeout_s: float, opened: ByteBudget) -> None:
        """`opened` bounds the batches that are open at a time, over all callers of the gateway."""
        self._backends = backends
        self._opened = opened
        self._timeout_s = timeout_s
        self.pages = ByteBudget(PAGES_BYTES_MAX, "pages that are being read")

    async def seed(self, request: mesh_pb2.SeedRequest) -> mesh_pb2.SeedResponse:
        """Founds a mesh."""
        return await self._control(self._backends.mesh_service.Seed, request)

    async def join(self, request: mesh_pb2.JoinRequest) -> mesh_pb2.JoinResponse:
        """Joins a mesh."""
        return await self._control(self._backends.mesh_service.Join, request)

    async def issue_token(self, request: mesh_pb2.IssueTokenRequest) -> mesh_pb2.IssueTokenResponse:
        """Makes a join token."""
        return await self._control(self._backends.mesh_service.IssueToken, request)

    async def list_tokens(self) -> mesh_pb2.ListTokensResponse:
        """Join tokens that the mesh knows."""
        return await self._control(self._backends.mesh_service.ListTokens, mesh_pb2.ListTokensRequest())

    async def revoke_token(self, token_id: str) -> None:
        """Makes a join token worthless."""
        request = mesh_pb2.RevokeTokenRequest(token_id=token_id)
        await self._control(self._backends.mesh_service.RevokeToken, request)

    async def set_join_policy(self, request: mesh_pb2.SetJoinPolicyRequest) -> None:
        """Changes who may become a member."""
        await self._control(self._backends.mesh_service.SetJoinPolicy, request)

    async def cost_weights(self) -> mesh_pb2.GetCostWeightsResponse:
        """Weights of the link cost."""
        return await self._control(self._backends.mesh_service.GetCostWeights, mesh_pb2.GetCostWeightsRequest())

    async def set_cost_weights(self, request: mesh_pb2.SetCostWeightsRequest) -> mesh_pb2.SetCostWeightsResponse:
        """Changes weights of the link cost."""
        return await self._control(self._backends.mesh_service.SetCostWeights, request)

    async def show_ca(self) -> ca_pb2.ShowCaResponse:
        """The mesh's CA."""
        return await self._control(self._backends.ca_service.ShowCa, ca_pb2.ShowCaRequest())

    async def init_ca(self) -> ca_pb2.InitCaResponse:
        """Makes the mesh's CA."""
        return await self._control(self._backends.ca_service.InitCa, ca_pb2.InitCaRequest())

    async def rotate_ca(self, request: ca_pb2.RotateCaRequest) -> ca_pb2.ShowCaResponse:
        """Exchanges the intermediate or the root."""
        return (await self._control(self._backends.ca_service.RotateCa, request)).ca

    async def request_ca(self) -> ca_pb2.RequestCaResponse:
        """A request for an intermediate, for an operator's own root."""
        return await self._control(self._backends.ca_service.RequestCa, ca_pb2.RequestCaRequest())

    async def install_ca(self, request: ca_pb2.InstallCaRequest) -> ca_pb2.ShowCaResponse:
        """Commits what that root has signed."""
        return (await self._control(self._backends.ca_service.InstallCa, request)).ca

    async def list_certificates(self) -> ca_pb2.ListCertificatesResponse:
        """Certificates of the CA and of the node."""
        return await self._control(self._backends.ca_service.ListCertificates, ca_pb2.ListCertificatesRequest())

    async def leave(self) -> None:
        """Leaves the mesh."""
        await self._control(self._backends.mesh_service.Leave, mesh_pb2.LeaveRequest())

    async def forget_node(self, name: str, *, accept_risk: bool) -> mesh_pb2.ForgetNodeResponse:
        """Removes a node that is lost."""
        request = mesh_pb2.ForgetNodeRequest(name=name, accept_risk=accept_risk)
        return await self._control(self._backends.mesh_service.ForgetNode, request)

    async def stop(self) -> None:
        """Stops the node."""
        await self._control(self._backends.mesh_service.Stop, mesh_pb2.StopRequest())

    async def start(self) -> None:
        """Starts the node."""
        await self._control(self._backends.mesh_service.Start, mesh_pb2.StartRequest())

    async def status(self) -> mesh_pb2.GetStatusResponse:
        """What the node knows."""
        return await self._control(self._backends.mesh_service.GetStatus, mesh_pb2.GetStatusRequest())

    async def create_stream(self, request: mesh_pb2.CreateStreamRequest) -> mesh_pb2.CreateStreamResponse:
        """Creates a stream and waits until it has formed."""
        return await self._control(self._backends.mesh_service.CreateStream, request)

    async def list_streams(self) -> mesh_pb2.ListStreamsResponse:
        """The catalogue."""
        return await self._control(self._backends.mesh_service.ListStreams, mesh_pb2.ListStreamsRequest())

    async def get_stream(self, name: str) -> mesh_pb2.GetStreamResponse:
        """A stream of the catalogue."""
        return await self._control(self._backends.mesh_service.GetStream, mesh_pb2.GetStreamRequest(name=name))

    async def change_members(
        self, request: mesh_pb2.ChangeStreamMembersRequest
    ) -> mesh_pb2.ChangeStreamMembersResponse:
        """Changes the members that a stream should have."""
        return await self._control(self._backends.mesh_service.ChangeStreamMembers, request)

    async def transfer_leader(self, stream: str, node: str) -> data_pb2.TransferLeaderResponse:
        """Hands a leadership over."""
        request = data_pb2.TransferLeaderRequest(stream=stream, node=node)
        return await self._data(self._backends.data_service.TransferLeader, request)

    async def replicas(self) -> data_pb2.ListReplicasResponse:
        """Replicas of this node."""
        return await self._data(self._backends.data_service.ListReplicas, data_pb2.ListReplicasRequest())

    async def audit(self, request: data_pb2.AuditStreamRequest) -> data_pb2.AuditStreamResponse:
        """Compares the members of a stream; reading gigabytes back takes its time."""
        return await self._data(self._backends.data_service.AuditStream, request, extra_s=_AUDIT_EXTRA_S)

    async def delete_stream(self, name: str) -> None:
        """Deletes a stream."""
        await self._control(self._backends.mesh_service.DeleteStream, mesh_pb2.DeleteStreamRequest(name=name))

    async def links(self) -> topology_pb2.ListLinksResponse:
        """All links."""
        return await self._routing(self._backends.topology_service.ListLinks, topology_pb2.ListLinksRequest())

    async def paths(
        self,
        source: str,
        target: str,
        count: int,
        traffic_class: weights_pb2.TrafficClass.ValueType,
        disjoint: Literal["LINK", "NODE"] | None,
    ) -> topology_pb2.ListPathsResponse:
        """Paths between two nodes."""
        request = topology_pb2.ListPathsRequest(
            to=target,
            count=count,
            traffic_class=traffic_class,
            disjoint=topology_pb2.Disjointness.Value(f"DISJOINTNESS_{disjoint or 'UNSPECIFIED'}"),
        )
        # `from` is a keyword of Python.
        setattr(request, "from", source)
        return await self._routing(self._backends.topology_service.ListPaths, request)

    async def what_if(self, request: topology_pb2.WhatIfRequest) -> topology_pb2.WhatIfResponse:
        """What an event would change."""
        return await self._routing(self._backends.topology_service.WhatIf, request)

    async def forwarding(self) -> data_pb2.GetForwardingResponse:
        """Lanes and routes."""
        return await self._data(self._backends.data_service.GetForwarding, data_pb2.GetForwardingRequest())

    async def ping(self, node: str, timeout_ms: int) -> data_pb2.PingResponse:
        """Echo through the overlay."""
        request = data_pb2.PingRequest(node=node, timeout_ms=timeout_ms)
        # The data plane's own time limit comes first, so that its better-informed error is the one that is told.
        return await self._data(self._backends.data_service.Ping, request, extra_s=timeout_ms / 1000)

    async def describe(self, stream: str, stream_id: int = 0) -> data_pb2.DescribeStreamResponse:
        """Live state of a stream; of that id, unless it is 0."""
        request = data_pb2.DescribeStreamRequest(stream=stream, stream_id=stream_id)
        return await self._data(self._backends.data_service.DescribeStream, request)

    async def init_producer(self, stream: str, producer_name: str, stream_id: int = 0) -> data_pb2.InitProducerResponse:
        """Gets a producer id."""
        request = data_pb2.InitProducerRequest(stream=stream, producer_name=producer_name, stream_id=stream_id)
        return await self._data(self._backends.data_service.InitProducer, request)

    async def publish(self, request: data_pb2.PublishRequest) -> data_pb2.PublishBatchResponse:
        """Publishes one batch of records.

        Raises:
            MeshError: Also EMPTY_BATCH, MESSAGE_TOO_LARGE and INVALID_ARGUMENT for what cannot be encoded; OUTCOME_UNKNOWN,
                when without a producer id a retry could double the records.
        """
        encoded = batch_request(request, context_headers())
        data = self._backends.data
        try:
            # Once connected, a fault leaves the outcome open; before that nothing was sent, which is worth knowing.
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await data.channel.channel_ready()
        except TimeoutError:
            raise MeshError(
                ErrorCode.UNAVAILABLE, f"The {data.name} of this site does not answer; it may be restarting."
            ) from None
        call = self._backends.data_service.PublishBatch(
            _only(encoded), timeout=self._timeout_s, metadata=call_metadata()
        )
        try:
            async for answer in call:
                if answer.HasField("error"):
                    raise from_detail(answer.error)
                return answer
            raise _outcome_unknown(request)
        except grpc.aio.AioRpcError as error:
            if request.producer_id == 0 and (is_broken(error) or error.code() == grpc.StatusCode.DEADLINE_EXCEEDED):
                raise _outcome_unknown(request) from error
            raise site_error(error, data.name) from error
        finally:
            call.cancel()

    async def read(
        self, stream: str, from_offset: int, records_max: int, *, stream_id: int = 0, is_stale_ok: bool = False
    ) -> Page:
        """One page, without waiting for records to come; it ends early at PAGE_BYTES_MAX, and before an unreadable batch."""
        request = data_pb2.ReadRequest(
            stream=stream, from_offset=from_offset, records_max=records_max, stream_id=stream_id
        )
        if is_stale_ok:
            request.consistency = data_pb2.READ_CONSISTENCY_STALE_OK
        exchange = ReadExchange(request, self._opened)
        call = self._backends.data_service.ReadBatches(
            exchange.request, timeout=self._timeout_s, metadata=call_metadata()
        )
        records: list[data_pb2.ReadRecord] = []
        view: data_pb2.ReplicaView | None = None
        next_offset = from_offset
        try:
            with self.pages.share() as share:
                async with aclosing(exchange.answers(call)) as answers:
                    async for answer in answers:
                        share.take(answer.ByteSize())
                        records.extend(answer.records)
                        if answer.HasField("view"):
                            view = answer.view
                        next_offset = max(next_offset, answer.next_offset)
                        stream_id = answer.stream_id or stream_id
                        if share.bytes >= PAGE_BYTES_MAX:
                            break
        except MeshError as error:
            # The next page begins at that batch, and tells.
            if error.code is not ErrorCode.BATCH_UNREADABLE or not records:
                raise
        except grpc.aio.AioRpcError as error:
            raise site_error(error, self._backends.data.name) from error
        finally:
            call.cancel()
        return Page(records, next_offset, stream_id, view)

    async def beginning(self, stream: str, stream_id: int = 0) -> tuple[int, int]:
        """The stream's id and its first retained offset: a read from there is of that stream."""
        found = await self.describe(stream, stream_id)
        return found.stream_id, found.floor_offset

    async def follow(self, stream: str, from_offset: int, stream_id: int = 0) -> AsyncGenerator[data_pb2.ReadResponse]:
        """Records as they come, without end and without a deadline. Closing the iterator cancels the read."""
        request = data_pb2.ReadRequest(stream=stream, from_offset=from_offset, follow=True, stream_id=stream_id)
        exchange = ReadExchange(request, self._opened)
        call = self._backends.data_service.ReadBatches(exchange.request, metadata=call_metadata())
        try:
            async with aclosing(exchange.answers(call)) as answers:
                async for answer in answers:
                    yield answer
        except grpc.aio.AioRpcError as error:
            raise site_error(error, self._backends.data.name) from error
        finally:
            call.cancel()

    async def _control(self, method: Method[RequestT, ResultT], request: RequestT) -> ResultT:
        return await self._ask(self._backends.control, method, request)

    async def _routing(self, method: Method[RequestT, ResultT], request: RequestT) -> ResultT:
        return await self._ask(self._backends.routing, method, request)

    async def _data(self, method: Method[RequestT, ResultT], request: RequestT, extra_s: float = 0) -> ResultT:
        return await self._ask(self._backends.data, method, request, extra_s)

    async def _ask(
        self, backend: Backend, method: Method[RequestT, ResultT], request: RequestT, extra_s: float = 0
    ) -> ResultT:
        try:
            return await method(request, timeout=self._timeout_s + extra_s, metadata=call_metadata())
        except grpc.aio.AioRpcError as error:
            raise site_error(error, backend.name) from error


def _outcome_unknown(request: data_pb2.PublishRequest) -> MeshError:
    return MeshError(
        ErrorCode.OUTCOME_UNKNOWN,
        "The data plane did not say whether the records were committed; without a producer sending them again may double "
        "them. Publish with a producer to make a retry safe.",
        retryable=request.producer_id != 0,
    )


async def _only(request: data_pb2.PublishBatchRequest) -> AsyncIterator[data_pb2.PublishBatchRequest]:
    yield request
