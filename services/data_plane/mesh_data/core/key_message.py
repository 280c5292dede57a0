"""Messages of protocol KEYS: ask for a node's boot key, and the signed answer.

Layout: kind u8, then for ASK (1) the asker's nonce; for ANSWER (2) the nonce of the ask, the answerer's boot key, its
delegation (`Delegation.pack`, 113 bytes) and its signature; for ANSWER_AND_ASK (3) the same with a nonce of the answerer's
own before the delegation, to be answered in turn. Nonces and keys have 32 bytes, a signature 64. The signature covers, by `Identity.sign` with the context below: answerer's
node id, asker's node id, nonce of the ask, boot key, own nonce (empty in ANSWER). Leaves out: when to send which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from mesh_data.core.identity import Identity
from mesh_data.core.key_agreement import EXCHANGE_KEY_BYTES
from meshcommon.delegation import DELEGATION_BYTES, Delegation
from meshcommon.ids import NodeId
from meshcommon.signed_parts import number
from meshcommon.signer import SIGNATURE_BYTES

NONCE_BYTES: Final = 32
_CONTEXT: Final = b"mesh.v2 boot key"
_ASK: Final = 1
_ANSWER: Final = 2
_ANSWER_AND_ASK: Final = 3
_ANSWER_BYTES: Final = 1 + NONCE_BYTES + EXCHANGE_KEY_BYTES + DELEGATION_BYTES + SIGNATURE_BYTES
_SIZES: Final = {_ASK: 1 + NONCE_BYTES, _ANSWER: _ANSWER_BYTES, _ANSWER_AND_ASK: _ANSWER_BYTES + NONCE_BYTES}


@dataclass(frozen=True, slots=True)
class Ask:
    """Asks for the boot key; the answer signs the nonce, so that no old answer passes for it."""

    nonce: bytes

    def encode(self) -> bytes:
        """Payload of protocol KEYS."""
        return bytes((_ASK,)) + self.nonce


@dataclass(frozen=True, slots=True)
class Answer:
    """A boot key, signed for whoever asked. With `own_nonce` the answerer asks in turn."""

    asked: bytes
    boot_key: bytes
    own_nonce: bytes
    delegation: Delegation
    signature: bytes

    def encode(self) -> bytes:
        """Payload of protocol KEYS."""
        kind = _ANSWER_AND_ASK if self.own_nonce else _ANSWER
        parts = (bytes((kind,)), self.asked, self.boot_key, self.own_nonce, self.delegation.pack(), self.signature)
        return b"".join(parts)

    @classmethod
    def signed(cls, identity: Identity, asker: NodeId, asked: bytes, boot_key: bytes, own_nonce: bytes) -> Answer:
        """This node's answer to `asker`."""
        parts = _signed(identity.node_id, asker, asked, boot_key, own_nonce)
        return cls(asked, boot_key, own_nonce, identity.delegation, identity.sign(_CONTEXT, *parts))

    def is_from(self, answerer: NodeId, identity: Identity) -> bool:
        """Whether `answerer` has signed it for this node."""
        parts = _signed(answerer, identity.node_id, self.asked, self.boot_key, self.own_nonce)
        return identity.is_signed_by(answerer, self.delegation, self.signature, _CONTEXT, *parts)


KeyMessage: TypeAlias = Ask | Answer


def decode_key_message(payload: bytes | memoryview) -> KeyMessage | None:
    """The message in a payload, None when it is malformed."""
    kind = payload[0] if len(payload) else 0
    if len(payload) != _SIZES.get(kind):
        return None
    body = bytes(payload[1:])
    if kind == _ASK:
        return Ask(body)
    asked, rest = body[:NONCE_BYTES], body[NONCE_BYTES:]
    boot_key, rest = rest[:EXCHANGE_KEY_BYTES], rest[EXCHANGE_KEY_BYTES:]
    rest, signature = rest[:-SIGNATURE_BYTES], rest[-SIGNATURE_BYTES:]
    own_nonce, delegation = rest[:-DELEGATION_BYTES], Delegation.unpack(rest[-DELEGATION_BYTES:])
    return Answer(asked, boot_key, own_nonce, delegation, signature) if delegation is not None else None


def _signed(
    answerer: NodeId, asker: NodeId, asked: bytes, boot_key: bytes, own_nonce: bytes
) -> tuple[bytes, bytes, bytes, bytes, bytes]:
    return number(answerer), number(asker), asked, boot_key, own_nonce
