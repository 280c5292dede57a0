"""Settings of routing. Section `[routing]`, variables `MESH_ROUTING_*`; none reloads live."""

from __future__ import annotations

from pydantic import Field

from meshcommon.settings import Listen, Section


class RoutingSettings(Section):
    """What only routing reads."""

    grpc_listen: Listen = Field(
        default="127.0.0.1:7201", description="Where RoutingService and TopologyService are served, `host:port`."
    )
    admin_listen: Listen = Field(
        default="127.0.0.1:7202", description="Where /healthz, /readyz and /metrics are served, `host:port`."
    )
    data_target: str = Field(
        default="127.0.0.1:7301", min_length=1, description="gRPC address of this node's data plane, `host:port`."
    )
