"""Audits one stream: the hash chains of all members at one index, and each member's log against its chain.

Any node can do it; it asks the members over the overlay. Source: architecture I4; docs/design/groups.md.
"""

from __future__ import annotations

import asyncio
from typing import Final

from google.protobuf.message import DecodeError

from mesh_data.core.chain_audit import CHAIN_BYTES, Comparison, checked_marks, compare
from mesh_data.core.stream_requests import STORED_MAX, Method, encode_stream_body
from mesh_data.core.view import Stream
from mesh_data.shell.stream_errors import malformed
from mesh_data.shell.streams.raft_serving import chain_marks, verify_log
from mesh_data.shell.streams.streams_catalogue import StreamsCatalogue
from meshapi.data.v1 import data_pb2
from meshapi.supervisor.v1 import data_pb2 as public_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshcommon.peer_text import printable

_CHAIN_S: Final = 3.0
_PIECE_S: Final = 20.0
_RESTARTS_MAX: Final = 3
_PIECE_BYTES_MAX: Final = 64 * 1024 * 1024
"""Twice what a member reads for one question."""


class _Finding:
    """What is known of one member."""

    def __init__(self, node: str) -> None:
        self.shown = public_pb2.MemberAudit(node=node)
        self.marks: dict[int, bytes] = {}


async def audit(catalogue: StreamsCatalogue, stream: Stream, *, skip_logs: bool) -> public_pb2.AuditStreamResponse:
    """Asks every member of the catalogue; who does not answer is a problem of its own and no failure of the audit."""
    view = catalogue.view()
    nodes = [member.node_id for member in stream.members]
    findings = {node: _Finding(view.name_of(node)) for node in nodes}
    await asyncio.gather(*(_ask_chain(catalogue, stream, node, findings[node]) for node in nodes))
    found = compare({node: finding.marks for node, finding in findings.items() if finding.marks})
    for finding in findings.values():
        _judge(finding, found)
    if not skip_logs:
        asked = [node for node in nodes if findings[node].marks]
        await asyncio.gather(*(_read_back(catalogue, stream, node, findings[node], found) for node in asked))
    return public_pb2.AuditStreamResponse(
        stream=stream.name,
        compared_index=found.index,
        is_divergent=found.is_divergent,
        members=sorted((finding.shown for finding in findings.values()), key=lambda member: member.node),
    )


async def _ask_chain(catalogue: StreamsCatalogue, stream: Stream, node: NodeId, finding: _Finding) -> None:
    try:
        if node == catalogue.overlay.node_id:
            answer = chain_marks(catalogue.served(stream.stream_id))
        else:
            body = await catalogue.overlay.call(node, Method.CHAIN, encode_stream_body(stream.stream_id), _CHAIN_S)
            answer = data_pb2.ChainMarks.FromString(body)
        marks = checked_marks(
            ((mark.index, mark.chain) for mark in answer.marks), min(answer.applied_index, STORED_MAX)
        )
    except MeshError as error:
        finding.shown.problem = f"{error.code}: {printable(error.message)}"
        return
    except (DecodeError, ValueError) as error:
        finding.shown.problem = malformed(node, str(error)).message
        return
    finding.marks = marks
    finding.shown.applied_index = min(answer.applied_index, STORED_MAX)


def _judge(finding: _Finding, found: Comparison) -> None:
    shown = finding.shown
    if not finding.marks or not found.index:
        return
    shown.chain = finding.marks.get(found.index, b"")
    if not shown.chain:
        shown.problem = f"it cannot be compared at index {found.index}: it is too far from the others, try again"
    elif found.is_divergent and shown.chain != found.chain:
        shown.is_damaged = True
        shown.problem = f"its hash chain at index {found.index} differs from that of " + (
            "most members" if found.chain else "other members, and none has a majority"
        )


async def _read_back(
    catalogue: StreamsCatalogue, stream: Stream, node: NodeId, finding: _Finding, found: Comparison
) -> None:
    until_index = found.index if found.index in finding.marks else max(finding.marks)
    for _ in range(_RESTARTS_MAX):
        try:
            problem = await _read_pieces(catalogue, stream, node, finding, until_index)
        except MeshError as error:
            if error.code is ErrorCode.OFFSET_BELOW_FLOOR:
                continue
            finding.shown.problem = finding.shown.problem or f"{error.code}: {printable(error.message)}"
            return
        if problem:
            finding.shown.is_damaged = True
            finding.shown.problem = problem
        return
    finding.shown.problem = finding.shown.problem or "its log was compacted again and again meanwhile: try later"


async def _read_pieces(
    catalogue: StreamsCatalogue, stream: Stream, node: NodeId, finding: _Finding, until_index: int
) -> str:
    """Reads the log of one member; returns what is wrong with it. Raises MeshError."""
    request = data_pb2.VerifyLogRequest(until_index=until_index)
    finding.shown.verified_entries = finding.shown.verified_bytes = 0
    while True:
        if node == catalogue.overlay.node_id:
            piece = await verify_log(catalogue, stream.stream_id, request)
        else:
            body = encode_stream_body(stream.stream_id, request.SerializeToString())
            piece = _piece(node, request, await catalogue.overlay.call(node, Method.VERIFY_LOG, body, _PIECE_S))
        finding.shown.verified_entries += piece.entries
        finding.shown.verified_bytes += piece.bytes
        if piece.problem:
            return str(piece.problem)
        if piece.index >= until_index:
            break
        if not piece.entries:
            # It told the chain of a later index just now: a restart since, after which it applies its log again.
            raise MeshError(
                ErrorCode.STREAM_UNAVAILABLE, f"it can be read up to index {piece.index} only for now: try again"
            )
        request.after_index, request.chain = piece.index, piece.chain
    if piece.index == until_index and piece.chain != finding.marks[until_index]:
        return f"its log does not give the hash chain that its state has at index {until_index}"
    return ""


def _piece(node: NodeId, request: data_pb2.VerifyLogRequest, answer: bytes) -> data_pb2.VerifyLogResponse:
    """What another node found in a piece of its log. Raises UNAVAILABLE when it cannot be that: it would go on for ever."""
    try:
        piece = data_pb2.VerifyLogResponse.FromString(answer)
    except DecodeError as error:
        raise malformed(node, str(error)) from error
    is_on_the_way = piece.index <= request.until_index and len(piece.chain) in (0, CHAIN_BYTES)
    if (
        not is_on_the_way
        or (bool(piece.entries) and piece.index <= request.after_index)
        or piece.bytes > _PIECE_BYTES_MAX
    ):
        raise malformed(node, "it tells of a piece of its log that it was not asked for")
    piece.entries = min(piece.entries, piece.index)
    piece.problem = printable(piece.problem)
    return piece
