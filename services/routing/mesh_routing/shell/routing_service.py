"""RoutingService: what the control plane tells routing. In force at once, then durable, then answered."""

from __future__ import annotations

import asyncio
from typing import Any

from mesh_routing.core.view import View
from mesh_routing.shell.driver import RoutingDriver
from mesh_routing.shell.view_store import ViewStore
from meshapi.routing.v1 import routing_pb2, routing_pb2_grpc
from meshcommon.admin import Readiness
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.logging import get_logger

_log = get_logger(__name__)


class RoutingService(routing_pb2_grpc.RoutingServiceServicer):
    """Serves Configure."""

    def __init__(self, driver: RoutingDriver, store: ViewStore, readiness: Readiness) -> None:
        self._driver = driver
        self._store = store
        self._readiness = readiness
        # Saves in the order in which the views came into force.
        self._saving = asyncio.Lock()

    def restore(self) -> None:
        """Takes the stored view, at the start. Blocking."""
        stored = self._store.load()
        view = View() if stored is None else View.from_request(stored)
        if view.is_member:
            self._apply(view)
        else:
            self._warn_outside()

    async def Configure(  # noqa: N802 - the name is the proto's
        self, request: routing_pb2.ConfigureRequest, context: Any
    ) -> routing_pb2.ConfigureResponse:
        """See the proto. Errors: STORAGE_FAILED when the view is in force but not on disk; it may be sent again."""
        view = View.from_request(request)
        async with self._saving:
            if view.replaces(self._driver.view):
                self._apply(view)
                try:
                    await asyncio.to_thread(self._store.save, request)
                except OSError as error:
                    raise MeshError(
                        ErrorCode.STORAGE_FAILED,
                        f"Routing cannot store the view ({error.strerror}): check the disk of its data directory.",
                        retryable=True,
                    ) from error
            return routing_pb2.ConfigureResponse(revision=self._driver.view.revision)

    def _apply(self, view: View) -> None:
        if view.membership != self._driver.view.membership:
            _log.info("membership_changed", node_id=view.node_id, mesh_id=view.mesh_id)
        self._driver.configure(view)
        if view.is_member:
            self._readiness.clear("membership")
        else:
            self._warn_outside()

    def _warn_outside(self) -> None:
        self._readiness.warn("membership", "This node is in no mesh yet: seed one or join one.")
