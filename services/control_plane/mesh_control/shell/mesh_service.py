"""MeshService of the supervisor API: lifecycle, status and the catalogue of streams.

Reads are answered from the state applied here, without asking anyone; a name that is unknown here is looked up again
once this node has caught up with the leader. Source: mesh.proto.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from mesh_control.core import rules
from mesh_control.core.encoding import stream_view
from mesh_control.core.join_rules import policy_value, read_policy
from mesh_control.core.leaderless import LeaderlessStreams
from mesh_control.core.model import JoinPolicy, MeshStatus, NodeState, Stream, StreamPhase
from mesh_control.shell.ca_desk import CaDesk
from mesh_control.shell.control_recovery import SURVIVORS_MAX, recover
from mesh_control.shell.lifecycle import MESH_NAME, Lifecycle
from mesh_control.shell.local_node import LocalNode
from mesh_control.shell.proposer import Proposer
from mesh_control.shell.token_desk import TokenDesk
from meshapi.common.v1 import view_pb2
from meshapi.control.v1 import mcg_pb2
from meshapi.supervisor.v1 import mesh_pb2, mesh_pb2_grpc
from meshcommon.address import is_peer_address
from meshcommon.admin import Readiness
from meshcommon.cost_weights import DEFAULTS, WeightsByClass, read_class, read_weights, weights_message, write_weights
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId, StreamId, check_node_name, check_stream_name
from meshcommon.peer_text import printable

READ_BARRIER_S: Final = 2.0
_OPEN: Final = (
    "This mesh is OPEN: whoever reaches a member can join it; `meshctl policy set key-required` asks for a token."
)
_TWO_MEMBERS: Final = "The stream has two members: the loss of either one stops its writes."


class MeshService(mesh_pb2_grpc.MeshServiceServicer):
    """The servicer; every refusal is a MeshError, which the server maps."""

    def __init__(
        self,
        node: LocalNode,
        lifecycle: Lifecycle,
        desks: tuple[TokenDesk, CaDesk],
        proposer: Proposer,
        readiness: Readiness,
        leaderless: LeaderlessStreams,
    ) -> None:
        self._node = node
        self._lifecycle = lifecycle
        self._tokens, self._ca = desks
        self._proposer = proposer
        self._readiness = readiness
        self._leaderless = leaderless

    async def Seed(self, request: mesh_pb2.SeedRequest, context: Any) -> mesh_pb2.SeedResponse:  # noqa: N802
        """Founds a mesh, makes its CA, and issues a first token where the policy asks for one."""
        policy = read_policy(request.policy or JoinPolicy.KEY_REQUIRED)
        membership = await self._lifecycle.seed(request.name or MESH_NAME, policy)
        fingerprint = await self._ca.ensure()
        token = (await self._tokens.issue())[0] if policy is JoinPolicy.KEY_REQUIRED else ""
        return mesh_pb2.SeedResponse(
            mesh_id=membership.mesh_id,
            node_id=membership.node_id,
            token=token,
            ca_fingerprint=fingerprint,
            ca_root_key_file=self._ca.files.root_key_file,
        )

    async def Join(self, request: mesh_pb2.JoinRequest, context: Any) -> mesh_pb2.JoinResponse:  # noqa: N802
        """Joins a mesh."""
        membership = await self._lifecycle.join(
            request.address,
            request.mesh_id,
            request.token,
            trust_first=request.trust_first,
            fingerprint=request.trust_fingerprint,
        )
        return mesh_pb2.JoinResponse(mesh_id=membership.mesh_id, node_id=membership.node_id)

    async def IssueToken(  # noqa: N802
        self, request: mesh_pb2.IssueTokenRequest, context: Any
    ) -> mesh_pb2.IssueTokenResponse:
        """Makes a join token."""
        token, token_id = await self._tokens.issue(request.uses, request.ttl_s, request.name)
        return mesh_pb2.IssueTokenResponse(token=token, token_id=token_id)

    async def ListTokens(  # noqa: N802
        self, request: mesh_pb2.ListTokensRequest, context: Any
    ) -> mesh_pb2.ListTokensResponse:
        """Join tokens as applied here."""
        state = self._node.require_mcg().state
        return mesh_pb2.ListTokensResponse(
            tokens=[
                mesh_pb2.TokenInfo(
                    token_id=token.token_id,
                    uses_left=token.uses_left,
                    expires_at_ms=token.expires_at_ms,
                    name=token.name,
                    is_expired=state.time_ms >= token.expires_at_ms,
                )
                for token in state.tokens.values()
            ]
        )

    async def RevokeToken(  # noqa: N802
        self, request: mesh_pb2.RevokeTokenRequest, context: Any
    ) -> mesh_pb2.RevokeTokenResponse:
        """Makes a join token worthless."""
        await self._tokens.revoke(request.token_id)
        return mesh_pb2.RevokeTokenResponse()

    async def SetJoinPolicy(  # noqa: N802
        self, request: mesh_pb2.SetJoinPolicyRequest, context: Any
    ) -> mesh_pb2.SetJoinPolicyResponse:
        """Changes who may become a member."""
        await self._tokens.set_policy(read_policy(request.policy))
        return mesh_pb2.SetJoinPolicyResponse()

    async def GetCostWeights(  # noqa: N802
        self, request: mesh_pb2.GetCostWeightsRequest, context: Any
    ) -> mesh_pb2.GetCostWeightsResponse:
        """Weights of the link cost as applied here."""
        return mesh_pb2.GetCostWeightsResponse(classes=write_weights(self._weights()))

    async def SetCostWeights(  # noqa: N802
        self, request: mesh_pb2.SetCostWeightsRequest, context: Any
    ) -> mesh_pb2.SetCostWeightsResponse:
        """Changes weights of one traffic class, for the whole mesh."""
        traffic_class = read_class(request.change.traffic_class)
        command = mcg_pb2.SetCostWeights(change=request.change, reset=request.reset)
        # What this software does not know cannot be proposed: it would stop every member.
        command.DiscardUnknownFields()
        result = await self._proposer.propose(mcg_pb2.Command(set_cost_weights=command))
        await self._proposer.wait_for_revision(result.revision, READ_BARRIER_S)
        return mesh_pb2.SetCostWeightsResponse(weights=weights_message(self._weights()[traffic_class]))

    def _weights(self) -> WeightsByClass:
        return {**DEFAULTS, **read_weights(self._node.require_mcg().state.view().cost_weights)}

    async def Leave(self, request: mesh_pb2.LeaveRequest, context: Any) -> mesh_pb2.LeaveResponse:  # noqa: N802
        """Leaves the mesh."""
        await self._lifecycle.leave()
        return mesh_pb2.LeaveResponse()

    async def ForgetNode(  # noqa: N802
        self, request: mesh_pb2.ForgetNodeRequest, context: Any
    ) -> mesh_pb2.ForgetNodeResponse:
        """Commits that a lost node is no member any more."""
        check_node_name(request.name)
        state = self._node.require_mcg().state
        (node_id,) = await self._node_ids([request.name])
        streams = sorted(
            item.name
            for item in state.streams.values()
            if item.has_member(node_id) and item.state is not StreamPhase.DELETING
        )
        forget = mcg_pb2.ForgetNode(node_id=node_id, accept_risk=request.accept_risk)
        try:
            result = await self._proposer.propose(mcg_pb2.Command(forget_node=forget))
        except MeshError as error:
            # An earlier attempt whose answer was lost.
            if error.code is not ErrorCode.UNKNOWN_NODE or self._node.is_removed:
                raise
        else:
            await self._proposer.wait_for_revision(result.revision, READ_BARRIER_S)
        return mesh_pb2.ForgetNodeResponse(streams=streams)

    async def Stop(self, request: mesh_pb2.StopRequest, context: Any) -> mesh_pb2.StopResponse:  # noqa: N802
        """Stops the node."""
        await self._lifecycle.stop()
        return mesh_pb2.StopResponse()

    async def Start(self, request: mesh_pb2.StartRequest, context: Any) -> mesh_pb2.StartResponse:  # noqa: N802
        """Starts the node."""
        await self._lifecycle.start()
        return mesh_pb2.StartResponse()

    async def GetStatus(  # noqa: N802
        self, request: mesh_pb2.GetStatusRequest, context: Any
    ) -> mesh_pb2.GetStatusResponse:
        """What this node knows; never fails."""
        node, mcg, view = self._node, self._node.mcg, self._node.view()
        response = mesh_pb2.GetStatusResponse(node_id=node.node_id, name=node.name, is_running=node.is_running)
        response.warnings.extend(self._warnings())
        if view is None or mcg is None:
            return response
        known = mcg.leader_view()
        response.view.CopyFrom(view)
        if mcg.state.mesh_id:
            response.mesh_name, response.join_policy = mcg.state.mesh_name, policy_value(mcg.state.join_policy)
        response.mcg_leader = known.leader
        response.mcg_term = known.term
        response.mcg_applied = known.applied
        response.has_quorum = known.has_quorum and node.is_running
        if not response.has_quorum:
            response.view.status = view_pb2.MeshStatus.ValueType(MeshStatus.CRITICAL)
        return response

    async def RecoverControlGroup(  # noqa: N802
        self, request: mesh_pb2.RecoverControlGroupRequest, context: Any
    ) -> mesh_pb2.RecoverControlGroupResponse:
        """Goes on with the named survivors alone, as far as this node's replica is concerned."""
        await self._node_ids(request.survivors[: SURVIVORS_MAX + 1])
        return recover(self._node, request.survivors)

    async def CreateStream(  # noqa: N802
        self, request: mesh_pb2.CreateStreamRequest, context: Any
    ) -> mesh_pb2.CreateStreamResponse:
        """Creates a stream and waits until its group has formed."""
        check_stream_name(request.name)
        command = mcg_pb2.Command()
        command.create_stream.name = request.name
        command.create_stream.retained_bytes_max = request.retained_bytes_max
        command.create_stream.node_ids.extend(await self._node_ids(request.members))
        result = await self._proposer.propose(command)
        stream = await self._wait_until_formed(StreamId(result.allocated_id), request.name)
        response = mesh_pb2.CreateStreamResponse(stream=stream_view(stream))
        if len(stream.members) == 2:
            response.warnings.append(_TWO_MEMBERS)
        return response

    async def ListStreams(  # noqa: N802
        self, request: mesh_pb2.ListStreamsRequest, context: Any
    ) -> mesh_pb2.ListStreamsResponse:
        """Streams by name."""
        streams = self._node.require_mcg().state.streams.values()
        listed = sorted(
            (item for item in streams if item.state is not StreamPhase.DELETING), key=lambda item: item.name
        )
        return mesh_pb2.ListStreamsResponse(streams=[stream_view(stream) for stream in listed])

    async def GetStream(  # noqa: N802
        self, request: mesh_pb2.GetStreamRequest, context: Any
    ) -> mesh_pb2.GetStreamResponse:
        """One stream."""
        return mesh_pb2.GetStreamResponse(stream=stream_view(await self._stream(request.name)))

    async def ChangeStreamMembers(  # noqa: N802
        self, request: mesh_pb2.ChangeStreamMembersRequest, context: Any
    ) -> mesh_pb2.ChangeStreamMembersResponse:
        """Commits the members that the stream should have; its group follows by itself."""
        if not (request.add or request.remove or request.renew):
            raise MeshError(ErrorCode.INVALID_ARGUMENT, "The change names no node: say which to add, remove or renew.")
        stream = await self._stream(request.name)
        renew = set(await self._node_ids(request.renew))
        change = mcg_pb2.ChangeMembers(
            stream_id=stream.stream_id,
            add_nodes=await self._node_ids(request.add),
            remove_nodes=await self._node_ids(request.remove),
            renew_members=[member.member_id for member in stream.members if member.node_id in renew],
            accept_risk=request.accept_risk,
        )
        if len(change.renew_members) != len(renew):
            raise MeshError(ErrorCode.UNKNOWN_NODE, f"Not all nodes to renew hold {request.name!r}: see its members.")
        result = await self._proposer.propose(mcg_pb2.Command(change_members=change))
        await self._proposer.wait_for_revision(result.revision, READ_BARRIER_S)
        changed = await self._stream(request.name)
        response = mesh_pb2.ChangeStreamMembersResponse(stream=stream_view(changed))
        if len(changed.members) == 2:
            response.warnings.append(_TWO_MEMBERS)
        return response

    async def DeleteStream(  # noqa: N802
        self, request: mesh_pb2.DeleteStreamRequest, context: Any
    ) -> mesh_pb2.DeleteStreamResponse:
        """Commits the deletion, and waits a moment for the members to end, so that the name is free again."""
        stream = await self._stream(request.name)
        state = self._node.require_mcg().state
        command = mcg_pb2.Command(delete_stream=mcg_pb2.DeleteStream(stream_id=stream.stream_id))
        result = await self._proposer.propose(command)
        await self._proposer.wait_for_revision(result.revision, READ_BARRIER_S)
        await self._node.changed.wait_until(lambda: stream.stream_id not in state.streams, READ_BARRIER_S)
        return mesh_pb2.DeleteStreamResponse()

    async def _node_ids(self, names: Any) -> list[NodeId]:
        mcg = self._node.require_mcg()
        by_name = {node.name: node.node_id for node in mcg.state.nodes.values()}
        if set(names) - by_name.keys() and await mcg.catch_up(READ_BARRIER_S):
            # A node that another member has just admitted is no unknown one.
            by_name = {node.name: node.node_id for node in mcg.state.nodes.values()}
        unknown = sorted(set(names) - by_name.keys())
        if unknown:
            raise MeshError(
                ErrorCode.UNKNOWN_NODE,
                f"No node of this mesh is named {', '.join(map(repr, unknown))}: see the list of nodes.",
                {"nodes": ",".join(unknown)},
            )
        return [by_name[name] for name in names]

    async def _stream(self, name: str) -> Stream:
        mcg = self._node.require_mcg()
        check_stream_name(name)
        stream = rules.stream_named(mcg.state.streams, name)
        if stream is None and await mcg.catch_up(READ_BARRIER_S):
            stream = rules.stream_named(mcg.state.streams, name)
        if stream is None or stream.state is StreamPhase.DELETING:
            raise MeshError(
                ErrorCode.STREAM_NOT_FOUND,
                f"There is no stream {name!r}: see the list of streams, or create it.",
                {"name": name},
            )
        return stream

    async def _wait_until_formed(self, stream_id: StreamId, name: str) -> Stream:
        state = self._node.require_mcg().state

        def has_formed() -> bool:
            stream = state.streams.get(stream_id)
            return stream is not None and stream.state is not StreamPhase.FORMING

        await self._node.changed.wait_until(has_formed, self._node.timing.stream_forms_within_s)
        stream = state.streams.get(stream_id)
        if stream is None or stream.state is not StreamPhase.ACTIVE:
            raise MeshError(
                ErrorCode.STREAM_NOT_FORMED,
                f"The stream {name!r} is created but its group has not formed yet: it goes on trying by itself; "
                "look at it again, and at the links between its members.",
                {"name": name, "stream_id": str(stream_id)},
            )
        return stream

    def _warnings(self) -> list[str]:
        warnings = [*self._readiness.reasons(), *self._readiness.warnings()]
        if self._node.is_removed:
            warnings.append("This node was removed from the mesh: let it leave, then join again.")
        mcg = self._node.mcg
        if mcg is None:
            return warnings
        if mcg.state.mesh_id and mcg.state.join_policy is JoinPolicy.OPEN:
            warnings.append(_OPEN)
        warnings.extend(
            f"Node {node.name!r} is unreachable."
            for node in mcg.state.nodes.values()
            if node.state is NodeState.ACTIVE and not node.is_reachable
        )
        warnings.extend(
            f"Node {node.name!r} is joining: its control plane has not been heard yet."
            for node in mcg.state.nodes.values()
            if node.state is NodeState.JOINING
        )
        warnings.extend(
            f"Node {node.name!r} has the address {printable(node.peer_address)!r}, which is none: it is not dialled; let the node "
            "leave, correct MESH_CONTROL_PEER_ADDRESS there, and let it join again."
            for node in mcg.state.nodes.values()
            if node.peer_address and not is_peer_address(node.peer_address)
        )
        warnings.extend(
            f"Node {node.name!r} has an address without TLS ({printable(node.peer_address)}): only nodes with "
            "MESH_DATA_PEER_TLS=false dial it."
            for node in mcg.state.nodes.values()
            if node.peer_address.startswith("ws://")
        )
        if self._node.is_running:
            streams = mcg.state.streams.values()
            warnings.extend(self._leaderless.warnings(streams, asyncio.get_running_loop().time()))
        warnings.extend(
            f"Stream {stream.name!r} has two members: the loss of either one stops its writes."
            for stream in mcg.state.streams.values()
            if stream.state is not StreamPhase.DELETING and len(stream.members) == 2
        )
        return warnings
