"""One site: a node's four services with its own Postgres and Valkey, each a process.

The services call each other over unix sockets in a directory of this user alone; what is for others (peers, applications,
gateway, admin pages) is on loopback ports. Leaves out joining: `meshtest.sites` and the demo do that through the gateway, as a user would.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc.aio

from meshapi.supervisor.v1 import mesh_pb2, mesh_pb2_grpc
from meshcommon.grpc_client import open_channel
from meshtest.processes import Child, start
from meshtest.sockets import socket_directory
from meshtest.stores import EmbeddedPostgres, EmbeddedValkey

MODULES: Final = {
    "data": "mesh_data",
    "control": "mesh_control",
    "routing": "mesh_routing",
    "gateway": "mesh_gateway",
}
"""Service sections and the packages that serve them, in the order in which they are started."""
_PORTS: Final = (
    "control_admin",
    "routing_admin",
    "data_admin",
    "data_client",
    "peer",
    "gateway_http",
    "gateway_grpc",
    "gateway_admin",
    "valkey",
)
PORTS_PER_SITE: Final = len(_PORTS)
_ANSWER_TIMEOUT_S: Final = 40.0


class SiteFailedError(Exception):
    """A service of the site ended or did not answer; the message carries the end of its log."""


@dataclass(frozen=True, slots=True)
class SiteConfig:
    """Where a site lives. `dial` maps node names to the addresses at which this site dials them.

    `host` is the loopback address that it listens on, in brackets if it is of IPv6.
    """

    name: str
    directory: Path
    ports: Mapping[str, int]
    is_listening: bool = True
    dial: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"

    @property
    def sockets(self) -> Path:
        """Directory of the services' sockets."""
        return socket_directory(self.directory.resolve() / "run", len("/control.sock"))

    @property
    def peer_address(self) -> str:
        """Address advertised to peers, empty when the site only dials."""
        return f"wss://{self.host}:{self.ports['peer']}" if self.is_listening else ""

    @property
    def gateway(self) -> str:
        """Address of the gateway for gRPC."""
        return f"{self.host}:{self.ports['gateway_grpc']}"

    def target(self, service: str) -> str:
        """Address of a service for gRPC: `gateway`, or one that only the services of the site call."""
        return self.gateway if service == "gateway" else f"unix:{self.sockets}/{service}.sock"

    @property
    def client(self) -> str:
        """Address of the data plane for `meshclient`."""
        return f"ws://{self.host}:{self.ports['data_client']}"

    @property
    def rest(self) -> str:
        """Base URL of the gateway's REST API."""
        return f"http://{self.host}:{self.ports['gateway_http']}"

    def environment(self, postgres_url: str, redis_url: str) -> dict[str, str]:
        """Settings of all four services as environment variables."""

        def at(port: str) -> str:
            return f"{self.host}:{self.ports[port]}"

        control, routing, data = map(self.target, ("control", "routing", "data"))
        values = {
            "MESH_NODE_NAME": self.name,
            "MESH_NODE_DATA_DIR": str(self.directory / "state"),
            "MESH_NODE_PRESET": "lan",
            "MESH_NODE_POSTGRES_URL": postgres_url,
            "MESH_NODE_REDIS_URL": redis_url,
            "MESH_CONTROL_GRPC_LISTEN": control,
            "MESH_CONTROL_ADMIN_LISTEN": at("control_admin"),
            "MESH_CONTROL_DATA_TARGET": data,
            "MESH_CONTROL_ROUTING_TARGET": routing,
            "MESH_CONTROL_PEER_ADDRESS": self.peer_address,
            "MESH_ROUTING_GRPC_LISTEN": routing,
            "MESH_ROUTING_ADMIN_LISTEN": at("routing_admin"),
            "MESH_ROUTING_DATA_TARGET": data,
            "MESH_DATA_GRPC_LISTEN": data,
            "MESH_DATA_ADMIN_LISTEN": at("data_admin"),
            "MESH_DATA_CLIENT_LISTEN": at("data_client"),
            "MESH_DATA_PEER_LISTEN": at("peer") if self.is_listening else "",
            "MESH_DATA_DIAL": ",".join(f"{node}={address}" for node, address in self.dial.items()),
            "MESH_GATEWAY_HTTP_LISTEN": at("gateway_http"),
            "MESH_GATEWAY_GRPC_LISTEN": at("gateway_grpc"),
            "MESH_GATEWAY_ADMIN_LISTEN": at("gateway_admin"),
            "MESH_GATEWAY_CONTROL_TARGET": control,
            "MESH_GATEWAY_ROUTING_TARGET": routing,
            "MESH_GATEWAY_DATA_TARGET": data,
        }
        return values | dict(self.extra)


