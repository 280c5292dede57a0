"""Agreement on a secret by X25519, and keys derived from it by HKDF-SHA256.

Purpose: the one place that uses these primitives, for the lane handshake and for packets. Leaves out: who the other side is,
which a signature has to show. Source: RFC 7748 §6.1 (all-zero results are refused), RFC 5869.
"""

from __future__ import annotations

import hmac
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

EXCHANGE_KEY_BYTES: Final = 32
"""Size of an X25519 key, private or public, and of the secret."""


class ExchangeKey:
    """An X25519 key pair that is never stored."""

    __slots__ = ("_private", "public")

    def __init__(self, seed: bytes) -> None:
        """`seed` must be 32 fresh random bytes."""
        self._private = X25519PrivateKey.from_private_bytes(seed)
        self.public = self._private.public_key().public_bytes_raw()

    def secret(self, other: bytes) -> bytes | None:
        """The secret shared with the holder of the public key `other`; None when that is no key that can be used.

        A point of low order gives zeros to everybody: such a secret would be known to all.
        """
        if len(other) != EXCHANGE_KEY_BYTES:
            return None
        try:
            secret = self._private.exchange(X25519PublicKey.from_public_bytes(other))
        except ValueError:
            return None
        return None if hmac.compare_digest(secret, bytes(EXCHANGE_KEY_BYTES)) else secret


def derive(secret: bytes, salt: bytes, info: bytes, length: int = 32) -> bytes:
    """A key of `length` bytes for the purpose that `info` names."""
    return HKDF(SHA256(), length, salt, info).derive(secret)
