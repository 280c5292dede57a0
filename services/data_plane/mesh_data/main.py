"""The wiring of the data plane: settings, directory, overlay, stream groups, services, graceful stop."""

from __future__ import annotations

import asyncio
import gc
import secrets
import time
from typing import Final

from prometheus_client import REGISTRY

from mesh_data.core.disk_room import RoomLimits
from mesh_data.core.stream_timing import StreamTiming
from mesh_data.core.timing import PRESETS
from mesh_data.shell.client_listener import ClientListener
from mesh_data.shell.data_api import StreamsApi
from mesh_data.shell.data_service import Configurator, DataPlaneServicer
from mesh_data.shell.forwarding_api import ForwardingApi
from mesh_data.shell.groups import Groups
from mesh_data.shell.listener import PeerListener
from mesh_data.shell.metrics import OverlayCollector
from mesh_data.shell.overlay import Overlay
from mesh_data.shell.overlay_service import OverlayServicer
from mesh_data.shell.raft_api import RaftApi
from mesh_data.shell.raft_serving import RaftServing
from mesh_data.shell.settings import DataSettings
from mesh_data.shell.state_store import StateStore
from mesh_data.shell.streams_catalogue import StreamsCatalogue
from mesh_data.shell.streams_serving import StreamsServing
from meshapi.data.v1 import data_pb2_grpc
from meshapi.overlay.v1 import overlay_pb2_grpc
from meshapi.supervisor.v1 import data_pb2_grpc as supervisor_pb2_grpc
from meshcommon.address import check_listen
from meshcommon.admin import Readiness, admin_app, serve_asgi
from meshcommon.datadir import DataDir
from meshcommon.grpc_server import GrpcServer
from meshcommon.lifecycle import Stop
from meshcommon.logging import configure_logging, get_logger
from meshcommon.settings import NodeSettings, load_sections, require_insecure_dev
from meshcommon.telemetry import configure_telemetry

SERVICE: Final = "mesh-data"
HAND_OVER_S: Final = 0.5
_YOUNG_OBJECTS_MAX: Final = 20_000
"""New objects after which Python looks for cycles among them. Cost: as many that are garbage may linger, some MB."""


class MeshDataServicer(StreamsApi, RaftApi, ForwardingApi, supervisor_pb2_grpc.MeshDataServiceServicer):
    """MeshDataService: streams, their groups, and forwarding together."""

    def __init__(self, catalogue: StreamsCatalogue, overlay: Overlay) -> None:
        StreamsApi.__init__(self, catalogue)
        RaftApi.__init__(self, catalogue)
        ForwardingApi.__init__(self, overlay)


async def main(stop: Stop) -> None:
    """Runs the data plane until `stop`."""
    node, settings, is_insecure_dev = load_sections("data", DataSettings)
    configure_logging(SERVICE, node.name, node.log_level)
    configure_telemetry(SERVICE, node.name, node.otlp_endpoint)
    require_insecure_dev(is_insecure_dev, "Traffic between nodes")
    if settings.client_listen:
        check_listen(settings.client_listen, "The client listener", is_insecure_dev=is_insecure_dev)
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
        room=RoomLimits(settings.disk_pressure_percent / 100, settings.disk_plenty_bytes),
    )
    catalogue = StreamsCatalogue(overlay, groups)
    StreamsServing(catalogue)
    RaftServing(catalogue)
    clients = ClientListener(settings.client_listen, catalogue) if settings.client_listen else None
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
        if clients is not None:
            running.append(tasks.create_task(clients.run(), name="clients"))
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
        await groups.hand_over(HAND_OVER_S)
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


def _collect_rarely() -> None:
    """Tells the cycle collector that what is loaded stays, and that records on their way are no sign of garbage.

    With Python's own thresholds a leader spends an eighth of its time on looking through batches that are in flight, which
    reference counting frees anyway.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS_MAX, 20, 20)
