"""Who says it: the Ed25519 signature on each advertisement, made once and checked by every node that takes it.

It is made by the key that the origin delegated to its routing, and goes with that delegation. The signed statement binds the
mesh, its epoch, the delegation, the origin, the sequence number and every link, each field of fixed width or with its length
before it, so that no two advertisements share a statement, and no relay can put an older delegation beside one. The age is left out: it grows at each hop
(docs/design/routing.md says what a false age can do). Leaves out where keys come from, and how often a signature may be
checked (`flood_limits`). Source: architecture §6, §11; the layout is in proto/meshapi/routing/v1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from struct import Struct
from typing import Final

from mesh_routing.core.lsa import Lsa
from meshcommon.delegation import DelegatedSigner, Delegation, Delegations, Grantor, Use
from meshcommon.ids import NodeId
from meshcommon.signer import PUBLIC_KEY_BYTES

_CONTEXT: Final = b"mesh.v3 lsa"
_LENGTH: Final = Struct("!I")
_HEAD: Final = Struct("!QQQI")
_LINK: Final = Struct("!QIIIIII")


class LsaSignatures:
    """Makes and checks signatures within one mesh and epoch."""

    def __init__(self, mesh_id: str, mesh_epoch: int, delegations: Delegations) -> None:
        """`delegations` checks what others signed."""
        self._mesh_id = mesh_id
        self._mesh_epoch = mesh_epoch
        self._delegations = delegations
        self._grantors: dict[NodeId, Grantor] = {}

    def set_keys(self, keys: Mapping[NodeId, bytes]) -> None:
        """Takes the members' identity keys; one of another length proves nothing."""
        self._grantors = {
            node: Grantor(key, self._mesh_id, self._mesh_epoch, node)
            for node, key in keys.items()
            if len(key) == PUBLIC_KEY_BYTES
        }

    def sign(self, lsa: Lsa, signer: DelegatedSigner) -> Lsa:
        """`lsa` with its signature and delegation."""
        delegation = signer.delegation
        return replace(lsa, signature=signer.sign(self._statement(lsa, delegation)), delegation=delegation)

    def checks_needed(self, lsa: Lsa) -> int:
        """How many signatures `is_valid` has to check at most, about 120 µs each."""
        grantor = self._grantors.get(lsa.origin)
        if grantor is None or lsa.delegation is None:
            return 0
        return self._delegations.checks_needed(grantor, lsa.delegation)

    def is_valid(self, lsa: Lsa) -> bool:
        """Whether a key that its origin delegated has signed it."""
        grantor, delegation = self._grantors.get(lsa.origin), lsa.delegation
        if grantor is None or delegation is None:
            return False
        statement = self._statement(lsa, delegation)
        return self._delegations.is_signed(grantor, delegation, Use.LINK_STATES, statement, lsa.signature)

    def is_out_of_time(self, lsa: Lsa) -> bool:
        """Whether its delegation does not count now."""
        return lsa.delegation is not None and not lsa.delegation.counts_at(self._delegations.now_s)

    def _statement(self, lsa: Lsa, delegation: Delegation) -> bytes:
        mesh_id = self._mesh_id.encode()
        parts = [
            *(_LENGTH.pack(len(_CONTEXT)), _CONTEXT),
            *(_LENGTH.pack(len(mesh_id)), mesh_id),
            *(_LENGTH.pack(len(delegation.signature)), delegation.signature),
            _HEAD.pack(self._mesh_epoch, lsa.origin, lsa.sequence, len(lsa.links)),
        ]
        parts += [_LINK.pack(*link.words()) for link in lsa.links]
        return b"".join(parts)
