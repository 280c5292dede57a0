"""Settings of the data plane: section `[data]`, variables `MESH_DATA_*`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from meshcommon.settings import Listen, PeerAddress, Section


class DataSettings(Section):
    """The data plane's own section. None of these reloads live."""

    grpc_listen: Listen = Field(default="127.0.0.1:7301", description="gRPC for the services of this site.")
    admin_listen: Listen = Field(default="127.0.0.1:7302", description="Health, readiness and metrics.")
    peer_listen: Listen | Literal[""] = Field(
        default="", description="WebSocket listener for other nodes; empty: this node only dials."
    )
    dial: dict[str, PeerAddress] = Field(
        default_factory=dict,
        description="Addresses by node name that replace the advertised ones for this node, `a=ws://h:p,b=ws://h:p`.",
    )
