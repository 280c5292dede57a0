"""The wiring of the data plane: settings, directory, overlay, stream groups, services, graceful stop."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Final

from prometheus_client import REGISTRY

from mesh_data.core.stream_timing import StreamTiming
from mesh_data.core.timing import PRESETS
from mesh_data.shell.data_api import StreamsApi
from mesh_data.shell.data_service import Configurator, DataPlaneServicer
from mesh_data.shell.forwarding_api import ForwardingApi
from mesh_data.shell.groups import Groups
from mesh_data.shell.listener import PeerListener
from mesh_data.shell.metrics import OverlayCollector
from mesh_data.shell.overlay import Overlay
from mesh_data.shell.overlay_service import OverlayServicer
from mesh_data.shell.settings import DataSettings
from mesh_data.shell.state_store import StateStore
from mesh_data.shell.streams_catalogue import StreamsCatalogue
from mesh_data.shell.streams_serving import StreamsServing
from meshapi.data.v1 import data_pb2_grpc
from meshapi.overlay.v1 import overlay_pb2_grpc
from meshapi.supervisor.v1 import data_pb2_grpc as supervisor_pb2_grpc
from meshcommon.admin import Readiness, admin_app, serve_asgi
from meshcommon.datadir import DataDir
from meshcommon.grpc_server import GrpcServer
from meshcommon.lifecycle import Stop
from meshcommon.logging import configure_logging, get_logger
from meshcommon.settings import NodeSettings, load_sections, require_insecure_dev
from meshcommon.telemetry import configure_telemetry

SERVICE: Final = "mesh-data"
HAND_OVER_S: Final = 0.5


class MeshDataServicer(StreamsApi, ForwardingApi, supervisor_pb2_grpc.MeshDataServiceServicer):
    """MeshDataService: streams and forwarding together."""

    def __init__(self, catalogue: StreamsCatalogue, overlay: Overlay) -> None:
        StreamsApi.__init__(self, catalogue)
        ForwardingApi.__init__(self, overlay)


async def main(stop: Stop) -> None:
    """Runs the data plane until `stop`."""
    node, settings, is_insecure_dev = load_sections("data", DataSettings)
    configure_logging(SERVICE, node.name, node.log_level)
    configure_telemetry(SERVICE, node.name, node.otlp_endpoint)
    require_insecure_dev(is_insecure_dev, "Traffic between nodes")
    data_dir = DataDir.open(node.data_dir / "data", "data", node.name)
    try:
        await _serve(stop, node, settings, data_dir)
    finally:
        data_dir.close()


async def _serve(stop: Stop, node: NodeSettings, settings: DataSettings, data_dir: DataDir) -> None:
    log = get_logger(__name__)
    readiness = Readiness()
    readiness.warn("insecure", "Lanes run in clear (MESH_INSECURE_DEV=1): use this only on a network that you trust.")
    log.warning("lanes_in_clear", hint="MESH_INSECURE_DEV=1 is set: use this only on a network that you trust")
    listener = PeerListener(settings.peer_listen) if settings.peer_listen else None
    overlay = Overlay(PRESETS[node.preset], settings.dial, listener)
    REGISTRY.register(OverlayCollector(overlay, listener))
    store = StateStore(data_dir.path, readiness)
    configurator = Configurator(overlay, store)
    groups = Groups(
        overlay,
        data_dir.path / "raft",
        StreamTiming.preset(node.preset),
        seed=secrets.randbits(63),
        wall_clock_ms=lambda: time.time_ns() // 1_000_000,
        readiness=readiness,
    )
    catalogue = StreamsCatalogue(overlay, groups)
    StreamsServing(catalogue)
    server = GrpcServer()
    attachments, configuration = OverlayServicer(overlay), DataPlaneServicer(configurator, groups)
    overlay_pb2_grpc.add_OverlayServiceServicer_to_server(attachments, server.server)
    data_pb2_grpc.add_DataPlaneServiceServicer_to_server(configuration, server.server)
    public = MeshDataServicer(catalogue, overlay)
    supervisor_pb2_grpc.add_MeshDataServiceServicer_to_server(public, server.server)
    # Identity, view and routes of the last run: lanes and groups come up without the control plane.
    configurator.restore()
    async with asyncio.TaskGroup() as tasks:
        await server.start(settings.grpc_listen, "The data plane's API")
        admin = serve_asgi(admin_app(readiness), settings.admin_listen, "The data plane's admin page")
        running = [
            tasks.create_task(overlay.run(), name="overlay"),
            tasks.create_task(groups.run(), name="stream groups"),
            tasks.create_task(store.run(), name="state store"),
            tasks.create_task(admin, name="admin page"),
        ]
        await server.set_serving(True)
        readiness.clear("starting")
        log.info("started", node_id=overlay.node_id, grpc=settings.grpc_listen, peers=settings.peer_listen)
        await stop.wait()
        log.info("stopping")
        readiness.block("stopping", "The service is stopping.")
        await groups.hand_over(HAND_OVER_S)
        await overlay.say_goodbye()
        attachments.close()
        configuration.close()
        public.close()
        await server.stop()
        for task in running:
            task.cancel()
    await store.flush()
    log.info("stopped")
