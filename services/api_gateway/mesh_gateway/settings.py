"""Settings of the gateway. Section `[gateway]`, variables `MESH_GATEWAY_*`; none reloads live."""

from __future__ import annotations

from pydantic import Field

from meshcommon.settings import Listen, Section


class GatewaySettings(Section):
    """What only the gateway reads."""

    http_listen: Listen = Field(
        default="127.0.0.1:7001",
        description="Where REST, WebSocket and the API page are served, `host:port`. Loopback unless MESH_INSECURE_DEV=1.",
    )
    grpc_listen: Listen = Field(
        default="127.0.0.1:7002",
        description="Where the public gRPC services are served, `host:port`. Loopback unless MESH_INSECURE_DEV=1.",
    )
    admin_listen: Listen = Field(
        default="127.0.0.1:7003", description="Where /healthz, /readyz and /metrics are served, `host:port`."
    )
    control_target: str = Field(
        default="127.0.0.1:7101", min_length=1, description="gRPC address of this node's control plane, `host:port`."
    )
    routing_target: str = Field(
        default="127.0.0.1:7201", min_length=1, description="gRPC address of this node's routing, `host:port`."
    )
    data_target: str = Field(
        default="127.0.0.1:7301", min_length=1, description="gRPC address of this node's data plane, `host:port`."
    )
    request_timeout_s: float = Field(
        default=30.0,
        gt=0,
        le=300,
        description="How long a REST request may wait for another service, seconds. gRPC callers bring their own deadline.",
    )
