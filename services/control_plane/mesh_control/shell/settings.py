"""Settings of the control plane: section `[control]`, variables `MESH_CONTROL_*`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydantic import Field

from meshcommon.service_certificates import LIFE, NAMES_MAX
from meshcommon.settings import CertificateName, Endpoint, PeerAddress, Section

# The tree keeps the history of the node's one database beside the services; an installed package is told where it is.
_MIGRATIONS_OF_THE_TREE: Final = Path(__file__).resolve().parents[4] / "migrations"

OWN_NAMES: Final = ("localhost", "127.0.0.1", "::1")
"""Names that the certificates of gateway and data plane always have."""


class ControlSettings(Section):
    """What only the control plane needs."""

    grpc_listen: Endpoint = Field(
        default="127.0.0.1:7101", description="Where gateway and supervisors call, `host:port` or `unix:/path`."
    )
    admin_listen: Endpoint = Field(
        default="127.0.0.1:7102", description="Health, readiness and metrics, `host:port` or `unix:/path`."
    )
    data_target: Endpoint = Field(
        default="127.0.0.1:7301", description="gRPC address of this site's data plane, `host:port` or `unix:/path`."
    )
    routing_target: Endpoint = Field(
        default="127.0.0.1:7201", description="gRPC address of this site's routing, `host:port` or `unix:/path`."
    )
    peer_address: PeerAddress = Field(
        default="", description="Address at which peers can dial this node, `wss://host:port`; empty: it only dials."
    )
    site_issuer: bool = Field(
        default=True,
        description="Whether the control plane issues and renews the certificates in MESH_NODE_TLS_DIR. `false`: you put "
        "them there, for example by cert-manager.",
    )
    certificate_names: list[CertificateName] = Field(
        default_factory=list,
        max_length=NAMES_MAX - len(OWN_NAMES),
        description="DNS names and IP addresses under which users reach the gateway and the client port, besides the "
        "loopback: the certificates that the control plane issues are for these.",
    )
    certificate_life_s: int = Field(
        default=int(LIFE.total_seconds()),
        ge=20,
        le=7 * 86_400,
        description="How long a certificate of a service is valid, seconds; renewed at half of it. Cost of a short one: a "
        "control plane that is away for half of it leaves services that cannot connect anew.",
    )
    migrations_dir: Path = Field(
        default=_MIGRATIONS_OF_THE_TREE, description="Folder with the alembic history of the node's database."
    )
