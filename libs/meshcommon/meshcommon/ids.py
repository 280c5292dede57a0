"""Distinct types for the numbers that must never be mixed up, and the grammar of names.

Source: architecture §3, §7 (member ids are allocated per membership and never used again).
"""

from __future__ import annotations

import re
from typing import Final, NewType

from meshcommon.errors import ErrorCode, MeshError
from meshcommon.peer_text import printable

NodeId = NewType("NodeId", int)
"""A site's node; 0 stands for a node that is not yet a member."""
StreamId = NewType("StreamId", int)
"""A stream, also its Raft group id and the flow id of its packets."""
MemberId = NewType("MemberId", int)
"""A Raft member inside one group."""
Offset = NewType("Offset", int)
"""Position of a record in its stream, from 0."""
Term = NewType("Term", int)
LogIndex = NewType("LogIndex", int)

NO_NODE: Final = NodeId(0)

_LABEL: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_MESH_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_STREAM_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}/[a-z0-9][a-z0-9._-]{0,62}")


def check_node_name(name: str) -> str:
    """Returns `name` if it is legal (a DNS label), else raises ILLEGAL_NAME."""
    return _check_label(name, "node name")


def check_mesh_name(name: str) -> str:
    """Returns the name of a mesh if it is legal (a DNS label), else raises ILLEGAL_NAME."""
    return _check_label(name, "mesh name")


def _check_label(name: str, what: str) -> str:
    if not _LABEL.fullmatch(name):
        raise MeshError(
            ErrorCode.ILLEGAL_NAME,
            f"{printable(name)!r} is not a legal {what}: use 1 to 63 of a-z, 0-9 and '-', not starting with '-'.",
        )
    return name


def check_stream_name(name: str) -> str:
    """Returns `name` if it has the form `namespace/name`, else raises ILLEGAL_NAME."""
    if not _STREAM_NAME.fullmatch(name):
        raise MeshError(
            ErrorCode.ILLEGAL_NAME,
            f"{printable(name)!r} is not a legal stream name: use namespace/name, "
            "each 1 to 63 of a-z, 0-9, '.', '_' and '-', starting with a letter or digit.",
        )
    return name


def check_mesh_id(mesh_id: str) -> str:
    """Returns `mesh_id` if it is a UUID as `str(uuid.UUID)` writes it, else raises INVALID_ARGUMENT.

    Ids of meshes come from other nodes and become part of files here: nothing else may pass.
    """
    if not _MESH_ID.fullmatch(mesh_id):
        raise MeshError(ErrorCode.INVALID_ARGUMENT, f"{printable(mesh_id)!r} is no id of a mesh: it must be a UUID.")
    return mesh_id
