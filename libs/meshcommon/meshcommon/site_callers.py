"""Who of a site may make which gRPC call: the arrows of architecture §2, checked by the caller's certificate at each call.

Whatever is not listed is refused. Leaves out: servers on unix sockets, which only processes of the same user reach.
Source: ADR 0020.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Self

from meshcommon.errors import ErrorCode, MeshError
from meshcommon.service_certificates import Service, ServiceIdentity
from meshcommon.site_files import SiteFiles

_PEM: Final = "x509_pem_cert"
_HEALTH: Final = "grpc.health.v1.Health"
_NOBODY: Final[frozenset[Service]] = frozenset()


class SiteCallers:
    """Admits calls. One event loop only."""

    def __init__(self, files: SiteFiles, allowed: Mapping[str, frozenset[Service]]) -> None:
        """Takes the rules.

        Args:
            files: This service's own certificate.
            allowed: By full name of a gRPC service, or `SERVICE/METHOD` where one method differs.
        """
        self.files = files
        self._allowed = {_HEALTH: frozenset(Service), **allowed}

    @classmethod
    def of(cls, files: SiteFiles | None, allowed: Mapping[str, frozenset[Service]]) -> Self | None:
        """The rules where the site has certificates; None where it has none: nobody can be told apart."""
        return cls(files, allowed) if files is not None else None

    async def admit(self, method: str, context: Any) -> None:
        """Refuses the call of `method` (`/SERVICE/METHOD`) unless its caller may make it.

        Raises:
            MeshError: CERTIFICATE_REFUSED, CLOCK_SKEW or CALLER_NOT_ALLOWED.
        """
        shown = context.auth_context().get(_PEM, ())
        if not shown:
            raise MeshError(
                ErrorCode.CALLER_NOT_ALLOWED, "The caller shows no certificate: call with one of this site."
            )
        identity = await self._identity(shown[0])
        name = method.removeprefix("/")
        allowed = self._allowed.get(name, self._allowed.get(name.partition("/")[0], _NOBODY))
        if identity.service not in allowed:
            raise MeshError(
                ErrorCode.CALLER_NOT_ALLOWED,
                f"{identity.uri} may not call {name}: only {', '.join(sorted(allowed)) or 'nobody'} may. Users call the "
                "gateway.",
                {"caller": identity.uri, "method": name},
            )

    async def _identity(self, pem: bytes) -> ServiceIdentity:
        try:
            return self.files.caller(pem)
        except MeshError as error:
            if error.code is not ErrorCode.CERTIFICATE_REFUSED:
                raise
        # The node may just have joined another mesh, and the caller has looked at its files earlier than this service.
        await self.files.look()
        return self.files.caller(pem)
