"""The replicated state of the Mesh Control Group and the one way to change it.

`apply` is deterministic: it reads only the command and the state (architecture §7), so replicas that applied the same
entries are equal; `digest` is what they compare. Ids are allocated here and never used again. A proposal that is
committed twice takes effect once. Leaves out: who may propose, Raft itself, time (a command carries its leader's stamp),
and commands that newer software introduced (`replica` stops before them).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from google.protobuf.message import DecodeError

from mesh_control.core import ca_state, encoding, join_rules, member_changes, refusals, rules
from mesh_control.core.ca_state import CertificateAuthority
from mesh_control.core.encoding import node_bytes, stream_bytes
from mesh_control.core.limits import (
    REMEMBERED_PROPOSALS_MAX,
    RENEWAL_BYTES_MAX,
    TIME_MS_MAX,
    VIEW_BYTES_MAX,
)
from mesh_control.core.model import (
    RETAINED_BYTES_DEFAULT,
    STREAM_VOTERS_MAX,
    Counters,
    JoinPolicy,
    JoinToken,
    Member,
    MeshStatus,
    Node,
    NodeState,
    Stream,
    StreamPhase,
)
from mesh_control.core.status import has_expired, mesh_status
from mesh_control.core.versions import FIRST_VERSION, INTRODUCED, Beyond, stated_version, supported_by_all, version_of
from meshapi.common.v1 import view_pb2
from meshapi.control.v1 import mcg_pb2
from meshcommon.cost_weights import WeightsByClass, changed_classes, read_weights, write_weights
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import LogIndex, MemberId, NodeId, StreamId, check_mesh_id, check_mesh_name


@dataclass(frozen=True, slots=True)
class Result:
    """What one command did. `refusal` is set when it was refused and changed nothing."""

    revision: int
    allocated_id: int = 0
    refusal: MeshError | None = None


@dataclass(slots=True)
class _Catalogue:
    """All that a snapshot holds; replaced as a whole by `restore`."""

    applied_index: int = 0
    time_ms: int = 0
    revision: int = 0
    mesh_id: str = ""
    mesh_name: str = ""
    join_policy: JoinPolicy = JoinPolicy.UNSPECIFIED
    tokens: dict[str, JoinToken] = field(default_factory=dict)
    cost_weights: WeightsByClass = field(default_factory=dict)
    mesh_epoch: int = 0
    mesh_version: int = FIRST_VERSION
    nodes: dict[NodeId, Node] = field(default_factory=dict)
    streams: dict[StreamId, Stream] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    recent: OrderedDict[int, Result] = field(default_factory=OrderedDict)
    view_bytes: int = 0
    """Encoded size of nodes and streams, kept up to date; follows from them."""
    ca: CertificateAuthority | None = None


class McgState:
    """State of the MCG. Not thread-safe; one owner."""

    def __init__(self) -> None:
        self._now = _Catalogue()
        self._view: view_pb2.MeshView | None = None
        # A kind without a method of its name fails here, in every test.
        self._handlers: Final[dict[str, Callable[[mcg_pb2.Command], int]]] = {
            kind: getattr(self, f"_{kind}") for kind in INTRODUCED
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
    def mesh_name(self) -> str:
        """Empty for a mesh that was founded at version 1."""
        return self._now.mesh_name

    @property
    def join_policy(self) -> JoinPolicy:
        """Who may become a member; OPEN for a mesh that is older than policies."""
        return self._now.join_policy or JoinPolicy.OPEN

    @property
    def tokens(self) -> Mapping[str, JoinToken]:
        """Join tokens by id, the oldest first."""
        return MappingProxyType(self._now.tokens)

    @property
    def ca(self) -> CertificateAuthority | None:
        """The mesh's CA, None while it has none."""
        return self._now.ca

    @property
    def mesh_epoch(self) -> int:
        """Raised only by attested recovery."""
        return self._now.mesh_epoch

    @property
    def mesh_version(self) -> int:
        """Version that the mesh runs at: every member supports it."""
        return self._now.mesh_version

    @property
    def view_bytes(self) -> int:
        """Encoded size of the view's nodes and streams."""
        return self._now.view_bytes

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
                next_ids=(now.counters.stream_id, now.counters.member_id),
                mesh_version=now.mesh_version,
            )
            self._view.cost_weights.extend(write_weights(now.cost_weights))
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
        now.time_ms = max(now.time_ms, min(command.stamp_ms, TIME_MS_MAX))
        if command.proposal_id and (known := now.recent.get(command.proposal_id)):
            return known
        try:
            result = self._execute(command)
        except MeshError as refusal:
            result = Result(now.revision, 0, refusal)
        # A join is the same however often it is applied (after a removal it asks anew, and is JOINING again), and strangers may
        # not push out what must be remembered.
        if command.proposal_id and not command.HasField("add_node"):
            now.recent[command.proposal_id] = replace(result, refusal=refusals.in_short(result.refusal))
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
            mesh_name=now.mesh_name,
            join_policy=join_rules.policy_value(now.join_policy),
            tokens=join_rules.write_tokens(now.tokens),
            ca=ca_state.write(now.ca) if now.ca else None,
        )
        for proposal_id, result in now.recent.items():
            remembered = message.recent.add(
                proposal_id=proposal_id, revision=result.revision, allocated_id=result.allocated_id
            )
            refusals.write_refusal(remembered, result.refusal)
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
            join_policy = JoinPolicy(message.join_policy)
            cost_weights = read_weights(message.view.cost_weights)
        except (DecodeError, ValueError, MeshError) as error:
            raise MeshError(
                ErrorCode.STORAGE_FAILED,
                f"The stored state of the mesh cannot be read ({error}): empty this node's data directory and join again.",
            ) from None
        self._now = _Catalogue(
            applied_index=message.applied_index,
            time_ms=message.time_ms,
            revision=message.view.revision,
            mesh_id=message.view.mesh_id,
            mesh_name=message.mesh_name,
            join_policy=join_policy,
            tokens=join_rules.read_tokens(message.tokens),
            cost_weights=cost_weights,
            mesh_epoch=message.view.mesh_epoch,
            mesh_version=stated_version(message.view.mesh_version),
            nodes=nodes,
            streams=streams,
            counters=Counters(
                max(message.next_node_id, 1),
                max(message.next_mcg_member, 1),
                max(message.next_stream_id, 1),
                max(message.next_member_id, 1),
            ),
            recent=OrderedDict(
                (item.proposal_id, Result(item.revision, item.allocated_id, refusals.read_refusal(item)))
                for item in message.recent
            ),
            view_bytes=sum(map(node_bytes, nodes.values())) + sum(map(stream_bytes, streams.values())),
            ca=ca_state.read(message.ca) if message.HasField("ca") else None,
        )
        self._view = None

    def digest(self) -> str:
        """SHA-256 of the state: what replicas at the same index compare (I4)."""
        return hashlib.sha256(self.snapshot()).hexdigest()

    def _execute(self, command: mcg_pb2.Command) -> Result:
        kind = command.WhichOneof("kind") or ""
        handler = self._handlers.get(kind)
        if handler is None:
            # From the log none comes here: `replica` stops before it.
            raise MeshError(ErrorCode.INVALID_ARGUMENT, "The command is of no kind: say what to do.")
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
        before = self._now.nodes.get(node.node_id)
        if before != node:
            self._now.view_bytes += node_bytes(node) - (node_bytes(before) if before else 0)
            self._now.nodes[node.node_id] = node
            self._changed()

    def _found_mesh(self, command: mcg_pb2.Command) -> int:
        founder, needed = command.found_mesh.node, version_of(command)
        if self._now.mesh_id:
            raise MeshError(ErrorCode.ALREADY_MEMBER, "The mesh is founded already: nothing to do.")
        check_mesh_id(command.found_mesh.mesh_id)
        rules.find_place(self._now.nodes, founder.name, founder.public_key)
        address = rules.check_peer_address(founder.peer_address)
        if needed > FIRST_VERSION:
            name = check_mesh_name(command.found_mesh.mesh_name)
            policy = join_rules.read_policy(command.found_mesh.join_policy)
            self._now.mesh_name, self._now.join_policy = name, policy
        self._now.mesh_id = command.found_mesh.mesh_id
        self._now.mesh_epoch = 1
        # Older software must not read the snapshot of a mesh that may turn newcomers away.
        self._now.mesh_version = needed
        node = self._newcomer(founder.name, founder.public_key, address, is_voter=True)
        wrap_key = rules.check_wrap_key(founder.wrap_key)
        return self._admit(replace(node, mesh_version=stated_version(founder.mesh_version), wrap_key=wrap_key))

    def _add_node(self, command: mcg_pb2.Command) -> int:
        add, now = command.add_node, self._now
        known = rules.find_place(now.nodes, add.name, add.public_key)
        if known is not None:
            # Whoever repeats a request may not change anything by it, its address least of all.
            return known.node_id
        version = stated_version(add.mesh_version)
        if version < now.mesh_version:
            raise Beyond(now.mesh_version).refusal(version)
        join_rules.check_admission(self.join_policy, now.tokens, add.token_id, add.name, now.time_ms)
        address = rules.check_peer_address(add.peer_address)
        rules.check_not_critical(self.status)
        node = replace(
            self._newcomer(add.name, add.public_key, address),
            state=NodeState.JOINING,
            is_reachable=False,
            mesh_version=version,
            admitted_at_ms=now.time_ms,
            wrap_key=rules.check_wrap_key(add.wrap_key),
        )
        rules.check_room(now.nodes, now.view_bytes + node_bytes(node))
        now.tokens = join_rules.take_use(now.tokens, add.token_id)
        return self._admit(node)

    def _issue_token(self, command: mcg_pb2.Command) -> int:
        rules.check_not_critical(self.status)
        return self._put("tokens", join_rules.issue(self._now.tokens, command.issue_token, self._now.time_ms))

    def _revoke_token(self, command: mcg_pb2.Command) -> int:
        return self._put("tokens", join_rules.revoke(self._now.tokens, command.revoke_token.token_id))

    def _put(self, part: str, value: object) -> int:
        """Replaces a part of the catalogue; the revision rises when it is another."""
        if getattr(self._now, part) != value:
            setattr(self._now, part, value)
            self._changed()
        return 0

    def _set_join_policy(self, command: mcg_pb2.Command) -> int:
        rules.check_not_critical(self.status)
        return self._put("join_policy", join_rules.read_policy(command.set_join_policy.join_policy))

    def _set_cost_weights(self, command: mcg_pb2.Command) -> int:
        rules.check_not_critical(self.status)
        wish = command.set_cost_weights
        return self._put("cost_weights", changed_classes(self._now.cost_weights, wish.change, is_reset=wish.reset))

    def _set_wrap_key(self, command: mcg_pb2.Command) -> int:
        told, now = command.set_wrap_key, self._now
        node = rules.check_node(now.nodes, NodeId(told.node_id))
        if rules.check_wrap_key(told.wrap_key) != node.wrap_key:
            self._put_node(replace(node, wrap_key=told.wrap_key))
            # What is sealed to the key before can no longer be opened.
            self._put("ca", ca_state.without_sealed(now.ca, node.node_id))
        return 0

    def _set_ca(self, command: mcg_pb2.Command) -> int:
        rules.check_not_critical(self.status)
        return self._put("ca", ca_state.replace_ca(self._now.ca, command.set_ca, self._now.nodes, self._now.time_ms))

    def _wrap_ca(self, command: mcg_pb2.Command) -> int:
        return self._put("ca", ca_state.add_sealed(self._now.ca, command.wrap_ca, self._now.nodes))

    def _newcomer(self, name: str, public_key: bytes, peer_address: str, *, is_voter: bool = False) -> Node:
        counters = self._now.counters
        member = MemberId(counters.mcg_member)
        return Node(NodeId(counters.node_id), name, public_key, peer_address, member, is_voter=is_voter)

    def _admit(self, node: Node) -> int:
        self._now.counters.node_id += 1
        self._now.counters.mcg_member += 1
        self._put_node(node)
        return node.node_id

    def _activate_node(self, command: mcg_pb2.Command) -> int:
        node = rules.check_node(self._now.nodes, NodeId(command.activate_node.node_id))
        # One that is behind the mesh could not apply what comes next: it announces a newer version first, or expires.
        if node.state is NodeState.JOINING and node.mesh_version >= self._now.mesh_version:
            self._put_node(replace(node, state=NodeState.ACTIVE, is_reachable=True))
        return 0

    def _expire_node(self, command: mcg_pb2.Command) -> int:
        node = self._now.nodes.get(NodeId(command.expire_node.node_id))
        if node is not None and node.state is NodeState.JOINING and has_expired(node, self._now.time_ms):
            self._drop_node(node.node_id)
        return 0

    def _remove_node(self, command: mcg_pb2.Command) -> int:
        node = rules.check_removable(self._now.nodes, self._now.streams, NodeId(command.remove_node.node_id))
        self._drop_node(node.node_id)
        return 0

    def _forget_node(self, command: mcg_pb2.Command) -> int:
        forget, now = command.forget_node, self._now
        node = member_changes.check_forgettable(
            now.nodes, now.streams, NodeId(forget.node_id), is_risk_accepted=forget.accept_risk
        )
        for stream in list(now.streams.values()):
            dropped = member_changes.drop_node(stream, node.node_id, now.revision + 1)
            if dropped != stream:
                self._put_stream(dropped)
        self._drop_node(node.node_id)
        return 0

    def _drop_node(self, node_id: NodeId) -> None:
        self._now.view_bytes -= node_bytes(self._now.nodes.pop(node_id))
        self._changed()
        self._put("ca", ca_state.node_left(self._now.ca, node_id))
        for stream in list(self._now.streams.values()):
            forgotten = member_changes.forget_node(stream, node_id, self._now.nodes)
            if forgotten != stream:
                self._put_stream(forgotten)
            self._bury(self._now.streams[stream.stream_id])

    def _announce_version(self, command: mcg_pb2.Command) -> int:
        node = rules.check_node(self._now.nodes, NodeId(command.announce_version.node_id))
        self._put_node(replace(node, mesh_version=stated_version(command.announce_version.mesh_version)))
        return 0

    def _raise_mesh_version(self, command: mcg_pb2.Command) -> int:
        version = command.raise_mesh_version.mesh_version
        if self._now.mesh_version < version <= supported_by_all(self._now.nodes.values()):
            self._now.mesh_version = version
            self._changed()
        return 0

    def _renew_member(self, command: mcg_pb2.Command) -> int:
        node, counters = rules.check_node(self._now.nodes, NodeId(command.renew_member.node_id)), self._now.counters
        renewed = replace(node, mcg_member=MemberId(counters.mcg_member))
        counters.mcg_member += 1
        self._put_node(renewed)
        return renewed.mcg_member

    def _set_node_state(self, command: mcg_pb2.Command) -> int:
        node = rules.check_node(self._now.nodes, NodeId(command.set_node_state.node_id))
        state = rules.WISHES.get(command.set_node_state.state)
        if state is None:
            raise MeshError(ErrorCode.INVALID_ARGUMENT, "A node is ACTIVE or STOPPED: name one of the two.")
        if node.state is NodeState.JOINING:
            return 0  # it becomes ACTIVE when the leader has heard it, and by no detour
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
        for node in nodes.values():
            self._put_node(node)
        self._put("ca", ca_state.pruned(self._now.ca, self._now.nodes))
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
            StreamPhase.FORMING,
            now.revision + 1,
            create.retained_bytes_max or RETAINED_BYTES_DEFAULT,
            now.time_ms,
        )
        rules.check_view_bytes(now.view_bytes + stream_bytes(stream), VIEW_BYTES_MAX)
        now.counters.stream_id += 1
        now.counters.member_id += len(members)
        self._put_stream(stream)
        return stream.stream_id

    def _stream_formed(self, command: mcg_pb2.Command) -> int:
        stream = rules.check_stream(self._now.streams, StreamId(command.stream_formed.stream_id))
        if stream.state is StreamPhase.FORMING:
            self._put_stream(replace(stream, state=StreamPhase.ACTIVE))
        return 0

    def _delete_stream(self, command: mcg_pb2.Command) -> int:
        rules.check_not_critical(self.status)
        stream = rules.check_stream(self._now.streams, StreamId(command.delete_stream.stream_id))
        if stream.state is not StreamPhase.DELETING:
            # A group that never formed may never have a quorum that could seal it, and has acknowledged nothing; one whose
            # quorum was forgotten has none any more.
            is_forming = stream.state is StreamPhase.FORMING
            is_sealed = is_forming or member_changes.has_lost_quorum(stream, self._now.nodes)
            self._put_stream(replace(stream, state=StreamPhase.DELETING, is_sealed=is_sealed))
        return 0

    def _stream_sealed(self, command: mcg_pb2.Command) -> int:
        stream = self._now.streams.get(StreamId(command.stream_sealed.stream_id))
        if stream is not None and stream.state is StreamPhase.DELETING and not stream.is_sealed:
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
            bytes_max = RENEWAL_BYTES_MAX if wish.renew else VIEW_BYTES_MAX
            rules.check_view_bytes(now.view_bytes + stream_bytes(changed) - stream_bytes(stream), bytes_max)
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
        if stream.state is not StreamPhase.DELETING:
            raise MeshError(ErrorCode.INVALID_ARGUMENT, f"{stream.name!r} is not being deleted: nothing to confirm.")
        self._bury(replace(stream, destroyed=stream.destroyed | {NodeId(confirmed.node_id)}))
        return 0

    def _put_stream(self, stream: Stream) -> None:
        before, put = self._now.streams.get(stream.stream_id), replace(stream, revision=self._changed())
        self._now.view_bytes += stream_bytes(put) - (stream_bytes(before) if before else 0)
        self._now.streams[stream.stream_id] = put

    def _bury(self, stream: Stream) -> None:
        """Keeps a tombstone up to date, or removes it when every member confirmed or is no longer there."""
        if stream.state is not StreamPhase.DELETING:
            return
        missing = stream.holders & self._now.nodes.keys() - stream.destroyed
        if not missing:
            self._now.view_bytes -= stream_bytes(self._now.streams.pop(stream.stream_id))
            self._changed()
        elif self._now.streams[stream.stream_id] != stream:
            self._put_stream(stream)
