"""How the members that a stream should have change, and how a membership ends.

The catalogue holds the wish; the group's leader makes the steps (the data plane's `group_steps`). A membership that is
taken from the wish *retires*: it stays listed until the group has committed its removal (`is_out`) and its node has
destroyed the data. Member ids come from a counter and are never used again, so a node that becomes a member a second time
is another member. Everything here is a pure function of the replicated state. Source: architecture §2, §7.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from mesh_control.core.model import (
    STREAM_MEMBERS_MAX,
    STREAM_MEMBERS_MIN,
    STREAM_VOTERS_MAX,
    Member,
    Node,
    NodeState,
    Retiring,
    Stream,
    StreamState,
)
from mesh_control.core.rules import check_node
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import MemberId, NodeId


@dataclass(frozen=True, slots=True)
class Wish:
    """A change of members.

    Attributes:
        add: nodes that become members; the first takes the place of the first that goes, and so on.
        remove: nodes that cease to be members.
        renew: memberships that get a new id on the same node.
        is_risk_accepted: too few reachable voters may be left.
    """

    add: Sequence[NodeId]
    remove: Sequence[NodeId]
    renew: Collection[MemberId] = ()
    is_risk_accepted: bool = False


def change_members(
    stream: Stream, nodes: Mapping[NodeId, Node], wish: Wish, revision: int, next_member: int
) -> tuple[Stream, int]:
    """The stream with its new members, and the next free member id. The same stream when there is nothing to do.

    The first members vote, up to five: who comes later in the list moves up when one before it goes.

    Raises:
        MeshError: STREAM_NOT_FOUND, STREAM_NOT_FORMED, UNKNOWN_NODE, INVALID_ARGUMENT, MEMBER_COUNT, MEMBERS_CHANGING,
            STREAMS_AT_RISK.
    """
    _check_state(stream)
    _check_wish(stream, nodes, wish)
    added, ids = list(wish.add), iter(range(next_member, next_member + STREAM_MEMBERS_MAX * 2))
    places: list[tuple[NodeId, MemberId]] = []
    retired: list[Retiring] = []
    for member in stream.members:
        goes, is_renewed = member.node_id in wish.remove, member.member_id in wish.renew
        if not goes and not is_renewed:
            places.append((member.node_id, member.member_id))
            continue
        retired.append(Retiring(member.node_id, member.member_id, revision))
        if is_renewed and not goes:
            places.append((member.node_id, MemberId(next(ids))))
        elif added:
            places.append((added.pop(0), MemberId(next(ids))))
    places.extend((node_id, MemberId(next(ids))) for node_id in added)
    if not retired and not wish.add:
        return stream, next_member
    members = tuple(Member(node, member, at < STREAM_VOTERS_MAX) for at, (node, member) in enumerate(places))
    _check_members(stream, nodes, wish, members)
    changed = replace(stream, members=members, retiring=(*stream.retiring, *retired))
    return changed, max(next_member, *(item.member_id + 1 for item in members))


def member_out(stream: Stream, member_id: MemberId, nodes: Mapping[NodeId, Node]) -> Stream:
    """The group has committed the removal of `member_id`; of a node that is no longer there nothing needs to be destroyed."""
    return replace(
        stream,
        retiring=tuple(
            replace(item, is_out=True) if item.member_id == member_id else item
            for item in stream.retiring
            if item.member_id != member_id or item.node_id in nodes
        ),
    )


def member_destroyed(stream: Stream, member_id: MemberId) -> Stream:
    """Nothing is left of a membership that had ended; one that had not stays."""
    return replace(
        stream, retiring=tuple(item for item in stream.retiring if item.member_id != member_id or not item.is_out)
    )


def forget_node(stream: Stream, node_id: NodeId, nodes: Mapping[NodeId, Node]) -> Stream:
    """The node is no longer in the mesh, `nodes` are: nobody will confirm that its data are gone.

    A group that is being deleted and has lost its quorum for good can seal nothing, and needs to: it takes nothing either.
    """
    retiring = tuple(item for item in stream.retiring if item.node_id != node_id or not item.is_out)
    voters = [member.node_id for member in stream.members if member.is_voter]
    is_lost = len(nodes.keys() & set(voters)) <= len(voters) // 2
    is_sealed = stream.is_sealed or (stream.state is StreamState.DELETING and is_lost)
    return replace(stream, retiring=retiring, is_sealed=is_sealed)


def _check_state(stream: Stream) -> None:
    if stream.state is StreamState.DELETING:
        raise MeshError(
            ErrorCode.STREAM_NOT_FOUND,
            f"The stream {stream.name!r} is being deleted: create it anew when it is gone.",
            {"name": stream.name},
        )
    if stream.state is StreamState.FORMING:
        raise MeshError(
            ErrorCode.STREAM_NOT_FORMED,
            f"The group of {stream.name!r} has not formed yet: change its members afterwards, or delete it.",
            {"name": stream.name},
        )


def _check_wish(stream: Stream, nodes: Mapping[NodeId, Node], wish: Wish) -> None:
    present = {member.node_id for member in stream.members}
    for node_id in wish.add:
        check_node(nodes, node_id)
    named = [*wish.add, *wish.remove]
    if len(set(named)) != len(named):
        raise MeshError(ErrorCode.INVALID_ARGUMENT, "A node is named twice in the change: name each once.")
    if strangers := [node_id for node_id in wish.remove if node_id not in present]:
        raise MeshError(
            ErrorCode.UNKNOWN_NODE,
            f"Node {strangers[0]} is no member of {stream.name!r}: see its members.",
            {"node_id": str(strangers[0])},
        )
    if doubled := [node_id for node_id in wish.add if node_id in present]:
        raise MeshError(
            ErrorCode.INVALID_ARGUMENT,
            f"Node {doubled[0]} is a member of {stream.name!r} already: leave it out.",
            {"node_id": str(doubled[0])},
        )
    newcomers = {*wish.add, *(member.node_id for member in stream.members if member.member_id in wish.renew)}
    ending = {item.node_id for item in stream.retiring} & newcomers
    if ending or len(stream.retiring) >= STREAM_MEMBERS_MAX:
        raise MeshError(
            ErrorCode.MEMBERS_CHANGING,
            f"Former memberships of {stream.name!r} have not ended yet: look at the stream, and try again when they are gone.",
            {"members": ",".join(str(item.member_id) for item in stream.retiring)},
        )


def _check_members(stream: Stream, nodes: Mapping[NodeId, Node], wish: Wish, members: tuple[Member, ...]) -> None:
    if not STREAM_MEMBERS_MIN <= len(members) <= STREAM_MEMBERS_MAX:
        raise MeshError(
            ErrorCode.MEMBER_COUNT,
            f"A stream has {STREAM_MEMBERS_MIN} to {STREAM_MEMBERS_MAX} members, and {stream.name!r} would have "
            f"{len(members)}: name that many nodes.",
            {"members": str(len(members))},
        )
    voters = [member.node_id for member in members if member.is_voter]
    lost = [node_id for node_id in voters if not _is_there(nodes.get(node_id))]
    if len(voters) - len(lost) <= len(voters) // 2 and not wish.is_risk_accepted and wish.remove:
        raise MeshError(
            ErrorCode.STREAMS_AT_RISK,
            f"Of the {len(voters)} voters that {stream.name!r} would have, {len(lost)} are not reachable, and it would take "
            "no writes: bring them back first, or accept the risk.",
            {"streams": stream.name, "unreachable": ",".join(map(str, lost))},
        )


def _is_there(node: Node | None) -> bool:
    return node is not None and node.is_reachable and node.state is NodeState.ACTIVE
