"""The REST application, put together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from starlette.exceptions import HTTPException

from mesh_gateway.core.byte_budget import ByteBudget
from mesh_gateway.core.problem import from_status, from_validation
from mesh_gateway.shell.backends import Backends
from mesh_gateway.shell.ca_routes import ca_router
from mesh_gateway.shell.calls import Calls
from mesh_gateway.shell.docs_page import add_docs
from mesh_gateway.shell.envelope import Envelope
from mesh_gateway.shell.follow import follow_router
from mesh_gateway.shell.join_routes import join_router
from mesh_gateway.shell.known_query import known_query
from mesh_gateway.shell.mesh_routes import mesh_router, node_router
from mesh_gateway.shell.metrics import GatewayMetrics
from mesh_gateway.shell.openapi import add_schema
from mesh_gateway.shell.raft_routes import raft_router
from mesh_gateway.shell.stream_routes import catalogue_router, records_router
from mesh_gateway.shell.topology_routes import topology_router
from mesh_gateway.shell.weight_routes import weight_router
from meshcommon.errors import MeshError
from meshcommon.logging import correlation_id
from meshcommon.operator_token import OperatorToken
from meshcommon.problem import MEDIA_TYPE, problem_of

TITLE: Final = "Mesh gateway"


def build_app(
    node: str,
    backends: Backends,
    metrics: GatewayMetrics,
    timeout_s: float,
    opened: ByteBudget,
    *,
    hosts: Iterable[str] = (),
    guard: OperatorToken | None = None,
) -> FastAPI:
    """The application.

    Args:
        node: Name of the node, for the API page.
        backends: Channels to the other services.
        metrics: Counters.
        timeout_s: Time limit of a request, seconds.
        opened: Bounds the batches that are open at a time, over all callers of the gateway.
        hosts: Names under which it is reached, besides loopback names and its own address.
        guard: The operator's token that every request has to show; None: none.
    """
    app = FastAPI(
        title=TITLE,
        version="1",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        generate_unique_id_function=lambda route: route.name,
    )
    calls = Calls(backends, timeout_s, opened)
    for router in (
        mesh_router(calls),
        join_router(calls),
        weight_router(calls),
        ca_router(calls),
        topology_router(calls),
        node_router(calls),
        catalogue_router(calls),
        raft_router(calls),
        records_router(calls),
    ):
        app.include_router(router, dependencies=[Depends(known_query)])
    app.include_router(follow_router(calls, metrics))
    add_schema(app, node)
    add_docs(app, f"{TITLE} of node {node}")
    app.add_exception_handler(MeshError, _on_mesh_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    FastAPIInstrumentor.instrument_app(app, excluded_urls="/docs.*,/openapi.json")
    # Added last: the outermost.
    app.add_middleware(Envelope, metrics=metrics, hosts=frozenset(hosts), guard=guard)
    return app


def _answer(error: MeshError, headers: dict[str, str] | None = None) -> JSONResponse:
    body: Any = problem_of(error, correlation_id.get())
    return JSONResponse(body, status_code=error.mapping.http, media_type=MEDIA_TYPE, headers=headers)


async def _on_mesh_error(_request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, MeshError):
        raise error
    return _answer(error)


async def _on_validation_error(_request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestValidationError):
        raise error
    return _answer(from_validation(error.errors()))


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        raise error
    headers = dict(error.headers) if error.headers else None
    return _answer(from_status(error.status_code, request.method, request.url.path), headers)
