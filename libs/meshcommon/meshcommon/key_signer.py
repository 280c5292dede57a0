"""The `Signer` that holds the private key itself, and the file that it keeps it in. For shells: a core may not import it.

The control plane makes its node's identity key at its first start, in a file of mode 0600 that holds the 32 bytes of the seed.
No key leaves the service that made it. Leaves out the keys of data plane and routing (`delegated_keys`). Blocking, a small file.
Source: docs/design/identity.md "Keys".
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshcommon.durable import write_durably
from meshcommon.errors import ErrorCode, MeshError

PRIVATE_KEY_BYTES: Final = 32
IDENTITY_KEY: Final = "identity.key"


class KeySigner:
    """Signs with an Ed25519 private key, given as its seed."""

    __slots__ = ("_key", "_public_key")

    def __init__(self, private_key: bytes) -> None:
        """`private_key` must have 32 bytes (ValueError)."""
        self._key = Ed25519PrivateKey.from_private_bytes(private_key)
        self._public_key = self._key.public_key().public_bytes_raw()

    @classmethod
    def load_or_make(cls, directory: Path) -> KeySigner:
        """The identity key in `directory`, made and written durably if there is none.

        Raises:
            MeshError: DATA_DIR_INCOMPLETE when the file is damaged, DATA_DIR_UNWRITABLE.
        """
        path = directory / IDENTITY_KEY
        try:
            seed = path.read_bytes()
        except FileNotFoundError:
            return cls._make(path)
        if len(seed) != PRIVATE_KEY_BYTES:
            raise MeshError(
                ErrorCode.DATA_DIR_INCOMPLETE,
                f"{path} has {len(seed)} bytes instead of {PRIVATE_KEY_BYTES}: restore it from a backup, "
                "or empty the data directory and join again.",
                {"path": str(path)},
            )
        return cls(seed)

    @classmethod
    def _make(cls, path: Path) -> KeySigner:
        seed = Ed25519PrivateKey.generate().private_bytes_raw()
        try:
            write_durably(path, seed, 0o600)
        except OSError as error:
            raise MeshError(
                ErrorCode.DATA_DIR_UNWRITABLE,
                f"Cannot write {path} ({error.strerror}): check owner, mount and free space.",
                {"path": str(path)},
            ) from error
        return cls(seed)

    @property
    def public_key(self) -> bytes:
        """See Signer."""
        return self._public_key

    def sign(self, statement: bytes) -> bytes:
        """See Signer."""
        return self._key.sign(statement)
