"""Wiring of the gateway process: settings, channels to the backends, listeners, graceful stop."""

from __future__ import annotations

import asyncio
from typing import Final

from mesh_gateway.settings import GatewaySettings
from mesh_gateway.shell.app import build_app
from mesh_gateway.shell.backends import Backends, watch_health
from mesh_gateway.shell.metrics import GatewayMetrics
from mesh_gateway.shell.proxy import pass_through
from mesh_gateway.shell.record_exchanges import opened_budget
from meshcommon.address import is_exposed
from meshcommon.admin import Readiness, serve_admin
from meshcommon.admission import own_names
from meshcommon.grpc_server import PUBLIC_CALLS, GrpcServer
from meshcommon.http_server import HttpLimits, serve_asgi
from meshcommon.lifecycle import Stop, run_service
from meshcommon.logging import configure_logging, get_logger
from meshcommon.operator_token import OperatorToken
from meshcommon.service_certificates import Service
from meshcommon.settings import load_sections
from meshcommon.site_start import await_site_files
from meshcommon.telemetry import configure_telemetry
from meshcommon.tls_files import TlsFiles

SERVICE = "mesh-gateway"
# A request makes at most two calls at a time; with those of the public gRPC API they stay below what a backend takes.
REST_HTTP: Final = HttpLimits(connections_max=384, has_sockets=True)


async def main(stop: Stop) -> None:
    """Serves until `stop` is requested."""
    node, settings, is_insecure_dev = load_sections("gateway", GatewaySettings)
    configure_logging(SERVICE, node.name, node.log_level)
    configure_telemetry(SERVICE, node.name, node.otlp_endpoint)
    log = get_logger(__name__)
    readiness = Readiness()
    token = OperatorToken.of_settings(settings.operator_token_file, node.data_dir, "MESH_GATEWAY_OPERATOR_TOKEN_FILE")
    if is_insecure_dev:
        _warn(readiness, has_token=token is not None)
    given = TlsFiles.of_settings(settings.tls_certificate, settings.tls_key, "MESH_GATEWAY_TLS")
    files = await await_site_files(node, Service.GATEWAY, settings.admin_listen, stop)
    if stop.is_requested:
        return
    tls = files.for_users() if given is None and files is not None else given
    rest_tls = _shown_on(settings.http_listen, given, tls)
    metrics = GatewayMetrics()
    backends = Backends(
        settings.control_target, settings.routing_target, settings.data_target, files, is_insecure_dev=is_insecure_dev
    )
    rest_guard, grpc_guard = (
        token.on(listen) if token is not None else None for listen in (settings.http_listen, settings.grpc_listen)
    )
    grpc_server = GrpcServer(limits=PUBLIC_CALLS)
    opened = opened_budget()
    pass_through(grpc_server.server, backends, metrics, opened)
    hosts = own_names(settings.http_listen) | set(settings.hosts)
    app = build_app(node.name, backends, metrics, settings.request_timeout_s, opened, hosts=hosts, guard=rest_guard)
    try:
        async with asyncio.TaskGroup() as tasks:
            await grpc_server.start(
                settings.grpc_listen,
                "The public gRPC API",
                is_insecure_dev=is_insecure_dev,
                tls=_shown_on(settings.grpc_listen, given, tls),
                admission=grpc_guard.admit_call if grpc_guard is not None else None,
            )
            rest = serve_asgi(
                app,
                settings.http_listen,
                "REST",
                limits=REST_HTTP,
                is_insecure_dev=is_insecure_dev,
                tls=rest_tls.context if rest_tls is not None else None,
                is_authenticated=rest_guard is not None,
            )
            admin = serve_admin(readiness, settings.admin_listen, hosts=node.admin_hosts)
            running = [
                tasks.create_task(rest, name="REST"),
                tasks.create_task(admin, name="admin"),
                tasks.create_task(watch_health(backends, readiness), name="health of the backends"),
            ]
            for name, watched in (("own certificate", files), ("TLS files", tls), ("operator's token", token)):
                if watched is not None:
                    running.append(tasks.create_task(watched.run(readiness), name=name))
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


def _shown_on(listen: str, given: TlsFiles | None, tls: TlsFiles | None) -> TlsFiles | None:
    """What a listener shows: the operator's certificate, or the site's (`tls`) where other machines reach it."""
    return tls if given is not None or is_exposed(listen) else None


def _warn(readiness: Readiness, *, has_token: bool) -> None:
    warning = "MESH_INSECURE_DEV=1: the gateway answers anyone who reaches it, without authentication."
    if has_token:
        warning = "MESH_INSECURE_DEV=1: without TLS other machines send the operator's token to the gateway in clear."
    readiness.warn("insecure", warning)
    get_logger(__name__).warning("insecure", message=warning)


def run() -> None:
    """Entry point of the process."""
    run_service(SERVICE, main)
