"""The wiring of the data plane: settings, directory, overlay, stream groups, services, graceful stop."""

from __future__ import annotations

import asyncio
import gc
import secrets
import time
from pathlib import Path
from typing import Final

from prometheus_client import REGISTRY

from mesh_data.core.disk_room import RoomLimits
from mesh_data.core.stream_timing import StreamTiming
from mesh_data.core.timing import PRESETS
from mesh_data.core.view import View
from mesh_data.shell.clients.client_listener import ClientListener
from mesh_data.shell.data_service import Configurator, DataPlaneServicer
from mesh_data.shell.groups.groups import Groups
from mesh_data.shell.overlay.forwarding_api import ForwardingApi
from mesh_data.shell.overlay.lane_handshakes import Proxies
from mesh_data.shell.overlay.listener import PeerListener
from mesh_data.shell.overlay.metrics import OverlayCollector
from mesh_data.shell.overlay.overlay import Overlay
from mesh_data.shell.overlay.overlay_service import OverlayServicer
from mesh_data.shell.settings import DataSettings
from mesh_data.shell.state_store import StateStore
from mesh_data.shell.streams.data_api import StreamsApi
from mesh_data.shell.streams.raft_api import RaftApi
from mesh_data.shell.streams.raft_serving import RaftServing
from mesh_data.shell.streams.stream_budgets import StreamBudgets
from mesh_data.shell.streams.streams_catalogue import StreamsCatalogue
from mesh_data.shell.streams.streams_serving import StreamsServing
from meshapi.data.v1 import data_pb2_grpc
from meshapi.overlay.v1 import overlay_pb2_grpc
from meshapi.supervisor.v1 import data_pb2_grpc as supervisor_pb2_grpc
from meshcommon.address import check_listen, is_exposed
from meshcommon.admin import Readiness, serve_admin
from meshcommon.boot_certificate import BootCertificate
from meshcommon.datadir import DATA_FORMAT_VERSION, DataDir
from meshcommon.delegated_keys import DelegatedKeys
from meshcommon.grpc_server import GrpcServer
from meshcommon.lifecycle import Stop
from meshcommon.logging import configure_logging, get_logger
from meshcommon.operator_token import OperatorToken
from meshcommon.peer_text import printable
from meshcommon.service_certificates import Service
from meshcommon.settings import NodeSettings, load_sections, require_insecure_dev
from meshcommon.site_callers import SiteCallers
from meshcommon.site_files import SiteFiles
from meshcommon.site_start import await_site_files
from meshcommon.telemetry import configure_telemetry
from meshcommon.tls_files import TlsFiles

SERVICE: Final = "mesh-data"
CALLERS: Final = {
    "meshapi.overlay.v1.OverlayService": frozenset({Service.CONTROL}),
    "meshapi.overlay.v1.OverlayService/Attach": frozenset({Service.CONTROL, Service.ROUTING}),
    "meshapi.data.v1.DataPlaneService": frozenset({Service.CONTROL}),
    "meshapi.data.v1.DataPlaneService/PushRoutes": frozenset({Service.ROUTING}),
    "meshapi.supervisor.v1.MeshDataService": frozenset({Service.GATEWAY}),
}
TRANSFER_S: Final = 0.5
_NAMES_MAX: Final = 5
_YOUNG_OBJECTS_MAX: Final = 20_000
"""New objects after which Python looks for cycles among them. Cost: as many that are garbage may linger, some MB."""


class MeshDataServicer(StreamsApi, RaftApi, ForwardingApi, supervisor_pb2_grpc.MeshDataServiceServicer):
    """MeshDataService: streams, their groups, and forwarding together."""

    def __init__(self, catalogue: StreamsCatalogue, budgets: StreamBudgets, overlay: Overlay) -> None:
        StreamsApi.__init__(self, catalogue, budgets)
        RaftApi.__init__(self, catalogue)
        ForwardingApi.__init__(self, overlay)


