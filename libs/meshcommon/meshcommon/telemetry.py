"""Traces by OpenTelemetry; exported only when an OTLP endpoint is set. Metrics are Prometheus's own (see admin)."""

from __future__ import annotations

from typing import Final

from opentelemetry import trace
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient, GrpcAioInstrumentorServer
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

# How long one batch may take, retries included. It also bounds how long a collector that is away can delay the exit.
_EXPORT_TIMEOUT_S: Final = 1


def configure_telemetry(service: str, node: str, otlp_endpoint: str) -> None:
    """Sets the tracer provider and instruments gRPC both ways. Call once, before any channel or server is made.

    Args:
        service: Service name, for example `mesh-data`.
        node: Node name.
        otlp_endpoint: `http://host:4317`; with an empty one spans only give ids to the logs.
    """
    provider = TracerProvider(resource=Resource.create({"service.name": service, "service.instance.id": node}))
    if otlp_endpoint:
        # Imported where it is needed: it is a tenth of what a service imports, and most nodes export nothing.
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

        is_clear = otlp_endpoint.startswith("http://")
        exporter = OTLPSpanExporter(endpoint=otlp_endpoint, insecure=is_clear, timeout=_EXPORT_TIMEOUT_S)
        provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    GrpcAioInstrumentorServer().instrument()  # type: ignore[no-untyped-call]
    GrpcAioInstrumentorClient().instrument()  # type: ignore[no-untyped-call]
