"""Keeps the data plane's route table equal to ours: differences, and the whole table when the two have lost each other.

Leaves out what the routes are. Source: architecture §6, proto/meshapi/data/v1 PushRoutes.
"""

from __future__ import annotations

import asyncio
from typing import Final

import grpc
import grpc.aio

from mesh_routing.core.route_table import RouteTable, difference
from mesh_routing.shell.driver import RoutingDriver
from mesh_routing.shell.metrics import RoutingMetrics
from meshapi.data.v1 import data_pb2_grpc
from meshcommon.admin import Readiness
from meshcommon.barrier import barrier
from meshcommon.grpc_client import mesh_error
from meshcommon.logging import get_logger

RETRY_S: Final = 0.2
CALL_TIMEOUT_S: Final = 5.0
_log = get_logger(__name__)


class RoutesPusher:
    """One push at a time; whatever changes meanwhile goes with the next."""

    def __init__(
        self, channel: grpc.aio.Channel, driver: RoutingDriver, readiness: Readiness, metrics: RoutingMetrics
    ) -> None:
        self._stub: data_pb2_grpc.DataPlaneServiceAsyncStub = data_pb2_grpc.DataPlaneServiceStub(channel)
        self._driver = driver
        self._readiness = readiness
        self._metrics = metrics
        self._changed = driver.watch()
        self._confirmed: RouteTable | None = None

    def resynchronise(self) -> None:
        """The data plane may have lost its routes: the next push is the whole table."""
        self._confirmed = None
        self._changed.set()

    async def run(self) -> None:
        """Pushes until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._is_behind():
                is_pushed = False
                with barrier("routing_push"):
                    is_pushed = await self._push()
                if not is_pushed:
                    await asyncio.sleep(RETRY_S)

    def _is_behind(self) -> bool:
        table = self._driver.table
        # Version 0: nothing computed yet, and what the data plane has on disk is better than nothing.
        return self._driver.view.is_member and table.version != 0 and table is not self._confirmed

    async def _push(self) -> bool:
        base, table = self._confirmed, self._driver.table
        change = difference(base, table)
        self._metrics.pushes.labels("full" if base is None else "difference").inc()
        try:
            response = await self._stub.PushRoutes(change.request(), timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as failure:
            self._metrics.push_failures.inc()
            self._confirmed = None
            error = mesh_error(failure, "data plane")
            self._readiness.warn("routes", f"Routes wait to be pushed: {error.message}")
            return False
        if response.version != table.version:
            self._confirmed = None
            if base is None:
                self._readiness.warn("routes", "The data plane did not take the whole route table; trying again.")
            # A difference from a version that it does not have: the whole table follows at once.
            return base is not None
        # Unless somebody asked for the whole table while this was under way.
        if self._confirmed is base:
            self._confirmed = table
        self._readiness.clear("routes")
        _log.debug("routes_pushed", version=table.version, changed=len(change.changed), removed=len(change.removed))
        return True
