"""Which node is asked as a stream's leader, or as a member: by the local replica, by hints, else each member in its turn.

A hint is the member that answered last as the leader, or that a refusal named; a name that is no member's is not believed.
Pure. Leaves out: asking. Source: architecture §5 "NOT_LEADER carries a hint, which is cached".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mesh_data.core.view import Stream
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NO_NODE, NodeId, StreamId

_NODE_DIGITS_MAX: Final = 20


class LeaderHints:
    """What was heard of the leaders of all streams, at the node `own`."""

    def __init__(self) -> None:
        self._hints: dict[StreamId, NodeId] = {}
        self._turn = 0

    def leader(
        self, stream: Stream, own: NodeId, known_here: NodeId | None, is_reachable: Callable[[NodeId], bool]
    ) -> NodeId:
        """The node to ask as the leader; NO_NODE when nobody can be asked now.

        Args:
            stream: The stream.
            own: This node.
            known_here: The leader as the local replica knows it, NO_NODE when it knows none; None without a usable replica.
            is_reachable: Whether a path leads to a node.
        """
        if known_here == own:
            return own
        if known_here is not None and known_here != NO_NODE:
            # Unreachable: the group elects another; sending into the void would only make the outcome uncertain.
            return known_here if is_reachable(known_here) else NO_NODE
        hint = self._hints.get(stream.stream_id, NO_NODE)
        if hint not in (NO_NODE, own) and is_reachable(hint):
            return hint
        return self.other_member(stream, own, is_reachable)

    def other_member(self, stream: Stream, own: NodeId, is_reachable: Callable[[NodeId], bool]) -> NodeId:
        """A reachable member other than this node, the first one first, each in its turn; NO_NODE when there is none."""
        others = [member.node_id for member in stream.members if member.node_id != own and is_reachable(member.node_id)]
        return others[self._turn % len(others)] if others else NO_NODE

    def pass_over(self, stream: Stream) -> None:
        """The member that was asked last lags behind: the next question goes to another one."""
        self._hints.pop(stream.stream_id, None)
        self._turn += 1

    def learn(self, stream: Stream, asked: NodeId, error: MeshError | None) -> bool:
        """Takes a hint from an answer of `asked`, None when it answered. Returns whether another node is to be asked at once."""
        if error is None:
            self._hints[stream.stream_id] = asked
            return False
        named = _node_named(error.details.get("leader", "")) if error.code is ErrorCode.NOT_LEADER else NO_NODE
        if named not in (asked, NO_NODE) and named in stream.homes().values():
            self._hints[stream.stream_id] = named
            return True
        self.pass_over(stream)
        return False


def _node_named(text: str) -> NodeId:
    """The node in a refusal's details, NO_NODE for anything that is no node's number."""
    is_number = text.isascii() and text.isdigit() and len(text) <= _NODE_DIGITS_MAX
    return NodeId(int(text)) if is_number else NO_NODE
