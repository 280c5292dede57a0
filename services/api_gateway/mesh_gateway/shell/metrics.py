"""What the gateway counts, for `/metrics`."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram


class GatewayMetrics:
    """Counters of one gateway. Labels take only values of our own (routes, methods, codes), so their number is bounded."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.requests = Counter(
            "mesh_gateway_http_requests_total",
            "HTTP requests by route, method and status.",
            ["route", "method", "status"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "mesh_gateway_http_request_seconds",
            "Time from the first byte of an HTTP request to the last of its answer, seconds.",
            ["route", "method"],
            registry=registry,
        )
        self.followers = Gauge("mesh_gateway_followers", "WebSockets that follow a stream now.", registry=registry)
        self.calls = Counter(
            "mesh_gateway_grpc_calls_total",
            "gRPC calls passed through, by method and status.",
            ["method", "status"],
            registry=registry,
        )
        self.call_seconds = Histogram(
            "mesh_gateway_grpc_call_seconds", "Duration of a passed gRPC call, seconds.", ["method"], registry=registry
        )
