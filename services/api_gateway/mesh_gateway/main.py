"""Wiring of the gateway process: settings, channels to the backends, listeners, graceful stop."""

from __future__ import annotations

import asyncio

from mesh_gateway.settings import GatewaySettings
from mesh_gateway.shell.app import build_app
from mesh_gateway.shell.backends import Backends, watch_health
from mesh_gateway.shell.metrics import GatewayMetrics
from mesh_gateway.shell.proxy import pass_through
from meshcommon.address import check_listen
from meshcommon.admin import Readiness, admin_app, serve_asgi
from meshcommon.grpc_server import GrpcServer
from meshcommon.lifecycle import Stop, run_service
from meshcommon.logging import configure_logging, get_logger
from meshcommon.settings import load_sections
from meshcommon.telemetry import configure_telemetry

SERVICE = "mesh-gateway"


async def main(stop: Stop) -> None:
    """Serves until `stop` is requested."""
    node, settings, is_insecure_dev = load_sections("gateway", GatewaySettings)
    configure_logging(SERVICE, node.name, node.log_level)
    configure_telemetry(SERVICE, node.name, node.otlp_endpoint)
    log = get_logger(__name__)
    check_listen(settings.http_listen, "REST", is_insecure_dev=is_insecure_dev)
    check_listen(settings.grpc_listen, "The public gRPC API", is_insecure_dev=is_insecure_dev)
    readiness = Readiness()
    if is_insecure_dev:
        warning = "MESH_INSECURE_DEV=1: the gateway answers anyone who reaches it, without authentication."
        readiness.warn("insecure", warning)
        log.warning("insecure", message=warning)
    metrics = GatewayMetrics()
    backends = Backends(settings.control_target, settings.routing_target, settings.data_target)
    grpc_server = GrpcServer()
    pass_through(grpc_server.server, backends, metrics)
    app = build_app(node.name, backends, metrics, settings.request_timeout_s, is_insecure_dev=is_insecure_dev)
    try:
        async with asyncio.TaskGroup() as tasks:
            await grpc_server.start(settings.grpc_listen, "The public gRPC API")
            running = [
                tasks.create_task(serve_asgi(app, settings.http_listen, "REST"), name="REST"),
                tasks.create_task(serve_asgi(admin_app(readiness), settings.admin_listen, "Admin pages"), name="admin"),
                tasks.create_task(watch_health(backends, readiness), name="health of the backends"),
            ]
            readiness.clear("starting")
            await grpc_server.set_serving(True)
            log.info("started", http=settings.http_listen, grpc=settings.grpc_listen, admin=settings.admin_listen)
            await stop.wait()
            log.info("stopping")
            readiness.block("stopping", "The service is stopping.")
            # Both listeners drain at the same time, so that the whole stop stays within one grace period.
            stopping = tasks.create_task(grpc_server.stop(), name="stop of the gRPC API")
            for task in running:
                task.cancel()
            await stopping
    finally:
        await backends.close()


def run() -> None:
    """Entry point of the process."""
    run_service(SERVICE, main)
