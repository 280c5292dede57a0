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
    client_listen: Listen | Literal[""] = Field(
        default="",
        description="WebSocket listener for this site's applications (`meshclient`); empty: none. "
        "They are not authenticated yet: a loopback address.",
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
        description="Addresses by node name that replace the advertised ones for this node, `a=ws://h:p,b=ws://h:p`.",
    )
