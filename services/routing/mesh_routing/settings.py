"""Settings of routing. Section `[routing]`, variables `MESH_ROUTING_*`; none reloads live."""

from __future__ import annotations

from pydantic import Field

from meshcommon.settings import Endpoint, Section


class RoutingSettings(Section):
    """What only routing reads."""

    grpc_listen: Endpoint = Field(
        default="127.0.0.1:7201",
        description="Where RoutingService and TopologyService are served, `host:port` or `unix:/path`.",
    )
    admin_listen: Endpoint = Field(
        default="127.0.0.1:7202",
        description="Where /healthz, /readyz and /metrics are served, `host:port` or `unix:/path`.",
    )
    data_target: Endpoint = Field(
        default="127.0.0.1:7301", description="gRPC address of this node's data plane, `host:port` or `unix:/path`."
    )
