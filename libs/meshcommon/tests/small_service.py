"""A service with nothing of its own, run as a process by test_lifecycle: everything that meshcommon gives, wired once.

Its only call, `/test.v1.Small/Say`, logs what it was told and answers with it; an empty text fails on purpose.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import grpc
from pydantic import Field

from meshcommon.admin import Readiness, serve_admin
from meshcommon.datadir import DataDir
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.grpc_server import GrpcServer
from meshcommon.lifecycle import Stop, run_service
from meshcommon.logging import configure_logging, get_logger
from meshcommon.settings import Endpoint, Section, load_sections
from meshcommon.telemetry import configure_telemetry


class SmallSettings(Section):
    """Takes the place of a service's own section."""

    grpc_listen: Endpoint = Field(description="Where the call is served.")
    admin_listen: Endpoint = Field(description="Where the pages are served.")
    fault: str = Field(default="", description="What goes wrong after the start, if anything.")


async def say(request: bytes, _context: Any) -> bytes:
    get_logger("small").info("said", text=request.decode())
    logging.getLogger("a.library").warning("it said %s", request.decode())
    if not request:
        raise MeshError(ErrorCode.EMPTY_BATCH, "Say something.")
    return request


async def break_down(fault: str) -> None:
    if fault == "crash":
        raise ZeroDivisionError(fault)
    if fault in {"stuck thread", "storage beside a stuck thread"}:
        # As a name that is being resolved: nothing can end it, and the loop waits for it before it closes.
        asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)
    if fault.startswith("storage"):
        raise MeshError(ErrorCode.STORAGE_FAILED, "The disk failed.")


async def main(stop: Stop) -> None:
    node, settings, _ = load_sections("data", SmallSettings)
    configure_logging("mesh-small", node.name, node.log_level)
    configure_telemetry("mesh-small", node.name, node.otlp_endpoint)
    data_dir = DataDir.open(node.data_dir, "data", node.name)
    readiness = Readiness()
    server = GrpcServer()
    handlers: dict[str, Any] = {"Say": grpc.unary_unary_rpc_method_handler(say)}
    server.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.v1.Small", handlers),))
    try:
        async with asyncio.TaskGroup() as tasks:
            await server.start(settings.grpc_listen, "The test")
            admin = tasks.create_task(serve_admin(readiness, settings.admin_listen), name="admin")
            tasks.create_task(break_down(settings.fault), name="fault")
            readiness.clear("starting")
            await server.set_serving(True)
            get_logger("small").info("started")
            await stop.wait()
            await server.stop()
            admin.cancel()
    finally:
        data_dir.close()


if __name__ == "__main__":
    run_service("mesh-small", main)
