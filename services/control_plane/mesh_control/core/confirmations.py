"""Which births and deaths of stream groups this node should report to the MCG, from what its replicas say.

Source: architecture §7 "Birth and death of a group". A report is idempotent at the MCG: repeating one is no harm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from mesh_control.core.model import Stream, StreamState
from meshcommon.ids import NodeId, StreamId


@dataclass(frozen=True, slots=True)
class Report:
    """What one local replica said last.

    Attributes:
        state: "open": it has committed its first entry; "destroyed": nothing of it is stored here; else "other".
        leader: leader's node as known here, 0 if unknown.
        reason: why it failed, if it did.
    """

    state: str
    leader: NodeId
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Confirmation:
    """A birth ("formed") or a death ("destroyed") to commit."""

    kind: Literal["formed", "destroyed"]
    stream_id: StreamId


def due_confirmations(
    streams: Iterable[Stream], reports: Mapping[StreamId, Report], node_id: NodeId
) -> list[Confirmation]:
    """What node `node_id` should commit now, by stream id."""
    due: list[Confirmation] = []
    for stream in sorted(streams, key=lambda item: item.stream_id):
        report = reports.get(stream.stream_id)
        if report is None or not stream.has_member(node_id):
            continue
        if stream.state is StreamState.FORMING and report.state == "open":
            due.append(Confirmation("formed", stream.stream_id))
        is_confirmed = node_id in stream.destroyed
        if stream.state is StreamState.DELETING and report.state == "destroyed" and not is_confirmed:
            due.append(Confirmation("destroyed", stream.stream_id))
    return due
