"""Settings of the gateway. Section `[gateway]`, variables `MESH_GATEWAY_*`; none reloads live, but what the TLS files hold."""

from __future__ import annotations

from pydantic import Field

from meshcommon.settings import Endpoint, HostName, Section


class GatewaySettings(Section):
    """What only the gateway reads."""

    http_listen: Endpoint = Field(
        default="127.0.0.1:7001",
        description="Where REST, WebSocket and the API page are served, `host:port` or `unix:/path`. "
        "Other than a loopback address: with TLS (MESH_NODE_TLS_DIR) and the operator's token only, unless MESH_INSECURE_DEV=1.",
    )
    grpc_listen: Endpoint = Field(
        default="127.0.0.1:7002",
        description="Where the public gRPC services are served, `host:port` or `unix:/path`. "
        "Other than a loopback address: with TLS (MESH_NODE_TLS_DIR) and the operator's token only, unless MESH_INSECURE_DEV=1.",
    )
    tls_certificate: str = Field(
        default="",
        description="PEM file of the certificate chain, own certificate first, with which REST and gRPC are served over TLS; "
        "with MESH_GATEWAY_TLS_KEY, or neither. Read again when it changes. Empty: the site's certificate beyond the loopback, in clear on it.",
    )
    tls_key: str = Field(
        default="", description="PEM file of the key of MESH_GATEWAY_TLS_CERTIFICATE, without a passphrase."
    )
    operator_token_file: str = Field(
        default="",
        description="File of the operator's token, or of its hash: callers of listeners that other machines reach have to "
        "show it. Read again when it changes. Empty: `operator-token` in MESH_NODE_DATA_DIR, if it is there.",
    )
    hosts: list[HostName] = Field(
        default_factory=list,
        description="Names (without ports) under which REST is reached, besides loopback names and what it listens on; "
        "requests for any other name are refused, because a web page could have made its name point here.",
    )
    admin_listen: Endpoint = Field(
        default="127.0.0.1:7003",
        description="Where /healthz, /readyz and /metrics are served, `host:port` or `unix:/path`.",
    )
    control_target: Endpoint = Field(
        default="127.0.0.1:7101", description="gRPC address of this node's control plane, `host:port` or `unix:/path`."
    )
    routing_target: Endpoint = Field(
        default="127.0.0.1:7201", description="gRPC address of this node's routing, `host:port` or `unix:/path`."
    )
    data_target: Endpoint = Field(
        default="127.0.0.1:7301", description="gRPC address of this node's data plane, `host:port` or `unix:/path`."
    )
    request_timeout_s: float = Field(
        default=30.0,
        gt=0,
        le=300,
        description="How long a REST request may wait for another service, seconds. gRPC callers bring their own deadline.",
    )
