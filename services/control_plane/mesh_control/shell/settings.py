"""Settings of the control plane: section `[control]`, variables `MESH_CONTROL_*`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydantic import Field

from meshcommon.settings import Endpoint, PeerAddress, Section

# The tree keeps the history of the node's one database beside the services; an installed package is told where it is.
_MIGRATIONS_OF_THE_TREE: Final = Path(__file__).resolve().parents[4] / "migrations"


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
    migrations_dir: Path = Field(
        default=_MIGRATIONS_OF_THE_TREE, description="Folder with the alembic history of the node's database."
    )
