"""A node that is in no mesh, and a member that lies to it: joining is dangerous for the one that joins, too.

The newcomer is a real data plane and control plane without stores. The false member is the real overlay with a listener,
so that its handshake is right; what it answers to a request to join is the test's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeAlias

import grpc.aio

from mesh_data.core.forwarder import Delivery
from mesh_data.core.handshake import LocalNode
from mesh_data.core.timing import OverlayTiming
from mesh_data.core.view import view_from_proto
from mesh_data.shell.overlay.listener import PeerListener
from mesh_data.shell.overlay.overlay import Overlay
from meshapi.common.v1 import view_pb2
from meshapi.supervisor.v1 import mesh_pb2
from meshcommon.boot_certificate import BootCertificate
from meshcommon.errors import MeshError
from meshcommon.ids import NodeId
from meshcommon.requests import Incoming, Requests
from meshtest.delegated import delegated_signer
from meshtest.gateway_client import Gateway
from meshtest.ports import free_ports
from meshtest.processes import start
from meshtest.site import MODULES, PORTS_PER_SITE, SiteConfig, name_ports
from meshtest.waiting import eventually
from meshwire.packet import Protocol, TrafficClass
from meshwire.request import Request, Response
from tests.attacks.lanes import new_key, public_key
from tests.attacks.target import Target

FALSE_MESH_ID: Final = "6f1c2d9e-1111-4222-8333-944455556666"
_SERVICES: Final = ("data", "control")
Answer: TypeAlias = Callable[[Request], Response]
"""What the false member answers."""


@dataclass(frozen=True, slots=True)
class Newcomer:
    """The victim. Its control plane answers the public calls itself, without a gateway."""

    config: SiteConfig
    control: Gateway

    async def refuses(self, address: str, token: str = "") -> MeshError:
        """Asks it to join there; returns why it did not."""
        try:
            await self.control.join(address, token=token)
        except MeshError as error:
            return error
        raise AssertionError(f"the newcomer joined through {address!r}")

    async def is_alone(self) -> bool:
        """Whether it is in no mesh."""
        status: mesh_pb2.GetStatusResponse = await self.control.status()
        return not status.node_id


@asynccontextmanager
async def running_newcomer(target: Target) -> AsyncIterator[Newcomer]:
    """Starts the victim beside the mesh; its processes are watched like those of the mesh."""
    directory = target.directory / "newcomer"
    config = SiteConfig("newcomer", directory, name_ports(free_ports(PORTS_PER_SITE)), is_listening=False)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MESH_")}
    environment |= config.environment("", "")
    for service in _SERVICES:
        target.others[f"newcomer/{service}"] = start(
            [sys.executable, "-m", MODULES[service]], log=directory / "log" / f"{service}.log", environment=environment
        )
    try:
        async with Gateway(environment["MESH_CONTROL_GRPC_LISTEN"]) as control:
            newcomer = Newcomer(config, control)
            await eventually("the newcomer answers", newcomer.is_alone, 40)
            await eventually("its data plane dials", lambda: _dials(newcomer), 40)
            yield newcomer
    finally:
        for service in _SERVICES:
            await asyncio.to_thread(target.others.pop(f"newcomer/{service}").stop)
        sockets = environment["MESH_CONTROL_GRPC_LISTEN"].removeprefix("unix:").rpartition("/")[0]
        if sockets:
            await asyncio.to_thread(shutil.rmtree, sockets, ignore_errors=True)


async def _dials(newcomer: Newcomer) -> bool:
    """Whether a join gets as far as a refused connection."""
    error = await newcomer.refuses("wss://127.0.0.1:9")
    return str(error.code) == "ADDRESS_UNREACHABLE"


@asynccontextmanager
async def false_member(answer: Answer) -> AsyncIterator[str]:
    """The address of a member of a mesh that does not exist."""
    key = new_key()
    listener = PeerListener("127.0.0.1:0", BootCertificate())
    overlay = Overlay(OverlayTiming(), {}, listener)
    requests = Requests(first_id=1)

    def receive(delivery: Delivery) -> None:
        taken = requests.receive(0, delivery.lane_id, bytes(delivery.payload))
        if not isinstance(taken, Incoming):
            return
        payload = requests.answer(taken.key, answer(taken.request)).payload
        overlay.send_join(delivery.lane_id, TrafficClass.CONTROL, payload)

    view = view_pb2.MeshView(revision=1, mesh_id=FALSE_MESH_ID)
    view.nodes.add(node_id=1, name="false", public_key=public_key(key), state=view_pb2.NODE_STATE_ACTIVE)
    overlay.bind(Protocol.JOIN, receive)
    local = LocalNode(NodeId(1), "false", delegated_signer(key, FALSE_MESH_ID, 1), FALSE_MESH_ID)
    overlay.configure(local, view_from_proto(view), is_running=True)
    task = asyncio.create_task(overlay.run(), name="false member")
    try:
        yield f"wss://127.0.0.1:{listener.port}"
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def is_documented(error: MeshError) -> bool:
    """Whether an error is one that a caller can act on."""
    cause = error.__cause__
    is_surprise = isinstance(cause, grpc.aio.AioRpcError) and cause.code() in {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    }
    return not is_surprise and error.code != "INTERNAL"
