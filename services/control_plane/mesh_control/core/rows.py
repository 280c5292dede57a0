"""The MCG's state as rows of the projection, and what changed between two such sets of rows.

Every number fits its column: a state may hold what an earlier version let in, or a leader with an absurd clock stamped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from mesh_control.core.limits import INTEGER_MAX, TIME_MS_MAX
from mesh_control.core.mcg_state import McgState
from mesh_control.core.model import Node, Stream
from meshcommon.ids import NodeId

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rows:
    """All rows at one applied index; nodes and streams by id."""

    mesh: Row
    nodes: Mapping[int, Row] = field(default_factory=dict)
    streams: Mapping[int, Row] = field(default_factory=dict)

    @property
    def applied_index(self) -> int:
        """Index that the rows stand for."""
        return int(self.mesh["applied_index"])


@dataclass(frozen=True, slots=True)
class Difference:
    """What to write to one table."""

    put: list[Row]
    remove: list[int]


NO_ROWS: Final[Mapping[int, Row]] = {}


def rows_of(state: McgState, local_node: NodeId) -> Rows:
    """The rows of `state`, which must belong to a mesh."""
    mesh = {
        "mesh_id": state.mesh_id,
        "mesh_epoch": state.mesh_epoch,
        "revision": state.revision,
        "applied_index": int(state.applied_index),
        "status": state.status.name,
        "local_node_id": local_node,
    }
    return Rows(
        mesh,
        {node.node_id: _node(node) for node in state.nodes.values()},
        {stream.stream_id: _stream(stream) for stream in state.streams.values()},
    )


def difference(before: Mapping[int, Row], after: Mapping[int, Row]) -> Difference:
    """Rows to insert or replace, and ids to remove, in id order."""
    put = [after[key] for key in sorted(after) if before.get(key) != after[key]]
    return Difference(put, sorted(before.keys() - after.keys()))


def _node(node: Node) -> Row:
    return {
        "node_id": node.node_id,
        "name": node.name,
        "public_key": node.public_key,
        "peer_address": node.peer_address,
        "state": node.state.name,
        "is_reachable": node.is_reachable,
        "mcg_member": node.mcg_member,
        "is_voter": node.is_voter,
    }


def _stream(stream: Stream) -> Row:
    return {
        "stream_id": stream.stream_id,
        "name": stream.name,
        "members": [
            {"node_id": member.node_id, "member_id": member.member_id, "is_voter": member.is_voter}
            for member in stream.members
        ],
        "state": stream.state.name,
        "revision": stream.revision,
        "retained_bytes_max": min(stream.retained_bytes_max, INTEGER_MAX),
        "created_at": datetime.fromtimestamp(min(stream.created_at_ms, TIME_MS_MAX) / 1000, UTC),
    }
