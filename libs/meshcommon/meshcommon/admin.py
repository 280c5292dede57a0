"""The admin port of every service: `/healthz` (alive), `/readyz` (useful, with reasons), `/metrics` (Prometheus).

Web pages do not get in (`meshcommon.admission`): reasons and metrics tell of the whole site.
"""

from __future__ import annotations

from collections.abc import Iterable

import prometheus_client
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from meshcommon.admission import check_caller, own_names
from meshcommon.errors import MeshError
from meshcommon.http_server import ADMIN_HTTP, serve_asgi
from meshcommon.logging import new_correlation_id
from meshcommon.problem import MEDIA_TYPE, problem_of
from meshcommon.request_head import check_head


class Readiness:
    """Reasons for which a service is not useful right now; none means ready. `warnings` do not make it unready."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {"starting": "The service is starting."}
        self._warnings: dict[str, str] = {}

    def block(self, key: str, reason: str) -> None:
        """Not ready because of `reason` until `clear(key)`."""
        self._reasons[key] = reason

    def warn(self, key: str, reason: str) -> None:
        """Works, but not as it should, until `clear(key)`."""
        self._warnings[key] = reason

    def clear(self, key: str) -> None:
        """The reason or warning `key` is gone."""
        self._reasons.pop(key, None)
        self._warnings.pop(key, None)

    @property
    def is_ready(self) -> bool:
        """Whether nothing blocks."""
        return not self._reasons

    def reasons(self) -> list[str]:
        """Sentences, in the order in which they came up."""
        return list(self._reasons.values())

    def warnings(self) -> list[str]:
        """Sentences, in the order in which they came up."""
        return list(self._warnings.values())


def admin_app(readiness: Readiness, hosts: Iterable[str] = ()) -> ASGIApp:
    """The three pages as an ASGI application; `hosts` are names for it besides loopback names and its own address."""

    async def healthz(_request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def readyz(_request: Request) -> Response:
        body = {"ready": readiness.is_ready, "reasons": readiness.reasons(), "warnings": readiness.warnings()}
        return JSONResponse(body, status_code=200 if readiness.is_ready else 503)

    async def metrics(_request: Request) -> Response:
        return Response(prometheus_client.generate_latest(), media_type=prometheus_client.CONTENT_TYPE_LATEST)

    pages = Starlette(routes=[Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)])
    return _Admitted(pages, hosts)


async def serve_admin(readiness: Readiness, listen: str, *, hosts: Iterable[str] = ()) -> None:
    """Serves the three pages on `listen` until cancelled. They change nothing, so they may be reached over a network.

    Args:
        readiness: What /readyz tells.
        listen: `host:port` or `unix:/path`.
        hosts: Names under which scrapers reach it, besides loopback names and its own name and address.

    Raises:
        MeshError: ADDRESS_IN_USE or SETTING_INVALID.
    """
    app = admin_app(readiness, own_names(listen) | set(hosts))
    # In clear wherever the operator lets it listen: Prometheus scrapes over the site's network.
    await serve_asgi(app, listen, "The admin page", limits=ADMIN_HTTP, is_insecure_dev=True)


class _Admitted:
    """Lets requests through that no foreign web page made a browser send."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str]) -> None:
        self._app = app
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses with a problem document, or passes on."""
        try:
            own_address = (scope.get("server") or ("", None))[0]
            check_head(scope["headers"], len(scope.get("raw_path", b"")) + len(scope["query_string"]))
            check_caller(scope["headers"], scope["method"], own_address=own_address, names=self._hosts)
        except MeshError as error:
            problem = problem_of(error, new_correlation_id())
            await JSONResponse(problem, error.mapping.http, media_type=MEDIA_TYPE)(scope, receive, send)
            return
        await self._app(scope, receive, send)
