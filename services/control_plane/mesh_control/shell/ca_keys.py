"""The node's wrap key, and the key of the intermediate sealed to it (HPKE).

`wrap.key` (0600) is made at the first start and lies in the control plane's directory alone. What is sealed is bound to mesh,
node and intermediate, so no node can open what was meant for another, or for another intermediate. Blocking, a small file.
Source: docs/design/identity.md "Certificates"; RFC 9180 (base mode), RFC 7748.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from mesh_control.core.model import WRAP_KEY_BYTES
from meshcommon.durable import write_durably
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshcommon.signed_parts import join_parts, number

WRAP_KEY: Final = "wrap.key"
NUMBER_BYTES: Final = 32
_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


class WrapKey:
    """An X25519 private key that opens what is sealed to this node."""

    __slots__ = ("_key", "public_key")

    def __init__(self, private_key: bytes) -> None:
        """`private_key` must have 32 bytes (ValueError)."""
        self._key = X25519PrivateKey.from_private_bytes(private_key)
        self.public_key = self._key.public_key().public_bytes_raw()

    @classmethod
    def load_or_make(cls, directory: Path) -> WrapKey:
        """The key in `directory`, made and written durably if there is none.

        Raises:
            MeshError: DATA_DIR_INCOMPLETE when the file is damaged, DATA_DIR_UNWRITABLE.
        """
        path = directory / WRAP_KEY
        try:
            private_key = path.read_bytes()
        except FileNotFoundError:
            private_key = X25519PrivateKey.generate().private_bytes_raw()
            try:
                write_durably(path, private_key, 0o600)
            except OSError as error:
                raise MeshError(
                    ErrorCode.DATA_DIR_UNWRITABLE,
                    f"Cannot write {path} ({error.strerror}): check owner, mount and free space.",
                    {"path": str(path)},
                ) from error
        if len(private_key) != WRAP_KEY_BYTES:
            raise MeshError(
                ErrorCode.DATA_DIR_INCOMPLETE,
                f"{path} has {len(private_key)} bytes instead of {WRAP_KEY_BYTES}: remove it and restart; another one is made "
                "and told to the mesh.",
                {"path": str(path)},
            )
        return cls(private_key)

    def open(
        self, sealed: bytes, place: tuple[str, NodeId], digest: bytes, public_key: ec.EllipticCurvePublicKey
    ) -> ec.EllipticCurvePrivateKey:
        """The private key of the intermediate with this digest and public key, as sealed for node `place` (mesh id, node id).

        Raises:
            MeshError: CA_MISSING; it was sealed for another key, mesh, node or intermediate, or changed.
        """
        try:
            key = ec.derive_private_key(
                int.from_bytes(_SUITE.decrypt(sealed, self._key, _info(place, digest)), "big"), ec.SECP256R1()
            )
        except (InvalidTag, ValueError):
            key = None  # also for another length, and for a number that is no key of the curve
        if key is None or key.public_key() != public_key:
            raise MeshError(
                ErrorCode.CA_MISSING,
                "This node cannot open the key of the intermediate that is sealed for it: `meshctl ca rotate` makes another.",
            )
        return key


def seal(key: ec.EllipticCurvePrivateKey, wrap_key: bytes, place: tuple[str, NodeId], digest: bytes) -> bytes:
    """The intermediate's key, sealed to the public `wrap_key` of the node at `place` (mesh id, node id). 80 bytes."""
    secret = key.private_numbers().private_value.to_bytes(NUMBER_BYTES, "big")
    return _SUITE.encrypt(secret, X25519PublicKey.from_public_bytes(wrap_key), _info(place, digest))


def _info(place: tuple[str, NodeId], digest: bytes) -> bytes:
    return join_parts(b"mesh.v1 intermediate key", place[0].encode(), number(place[1]), digest)
