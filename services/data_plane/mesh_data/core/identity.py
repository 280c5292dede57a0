"""How this node makes statements and checks those of others: by its signer, and by the keys that the MeshView names.

Purpose: signatures of one node that others check without having met it: boot keys and path errors. They are made by its
delegated key and go with its delegation. Every signature covers a context (what kind of statement), the mesh and its epoch,
so that no statement can stand for another. Leaves out: the lane handshake, where a node that is not yet a member proves a key
that no view names. Source: architecture §11; docs/design/identity.md.
"""

from __future__ import annotations

from mesh_data.core.handshake import LocalNode
from mesh_data.core.view import View
from meshcommon.delegation import Delegation, Delegations, Grantor, Use
from meshcommon.ids import NodeId
from meshcommon.signed_parts import join_parts, number


class Identity:
    """A member and its view. Cost: about 60 µs for a signature, 130 µs for each check."""

    __slots__ = ("_delegations", "local", "view")

    def __init__(self, local: LocalNode, view: View, delegations: Delegations) -> None:
        self.local = local
        self.view = view
        self._delegations = delegations

    @property
    def node_id(self) -> NodeId:
        """This node."""
        return self.local.node_id

    def is_member(self, node: NodeId) -> bool:
        """Whether the view names that node."""
        return node in self.view.nodes

    def sign(self, context: bytes, *parts: bytes) -> bytes:
        """This node's signature of a statement."""
        return self.local.signer.sign(self._statement(context, parts))

    @property
    def delegation(self) -> Delegation:
        """What goes with this node's signatures."""
        return self.local.signer.delegation

    def checks_needed(self, node: NodeId, delegation: Delegation) -> int:
        """How many signatures `is_signed_by` has to check at most."""
        grantor = self._grantor(node)
        return self._delegations.checks_needed(grantor, delegation) if grantor is not None else 0

    def is_signed_by(
        self, node: NodeId, delegation: Delegation, signature: bytes, context: bytes, *parts: bytes
    ) -> bool:
        """Whether a member has made that statement, by a key that it has delegated for lanes."""
        grantor, statement = self._grantor(node), self._statement(context, parts)
        return grantor is not None and self._delegations.is_signed(grantor, delegation, Use.LANES, statement, signature)

    def _grantor(self, node: NodeId) -> Grantor | None:
        """A member as the view names it."""
        member = self.view.nodes.get(node)
        if member is None:
            return None
        return Grantor(member.public_key, self.local.mesh_id, self.local.mesh_epoch, node)

    def _statement(self, context: bytes, parts: tuple[bytes, ...]) -> bytes:
        return join_parts(context, self.local.mesh_id.encode(), number(self.local.mesh_epoch), *parts)
