"""Refuses query parameters that a route does not know.

A misspelt one would be ignored, and with it what it guards: `streamid=7` in place of `stream_id=7` publishes to whatever
stream has the name now. Fields of a JSON body are refused in the same way by their models.
"""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import Request
from fastapi.routing import APIRoute

from meshcommon.errors import ErrorCode, MeshError
from meshcommon.peer_text import printable


def check_query(given: Iterable[str], known: frozenset[str]) -> None:
    """Compares the names of a request with those that there are. Raises MeshError INVALID_ARGUMENT."""
    for name in given:
        if name not in known:
            shown, others = printable(name), ", ".join(sorted(known)) or "none"
            text = f"Query parameter {shown!r} is not known: remove it. Known here: {others}."
            raise MeshError(ErrorCode.INVALID_ARGUMENT, text, {"field": shown})


async def known_query(request: Request) -> None:
    """A dependency of every route."""
    route = request.scope.get("route")
    if isinstance(route, APIRoute):
        # Routes here take their parameters themselves, none through a dependency; some only name them in the schema.
        known = {field.alias for field in route.dependant.query_params}
        known |= {parameter["name"] for parameter in (route.openapi_extra or {}).get("parameters", ())}
        check_query(request.query_params, frozenset(known))
