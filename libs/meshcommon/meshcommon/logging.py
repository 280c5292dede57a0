"""JSON logs on standard error, one object a line, with correlation and trace ids.

Correlation: the gateway takes `x-correlation-id` or makes one; gRPC metadata carries it on; a context variable holds it.
An id that a caller brings is used only if it passes `usable_correlation_id`, in REST as in gRPC.
"""

from __future__ import annotations

import contextvars
import logging
import re
import sys
import uuid
from collections.abc import MutableMapping
from typing import Any, Final

import structlog
from opentelemetry import trace

CORRELATION_METADATA: Final = "x-correlation-id"
_USABLE_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)

correlation_id: contextvars.ContextVar[str] = contextvars.ContextVar("correlation_id", default="")


def new_correlation_id() -> str:
    """A fresh id for a request that brought none."""
    return uuid.uuid4().hex


def usable_correlation_id(given: object) -> str:
    """The id that the caller brought if it is 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-', else a fresh one."""
    return given if isinstance(given, str) and _USABLE_ID.fullmatch(given) else new_correlation_id()


def _add_context(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if current := correlation_id.get():
        event["correlation_id"] = current
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        event["trace_id"] = trace.format_trace_id(span.trace_id)
        event["span_id"] = trace.format_span_id(span.span_id)
    return event


def configure_logging(service: str, node: str, level: str) -> None:
    """Sets up structlog and routes the standard library's loggers through it. Call once, first thing in main."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_context,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]

    def add_origin(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["service"] = service
        event["node"] = node
        return event

    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            add_origin,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # picows reports whatever a stranger sends as an error, uvicorn as a warning: refusals are counted and logged by the
    # listener that makes them.
    logging.getLogger("picows").setLevel("CRITICAL")
    logging.getLogger("uvicorn.error").setLevel("ERROR")
    # A stream whose caller left ends in another context than it began in; OpenTelemetry logs a traceback for each.
    logging.getLogger("opentelemetry.context").setLevel("CRITICAL")
    for chatty in ("websockets", "uvicorn.access", "asyncio", "grpc", "sqlalchemy"):
        logging.getLogger(chatty).setLevel("WARNING")
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """A structured logger: `log.info("lane_up", peer=3, rtt_us=120)`; events are snake_case facts."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(name)
    return logger
