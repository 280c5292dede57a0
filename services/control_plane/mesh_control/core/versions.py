"""The version gate: which version of the mesh introduced each command, and what this software can apply.

The mesh runs at one committed version, raised only when every member supports it (architecture §12). A command carries
the least version whose software applies it correctly. Software that meets one beyond its own version stops there: it
must not pass over what others apply. The same goes for bytes that do not decode, for a kind, and for a field that it does
not know, since each of them changes the state elsewhere.

Whoever adds a kind raises `MESH_VERSION` and adds a line to `INTRODUCED`. Whoever adds a field or an enum value to an old
kind, or changes what applying it does, makes `version_of` answer the new version for commands that use it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from mesh_control.core.model import Node, NodeState
from meshapi.control.v1 import mcg_pb2
from meshcommon.errors import ErrorCode, MeshError

MESH_VERSION: Final = 3
"""Highest mesh version that this software supports."""
FIRST_VERSION: Final = 1
JOIN_VERSION: Final = 2
"""Introduced join policies and tokens."""
WEIGHTS_VERSION: Final = 3
"""Introduced the weights of the link cost."""
CA_VERSION: Final = 3
"""Introduced wrap keys and the mesh's CA."""
VERSION_MAX: Final = 2**31 - 1

INTRODUCED: Final[dict[str, int]] = {
    "found_mesh": 1,
    "add_node": 1,
    "remove_node": 1,
    "set_node_state": 1,
    "set_reachability": 1,
    "set_voters": 1,
    "create_stream": 1,
    "stream_formed": 1,
    "delete_stream": 1,
    "replica_destroyed": 1,
    "change_members": 1,
    "member_out": 1,
    "stream_sealed": 1,
    "renew_member": 1,
    "forget_node": 1,
    "activate_node": 1,
    "expire_node": 1,
    "announce_version": 1,
    "raise_mesh_version": 1,
    "issue_token": JOIN_VERSION,
    "revoke_token": JOIN_VERSION,
    "set_join_policy": JOIN_VERSION,
    "set_cost_weights": WEIGHTS_VERSION,
    "set_wrap_key": CA_VERSION,
    "set_ca": CA_VERSION,
    "wrap_ca": CA_VERSION,
}
"""Mesh version that introduced each kind of command."""


@dataclass(frozen=True, slots=True)
class Beyond:
    """Something that this software cannot apply. `version` is the least that can, 0 when that cannot be told."""

    version: int

    def refusal(self, supported: int) -> MeshError:
        """What a caller is told."""
        needed = str(self.version) if self.version else f"more than {supported}"
        return MeshError(
            ErrorCode.UPDATE_REQUIRED,
            f"The mesh runs at version {needed} and this node's software supports {supported}: it applies no changes any "
            "more and answers from what it knew; update this node.",
            {"needed": str(self.version), "supported": str(supported)},
        )


def stated_version(number: int) -> int:
    """The version that a field states: 0, which old software writes by leaving it out, stands for 1."""
    return min(max(number, FIRST_VERSION), VERSION_MAX)


def version_of(command: mcg_pb2.Command) -> int:
    """Least mesh version whose software applies `command` correctly."""
    kind = command.WhichOneof("kind") or ""
    found, add = command.found_mesh, command.add_node
    speaks_of_joining = found.mesh_name or found.join_policy or add.token_id
    by_fields = JOIN_VERSION if speaks_of_joining else FIRST_VERSION
    if found.node.wrap_key or add.wrap_key:
        by_fields = CA_VERSION
    return max(INTRODUCED.get(kind, FIRST_VERSION), by_fields, command.min_version)


def check_proposable(command: mcg_pb2.Command, committed: int, supported: int) -> None:
    """Refuses, before it is proposed, what not every member could apply.

    Raises:
        MeshError: MESH_VERSION_TOO_LOW; UPDATE_REQUIRED when this node itself does not know all of the command.
    """
    needed = version_of(command)
    if has_unknown_fields(command) or max(needed, command.raise_mesh_version.mesh_version) > supported:
        raise Beyond(needed if needed > supported else 0).refusal(supported)
    if needed <= committed:
        return
    raise MeshError(
        ErrorCode.MESH_VERSION_TOO_LOW,
        f"This needs version {needed} of the mesh, which runs at {committed}: update the software of every node; the version "
        "then rises by itself.",
        {"needed": str(needed), "mesh_version": str(committed)},
    )


def read_command(data: bytes, supported: int) -> mcg_pb2.Command | Beyond:
    """The command of an entry, or what it needs."""
    try:
        command = mcg_pb2.Command.FromString(data)
    except DecodeError:
        return Beyond(0)
    needed = version_of(command)
    if needed > supported:
        return Beyond(needed)
    if command.WhichOneof("kind") is None or has_unknown_fields(command):
        return Beyond(0)
    return command


def has_unknown_fields(command: mcg_pb2.Command) -> bool:
    """Whether the command, at any depth, holds a field that this software does not know."""
    known = mcg_pb2.Command()
    known.CopyFrom(command)
    known.DiscardUnknownFields()
    return known.ByteSize() != command.ByteSize()


def supported_by_all(nodes: Iterable[Node]) -> int:
    """The highest mesh version that every node supports; strangers that join and never speak hold nothing back."""
    versions = (node.mesh_version for node in nodes if node.state is not NodeState.JOINING)
    return min(versions, default=FIRST_VERSION)
