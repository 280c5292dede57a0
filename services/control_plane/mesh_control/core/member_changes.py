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
    StreamPhase,
)
from mesh_control.core.rules import check_node, check_not_last, check_placeable, node_is_heard
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import MemberId, NodeId, StreamId


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
    is_sealed = stream.is_sealed or (stream.state is StreamPhase.DELETING and has_lost_quorum(stream, nodes))
    return replace(stream, retiring=retiring, is_sealed=is_sealed)


def has_lost_quorum(stream: Stream, nodes: Mapping[NodeId, Node]) -> bool:
    """Whether so many of those that may vote in the group are no longer in the mesh that it can commit nothing more."""
    voters = [member.node_id for member in stream.members if member.is_voter]
    voters.extend(item.node_id for item in stream.retiring if not item.is_out)
    return 2 * sum(node_id in nodes for node_id in voters) <= len(voters)


def check_forgettable(
    nodes: Mapping[NodeId, Node], streams: Mapping[StreamId, Stream], node_id: NodeId, *, is_risk_accepted: bool
) -> Node:
    """A lost node may be forgotten when nobody hears it and its streams keep their quorum without it.

    Raises:
        MeshError: UNKNOWN_NODE, NODE_IS_HEARD, LAST_NODE, STREAMS_AT_RISK.
    """
    node = check_node(nodes, node_id)
    check_not_last(nodes, node)
    if node.state is NodeState.ACTIVE and node.is_reachable:
        raise node_is_heard(node)
    at_risk = sorted(item.name for item in streams.values() if _depends_on(item, node_id, nodes))
    if at_risk and not is_risk_accepted:
        raise MeshError(
            ErrorCode.STREAMS_AT_RISK,
            f"{len(at_risk)} streams would lose their quorum without {node.name!r} ({', '.join(at_risk[:5])}"
            f"{', …' if len(at_risk) > 5 else ''}): bring other members back first, or accept the risk.",
            {"streams": ",".join(at_risk)},
        )
    return node


def _depends_on(stream: Stream, node_id: NodeId, nodes: Mapping[NodeId, Node]) -> bool:
    """Whether the group could not take the node out by itself, or has not even formed.

    Who retires may still vote until the group has committed its removal, and who takes its place not yet.
    """
    if stream.state is StreamPhase.DELETING:
        return False
    is_member = stream.has_member(node_id)
    if is_member and (stream.state is StreamPhase.FORMING or len(stream.members) == 1):
        return True
    wished = [item.node_id for item in stream.members if item.is_voter]
    present = [*wished, *(item.node_id for item in stream.retiring if not item.is_out)]

    def would_be_lost(voters: list[NodeId]) -> bool:
        there = sum(item != node_id and _is_there(nodes.get(item)) for item in voters)
        return node_id in voters and 2 * there <= len(voters)

    return would_be_lost(wished) or would_be_lost(present)


def drop_node(stream: Stream, node_id: NodeId, revision: int) -> Stream:
    """The stream without a node that is lost: the group's leader takes its membership out, as after a removal.

    A group that has not formed yet must start with the voters that it was given, and one without members has no data left:
    both are deleted, which the operator has accepted.
    """
    member = next((item for item in stream.members if item.node_id == node_id), None)
    if stream.state is StreamPhase.DELETING or member is None:
        return stream
    if stream.state is StreamPhase.FORMING or len(stream.members) == 1:
        return replace(stream, state=StreamPhase.DELETING, is_sealed=True)
    left = [item for item in stream.members if item is not member]
    return replace(
        stream,
        members=tuple(replace(item, is_voter=at < STREAM_VOTERS_MAX) for at, item in enumerate(left)),
        retiring=(*stream.retiring, Retiring(node_id, member.member_id, revision)),
    )


def _check_state(stream: Stream) -> None:
    if stream.state is StreamPhase.DELETING:
        raise MeshError(
            ErrorCode.STREAM_NOT_FOUND,
            f"The stream {stream.name!r} is being deleted: create it anew when it is gone.",
            {"name": stream.name},
        )
    if stream.state is StreamPhase.FORMING:
        raise MeshError(
            ErrorCode.STREAM_NOT_FORMED,
            f"The group of {stream.name!r} has not formed yet: change its members afterwards, or delete it.",
            {"name": stream.name},
        )


def _check_wish(stream: Stream, nodes: Mapping[NodeId, Node], wish: Wish) -> None:
    present = {member.node_id for member in stream.members}
    for node_id in wish.add:
        check_placeable(check_node(nodes, node_id))
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
            f"Former memberships of {stream.name!r} have not ended yet: try again when they are gone. `meshctl raft ls` "
            "says whom the group waits for; when a member is lost for good, `meshctl raft recover` is the way out.",
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
