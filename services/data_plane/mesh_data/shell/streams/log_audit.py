"""Reads a replica's log back from the disk and recomputes its hash chain.

Runs on a thread of its own, in pieces; raft-engine checks the checksums of what it reads, each record batch carries one of
its own, and the chain tells that nothing is missing, changed or out of order. Leaves out: comparing members (`audit`).
Source: architecture §7 "running hash chain", I4.
"""

from __future__ import annotations

import hashlib
from typing import Final

from mesh_data.core.chain_audit import ChainAt
from meshapi.data.v1 import data_pb2
from meshraft import ENTRY_NORMAL, LogReader
from meshwire.batch import decode_header
from meshwire.entry import BatchEntry, decode_entry
from meshwire.errors import WireError

PIECE_BYTES: Final = 32 * 1024 * 1024
_STEP_BYTES: Final = 1024 * 1024


def verify_piece(reader: LogReader, group: int, after: ChainAt, until_index: int) -> data_pb2.VerifyLogResponse:
    """Verifies entries after `after` up to `until_index`, at most about 32 MiB of them.

    Raises:
        RaftError: LogCompacted when the log begins later by now, UnknownGroup, HostPoisoned.
    """
    index, chain, entries, size_bytes = after.index, after.chain, 0, 0
    problem = ""
    while index < until_index and size_bytes < PIECE_BYTES and not problem:
        step = reader.entries(group, index + 1, until_index + 1, _STEP_BYTES)
        if not step:
            break  # opened again meanwhile: not all of it is applied yet
        for entry in step:
            if entry.index != index + 1:
                problem = f"entry {index + 1} is missing, {entry.index} follows"
                break
            index, entries, size_bytes = entry.index, entries + 1, size_bytes + len(entry.data)
            if entry.kind != ENTRY_NORMAL or not entry.data:
                continue
            chain = hashlib.sha256(chain + entry.data).digest()
            problem = _problem_of(entry.index, entry.data)
            if problem:
                break
    return data_pb2.VerifyLogResponse(index=index, chain=chain, entries=entries, bytes=size_bytes, problem=problem)


def _problem_of(index: int, data: bytes) -> str:
    try:
        entry = decode_entry(data)
        if isinstance(entry, BatchEntry):
            decode_header(entry.batch, verify=True)
    except WireError as error:
        return f"entry {index} is damaged: {error.reason}"
    return ""
