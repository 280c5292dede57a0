"""Wiring of the routing process: settings, data directory, core, connection to the data plane, services, graceful stop."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Final

from mesh_routing.core.config import preset
from mesh_routing.core.router import Router
from mesh_routing.settings import RoutingSettings
from mesh_routing.shell.driver import RoutingDriver
from mesh_routing.shell.metrics import RoutingMetrics
from mesh_routing.shell.mirror import PostgresMirror, RedisMirror
from mesh_routing.shell.overlay_client import OverlayClient
from mesh_routing.shell.routes_pusher import RoutesPusher
from mesh_routing.shell.routing_service import RoutingService
from mesh_routing.shell.topology_service import TopologyService
from mesh_routing.shell.view_store import ViewStore
from meshapi.routing.v1 import routing_pb2_grpc
from meshapi.supervisor.v1 import topology_pb2_grpc
from meshcommon.admin import Readiness, serve_admin
from meshcommon.datadir import DataDir
from meshcommon.delegated_keys import DelegatedKeys
from meshcommon.delegation import Delegations
from meshcommon.grpc_client import open_service
from meshcommon.grpc_server import GrpcServer
from meshcommon.lifecycle import Stop, run_service
from meshcommon.logging import configure_logging, get_logger
from meshcommon.postgres import create_engine
from meshcommon.redis_store import open_redis
from meshcommon.service_certificates import Service
from meshcommon.settings import NodeSettings, load_sections
from meshcommon.site_callers import SiteCallers
from meshcommon.site_files import SiteFiles
from meshcommon.site_start import await_site_files
from meshcommon.telemetry import configure_telemetry

SERVICE = "mesh-routing"
CALLERS: Final = {
    "meshapi.routing.v1.RoutingService": frozenset({Service.CONTROL}),
    "meshapi.supervisor.v1.TopologyService": frozenset({Service.GATEWAY}),
}


async def main(stop: Stop) -> None:
    """Serves until `stop` is requested."""
    node, settings, is_insecure_dev = load_sections("routing", RoutingSettings)
    configure_logging(SERVICE, node.name, node.log_level)
    configure_telemetry(SERVICE, node.name, node.otlp_endpoint)
    data_dir = DataDir.open(node.data_dir / "routing", "routing", node.name)
    try:
        files = await await_site_files(node, Service.ROUTING, settings.admin_listen, stop)
        if not stop.is_requested:
            await _serve(stop, node, settings, data_dir, files, is_insecure_dev=is_insecure_dev)
    finally:
        data_dir.close()


async def _serve(
    stop: Stop,
    node: NodeSettings,
    settings: RoutingSettings,
    data_dir: DataDir,
    files: SiteFiles | None,
    *,
    is_insecure_dev: bool,
) -> None:
    log = get_logger(__name__)
    readiness = Readiness()
    metrics = RoutingMetrics()
    router = Router(preset(node.preset), data_dir.marker.boot, random.Random(), Delegations(time.time))
    driver = RoutingDriver(router, metrics)
    engine = create_engine(node.postgres_url) if node.postgres_url else None
    redis = open_redis(node.redis_url, socket_timeout=2, socket_connect_timeout=2) if node.redis_url else None
    channel = open_service(settings.data_target, Service.DATA, files, is_insecure_dev=is_insecure_dev)
    pusher = RoutesPusher(channel, driver, readiness, metrics)
    overlay = OverlayClient(channel, driver, readiness, metrics, pusher.resynchronise)
    keys = DelegatedKeys.load(data_dir.path)
    service = RoutingService(driver, ViewStore(data_dir, keys), readiness, keys)
    server = GrpcServer()
    routing_pb2_grpc.add_RoutingServiceServicer_to_server(service, server.server)
    topology_pb2_grpc.add_TopologyServiceServicer_to_server(TopologyService(driver), server.server)
    readiness.block("overlay", "Not connected to the data plane of this site yet.")
    service.restore()
    try:
        async with asyncio.TaskGroup() as tasks:
            callers = SiteCallers.of(files, CALLERS)
            await server.start(settings.grpc_listen, "Routing", is_insecure_dev=is_insecure_dev, callers=callers)
            admin = serve_admin(readiness, settings.admin_listen, hosts=node.admin_hosts)
            running = [
                tasks.create_task(admin, name="admin"),
                tasks.create_task(driver.run(), name="routing timer"),
                tasks.create_task(overlay.run(), name="overlay connection"),
                tasks.create_task(pusher.run(), name="route pushes"),
            ]
            if files is not None:
                running.append(tasks.create_task(files.run(readiness), name="own certificate"))
            if engine is not None:
                mirror = PostgresMirror(engine, driver, readiness, metrics)
                running.append(tasks.create_task(mirror.run(), name="mirror into Postgres"))
            if redis is not None:
                cache = RedisMirror(redis, driver, readiness, metrics)
                running.append(tasks.create_task(cache.run(), name="mirror into Redis"))
            readiness.clear("starting")
            await server.set_serving(True)
            log.info("started", grpc=settings.grpc_listen, admin=settings.admin_listen, boot=data_dir.marker.boot)
            await stop.wait()
            log.info("stopping")
            readiness.block("stopping", "The service is stopping.")
            await server.stop()
            for task in running:
                task.cancel()
    finally:
        await channel.close()
        if engine is not None:
            await engine.dispose()
        if redis is not None:
            await redis.aclose()


def run() -> None:
    """Entry point of the process."""
    run_service(SERVICE, main)
