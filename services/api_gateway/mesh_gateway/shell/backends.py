"""The channels to the other three services of this node, and whether they answer.

A backend that is away fails a call at once instead of holding it: the caller learns that a retry helps, and the gateway
holds nothing for it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from meshapi.supervisor.v1.ca_pb2_grpc import CaServiceStub
from meshapi.supervisor.v1.data_pb2_grpc import MeshDataServiceStub
from meshapi.supervisor.v1.mesh_pb2_grpc import MeshServiceStub
from meshapi.supervisor.v1.topology_pb2_grpc import TopologyServiceStub
from meshcommon.admin import Readiness
from meshcommon.grpc_client import open_service
from meshcommon.logging import get_logger
from meshcommon.service_certificates import Service
from meshcommon.site_files import SiteFiles

if TYPE_CHECKING:
    from meshapi.supervisor.v1.ca_pb2_grpc import CaServiceAsyncStub
    from meshapi.supervisor.v1.data_pb2_grpc import MeshDataServiceAsyncStub
    from meshapi.supervisor.v1.mesh_pb2_grpc import MeshServiceAsyncStub
    from meshapi.supervisor.v1.topology_pb2_grpc import TopologyServiceAsyncStub

HEALTH_INTERVAL_S: Final = 1.0
HEALTH_TIMEOUT_S: Final = 1.0

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Backend:
    """One service of this node. `name` is how texts call it, for example `control plane`."""

    name: str
    target: str
    channel: grpc.aio.Channel


class Backends:
    """Control plane, routing and data plane. `close` when no call is running any more."""

    def __init__(
        self,
        control_target: str,
        routing_target: str,
        data_target: str,
        files: SiteFiles | None = None,
        *,
        is_insecure_dev: bool = False,
    ) -> None:
        """Targets are `host:port` or `unix:/path`; for `files` and `is_insecure_dev` see `open_service`."""

        def backend(name: str, target: str, service: Service) -> Backend:
            return Backend(name, target, open_service(target, service, files, is_insecure_dev=is_insecure_dev))

        self.control = backend("control plane", control_target, Service.CONTROL)
        self.routing = backend("routing", routing_target, Service.ROUTING)
        self.data = backend("data plane", data_target, Service.DATA)
        self.mesh_service: MeshServiceAsyncStub = MeshServiceStub(self.control.channel)
        self.ca_service: CaServiceAsyncStub = CaServiceStub(self.control.channel)
        self.topology_service: TopologyServiceAsyncStub = TopologyServiceStub(self.routing.channel)
        self.data_service: MeshDataServiceAsyncStub = MeshDataServiceStub(self.data.channel)

    def all(self) -> tuple[Backend, Backend, Backend]:
        """The three."""
        return self.control, self.routing, self.data

    async def close(self) -> None:
        """Closes the channels, ending what still runs on them."""
        for backend in self.all():
            await backend.channel.close()


async def watch_health(backends: Backends, readiness: Readiness) -> None:
    """Keeps `readiness` true to whether the backends answer `grpc.health.v1`, until cancelled.

    It asks every second instead of subscribing, because a paused process keeps a subscription alive but answers nothing.
    """
    async with asyncio.TaskGroup() as tasks:
        for backend in backends.all():
            readiness.block(backend.name, f"The {backend.name} at {backend.target} has not answered yet.")
            tasks.create_task(_watch_one(backend, readiness), name=f"health of {backend.name}")


async def _watch_one(backend: Backend, readiness: Readiness) -> None:
    # The package ships no types for its stub.
    stub: Any = health_pb2_grpc.HealthStub(backend.channel)
    was_serving: bool | None = None
    while True:
        is_serving, reason = await _ask(stub, backend)
        if is_serving:
            readiness.clear(backend.name)
        else:
            readiness.block(backend.name, reason)
        if is_serving != was_serving:
            _log.info("backend_health", backend=backend.name, target=backend.target, is_serving=is_serving)
            was_serving = is_serving
        await asyncio.sleep(HEALTH_INTERVAL_S)


async def _ask(stub: Any, backend: Backend) -> tuple[bool, str]:
    where = f"The {backend.name} at {backend.target}"
    try:
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=HEALTH_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        return False, f"{where} does not answer ({error.code().name}): start it, or see its log."
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        return False, f"{where} answers that it is not serving: its /readyz has the reasons."
    return True, ""
