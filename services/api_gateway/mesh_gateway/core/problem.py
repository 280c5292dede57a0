"""Refusals of the web framework itself as our errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from meshcommon.errors import ErrorCode, MeshError

_VALUE_CHARACTERS_MAX: Final = 80


def from_status(status: int, method: str, path: str) -> MeshError:
    """The error for a refusal of the web framework itself, which knows only an HTTP status."""
    if status == 404:
        return MeshError(ErrorCode.ROUTE_NOT_FOUND, f"There is nothing at {path}: /docs lists what there is.")
    if status == 405:
        return MeshError(
            ErrorCode.METHOD_NOT_ALLOWED, f"{path} does not support {method}: /docs lists what each path takes."
        )
    if 400 <= status < 500:
        return MeshError(ErrorCode.INVALID_ARGUMENT, f"The request to {path} cannot be read: see /docs.")
    return MeshError(ErrorCode.INTERNAL, "Internal error; the log has the details.")


def from_validation(errors: Sequence[Mapping[str, Any]]) -> MeshError:
    """The error for a request that does not fit its schema, from pydantic's list (never empty).

    Only the first finding is told: one correction at a time reads better, and the others often follow from it.
    """
    first = errors[0]
    kind = str(first.get("type", ""))
    where = tuple(first.get("loc", ()))
    field = _field(where)
    if field.endswith("wait") and kind == "missing":
        return MeshError(ErrorCode.WAIT_REQUIRED, 'Say what the publish waits for: "wait": "committed".')
    if kind == "json_invalid":
        reason = dict(first.get("ctx") or {}).get("error", "malformed")
        return MeshError(ErrorCode.INVALID_ARGUMENT, f"The body is not valid JSON ({reason}): correct it.")
    if where == ("body",) and isinstance(first.get("input"), bytes):
        text = "The body is not sent as JSON: set the header Content-Type: application/json; /docs shows the schema."
        return MeshError(ErrorCode.MEDIA_TYPE_NOT_SUPPORTED, text)
    if kind == "missing":
        text = f"{_place(where)} {field!r} is missing: add it; /docs shows the schema."
    elif kind == "extra_forbidden":
        text = f"{_place(where)} {field!r} is not known: remove it; /docs shows the schema."
    else:
        said = str(first.get("msg", "not valid")).removeprefix("Value error, ").rstrip(".")
        text = f"{_place(where)} {field!r} is not valid ({_shown(first.get('input'))}): {said}."
    return MeshError(ErrorCode.INVALID_ARGUMENT, text, {"field": field})


def _place(where: tuple[Any, ...]) -> str:
    return {"query": "Query parameter", "path": "Path parameter"}.get(str(where[0]) if where else "", "Field")


def _field(where: tuple[Any, ...]) -> str:
    parts = where[1:] if where and where[0] in {"body", "query", "path", "header"} else where
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "body"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _VALUE_CHARACTERS_MAX else text[:_VALUE_CHARACTERS_MAX] + "…"