async def main(stop: Stop) -> None:
    """Runs the data plane until `stop`."""
    node, settings, is_insecure_dev = load_sections("data", DataSettings)
    configure_logging(SERVICE, node.name, node.log_level)
    configure_telemetry(SERVICE, node.name, node.otlp_endpoint)
    if not settings.peer_tls:
        require_insecure_dev(is_insecure_dev, "Traffic between nodes without TLS (MESH_DATA_PEER_TLS=false)")
    guard = _client_guard(node, settings, is_insecure_dev=is_insecure_dev)
    data_dir = open_data_dir(node.data_dir / "data", node.name)
    try:
        files = await await_site_files(node, Service.DATA, settings.admin_listen, stop)
        if not stop.is_requested:
            await _serve(stop, node, settings, data_dir, files, guard, is_insecure_dev=is_insecure_dev)
    finally:
        data_dir.close()


def open_data_dir(path: Path, node_name: str) -> DataDir:
    """The data plane's directory. A log of batches of format 1 is refused (ADR 0014).

    Raises:
        MeshError: as `DataDir.open`.
    """
    return DataDir.open(path, "data", node_name, format_version=DATA_FORMAT_VERSION, changed=("raft/*/*.raftlog",))


async def _serve(
    stop: Stop,
    node: NodeSettings,
    settings: DataSettings,
    data_dir: DataDir,
    files: SiteFiles | None,
    guard: OperatorToken | None,
    *,
    is_insecure_dev: bool,
) -> None:
    log = get_logger(__name__)
    tls = _client_tls(settings, files)
    readiness = Readiness()
    overlay = _open_overlay(node, settings, readiness)
    store, keys = StateStore(data_dir.path, readiness), DelegatedKeys.load(data_dir.path)
    configurator = Configurator(overlay, store, keys)
    groups = _open_groups(node, settings, data_dir, overlay, readiness)
    catalogue = StreamsCatalogue(overlay, groups)
    budgets = StreamBudgets()
    StreamsServing(catalogue, budgets.read_room)
    RaftServing(catalogue)
    clients = ClientListener(settings.client_listen, catalogue, budgets, tls, guard) if settings.client_listen else None
    server, public = GrpcServer(), MeshDataServicer(catalogue, budgets, overlay)
    attachments, configuration = OverlayServicer(overlay, keys), DataPlaneServicer(configurator, groups, keys)
    overlay_pb2_grpc.add_OverlayServiceServicer_to_server(attachments, server.server)
    data_pb2_grpc.add_DataPlaneServiceServicer_to_server(configuration, server.server)
    supervisor_pb2_grpc.add_MeshDataServiceServicer_to_server(public, server.server)
    # Identity, view and routes of the last run: lanes and groups come up without the control plane.
    configurator.restore()
    jobs = {
        "overlay": overlay.run(),
        "stream groups": groups.run(),
        "state store": store.run(),
        "admin page": serve_admin(readiness, settings.admin_listen, hosts=node.admin_hosts),
    }
    for name, watched in (("own certificate", files), ("TLS files", tls), ("operator's token", guard)):
        jobs |= {name: watched.run(readiness)} if watched is not None else {}
    if clients is not None:
        jobs["clients"] = clients.run()
    callers = SiteCallers.of(files, CALLERS)
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(job, name=name) for name, job in jobs.items()]
        await server.start(
            settings.grpc_listen, "The data plane's API", is_insecure_dev=is_insecure_dev, callers=callers
        )
        _collect_rarely()
        await server.set_serving(True)
        readiness.clear("starting")
        log.info(
            "started",
            node_id=overlay.node_id,
            grpc=settings.grpc_listen,
            peers=settings.peer_listen,
            clients=settings.client_listen,
        )
        await stop.wait()
        log.info("stopping")
        readiness.block("stopping", "The service is stopping.")
        await groups.transfer_leaderships(TRANSFER_S)
        await overlay.say_goodbye()
        attachments.close()
        configuration.close()
        public.close()
        if clients is not None:
            await clients.close()
        await server.stop()
        for task in running:
            task.cancel()
    await store.flush()
    log.info("stopped")


