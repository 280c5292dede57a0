"""The path error: tells a packet's source which link on its path is down, signed by the near end of that link.

Layout (network byte order): destination of the lost packet u64, near end of the link u64, far end u64, message id of the
lost packet u64, delegation of the near end (113 bytes), Ed25519 signature of its delegated key (64 bytes). The signature covers, by `Identity.sign` with the context
below: near end, source that is told, destination, far end, message id. Source: architecture §5 "Source routes", §11.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final

from mesh_data.core.identity import Identity
from meshcommon.delegation import DELEGATION_BYTES, Delegation
from meshcommon.ids import NodeId
from meshcommon.signed_parts import number
from meshcommon.signer import SIGNATURE_BYTES

_LAYOUT: Final = Struct(f"!QQQQ{DELEGATION_BYTES}s{SIGNATURE_BYTES}s")
_CONTEXT: Final = b"mesh.v2 path error"


@dataclass(frozen=True, slots=True)
class PathError:
    """The relay `near` could not pass the packet `message_id` for `destination` on to `far`."""

    destination: NodeId
    near: NodeId
    far: NodeId
    message_id: int
    delegation: Delegation
    signature: bytes

    @classmethod
    def signed(cls, identity: Identity, source: NodeId, destination: NodeId, far: NodeId, message_id: int) -> PathError:
        """A path error of this node, for the source of the lost packet."""
        parts = _signed(identity.node_id, source, destination, far, message_id)
        signature = identity.sign(_CONTEXT, *parts)
        return cls(destination, identity.node_id, far, message_id, identity.delegation, signature)

    def is_genuine(self, identity: Identity) -> bool:
        """Whether the near end has signed it for this node."""
        parts = _signed(self.near, identity.node_id, self.destination, self.far, self.message_id)
        return identity.is_signed_by(self.near, self.delegation, self.signature, _CONTEXT, *parts)

    def encode(self) -> bytes:
        """Payload of protocol PATH_ERROR."""
        delegation = self.delegation.pack()
        return _LAYOUT.pack(self.destination, self.near, self.far, self.message_id, delegation, self.signature)

    @classmethod
    def decode(cls, payload: bytes | memoryview) -> PathError | None:
        """The path error in a payload, None when it is malformed."""
        if len(payload) != _LAYOUT.size:
            return None
        destination, near, far, message_id, packed, signature = _LAYOUT.unpack(payload)
        delegation = Delegation.unpack(packed)
        if delegation is None:
            return None
        return cls(NodeId(destination), NodeId(near), NodeId(far), message_id, delegation, signature)


def _signed(
    near: NodeId, source: NodeId, destination: NodeId, far: NodeId, message_id: int
) -> tuple[bytes, bytes, bytes, bytes, bytes]:
    return number(near), number(source), number(destination), number(far), number(message_id)
