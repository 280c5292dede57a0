"""The node's Ed25519 key: made at the first start, kept in `identity.key` (mode 0600), replaced only when the node leaves.

The file holds the 32 bytes of the private key's seed. Leaves out certificates. Source: architecture §11.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshcommon.durable import write_durably
from meshcommon.errors import ErrorCode, MeshError

_FILE: Final = "identity.key"
_SEED_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Identity:
    """The key pair of this node."""

    private_key: bytes = field(repr=False)
    public_key: bytes

    @classmethod
    def load_or_make(cls, directory: Path) -> Identity:
        """The key in `directory`, made and written durably if there is none.

        Raises:
            MeshError: DATA_DIR_INCOMPLETE when the file is damaged, DATA_DIR_UNWRITABLE.
        """
        path = directory / _FILE
        try:
            seed = path.read_bytes()
        except FileNotFoundError:
            return cls._make(path)
        if len(seed) != _SEED_BYTES:
            raise MeshError(
                ErrorCode.DATA_DIR_INCOMPLETE,
                f"{path} has {len(seed)} bytes instead of {_SEED_BYTES}: restore it from a backup, "
                "or empty the data directory and join again.",
                {"path": str(path)},
            )
        return cls._of(seed)

    @classmethod
    def _make(cls, path: Path) -> Identity:
        seed = Ed25519PrivateKey.generate().private_bytes_raw()
        try:
            write_durably(path, seed, 0o600)
        except OSError as error:
            raise MeshError(
                ErrorCode.DATA_DIR_UNWRITABLE,
                f"Cannot write {path} ({error.strerror}): check owner, mount and free space.",
                {"path": str(path)},
            ) from error
        return cls._of(seed)

    @classmethod
    def _of(cls, seed: bytes) -> Identity:
        return cls(seed, Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw())