def _open_groups(
    node: NodeSettings, settings: DataSettings, data_dir: DataDir, overlay: Overlay, readiness: Readiness
) -> Groups:
    return Groups(
        overlay,
        data_dir.path / "raft",
        StreamTiming.preset(node.preset),
        seed=secrets.randbits(63),
        wall_clock_ms=lambda: time.time_ns() // 1_000_000,
        readiness=readiness,
        room=RoomLimits(settings.disk_pressure_percent / 100, settings.disk_plenty_bytes),
    )


def _client_guard(node: NodeSettings, settings: DataSettings, *, is_insecure_dev: bool) -> OperatorToken | None:
    """What guards the client listener. Raises INSECURE_NOT_ALLOWED where it may not be reached from other machines."""
    if not settings.client_listen:
        return None
    token = OperatorToken.of_settings(settings.operator_token_file, node.data_dir, "MESH_DATA_OPERATOR_TOKEN_FILE")
    guard = token.on(settings.client_listen) if token is not None else None
    check_listen(
        settings.client_listen,
        "The client listener",
        is_insecure_dev=is_insecure_dev,
        is_encrypted=bool(settings.client_tls_certificate or node.tls_dir),
        is_authenticated=guard is not None,
    )
    return guard


def _client_tls(settings: DataSettings, files: SiteFiles | None) -> TlsFiles | None:
    """What the client port shows: the operator's certificate, else the site's where other machines reach the port."""
    given = TlsFiles.of_settings(settings.client_tls_certificate, settings.client_tls_key, "MESH_DATA_CLIENT_TLS")
    if given is not None or files is None or not settings.client_listen or not is_exposed(settings.client_listen):
        return given
    return files.for_users()


def _open_overlay(node: NodeSettings, settings: DataSettings, readiness: Readiness) -> Overlay:
    """Binds the peer listener and makes the overlay; says loudly when its lanes are in clear."""
    if not settings.peer_tls:
        hint = "Lanes run in clear (MESH_DATA_PEER_TLS=false): use this only on a network that you trust."
        readiness.warn("insecure", hint)
        get_logger(__name__).warning("lanes_in_clear", hint=hint)
    certificate = BootCertificate() if settings.peer_tls else None
    listener = PeerListener(settings.peer_listen, certificate) if settings.peer_listen else None
    proxies = Proxies.of_settings(settings.proxied, is_listening_behind=settings.peer_proxied)
    preset, allows_clear = PRESETS[node.preset], not settings.peer_tls
    overlay = Overlay(preset, settings.dial, listener, allows_clear=allows_clear, proxies=proxies)
    REGISTRY.register(OverlayCollector(overlay, listener))
    overlay.on_view(lambda view, _: _warn_of_addresses(readiness, overlay, view))
    return overlay


def _warn_of_addresses(readiness: Readiness, overlay: Overlay, view: View | None) -> None:
    """Names the members that are not dialled, because what an older version let them advertise is no address."""
    names = sorted(view.name_of(node) for node in overlay.undiallable) if view is not None else []
    if not names:
        readiness.clear("addresses")
        return
    more = f" and {len(names) - _NAMES_MAX} more" if len(names) > _NAMES_MAX else ""
    readiness.warn(
        "addresses",
        f"What {', '.join(map(printable, names[:_NAMES_MAX]))}{more} advertise is no address, so they are not dialled: "
        "correct MESH_CONTROL_PEER_ADDRESS there, or set MESH_DATA_DIAL here.",
    )


def _collect_rarely() -> None:
    """Tells the cycle collector that what is loaded stays, and that records on their way are no sign of garbage.

    With Python's own thresholds a leader spends an eighth of its time on looking through batches that are in flight, which
    reference counting frees anyway.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS_MAX, 20, 20)
