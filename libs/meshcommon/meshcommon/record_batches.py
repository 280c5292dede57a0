"""Batches opened and closed on behalf of people: the errors of `meshwire.records` in words that say what to do.

For clients and the gateway; the data plane passes batches on unopened and does not import this. Leaves out: the bytes
(`meshwire.batch`, `meshwire.records`). Source: docs/design/batches.md.
"""

from __future__ import annotations

from meshcommon.errors import ErrorCode, MeshError
from meshwire.batch import decode_header
from meshwire.buffers import Buffer
from meshwire.errors import WireCode, WireError
from meshwire.records import Record, decode_records


def open_batch(base_offset: int, batch: Buffer) -> list[Record]:
    """The records of a committed batch, the first of them at `base_offset`.

    Raises:
        MeshError: BATCH_UNREADABLE when they are not what the header says; `next_offset` in the details is where to go on.
            UPDATE_REQUIRED for a format of a later version; INTERNAL when even the header cannot be read.
    """
    try:
        return decode_records(batch)
    except WireError as error:
        raise _unreadable(base_offset, batch, error) from error


def _unreadable(base_offset: int, batch: Buffer, error: WireError) -> MeshError:
    details = {"offset": str(base_offset)}
    try:
        next_offset = base_offset + decode_header(batch).record_count
    except WireError as worse:
        if worse.code is WireCode.BAD_VERSION:
            text = (
                f"The batch at offset {base_offset} has a format that this version does not know: update this software."
            )
            return MeshError(ErrorCode.UPDATE_REQUIRED, text, details)
        text = f"The batch at offset {base_offset} cannot be read: {worse.reason}. Audit the stream."
        return MeshError(ErrorCode.INTERNAL, text, details)
    return MeshError(
        ErrorCode.BATCH_UNREADABLE,
        f"The batch at offset {base_offset} was published with a header that its body does not fit: {error.reason}. Its "
        f"records are lost; go on from offset {next_offset}.",
        {**details, "next_offset": str(next_offset)},
    )
