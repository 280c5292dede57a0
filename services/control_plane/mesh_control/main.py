"""The wiring of the control plane: what is made, what it is given, and in which order it stops."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from typing import Final

from mesh_control.core.leaderless import LeaderlessStreams
from mesh_control.core.timing import TIMINGS
from mesh_control.shell import metrics
from mesh_control.shell.ca_desk import CaDesk
from mesh_control.shell.ca_files import CA_DIR
from mesh_control.shell.ca_service import CaService
from mesh_control.shell.ca_watch import CaWatch
from mesh_control.shell.data_client import DataClient
from mesh_control.shell.gauges import Gauges
from mesh_control.shell.group_watch import GroupWatch
from mesh_control.shell.join_service import JoinService
from mesh_control.shell.lifecycle import Lifecycle
from mesh_control.shell.local_node import LocalNode
from mesh_control.shell.mcg import SendFrame
from mesh_control.shell.mesh_service import MeshService
from mesh_control.shell.node_certificates import NodeCertificates
from mesh_control.shell.peer_calls import PeerCalls
from mesh_control.shell.projection import Projection
from mesh_control.shell.proposer import Proposer
from mesh_control.shell.renewal import Renewal
from mesh_control.shell.routing_client import RoutingClient
from mesh_control.shell.settings import ControlSettings
from mesh_control.shell.site_issuer import ISSUER_KEY
from mesh_control.shell.site_tls import SiteTls
from mesh_control.shell.standing_check import StandingCheck
from mesh_control.shell.store_watch import Jobs, watches
from mesh_control.shell.token_desk import TokenDesk
from mesh_control.shell.version_watch import VersionWatch
from meshapi.supervisor.v1 import ca_pb2_grpc, mesh_pb2_grpc
from meshcommon.admin import Readiness, serve_admin
from meshcommon.datadir import DataDir
from meshcommon.grpc_client import open_service
from meshcommon.grpc_server import GrpcServer
from meshcommon.ids import NodeId
from meshcommon.lifecycle import Stop
from meshcommon.logging import configure_logging, get_logger
from meshcommon.overlay_attachment import OverlayAttachment, QueueLimits
from meshcommon.postgres import create_engine
from meshcommon.service_certificates import Service
from meshcommon.settings import NodeSettings, load_sections
from meshcommon.site_callers import SiteCallers
from meshcommon.telemetry import configure_telemetry
from meshraft import CLASS_CONTROL
from meshwire.packet import Protocol, TrafficClass

SERVICE: Final = "mesh-control"
QUEUE_LIMITS: Final = QueueLimits(bytes_max=16 * 1024 * 1024, destination_bytes_max=8 * 1024 * 1024)
"""For one destination: a snapshot of the control group has to fit."""
CALLERS: Final = {
    "meshapi.supervisor.v1.MeshService": frozenset({Service.GATEWAY}),
    "meshapi.supervisor.v1.CaService": frozenset({Service.GATEWAY}),
}
_log = get_logger(__name__)


async def main(stop: Stop) -> None:
    """Runs the control plane until `stop`."""
    settings, own, is_insecure = load_sections("control", ControlSettings)
    configure_logging(SERVICE, settings.name, settings.log_level)
    configure_telemetry(SERVICE, settings.name, settings.otlp_endpoint)
    readiness = Readiness()
    data_dir = DataDir.open(settings.data_dir / "control", "control", settings.name, kept=(ISSUER_KEY, CA_DIR))
    try:
        site = await SiteTls.start(settings, own, data_dir, stop)
        if not stop.is_requested:
            await _serve(stop, settings, own, readiness, data_dir, site, is_insecure=is_insecure)
    finally:
        data_dir.close()
    _log.info("stopped")


async def _serve(
    stop: Stop,
    settings: NodeSettings,
    own: ControlSettings,
    readiness: Readiness,
    data_dir: DataDir,
    site: SiteTls,
    *,
    is_insecure: bool,
) -> None:
    files = site.files
    data_channel = open_service(own.data_target, Service.DATA, files, is_insecure_dev=is_insecure)
    routing_channel = open_service(own.routing_target, Service.ROUTING, files, is_insecure_dev=is_insecure)
    overlay = OverlayAttachment("control_overlay", data_channel, QUEUE_LIMITS, metrics.PACKETS_DROPPED)
    rng = random.Random(secrets.randbits(64))
    node = LocalNode(
        settings.name,
        own.peer_address,
        data_dir,
        TIMINGS[settings.preset],
        _raft_sender(overlay),
        lambda: time.time_ns() // 1_000_000,
        seed=rng.getrandbits(63),
    )
    calls = PeerCalls(overlay, first_id=rng.getrandbits(62))
    proposer = Proposer(node, calls, rng)
    certificates = NodeCertificates(node, calls, site.issuer, rng)
    JoinService(node, calls, proposer, certificates)
    leaderless = LeaderlessStreams(node.timing.leaderless_after_s)
    data = DataClient(data_channel, node, readiness, leaderless)
    routing = RoutingClient(routing_channel, node, readiness)
    lifecycle = Lifecycle(node, data, calls, proposer, (data.push, routing.push))
    overlay.handle(Protocol.RAFT_MCG, lambda packet: node.receive_raft(NodeId(packet.source), packet.payload))
    overlay.handle(Protocol.JOIN, calls.receive_packet)
    server = GrpcServer()
    tokens = TokenDesk(node, proposer, secrets.token_bytes)
    ca_desk, ca_watch = CaDesk(node, proposer), CaWatch(node, certificates, proposer, readiness)
    mesh_service = MeshService(node, lifecycle, (tokens, ca_desk), proposer, readiness, leaderless)
    mesh_pb2_grpc.add_MeshServiceServicer_to_server(mesh_service, server.server)
    ca_pb2_grpc.add_CaServiceServicer_to_server(CaService(ca_desk, ca_watch), server.server)
    jobs = {
        "replica": node.run(),
        "overlay": overlay.run(),
        "peer calls": calls.run(),
        "lifecycle": lifecycle.run(),
        "data plane": data.run(),
        "routing": routing.run(),
        "group watch": GroupWatch(node, data, proposer).run(),
        "renewal": Renewal(node, calls, readiness, rng).run(),
        "standing": StandingCheck(node, data, calls, rng).run(),
        "version watch": VersionWatch(node, readiness).run(),
        "gauges": Gauges(node).run(),
        "node certificates": certificates.run(),
        "ca watch": ca_watch.run(),
        "admin": serve_admin(readiness, own.admin_listen, hosts=settings.admin_hosts),
    }
    jobs |= site.jobs(readiness)
    jobs |= _jobs_of_stores(settings, own, node, readiness)
    callers = SiteCallers.of(files, CALLERS)
    async with data_channel, routing_channel, asyncio.TaskGroup() as group:
        tasks = [group.create_task(job, name=name) for name, job in jobs.items()]
        await server.start(own.grpc_listen, "The control plane's API", is_insecure_dev=is_insecure, callers=callers)
        await server.set_serving(True)
        readiness.clear("starting")
        _log.info("started", node_id=node.node_id, grpc=own.grpc_listen)
        await stop.wait()
        await server.stop()
        await node.transfer_leadership()
        for task in tasks:
            task.cancel()


def _raft_sender(overlay: OverlayAttachment) -> SendFrame:
    def send_raft(peer: NodeId, frame_class: int, data: bytes) -> None:
        traffic_class = TrafficClass.CONTROL if frame_class == CLASS_CONTROL else TrafficClass.BULK
        overlay.send(Protocol.RAFT_MCG, traffic_class, peer, data)

    return send_raft


def _jobs_of_stores(settings: NodeSettings, own: ControlSettings, node: LocalNode, readiness: Readiness) -> Jobs:
    """What works with the stores of this site, and tells when one is away."""
    jobs = watches(settings.postgres_url, settings.redis_url, readiness)
    if settings.postgres_url:
        engine = create_engine(settings.postgres_url)
        jobs["projection"] = Projection(engine, own.migrations_dir, node, readiness).run()
    else:
        readiness.warn("postgres", "No Postgres is set (MESH_NODE_POSTGRES_URL): nothing can be queried there.")
    return jobs
