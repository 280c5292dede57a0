"""The admin port of every service: `/healthz` (alive), `/readyz` (useful, with reasons), `/metrics` (Prometheus)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import prometheus_client
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from meshcommon.listen import bind


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


class QuietServer(uvicorn.Server):
    """uvicorn without its own signal handlers: the service's lifecycle owns the signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the handlers as they are."""
        yield


_STOP_GRACE_S: Final = 3


def admin_app(readiness: Readiness) -> Starlette:
    """The three pages as an ASGI application."""

    async def healthz(_request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def readyz(_request: Request) -> Response:
        body = {"ready": readiness.is_ready, "reasons": readiness.reasons(), "warnings": readiness.warnings()}
        return JSONResponse(body, status_code=200 if readiness.is_ready else 503)

    async def metrics(_request: Request) -> Response:
        return Response(prometheus_client.generate_latest(), media_type=prometheus_client.CONTENT_TYPE_LATEST)

    return Starlette(routes=[Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)])


async def serve_asgi(app: Starlette, listen: str, what: str) -> None:
    """Serves `app` on `listen` until cancelled. Raises MeshError(ADDRESS_IN_USE)."""
    socket = bind(listen, what)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=_STOP_GRACE_S,
        ws="websockets-sansio",
    )
    server = QuietServer(config)
    serving = asyncio.create_task(server.serve(sockets=[socket]), name=f"{what} server")
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        server.should_exit = True
        await serving
        raise
    finally:
        socket.close()
