"""TLS for users: an operator's certificate and key from two PEM files, read again when they change.

One `ssl.SSLContext` lives as long as the listener and hands each handshake to a context of the present files, so a new
certificate is shown from the next connection on and open ones go on. New files that are no usable pair change nothing and
warn. Contents are compared instead of times: a mount may replace files without a later time, and a pair that was read
between the writing of its two halves is simply tried again. TLS 1.3 only.
Leaves out: certificates of nodes (`boot_certificate`), and asking users for one. Source: RFC 8446, RFC 5280.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from meshcommon.admin import Readiness
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.logging import get_logger
from meshcommon.tls_contexts import server_context

LOOK_EVERY_S: Final = 5.0
"""Between two looks at the files. Cost: reading both."""
FILE_BYTES_MAX: Final = 256 * 1024
EXPIRY_WARNING: Final = timedelta(days=7)
"""Or a third of the certificate's life, if that is shorter."""
_WARNING: Final = "tls"

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PemPair:
    """A certificate with those of its authorities, leaf first, and the leaf's key: what the files hold."""

    certificate: bytes
    key: bytes


class TlsFiles:
    """The pair that a listener shows. Belongs to one event loop; `pair` may be read by any thread."""

    def __init__(
        self,
        certificate: str,
        key: str,
        settings: str,
        *,
        is_of_site: bool = False,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Reads the files.

        Args:
            certificate: Path of the certificate chain, PEM.
            key: Path of the key, PEM, without a passphrase.
            settings: What the two settings' names begin with, for texts: `MESH_GATEWAY_TLS`.
            is_of_site: Whether the control plane writes the files: then `settings` is the one setting, and a certificate
                whose time is over is shown nevertheless, since the service must start without its control plane.
            now: The wall clock.

        Raises:
            MeshError: SETTING_INVALID, with the path, what is wrong with it and what to do.
        """
        self._certificate = Path(certificate)
        self._key = Path(key)
        self._settings = settings
        self._is_of_site = is_of_site
        self._now = now
        self.pair = self._read()
        self._present, self._begins, self._expires = self._check(self.pair)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        """The listener's context, also after the files have changed."""
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        # Called in every handshake, also without a name in it. Loading new files into this context instead would keep the
        # old certificate beside a new one whose key is of another kind.
        self.context.sni_callback = self._choose

    @classmethod
    def of_settings(cls, certificate: str, key: str, settings: str) -> TlsFiles | None:
        """The pair that two settings name; None when both are empty: the listener is in clear.

        Raises:
            MeshError: SETTING_INVALID.
        """
        if not certificate and not key:
            return None
        if not certificate or not key:
            given, missing = ("CERTIFICATE", "KEY") if certificate else ("KEY", "CERTIFICATE")
            raise MeshError(
                ErrorCode.SETTING_INVALID,
                f"Setting {settings}_{given} is set and {settings}_{missing} is not: set both for TLS, or neither.",
                {"setting": f"{settings}_{missing}"},
            )
        return cls(certificate, key, settings)

    async def run(self, readiness: Readiness) -> None:
        """Looks at the files until cancelled. What is wrong with them is a warning of `readiness`, and logged once."""
        warned = ""
        while True:
            warning = await self.look()
            if warning:
                readiness.warn(_WARNING, warning)
            else:
                readiness.clear(_WARNING)
            if warning and warning != warned:
                _log.warning("tls_files", message=warning)
            warned = warning
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> str:
        """Reads the files and shows what they hold from now on, if that can be shown. Returns a warning, empty when well."""
        try:
            # In a thread: the files may lie on a network.
            found = await asyncio.to_thread(self._read)
            if found != self.pair:
                self._present, self._begins, self._expires = self._check(found)
                self.pair = found
                _log.info("tls_files_loaded", certificate=str(self._certificate), expires=self._expires.isoformat())
        except MeshError as error:
            return f"{error.message} Until then the certificate of before is shown, which ends on {self._expires:%F %T} UTC."
        if self._expires - self._now() < min(EXPIRY_WARNING, (self._expires - self._begins) / 3):
            if self._is_of_site:
                return ""  # told by SiteFiles, which reads the same files
            return (
                f"The certificate in {self._certificate} ends on {self._expires:%F %T} UTC: put a new one and its key in "
                "place; no restart is needed."
            )
        return ""

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._present

    def _read(self) -> PemPair:
        return PemPair(self._read_file(self._certificate, "CERTIFICATE"), self._read_file(self._key, "KEY"))

    def _read_file(self, path: Path, which: str) -> bytes:
        try:
            with path.open("rb") as file:
                content = file.read(FILE_BYTES_MAX + 1)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise self._wrong(path, which, f"cannot be read ({why}): correct the path or its mode") from None
        if len(content) > FILE_BYTES_MAX:
            raise self._wrong(path, which, f"has more than {FILE_BYTES_MAX} bytes: name a PEM file")
        return content

    def _check(self, pair: PemPair) -> tuple[ssl.SSLContext, datetime, datetime]:
        """The pair's context, and when its certificate begins and ends."""
        form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        try:
            leaf = x509.load_pem_x509_certificates(pair.certificate)[0]
            public = leaf.public_key().public_bytes(*form)
            begins, ends = leaf.not_valid_before_utc, leaf.not_valid_after_utc
        except (ValueError, UnsupportedAlgorithm):
            text = "holds no certificate: it must be PEM, the listener's own certificate first"
            raise self._wrong(self._certificate, "CERTIFICATE", text) from None
        try:
            key = load_pem_private_key(pair.key, None)
        except TypeError:
            text = "is protected by a passphrase, which nobody could type in: store it without one, mode 0600"
            raise self._wrong(self._key, "KEY", text) from None
        except (ValueError, UnsupportedAlgorithm):
            raise self._wrong(self._key, "KEY", "holds no key: it must be PEM") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            # Neither browsers nor gRPC take Ed25519 there, and would say no more than that the connection was closed.
            raise self._wrong(self._key, "KEY", "is of a kind that clients do not take: use P-256 or RSA")
        if public != key.public_key().public_bytes(*form):
            text = f"is not the key of the certificate in {self._certificate}: name a pair, the own certificate first"
            raise self._wrong(self._key, "KEY", text)
        if not self._is_of_site and not begins <= self._now() <= ends:
            text = f"is valid from {begins:%F %T} to {ends:%F %T} UTC, and it is {self._now():%F %T}: put a valid one there"
            raise self._wrong(self._certificate, "CERTIFICATE", text)
        try:
            return server_context(pair.certificate + b"\n" + pair.key), begins, ends
        except ssl.SSLError as error:
            text = (
                f"and its key are refused by the TLS library ({error.reason}): use a key of P-256, or RSA of 2048 bits"
            )
            raise self._wrong(self._certificate, "CERTIFICATE", text) from None

    def _wrong(self, path: Path, which: str, text: str) -> MeshError:
        setting = self._settings if self._is_of_site else f"{self._settings}_{which}"
        return MeshError(
            ErrorCode.SETTING_INVALID, f"{path} ({setting}) {text}.", {"setting": setting, "path": str(path)}
        )
