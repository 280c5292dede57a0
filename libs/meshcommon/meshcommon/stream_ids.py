"""A stream id that is not the one behind the name: what a catalogue knows of it, and the refusal that says so.

Shared by the data plane and the gateway, which hold the catalogue in different types. Source: docs/design/clients.md,
"Incarnations".
"""

from __future__ import annotations

from collections.abc import Mapping

from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import StreamId


def stream_replaced(
    name: str, present: StreamId, expected: StreamId, names: Mapping[StreamId, str], next_stream_id: int
) -> MeshError:
    """Stream `present` has the name of the one that is meant, `expected`.

    Ids rise and are never used again: only one above all that the catalogue has given out may be a stream that this node
    has not heard of yet. Asked again later, it may be there.

    Args:
        name: the name.
        present: stream that has it.
        expected: stream that is meant.
        names: every stream of the catalogue.
        next_stream_id: the catalogue has given out the ids before it; 0 from a control plane that does not tell.
    """
    is_ahead = expected >= max(next_stream_id, *(stream_id + 1 for stream_id in names), present + 1)
    other = names.get(expected, name)
    if is_ahead:
        advice = "this node has not heard of that one yet, try again; or check the id"
    elif other != name:
        advice = f"that one is {other}, check the name and the id"
    elif expected > present:
        advice = "that id was given to another stream, which is gone, and is not used again; check the id"
    else:
        advice = "that one was deleted, begin anew with the present one"
    return MeshError(
        ErrorCode.STREAM_REPLACED,
        f"{name} is stream {present} now, not stream {expected}: {advice}.",
        {"stream": name, "stream_id": str(present)},
        retryable=is_ahead,
    )