def name_ports(ports: list[int]) -> dict[str, int]:
    """Names for PORTS_PER_SITE ports."""
    return dict(zip(_PORTS, ports, strict=True))


class Site:
    """The processes of one site. Methods that start or stop are idempotent."""

    def __init__(self, config: SiteConfig, *, is_detached: bool = False) -> None:
        self.config = config
        self._is_detached = is_detached
        logs = config.directory / "log"
        self.postgres = EmbeddedPostgres(config.directory / "postgres", logs / "postgres.log", is_detached=is_detached)
        self.valkey = EmbeddedValkey(
            config.ports["valkey"], config.directory / "valkey", logs / "valkey.log", is_detached=is_detached
        )
        self.services: dict[str, Child] = {}

    async def start(self) -> None:
        """Starts stores and services and returns when the gateway answers for the control plane.

        Raises:
            SiteFailedError: A service ended or did not answer.
        """
        await asyncio.to_thread(self.postgres.prepare)
        self.postgres.launch()
        self.valkey.launch()
        await asyncio.gather(self.postgres.wait(), self.valkey.wait())
        for service in MODULES:
            self.start_service(service)
        await self.wait_until_answering()

    def start_service(self, service: str) -> Child:
        """Starts one service (again)."""
        # Tests of the services count their lines, and start faster here without.
        inherited = os.environ.items()
        environment = {key: value for key, value in inherited if not key.startswith(("MESH_", "COVERAGE"))}
        environment |= self.config.environment(self.postgres.url, self.valkey.url)
        self.services[service] = start(
            [sys.executable, "-m", MODULES[service]],
            log=self.config.directory / "log" / f"{service}.log",
            environment=environment,
            is_detached=self._is_detached,
        )
        return self.services[service]

    async def wait_until_answering(self) -> None:
        """Returns when GetStatus works through the gateway. Raises SiteFailedError."""
        async with open_channel(self.config.gateway) as channel:
            stub = mesh_pb2_grpc.MeshServiceStub(channel)
            try:
                async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                    while not await self._answers(stub):
                        self.check_running()
                        await asyncio.sleep(0.05)
            except TimeoutError:
                raise SiteFailedError(
                    f"site {self.config.name} does not answer:\n{self.services['gateway'].log_tail()}"
                ) from None

    async def _answers(self, stub: mesh_pb2_grpc.MeshServiceAsyncStub) -> bool:
        try:
            await stub.GetStatus(mesh_pb2.GetStatusRequest(), timeout=2)
        except grpc.aio.AioRpcError:
            return False
        return True

    def check_running(self) -> None:
        """Raises SiteFailedError if a service has ended."""
        for service, child in self.services.items():
            if child.exit_status is not None:
                raise SiteFailedError(
                    f"{service} of site {self.config.name} ended with status {child.exit_status}:\n{child.log_tail()}"
                )

    def kill_service(self, service: str) -> None:
        """SIGKILL to one service."""
        self.services.pop(service).kill()

    def stop_service(self, service: str) -> int:
        """SIGTERM to one service; returns its exit status."""
        return self.services.pop(service).stop()

    async def stop(self) -> None:
        """Ends everything: services first, then the stores."""
        children = [*self.services.values()]
        self.services.clear()
        await asyncio.gather(*(asyncio.to_thread(child.stop) for child in children))
        await asyncio.gather(asyncio.to_thread(self.postgres.stop), asyncio.to_thread(self.valkey.stop))
        # One outside the site's own directory would be left behind with it.
        if self.config.directory.resolve() not in self.config.sockets.parents:
            shutil.rmtree(self.config.sockets, ignore_errors=True)

    def children(self) -> dict[str, Child]:
        """Every process by name."""
        stores = {"postgres": self.postgres.child, "valkey": self.valkey.child}
        return self.services | {name: child for name, child in stores.items() if child is not None}
