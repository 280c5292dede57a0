"""The replicated state of the Mesh Control Group and the one way to change it.

`apply` is deterministic: it reads only the command and the state (architecture §7), so replicas that applied the same
entries are equal; `digest` is what they compare. Ids are allocated here and never used again. A proposal that is
committed twice takes effect once. Leaves out: who may propose, Raft itself, and time (a command carries its leader's
stamp).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from google.protobuf.message import DecodeError

from mesh_control.core import encoding, member_changes, rules
from mesh_control.core.model import (
    RETAINED_BYTES_DEFAULT,
    STREAM_VOTERS_MAX,
    Member,
    MeshStatus,
    Node,
    NodeState,
    Stream,
    StreamState,
)
from mesh_control.core.status import mesh_status
from meshapi.common.v1 import view_pb2
from meshapi.control.v1 import mcg_pb2
from meshcommon.errors import ErrorCode, MeshError, parse_code
from meshcommon.ids import LogIndex, MemberId, NodeId, StreamId

REMEMBERED_PROPOSALS_MAX: Final = 1024


@dataclass(frozen=True, slots=True)
class Result:
    """What one command did. `refusal` is set when it was refused and changed nothing."""

    revision: int
    allocated_id: int = 0
    refusal: MeshError | None = None


@dataclass(slots=True)
class _Counters:
    """Next ids. They only grow, also when what they named is gone."""

    node_id: int = 1
    mcg_member: int = 1
    stream_id: int = 1
    member_id: int = 1


@dataclass(slots=True)
class _Catalogue:
    """All that a snapshot holds; replaced as a whole by `restore`."""

    applied_index: int = 0
    time_ms: int = 0
    revision: int = 0
    mesh_id: str = ""
    mesh_epoch: int = 0
    nodes: dict[NodeId, Node] = field(default_factory=dict)
    streams: dict[StreamId, Stream] = field(default_factory=dict)
    counters: _Counters = field(default_factory=_Counters)
    recent: OrderedDict[int, Result] = field(default_factory=OrderedDict)


class McgState:
    """State of the MCG. Not thread-safe; one owner."""

    def __init__(self) -> None:
        self._now = _Catalogue()
        self._view: view_pb2.MeshView | None = None
        self._handlers: Final[dict[str, Callable[[mcg_pb2.Command], int]]] = {
            "found_mesh": self._found_mesh,
            "add_node": self._add_node,
            "remove_node": self._remove_node,
            "set_node_state": self._set_node_state,
            "set_reachability": self._set_reachability,
            "set_voters": self._set_voters,
            "create_stream": self._create_stream,
            "stream_formed": self._stream_formed,
            "delete_stream": self._delete_stream,
            "replica_destroyed": self._replica_destroyed,
            "change_members": self._change_members,
            "member_out": self._member_out,
            "stream_sealed": self._stream_sealed,
            "renew_member": self._renew_member,
        }

    @property
    def applied_index(self) -> LogIndex:
        """Index of the last applied entry."""
        return LogIndex(self._now.applied_index)

    @property
    def revision(self) -> int:
        """Raised by every command that changed something."""
        return self._now.revision

    @property
    def mesh_id(self) -> str:
        """UUID text, empty before the mesh was founded."""
        return self._now.mesh_id

    @property
    def mesh_epoch(self) -> int:
        """Raised only by attested recovery."""
        return self._now.mesh_epoch

    @property
    def time_ms(self) -> int:
        """State time: the highest stamp applied, milliseconds since 1970."""
        return self._now.time_ms

    @property
    def nodes(self) -> Mapping[NodeId, Node]:
        """Members of the mesh."""
        return MappingProxyType(self._now.nodes)

    @property
    def next_node_id(self) -> NodeId:
        """The id that the next node gets: all below are members, or were."""
        return NodeId(self._now.counters.node_id)

    @property
    def next_mcg_member(self) -> MemberId:
        """The id that the next member of the control group gets."""
        return MemberId(self._now.counters.mcg_member)

    @property
    def streams(self) -> Mapping[StreamId, Stream]:
        """Streams, tombstones included."""
        return MappingProxyType(self._now.streams)

    @property
    def status(self) -> MeshStatus:
        """Health as committed; UNSPECIFIED before the mesh was founded."""
        return mesh_status(self._now.nodes.values()) if self._now.mesh_id else MeshStatus.UNSPECIFIED

    def view(self) -> view_pb2.MeshView:
        """The MeshView of this revision; shared between callers, who must not change it."""
        if self._view is None:
            now = self._now
            self._view = encoding.view(
                now.revision,
                now.mesh_id,
                now.mesh_epoch,
                self.status,
                now.nodes.values(),
                now.streams.values(),
                next_member_id=now.counters.member_id,
            )
        return self._view

    def advance(self, index: int) -> None:
        """Takes note of an entry that carries no command (a leader's first, a configuration change)."""
        self._now.applied_index = index

    def apply(self, index: int, command: mcg_pb2.Command) -> Result:
        """Applies the command of the entry at `index`, which must be the next one.

        A refusal is a result, not an exception: it is as replicated as a success.
        """
        now = self._now
        now.applied_index = index
        now.time_ms = max(now.time_ms, command.stamp_ms)
        if command.proposal_id and (known := now.recent.get(command.proposal_id)):
            return known
        try:
            result = self._execute(command)
        except MeshError as refusal:
            result = Result(now.revision, 0, refusal)
        if command.proposal_id:
            now.recent[command.proposal_id] = result
            if len(now.recent) > REMEMBERED_PROPOSALS_MAX:
                now.recent.popitem(last=False)
        return result

    def snapshot(self) -> bytes:
        """The whole state; equal states give equal bytes."""
        now = self._now
        message = mcg_pb2.McgSnapshot(
            applied_index=now.applied_index,
            time_ms=now.time_ms,
            view=self.view(),
            next_node_id=now.counters.node_id,
            next_mcg_member=now.counters.mcg_member,
            next_stream_id=now.counters.stream_id,
            next_member_id=now.counters.member_id,
        )
        for proposal_id, result in now.recent.items():
            message.recent.append(_proposal_result(proposal_id, result))
        for stream in now.streams.values():
            for node_id in sorted(stream.destroyed):
                message.destroyed.add(stream_id=stream.stream_id, node_id=node_id)
        return message.SerializeToString(deterministic=True)

    def restore(self, data: bytes) -> None:
        """Replaces the state by a snapshot; empty bytes are the empty state.

        Raises:
            MeshError: STORAGE_FAILED when the bytes are no snapshot; the state is as before.
        """
        try:
            message = mcg_pb2.McgSnapshot.FromString(data)
            nodes, streams = encoding.read_view(message.view, message.destroyed)
        except (DecodeError, ValueError) as error:
            raise MeshError(
                ErrorCode.STORAGE_FAILED,
                f"The stored state of the mesh cannot be read ({error}): empty this node's data directory and join again.",
            ) from None
        self._now = _Catalogue(
            applied_index=message.applied_index,
            time_ms=message.time_ms,
            revision=message.view.revision,
            mesh_id=message.view.mesh_id,
            mesh_epoch=message.view.mesh_epoch,
            nodes=nodes,
            streams=streams,
            counters=_Counters(
                max(message.next_node_id, 1),
                max(message.next_mcg_member, 1),
                max(message.next_stream_id, 1),
                max(message.next_member_id, 1),
            ),
            recent=OrderedDict((item.proposal_id, _result(item)) for item in message.recent),
        )
        self._view = None

    def digest(self) -> str:
        """SHA-256 of the state: what replicas at the same index compare (I4)."""
        return hashlib.sha256(self.snapshot()).hexdigest()

    def _execute(self, command: mcg_pb2.Command) -> Result:
        kind = command.WhichOneof("kind") or ""
        handler = self._handlers.get(kind)
        if handler is None:
            raise MeshError(
                ErrorCode.INVALID_ARGUMENT,
                "The command is of a kind that this version does not know: update this node.",
            )
        if kind != "found_mesh" and not self._now.mesh_id:
            raise MeshError(ErrorCode.NOT_A_MEMBER, "There is no mesh yet: seed one, or join one.")
        allocated_id = handler(command)
        return Result(self._now.revision, allocated_id)

    def _changed(self) -> int:
        """Raises the revision; returns it."""
        self._now.revision += 1
        self._view = None
        return self._now.revision

    def _put_node(self, node: Node) -> None:
        if self._now.nodes.get(node.node_id) != node:
            self._now.nodes[node.node_id] = node
            self._changed()

    def _found_mesh(self, command: mcg_pb2.Command) -> int:
        founder = command.found_mesh.node
        if self._now.mesh_id:
            raise MeshError(ErrorCode.ALREADY_MEMBER, "The mesh is founded already: nothing to do.")
        if not command.found_mesh.mesh_id:
            raise MeshError(ErrorCode.INVALID_ARGUMENT, "A mesh needs an id: send a UUID.")
        rules.find_place(self._now.nodes, founder.name, founder.public_key)
        rules.check_peer_address(founder.peer_address)
        self._now.mesh_id = command.found_mesh.mesh_id
        self._now.mesh_epoch = 1
        return self._admit(founder.name, founder.public_key, founder.peer_address, is_voter=True)

    def _add_node(self, command: mcg_pb2.Command) -> int:
        add = command.add_node
        known = rules.find_place(self._now.nodes, add.name, add.public_key)
        rules.check_peer_address(add.peer_address)
        if known is not None:
            self._put_node(replace(known, peer_address=add.peer_address))
            return known.node_id
        rules.check_not_critical(self.status)
        return self._admit(add.name, add.public_key, add.peer_address, is_voter=False)

    def _admit(self, name: str, public_key: bytes, peer_address: str, *, is_voter: bool) -> int:
        counters = self._now.counters
        node = Node(
            NodeId(counters.node_id),
            name,
            public_key,
            peer_address,
            MemberId(counters.mcg_member),
            is_voter=is_voter,
        )
        counters.node_id += 1
        counters.mcg_member += 1
        self._put_node(node)
        return node.node_id

    def _remove_node(self, command: mcg_pb2.Command) -> int:
        node = rules.check_removable(self._now.nodes, self._now.streams, NodeId(command.remove_node.node_id))
        del self._now.nodes[node.node_id]
        self._changed()
        for stream in list(self._now.streams.values()):
            forgotten = member_changes.forget_node(stream, node.node_id, self._now.nodes)
            if forgotten != stream:
                self._put_stream(forgotten)
            self._bury(self._now.streams[stream.stream_id])
        return 0

    def _renew_member(self, command: mcg_pb2.Command) -> int:
        node, counters = rules.check_node(self._now.nodes, NodeId(command.renew_member.node_id)), self._now.counters
        renewed = replace(node, mcg_member=MemberId(counters.mcg_member))
        counters.mcg_member += 1
        self._put_node(renewed)
        return renewed.mcg_member

    def _set_node_state(self, command: mcg_pb2.Command) -> int:
        node = rules.check_node(self._now.nodes, NodeId(command.set_node_state.node_id))
        try:
            state = NodeState(command.set_node_state.state)
        except ValueError:
            raise MeshError(ErrorCode.INVALID_ARGUMENT, "A node is ACTIVE or STOPPED: name one of the two.") from None
        # A node that starts is speaking: it is reachable until its silence says otherwise.
        is_reachable = node.is_reachable or state is NodeState.ACTIVE
        self._put_node(replace(node, state=state, is_reachable=is_reachable))
        return 0

    def _set_reachability(self, command: mcg_pb2.Command) -> int:
        change = command.set_reachability
        node = rules.check_node(self._now.nodes, NodeId(change.node_id))
        self._put_node(replace(node, is_reachable=change.is_reachable))
        return 0

    def _set_voters(self, command: mcg_pb2.Command) -> int:
        voters = set(command.set_voters.node_ids)
        nodes = {node.node_id: replace(node, is_voter=node.node_id in voters) for node in self._now.nodes.values()}
        if nodes != self._now.nodes:
            self._now.nodes = nodes
            self._changed()
        return 0

    def _create_stream(self, command: mcg_pb2.Command) -> int:
        create, now = command.create_stream, self._now
        rules.check_not_critical(self.status)
        node_ids = [NodeId(node_id) for node_id in create.node_ids]
        rules.check_new_stream(now.nodes, now.streams, create.name, node_ids, create.retained_bytes_max)
        first_member = now.counters.member_id
        members = tuple(
            Member(node_id, MemberId(first_member + position), position < STREAM_VOTERS_MAX)
            for position, node_id in enumerate(node_ids)
        )
        stream = Stream(
            StreamId(now.counters.stream_id),
            create.name,
            members,
            StreamState.FORMING,
            self._changed(),
            create.retained_bytes_max or RETAINED_BYTES_DEFAULT,
            now.time_ms,
        )
        now.counters.stream_id += 1
        now.counters.member_id += len(members)
        now.streams[stream.stream_id] = stream
        return stream.stream_id

    def _stream_formed(self, command: mcg_pb2.Command) -> int:
        stream = rules.check_stream(self._now.streams, StreamId(command.stream_formed.stream_id))
        if stream.state is StreamState.FORMING:
            self._put_stream(replace(stream, state=StreamState.ACTIVE))
        return 0

    def _delete_stream(self, command: mcg_pb2.Command) -> int:
        rules.check_not_critical(self.status)
        stream = rules.check_stream(self._now.streams, StreamId(command.delete_stream.stream_id))
        if stream.state is not StreamState.DELETING:
            # A group that never formed may never have a quorum that could seal it, and has acknowledged nothing.
            is_sealed = stream.state is StreamState.FORMING
            self._put_stream(replace(stream, state=StreamState.DELETING, is_sealed=is_sealed))
        return 0

    def _stream_sealed(self, command: mcg_pb2.Command) -> int:
        stream = self._now.streams.get(StreamId(command.stream_sealed.stream_id))
        if stream is not None and stream.state is StreamState.DELETING and not stream.is_sealed:
            self._put_stream(replace(stream, is_sealed=True))
        return 0

    def _change_members(self, command: mcg_pb2.Command) -> int:
        change, now = command.change_members, self._now
        stream = rules.check_stream(now.streams, StreamId(change.stream_id))
        wish = member_changes.Wish(
            [NodeId(node_id) for node_id in change.add_nodes],
            [NodeId(node_id) for node_id in change.remove_nodes],
            frozenset(MemberId(member_id) for member_id in change.renew_members),
            is_risk_accepted=change.accept_risk,
        )
        if not wish.renew:  # a node heals its own memberships whatever became of the others
            rules.check_not_critical(self.status)
        changed, next_member = member_changes.change_members(
            stream, now.nodes, wish, now.revision + 1, now.counters.member_id
        )
        if changed != stream:
            now.counters.member_id = next_member
            self._put_stream(changed)
        return 0

    def _member_out(self, command: mcg_pb2.Command) -> int:
        stream = self._now.streams.get(StreamId(command.member_out.stream_id))
        if stream is not None:
            changed = member_changes.member_out(stream, MemberId(command.member_out.member_id), self._now.nodes)
            if changed != stream:
                self._put_stream(changed)
        return 0

    def _replica_destroyed(self, command: mcg_pb2.Command) -> int:
        confirmed = command.replica_destroyed
        stream = self._now.streams.get(StreamId(confirmed.stream_id))
        # The last confirmation ends the tombstone, so a repeated one finds nothing: it is no error.
        if stream is None or NodeId(confirmed.node_id) not in stream.holders:
            return 0
        if confirmed.member_id:
            changed = member_changes.member_destroyed(stream, MemberId(confirmed.member_id))
            if changed != stream:
                self._put_stream(changed)
            return 0
        if stream.state is not StreamState.DELETING:
            raise MeshError(ErrorCode.INVALID_ARGUMENT, f"{stream.name!r} is not being deleted: nothing to confirm.")
        self._bury(replace(stream, destroyed=stream.destroyed | {NodeId(confirmed.node_id)}))
        return 0

    def _put_stream(self, stream: Stream) -> None:
        self._now.streams[stream.stream_id] = replace(stream, revision=self._changed())

    def _bury(self, stream: Stream) -> None:
        """Keeps a tombstone up to date, or removes it when every member confirmed or is no longer there."""
        if stream.state is not StreamState.DELETING:
            return
        missing = stream.holders & self._now.nodes.keys() - stream.destroyed
        if not missing:
            del self._now.streams[stream.stream_id]
            self._changed()
        elif self._now.streams[stream.stream_id] != stream:
            self._put_stream(stream)


def _proposal_result(proposal_id: int, result: Result) -> mcg_pb2.ProposalResult:
    message = mcg_pb2.ProposalResult(
        proposal_id=proposal_id, revision=result.revision, allocated_id=result.allocated_id
    )
    if result.refusal is not None:
        message.error_code = result.refusal.code
        message.error_message = result.refusal.message
        message.error_details.update(result.refusal.details)
    return message


def _result(message: mcg_pb2.ProposalResult) -> Result:
    if not message.error_code:
        return Result(message.revision, message.allocated_id)
    refusal = MeshError(parse_code(message.error_code), message.error_message, dict(message.error_details))
    return Result(message.revision, message.allocated_id, refusal)
