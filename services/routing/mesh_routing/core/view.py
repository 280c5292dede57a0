"""What routing needs of the MeshView: who the node is, and the names and keys of the members.

Leaves out persistence and the node's own key (shell). Source: proto/meshapi/common/v1/view.proto.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mesh_routing.core.lsa import NODE_ID_MAX
from meshapi.routing.v1 import routing_pb2
from meshcommon.cost_weights import DEFAULTS, WeightsByClass, read_weights
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NO_NODE, NodeId


@dataclass(frozen=True, slots=True)
class View:
    """Identity and members at one revision.

    Attributes:
        node_id: Local node; NO_NODE when the node is in no mesh, then the rest is empty.
        mesh_id: Mesh.
        mesh_epoch: Raised only by attested recovery, after which revisions may start lower.
        revision: Raised by every committed change.
        names: Member names by id.
        keys: Members' Ed25519 public keys by id.
        weights: Weights of the link cost, of every traffic class.
    """

    node_id: NodeId = NO_NODE
    mesh_id: str = ""
    mesh_epoch: int = 0
    revision: int = 0
    names: Mapping[NodeId, str] = field(default_factory=dict)
    keys: Mapping[NodeId, bytes] = field(default_factory=dict)
    weights: WeightsByClass = field(default_factory=lambda: DEFAULTS)

    @classmethod
    def from_request(cls, request: routing_pb2.ConfigureRequest) -> View:
        """The view that the control plane pushed.

        Raises:
            MeshError: INVALID_ARGUMENT.
        """
        if not request.node_id:
            return cls()
        for node_id in (request.node_id, *(node.node_id for node in request.view.nodes)):
            if not 1 <= node_id <= NODE_ID_MAX:
                raise MeshError(
                    ErrorCode.INVALID_ARGUMENT, f"Routing was told of node {node_id}: use ids from 1 to {NODE_ID_MAX}."
                )
        return cls(
            NodeId(request.node_id),
            request.view.mesh_id,
            request.view.mesh_epoch,
            request.view.revision,
            {NodeId(node.node_id): node.name for node in request.view.nodes},
            {NodeId(node.node_id): node.public_key for node in request.view.nodes},
            {**DEFAULTS, **read_weights(request.view.cost_weights)},
        )

    @property
    def is_member(self) -> bool:
        """Whether the node is in a mesh."""
        return self.node_id != NO_NODE

    @property
    def membership(self) -> tuple[NodeId, str]:
        """Which node of which mesh."""
        return self.node_id, self.mesh_id

    def replaces(self, other: View) -> bool:
        """Whether it takes the place of `other`: an older one of the same membership does not."""
        if self.membership != other.membership:
            return True
        return (self.mesh_epoch, self.revision) >= (other.mesh_epoch, other.revision)

    def name(self, node: NodeId) -> str:
        """The member's name, or its number for one that has just left."""
        return self.names.get(node, str(node))

    def find(self, name: str) -> NodeId | None:
        """The member with this name."""
        return next((node for node, known in self.names.items() if known == name), None)
