"""The port through which a service signs: what speaks for this node, without the key itself.

Cores ask a `Signer` and never see a private key. The only implementation is `key_signer`, whose key the service keeps in a
file. Leaves out what is signed: each statement has its own context (delegation, lane handshake, boot key, path error, link
state advertisement). Source: architecture §11.
"""

from __future__ import annotations

from typing import Final, Protocol

PUBLIC_KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64


class Signer(Protocol):
    """Signs with an Ed25519 key. Synchronous and quick (about 60 µs): a core calls it in the middle of a decision."""

    @property
    def public_key(self) -> bytes:
        """The public key that goes with it, 32 bytes."""

    def sign(self, statement: bytes) -> bytes:
        """The signature, 64 bytes; the same statement always gets the same one."""
