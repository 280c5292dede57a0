"""The OpenAPI document: what FastAPI derives, with our error documents instead of its own and the WebSocket told."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from mesh_gateway.shell.models import ProblemBody, PublishBody
from meshcommon.problem import MEDIA_TYPE

_REF: Final = "#/components/schemas/{model}"
_FRAMEWORK_SCHEMAS: Final = ("HTTPValidationError", "ValidationError")
_TAGS: Final = [
    {"name": "mesh", "description": "Life of this node and of the mesh."},
    {"name": "topology", "description": "Links, paths, lanes and routes."},
    {"name": "streams", "description": "The catalogue of streams."},
    {"name": "records", "description": "Publish and read."},
]
_DESCRIPTION: Final = """\
The API of node `{node}`.

**Errors** are problem documents (`application/problem+json`, RFC 9457): `code` is stable, `detail` says what to do next,
`retryable` whether the same request may succeed later.

**Correlation**: send `x-correlation-id`, or take the one in the answer; the logs of the node carry it.

**Follow a stream** with a WebSocket at `/v1/streams/{{namespace}}/{{name}}/follow?from=N`. Each message is
`{{"records": [...], "next_offset": N}}`, records as in *Read*; without `from` it begins at the first retained record. An
error is one message with the problem document, then a close with 1008 (wrong request) or 1011 (try again later).
"""


def add_schema(app: FastAPI, node: str) -> None:
    """Makes `app.openapi()` give our document; built on the first request, when all routes are there."""
    built: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not built:
            built.update(_document(app, node))
        return built

    app.openapi = openapi  # type: ignore[method-assign]


def _document(app: FastAPI, node: str) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        description=_DESCRIPTION.format(node=node),
        routes=app.routes,
        tags=_TAGS,
        servers=[{"url": "/", "description": f"Node {node}"}],
    )
    schemas: dict[str, Any] = document.setdefault("components", {}).setdefault("schemas", {})
    _, ours = models_json_schema([(PublishBody, "validation"), (ProblemBody, "validation")], ref_template=_REF)
    schemas.update(ours["$defs"])
    for name in _FRAMEWORK_SCHEMAS:
        schemas.pop(name, None)
    problem = {
        "description": "Refused or failed.",
        "content": {MEDIA_TYPE: {"schema": {"$ref": _REF.format(model="ProblemBody")}}},
    }
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = problem
    return document
