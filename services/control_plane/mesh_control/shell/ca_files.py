"""The CA's files of one node: the root's key and certificate where it was made, and the key of a request that is not answered.

In `ca/` of the control plane's directory, 0700, keys 0600. The operator moves `root.key` away; nothing here needs it but
`meshctl ca rotate`. It outlives the membership: leaving a mesh removes no root. Blocking, small files.
Source: docs/design/identity.md "Certificates".
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from meshcommon.durable import sync_directory, write_durably
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.mesh_certificates import Authority, fingerprint, make_root, mesh_uri, pem, read_pem, uris

CA_DIR: Final = "ca"
ROOT: Final = "root"
NEXT_ROOT: Final = "next-root"
"""Being committed: becomes `root` afterwards."""
PENDING_KEY: Final = "pending.key"


class CaFiles:
    """Reads and writes `ca/` in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / CA_DIR

    def path(self, name: str) -> Path:
        """Of a file in it."""
        return self._directory / name

    @property
    def root_key_file(self) -> str:
        """The path of the root's key, empty when it is not here."""
        path = self.path(f"{ROOT}.key")
        return str(path) if path.exists() else ""

    def root(self, mesh_id: str, name: str = ROOT) -> Authority | None:
        """The root of this mesh that is kept here with its key, None when there is none. Raises DATA_DIR_INCOMPLETE."""
        certificate_file = self.path(f"{name}.crt")
        try:
            key = self._read_key(self.path(f"{name}.key"))
            certificate = read_pem(certificate_file.read_text(errors="replace"))
        except FileNotFoundError:
            return None
        except MeshError as error:
            raise _damaged(certificate_file, error.message) from error
        if certificate.public_key() != key.public_key():
            raise _damaged(certificate_file, "its key is another one than that beside it")
        return Authority(certificate, key) if mesh_uri(mesh_id) in uris(certificate) else None

    def make_root(self, mesh_id: str, now: datetime, name: str = ROOT) -> Authority:
        """Another root; one that lies here is put aside under its fingerprint. Raises DATA_DIR_UNWRITABLE."""
        self._put_aside(name)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = make_root(mesh_id, key, now)
        self._write(f"{name}.key", _key_pem(key))
        self._write(f"{name}.crt", pem(certificate).encode())
        return Authority(certificate, key)

    def take_next_root(self) -> None:
        """What was made as the next root is committed: it is the root, and that before is put aside. Repeatable."""
        if not self.path(f"{NEXT_ROOT}.crt").exists():
            return
        if self.path(f"{NEXT_ROOT}.key").exists():
            self._put_aside(ROOT)
            self.path(f"{NEXT_ROOT}.key").replace(self.path(f"{ROOT}.key"))
        self.path(f"{NEXT_ROOT}.crt").replace(self.path(f"{ROOT}.crt"))
        sync_directory(self._directory)

    def pending_key(self) -> ec.EllipticCurvePrivateKey | None:
        """The key of the request that waits for its certificate."""
        try:
            return self._read_key(self.path(PENDING_KEY))
        except FileNotFoundError:
            return None

    def make_pending_key(self) -> ec.EllipticCurvePrivateKey:
        """The key of a request: the one that waits already, or another. Raises DATA_DIR_UNWRITABLE."""
        key = self.pending_key()
        if key is None:
            key = ec.generate_private_key(ec.SECP256R1())
            self._write(PENDING_KEY, _key_pem(key))
        return key

    def drop_pending_key(self) -> None:
        """Its certificate is committed: from now on the key is in the mesh's state alone, sealed."""
        self.path(PENDING_KEY).unlink(missing_ok=True)

    def _put_aside(self, name: str) -> None:
        try:
            old = fingerprint(read_pem(self.path(f"{name}.crt").read_text(errors="replace"))).hex()[:16]
        except (FileNotFoundError, MeshError):
            return
        for kind in ("key", "crt"):
            file = self.path(f"{name}.{kind}")
            if file.exists():
                file.replace(self.path(f"former-{old}.{kind}"))

    def _read_key(self, path: Path) -> ec.EllipticCurvePrivateKey:
        data = path.read_bytes()
        try:
            key = load_pem_private_key(data, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise _damaged(path, "it holds no P-256 key in PEM without a passphrase")
        return key

    def _write(self, name: str, data: bytes) -> None:
        path = self.path(name)
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            write_durably(path, data, 0o600)
        except OSError as error:
            raise MeshError(
                ErrorCode.DATA_DIR_UNWRITABLE,
                f"Cannot write {path} ({error.strerror}): check owner, mount and free space.",
                {"path": str(path)},
            ) from error


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _damaged(path: Path, why: str) -> MeshError:
    return MeshError(
        ErrorCode.DATA_DIR_INCOMPLETE,
        f"{path} cannot be used ({why}): restore it from a backup, or move it away.",
        {"path": str(path)},
    )
