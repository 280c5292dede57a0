"""Which stream a name or an id means in a MeshView, and what is said when it means none or another one.

A stream that is being deleted is there no more for its users. Pure. Source: architecture §8 "Incarnation".
"""

from __future__ import annotations

from typing import Final

from mesh_data.core.view import Stream, StreamPhase, View
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import StreamId, check_stream_name
from meshcommon.peer_text import printable
from meshcommon.stream_ids import stream_replaced

ANY_STREAM: Final = 0
"""Expected id of a request that takes whichever stream has the name now."""


def stream_named(view: View, name: str, expected: int = ANY_STREAM) -> Stream:
    """The live stream of that name, if it is the one with the id that is expected.

    Raises:
        MeshError: ILLEGAL_NAME, STREAM_NOT_FOUND, STREAM_REPLACED.
    """
    stream = view.stream_named(check_stream_name(name))
    if stream is None or stream.state is StreamPhase.DELETING:
        raise not_found(name)
    if expected not in (ANY_STREAM, stream.stream_id):
        raise _replaced(view, stream, StreamId(expected))
    return stream


def stream_of_id(view: View, stream_id: StreamId, name: str = "") -> Stream:
    """The live stream of that id; `name` is its name, where that is known.

    Raises:
        MeshError: STREAM_NOT_FOUND; STREAM_REPLACED when it is gone and another one has its name.
    """
    stream = view.streams.get(stream_id)
    if stream is not None and stream.state is not StreamPhase.DELETING:
        return stream
    name = name or (str(stream_id) if stream is None else stream.name)
    successor = view.stream_named(name)
    if successor is None or successor.state is StreamPhase.DELETING:
        raise not_found(name)
    raise _replaced(view, successor, stream_id)


def not_found(name: str) -> MeshError:
    """There is no such stream."""
    shown = printable(name)
    return MeshError(
        ErrorCode.STREAM_NOT_FOUND, f"There is no stream {shown}: create it, or check the name.", {"stream": shown}
    )


def _replaced(view: View, stream: Stream, expected: StreamId) -> MeshError:
    """`stream` has the name of the one that is meant; the view tells what became of that one."""
    names = {item.stream_id: item.name for item in view.streams.values()}
    return stream_replaced(stream.name, stream.stream_id, expected, names, view.next_stream_id)
