"""Hands the services of this site their certificates, as files, and renews them.

Writes `DIR/SERVICE/{tls.key,tls.crt,ca.crt}` for each service and `DIR/ca/ca.crt`, the issuer alone, for users. All are
written at the start, at half of their life, and when what they say is no longer so: the mesh, or the chain. A folder that
the operator has prepared with a group keeps it: files are then readable by that group (0640), else by this user (0600).
Leaves out what a certificate says (`site_issuer`). Blocking writes of small files, in a thread. Source: ADR 0020.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mesh_control.shell.site_issuer import SiteIssuer
from meshcommon.admin import Readiness
from meshcommon.durable import write_durably
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.logging import get_logger
from meshcommon.service_certificates import Service
from meshcommon.site_files import AUTHORITY, CERTIFICATE, KEY

LOOK_EVERY_S: Final = 0.5
"""Between two looks at whether the certificates still say what is so. Cost: comparing a few values."""
RETRY_S: Final = 5.0
_FOR_USERS: Final = "ca"
_FACING_USERS: Final = frozenset({Service.GATEWAY, Service.DATA})
_PRIVATE: Final = 0o700
_GROUP_ENTERS: Final = 0o050
_PUBLIC_FILE: Final = 0o644
_WARNING: Final = "certificate_files"

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Access:
    """Who may read the files of a folder: this user, and the folder's group if it may enter and this user is in it."""

    mode: int
    group: int | None

    @classmethod
    def of(cls, directory: Path) -> Self:
        found = directory.stat()
        is_shared = found.st_mode & _GROUP_ENTERS == _GROUP_ENTERS and found.st_gid in {os.getegid(), *os.getgroups()}
        return cls(0o640, found.st_gid) if is_shared else cls(0o600, None)


class CertificateFiles:
    """The files of all four services. One event loop only."""

    def __init__(
        self,
        issuer: SiteIssuer,
        directory: Path,
        names: Sequence[str],
        life: timedelta,
        mesh: Callable[[], str],
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Writes nothing yet.

        Args:
            issuer: Signs.
            directory: MESH_NODE_TLS_DIR.
            names: DNS names and addresses under which users reach gateway and data plane.
            life: Of a certificate, from now on.
            mesh: The trust domain at any time.
            now: The wall clock.
        """
        self._issuer = issuer
        self._directory = directory
        self._names = tuple(names)
        self._life = life
        self._mesh = mesh
        self._now = now
        self._written: tuple[str, tuple[x509.Certificate, ...]] | None = None
        self._at = datetime.min.replace(tzinfo=UTC)

    def write(self) -> None:
        """Writes the files of all services. Blocking.

        Raises:
            MeshError: DATA_DIR_UNWRITABLE, with the path.
        """
        now, mesh = self._now(), self._mesh()
        self._issuer.mesh = mesh
        chain = self._issuer.chain
        authority = self._issuer.certificate.public_bytes(Encoding.PEM)
        try:
            for service in Service:
                self._write_service(service, now, chain, authority)
            public = self._directory / _FOR_USERS
            public.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
            write_durably(public / AUTHORITY, authority, _PUBLIC_FILE, group=os.getegid())
        except OSError as error:
            path = error.filename or self._directory
            raise MeshError(
                ErrorCode.DATA_DIR_UNWRITABLE,
                f"The certificates of this site's services cannot be written ({path}: {error.strerror}): check owner, "
                "mount and free space of MESH_NODE_TLS_DIR.",
                {"path": str(path)},
            ) from error
        self._written, self._at = (mesh, chain), now
        _log.info(
            "certificates_written", mesh=mesh, ends=(now + self._life).isoformat(), directory=str(self._directory)
        )

    async def run(self, readiness: Readiness) -> None:
        """Writes again whenever it is due, until cancelled. A failure is a warning of `readiness`, and tried again."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if not self._is_due():
                continue
            try:
                await asyncio.to_thread(self.write)
                readiness.clear(_WARNING)
            except MeshError as error:
                readiness.warn(_WARNING, error.message)
                _log.warning("certificates_not_written", message=error.message)
                await asyncio.sleep(RETRY_S)

    def _is_due(self) -> bool:
        """Also when the clock was set back: the services' clocks may have been, too."""
        is_young = self._at <= self._now() < self._at + self._life / 2
        return not is_young or self._written != (self._mesh(), self._issuer.chain)

    def _write_service(
        self, service: Service, now: datetime, chain: Sequence[x509.Certificate], authority: bytes
    ) -> None:
        directory = self._directory / service.value
        directory.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        access = _Access.of(directory)
        key = ec.generate_private_key(ec.SECP256R1())
        names = self._names if service in _FACING_USERS else ()
        leaf = self._issuer.issue(service, key.public_key(), names, now, self._life)
        shown = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in (leaf, *chain))
        # Readers compare key and certificate, and read again while these are no pair.
        write_durably(directory / AUTHORITY, authority, access.mode, group=access.group)
        write_durably(
            directory / KEY,
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            access.mode,
            group=access.group,
        )
        write_durably(directory / CERTIFICATE, shown, access.mode, group=access.group)
