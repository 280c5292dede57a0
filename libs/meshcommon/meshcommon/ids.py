"""Distinct types for the numbers that must never be mixed up, and the grammar of names.

Source: architecture §3, §7 (member ids are allocated per membership and never used again).
"""

from __future__ import annotations

import re
from typing import Final, NewType

from meshcommon.errors import ErrorCode, MeshError

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

_NODE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_STREAM_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}/[a-z0-9][a-z0-9._-]{0,62}")


def check_node_name(name: str) -> str:
    """Returns `name` if it is legal (a DNS label), else raises ILLEGAL_NAME."""
    if not _NODE_NAME.fullmatch(name):
        raise MeshError(
            ErrorCode.ILLEGAL_NAME,
            f"{name!r} is not a legal node name: use 1 to 63 of a-z, 0-9 and '-', not starting with '-'.",
        )
    return name


def check_stream_name(name: str) -> str:
    """Returns `name` if it has the form `namespace/name`, else raises ILLEGAL_NAME."""
    if not _STREAM_NAME.fullmatch(name):
        raise MeshError(
            ErrorCode.ILLEGAL_NAME,
            f"{name!r} is not a legal stream name: use namespace/name, "
            "each 1 to 63 of a-z, 0-9, '.', '_' and '-', starting with a letter or digit.",
        )
    return name
