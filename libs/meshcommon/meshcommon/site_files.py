"""The certificate of one service for gRPC within its site: three files, read again when they change.

`DIR/SERVICE/{tls.crt,tls.key,ca.crt}` is the layout of cert-manager and Kubernetes; the control plane writes the same.
A new pair counts from the next connection on. Files that are no usable pair change nothing and are told. A certificate
whose time is over is still used, since a data plane must start again without its control plane, but the service is not
ready and names both clocks. Also decides who a caller is, by the certificate that it has shown.
Leaves out: who may call what (`site_callers`), and TLS for users (`tls_files`). Source: ADR 0020.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from meshcommon.admin import Readiness
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.logging import get_logger
from meshcommon.service_certificates import UNJOINED, UNREADABLE, Service, ServiceIdentity, check, check_form, refused
from meshcommon.tls_files import FILE_BYTES_MAX, TlsFiles

CERTIFICATE: Final = "tls.crt"
KEY: Final = "tls.key"
AUTHORITY: Final = "ca.crt"
LOOK_EVERY_S: Final = 1.0
"""Between two looks at the files. Cost: reading three small files. A node that joins gets new ones and must not wait."""
WAIT_S: Final = 120.0
"""How long a service waits for its first files. The control plane writes them within a second of its start."""
_LOOK_FIRST_EVERY_S: Final = 0.2
_TELL_EVERY_S: Final = 10.0
_CALLERS_MAX: Final = 64
"""Callers' certificates remembered. A site has four services; renewals add a few."""
_READINESS: Final = "site_tls"

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SitePair:
    """What the three files hold, PEM."""

    certificate: bytes
    key: bytes
    authority: bytes


