"""Settings of the data plane: section `[data]`, variables `MESH_DATA_*`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from meshcommon.settings import Endpoint, Listen, PeerAddress, Section


class DataSettings(Section):
    """The data plane's own section. None of these reloads live, but what the TLS files hold."""

    grpc_listen: Endpoint = Field(
        default="127.0.0.1:7301", description="gRPC for the services of this site, `host:port` or `unix:/path`."
    )
    admin_listen: Endpoint = Field(
        default="127.0.0.1:7302", description="Health, readiness and metrics, `host:port` or `unix:/path`."
    )
    peer_listen: Listen | Literal[""] = Field(
        default="", description="WebSocket listener for other nodes; empty: this node only dials."
    )
    peer_tls: bool = Field(
        default=True,
        description="Whether lanes run in TLS. `false` is for packet captures on a network that you trust, and needs "
        "MESH_INSECURE_DEV=1.",
    )
    peer_proxied: bool = Field(
        default=False,
        description="Whether the peer listener stands behind a proxy that ends TLS (nginx, a load balancer). Then frames are "
        "sealed with keys of their own for those who dial an address of their MESH_DATA_PROXIED.",
    )
    proxied: list[PeerAddress] = Field(
        default_factory=list,
        description="Addresses behind which a proxy ends TLS, as nodes advertise or MESH_DATA_DIAL names them, "
        "`wss://h:p,wss://h:p`. The node there needs MESH_DATA_PEER_PROXIED; others are refused with TLS_TERMINATED.",
    )
    client_listen: Listen | Literal[""] = Field(
        default="",
        description="WebSocket listener for this site's applications (`meshclient`); empty: none. "
        "Other than a loopback address: with TLS (MESH_NODE_TLS_DIR) and the operator's token only, unless MESH_INSECURE_DEV=1.",
    )
    client_tls_certificate: str = Field(
        default="",
        description="PEM file of the certificate chain, own certificate first, with which applications are served over TLS "
        "(`wss`); with MESH_DATA_CLIENT_TLS_KEY, or neither. Read again when it changes. Empty: the site's certificate beyond the loopback, in clear on it.",
    )
    client_tls_key: str = Field(
        default="", description="PEM file of the key of MESH_DATA_CLIENT_TLS_CERTIFICATE, without a passphrase."
    )
    operator_token_file: str = Field(
        default="",
        description="File of the operator's token, or of its hash: applications show it where other machines reach the "
        "client listener. Read again when it changes. Empty: `operator-token` in MESH_NODE_DATA_DIR, if it is there.",
    )
    disk_pressure_percent: int = Field(
        default=80,
        ge=50,
        le=99,
        description="Streams take no records while so much of the file system of their log is in use at a member, percent.",
    )
    disk_plenty_bytes: int = Field(
        default=2 << 30,
        ge=0,
        le=1 << 50,
        description="With so much free the file system is not short of room, whatever the percentage, bytes.",
    )
    dial: dict[str, PeerAddress] = Field(
        default_factory=dict,
        description="Addresses by node name that replace the advertised ones for this node, `a=wss://h:p,b=wss://h:p`.",
    )
