"""Attested recovery of a stream's group: an operator names who survives, and this node's replica goes on with them alone.

Each survivor is told by itself; meshraft lets the group lead again when all of them were. Leaves out: members that are wished
and gone, which the operator replaces afterwards. Source: docs/design/recovery.md, "Attested recovery".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from mesh_data.core.view import Stream, View
from mesh_data.shell.groups.replica import Replica
from mesh_data.shell.stream_errors import storage_failed
from meshapi.supervisor.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshcommon.logging import get_logger
from meshcommon.peer_text import printable
from meshraft import RaftError, RaftHost

SURVIVORS_MAX: Final = 10

_log = get_logger(__name__)


def survivors_of(view: View, stream: Stream, names: Sequence[str], own: NodeId) -> dict[int, int]:
    """The members at the named nodes, with their nodes.

    Raises:
        MeshError: UNKNOWN_NODE; INVALID_ARGUMENT: too many, one twice, one that is no member, or not this node.
    """
    if not 1 <= len(names) <= SURVIVORS_MAX or len(set(names)) != len(names):
        raise MeshError(ErrorCode.INVALID_ARGUMENT, f"Name 1 to {SURVIVORS_MAX} survivors, each once.")
    members: dict[int, int] = {}
    for name in names:
        node = view.node_named(name)
        if node is None:
            raise MeshError(ErrorCode.UNKNOWN_NODE, f"No node is named {printable(name)!r}: see the list of nodes.")
        member = stream.retiring_at(node.node_id) or stream.member_at(node.node_id)
        if member is None:
            raise MeshError(ErrorCode.INVALID_ARGUMENT, f"{node.name} is no member of {stream.name}: name its members.")
        members[int(member.member_id)] = int(node.node_id)
    if int(own) not in members.values():
        raise MeshError(ErrorCode.INVALID_ARGUMENT, "The asked node must be among the survivors: ask each of them.")
    return members


def recover(host: RaftHost, replica: Replica, survivors: Mapping[int, int]) -> data_pb2.RecoverStreamResponse:
    """Takes these members, with their nodes, for all that are left of the replica's group.

    Raises:
        MeshError: INVALID_ARGUMENT: the replica holds no log, or its group has a leader; STORAGE_FAILED.
    """
    name = replica.stream.name
    try:
        before = replica.status()
        host.recover(replica.group, dict(survivors))
    except ValueError as error:
        raise MeshError(ErrorCode.INVALID_ARGUMENT, f"{name} cannot be recovered here: {error}.") from error
    except RaftError as error:
        raise storage_failed(name, str(error)) from error
    replica.raft.driver.wake()
    voters = set(before.voters)
    found = data_pb2.RecoverStreamResponse(
        doubtful_from_offset=replica.state.next_offset,
        is_below_quorum=2 * len(voters & set(survivors)) <= len(voters),
        last_index=before.last_index,
        last_term=before.last_term,
    )
    _log.error(
        "stream_recovery_attested",
        stream=name,
        survivors=sorted(survivors.values()),
        doubtful_from_offset=found.doubtful_from_offset,
        is_below_quorum=found.is_below_quorum,
    )
    return found
