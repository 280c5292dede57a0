"""What this node answers other nodes, and its own callers, about the Raft side of the streams it holds.

Handing over a leadership, hash chains, and reading the log back. Leaves out: asking (`raft_api`). Source: architecture §5.
"""

from __future__ import annotations

import asyncio
from typing import Final

from google.protobuf.message import DecodeError

from mesh_data.core.chain_audit import CHAIN_BYTES, ChainAt
from mesh_data.core.stream_requests import Method, decode_number, decode_stream_body, encode_number
from mesh_data.shell.groups.replica import Replica
from mesh_data.shell.streams.log_audit import verify_piece
from mesh_data.shell.streams.streams_catalogue import StreamsCatalogue
from meshapi.data.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId, StreamId
from meshcommon.peer_text import printable
from meshraft import HostPoisoned, LogCompacted, LogCorrupt, RaftError
from meshwire.errors import WireError

_VERIFIED_AT_ONCE: Final = 2
"""Logs that are read back at a time for other nodes: each keeps a thread and the disk busy."""


class RaftServing:
    """Handlers of overlay requests; construction binds them."""

    def __init__(self, catalogue: StreamsCatalogue) -> None:
        self._catalogue = catalogue
        self._verifying = asyncio.Semaphore(_VERIFIED_AT_ONCE)
        overlay = catalogue.overlay
        overlay.serve(Method.TRANSFER, self._transfer)
        overlay.serve(Method.CHAIN, self._chain)
        overlay.serve(Method.VERIFY_LOG, self._verify_log)

    async def _transfer(self, _source: NodeId, body: bytes) -> bytes:
        stream_id, rest = _read(body)
        try:
            node = NodeId(decode_number(rest))
        except WireError as error:
            raise _unreadable(error.reason) from error
        replica = self._catalogue.served(stream_id)
        return encode_number(await transfer_to(replica, node, self._catalogue.groups.timing.attempt_s))

    async def _chain(self, _source: NodeId, body: bytes) -> bytes:
        return chain_marks(self._catalogue.served(_read(body)[0])).SerializeToString()

    async def _verify_log(self, _source: NodeId, body: bytes) -> bytes:
        stream_id, rest = _read(body)
        try:
            request = data_pb2.VerifyLogRequest.FromString(rest)
        except DecodeError as error:
            raise _unreadable(str(error)) from error
        if len(request.chain) not in (0, CHAIN_BYTES):
            raise _unreadable(f"a chain of {len(request.chain)} bytes")
        async with self._verifying:
            return (await verify_log(self._catalogue, stream_id, request)).SerializeToString()


async def transfer_to(replica: Replica, node: NodeId, limit_s: float) -> int:
    """Hands the leadership to the voter at `node`; returns the term in which that one leads.

    Raises:
        MeshError: NOT_LEADER; UNKNOWN_NODE or INVALID_ARGUMENT when no voter is there; NO_QUORUM when it has not taken
            over within `limit_s`.
    """
    if not replica.is_leading:
        raise replica.not_leader()
    name = replica.stream.name
    member = replica.stream.member_at(node)
    if member is None:
        raise MeshError(ErrorCode.UNKNOWN_NODE, f"Node {node} is no member of {name}: see its members.")
    if int(member.member_id) not in replica.status().voters:
        raise MeshError(
            ErrorCode.INVALID_ARGUMENT, f"Node {node} has no vote in {name} and cannot lead: see its members."
        )
    if member.member_id != replica.member_id:
        replica.transfer_to(member.member_id)
        try:
            async with asyncio.timeout(limit_s):
                while replica.leader_node != node and replica.failure is None:
                    await replica.changed.wait()
        except TimeoutError:
            raise MeshError(
                ErrorCode.NO_QUORUM, f"Node {node} has not taken over {name} in time: see who leads, try again."
            ) from None
    return replica.status().term


def chain_marks(replica: Replica) -> data_pb2.ChainMarks:
    """The hash chains that this member knows. Raises MeshError of a failed replica, or STREAM_UNAVAILABLE."""
    if replica.failure is not None:
        raise replica.failure
    if replica.is_blank:
        raise MeshError(ErrorCode.STREAM_UNAVAILABLE, f"{replica.stream.name} has not reached this member yet.")
    marks = [
        data_pb2.ChainMark(index=item.index, chain=item.chain)
        for item in replica.chains.known(replica.state.applied_index, replica.state.chain)
    ]
    return data_pb2.ChainMarks(applied_index=replica.state.applied_index, marks=marks)


async def verify_log(
    catalogue: StreamsCatalogue, stream_id: StreamId, request: data_pb2.VerifyLogRequest
) -> data_pb2.VerifyLogResponse:
    """Reads a piece of the local log back, on a thread.

    Raises:
        MeshError: OFFSET_BELOW_FLOOR when the log begins later by now: begin again. STORAGE_FAILED.
    """
    replica = catalogue.served(stream_id)
    if replica.failure is not None:
        raise replica.failure
    after = ChainAt(request.after_index, request.chain) if request.chain else replica.chains.base
    until_index = min(request.until_index, replica.state.applied_index)
    reader = catalogue.groups.reader()
    try:
        return await asyncio.to_thread(verify_piece, reader, replica.group, after, until_index)
    except LogCompacted:
        raise MeshError(
            ErrorCode.OFFSET_BELOW_FLOOR, f"The log of {replica.stream.name} begins later by now."
        ) from None
    except LogCorrupt as error:
        return data_pb2.VerifyLogResponse(index=after.index, chain=after.chain, problem=f"the log is damaged: {error}")
    except (HostPoisoned, RaftError) as error:
        raise MeshError(
            ErrorCode.STORAGE_FAILED, f"The log of {replica.stream.name} cannot be read: {error}."
        ) from error


def _read(body: bytes) -> tuple[StreamId, bytes]:
    try:
        return decode_stream_body(body)
    except WireError as error:
        raise _unreadable(error.reason) from error


def _unreadable(reason: str) -> MeshError:
    return MeshError(ErrorCode.INVALID_ARGUMENT, f"The request cannot be read: {printable(reason)}.")