class SiteFiles:
    """The certificate of this service. Belongs to one event loop; `pair` may be read by any thread."""

    def __init__(
        self, directory: Path, node: str, service: Service, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        """Reads nothing yet.

        Args:
            directory: The folder of all services, MESH_NODE_TLS_DIR.
            node: Name of this node.
            service: This service.
            now: The wall clock.
        """
        self.directory = directory / service.value
        self.node = node
        self.service = service
        self._now = now
        self.pair: SitePair | None = None
        self._identity: ServiceIdentity | None = None
        self._leaf: x509.Certificate | None = None
        self._callers: dict[bytes, ServiceIdentity] = {}
        self._wrong = ""

    @classmethod
    def of_setting(cls, directory: str, node: str, service: Service) -> SiteFiles | None:
        """The files below `directory` (MESH_NODE_TLS_DIR); None when it is empty: gRPC of the site is in clear."""
        return cls(Path(directory), node, service) if directory else None

    def for_users(self) -> TlsFiles:
        """The same certificate, shown to users of this service, of whom none is asked. Await `wait` first.

        Raises:
            MeshError: SETTING_INVALID.
        """
        certificate, key = (str(self.directory / name) for name in (CERTIFICATE, KEY))
        return TlsFiles(certificate, key, "MESH_NODE_TLS_DIR", is_of_site=True)

    async def wait(self, readiness: Readiness, within_s: float = WAIT_S) -> None:
        """Returns as soon as there is a pair, also one whose time is not now.

        Args:
            readiness: Says meanwhile what is missing.
            within_s: How long at most.

        Raises:
            MeshError: TLS_FILES_MISSING or CERTIFICATE_REFUSED, as the last look found.
        """
        loop = asyncio.get_running_loop()
        started = told = loop.time()
        while True:
            try:
                await self._load()
            except MeshError as error:
                readiness.block(_READINESS, error.message)
                waited_s = loop.time() - started
                if waited_s >= within_s:
                    raise
                if loop.time() - told >= _TELL_EVERY_S:
                    told = loop.time()
                    _log.warning("waiting_for_certificate", message=error.message, waited_s=round(waited_s))
            if self.pair is not None:
                self._tell(readiness)
                return
            await asyncio.sleep(_LOOK_FIRST_EVERY_S)

    async def run(self, readiness: Readiness) -> None:
        """Looks at the files until cancelled. Tells `readiness` what is wrong, and the log once."""
        said = ""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look()
            warning = self._tell(readiness)
            if warning and warning != said:
                _log.warning("site_certificate", message=warning)
            said = warning

    async def look(self) -> None:
        """Reads the files and uses what they hold from now on, if that can be used."""
        try:
            await self._load()
            self._wrong = ""
        except MeshError as error:
            self._wrong = error.message

    def caller(self, pem: bytes) -> ServiceIdentity:
        """Who has shown the certificate `pem`, on a connection that TLS has verified against the authority.

        Raises:
            MeshError: CERTIFICATE_REFUSED: not of this form, node or mesh; CLOCK_SKEW: it is not its time.
        """
        own = self._identity
        if own is None:
            raise refused("this service has none itself yet")
        identity = self._callers.get(pem)
        if identity is None:
            try:
                certificate = x509.load_pem_x509_certificate(pem)
            except UNREADABLE:
                raise refused("it cannot be read") from None
            identity = check(certificate, self._now())
            if len(self._callers) >= _CALLERS_MAX:
                self._callers.clear()
            self._callers[pem] = identity
        if identity.node != own.node:
            raise refused(f"{identity.uri} is a service of another node than {own.uri}")
        # A node that joins or leaves gets new certificates one after the other.
        if UNJOINED not in {identity.mesh, own.mesh} and identity.mesh != own.mesh:
            raise refused(f"{identity.uri} is of another mesh than {own.uri}")
        return identity

    def _tell(self, readiness: Readiness) -> str:
        """What is wrong with the certificate in use, or with newer files; empty when all is well."""
        leaf = self._leaf
        readiness.clear(_READINESS)
        if leaf is None:
            return self._wrong
        try:
            check(leaf, self._now())
        except MeshError as error:
            readiness.block(_READINESS, error.message)
            return error.message
        begins, ends = leaf.not_valid_before_utc, leaf.not_valid_after_utc
        warning = self._wrong
        if not warning and (ends - self._now()) * 3 < ends - begins:
            warning = (
                f"The certificate in {self.directory} ends on {ends:%F %T} UTC and should have been renewed by now: see "
                "whether the control plane of this site runs and may write there."
            )
        if warning:
            readiness.warn(_READINESS, warning)
        return warning

    async def _load(self) -> None:
        # In a thread: the files may lie on a network.
        pair = await asyncio.to_thread(self._read)
        if pair == self.pair:
            return
        leaf, identity = self._check(pair)
        self._leaf, self._identity, self.pair = leaf, identity, pair
        _log.info("site_certificate_loaded", uri=identity.uri, expires=leaf.not_valid_after_utc.isoformat())

    def _read(self) -> SitePair:
        return SitePair(*(self._read_file(name) for name in (CERTIFICATE, KEY, AUTHORITY)))

    def _read_file(self, name: str) -> bytes:
        path = self.directory / name
        try:
            with path.open("rb") as file:
                content = file.read(FILE_BYTES_MAX + 1)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise MeshError(
                ErrorCode.TLS_FILES_MISSING,
                f"{path} cannot be read ({why}): the control plane of this site writes it (start it with the same "
                "MESH_NODE_TLS_DIR), or you do.",
                {"path": str(path)},
            ) from None
        if len(content) > FILE_BYTES_MAX:
            raise refused(f"{path} has more than {FILE_BYTES_MAX} bytes")
        return content

    def _check(self, pair: SitePair) -> tuple[x509.Certificate, ServiceIdentity]:
        form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        try:
            leaf = x509.load_pem_x509_certificates(pair.certificate)[0]
            x509.load_pem_x509_certificates(pair.authority)
            key = load_pem_private_key(pair.key, None)
            is_pair = key.public_key().public_bytes(*form) == leaf.public_key().public_bytes(*form)
        except (TypeError, *UNREADABLE):
            raise refused(
                f"the files in {self.directory} are no PEM of a certificate, its key and its issuer"
            ) from None
        if not is_pair:
            raise refused(f"{KEY} in {self.directory} is the key of another one")
        identity = check_form(leaf)
        if (identity.node, identity.service) != (self.node, self.service):
            raise refused(f"{identity.uri} is not this service, {self.service.value} of node {self.node}")
        return leaf, identity
