"""Telling a service of this site what is in force, again whenever that or the service changes.

A push is idempotent. It is due when the node changed, and when the service came back: its health stream says so, so a
restarted service is told within a moment. A version may also change with time, and is looked at once a minute. Leaves out what is pushed (`data_client`, `routing_client`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2

from mesh_control.shell.changes import Changes
from meshcommon.admin import Readiness
from meshcommon.barrier import barrier
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.grpc_client import mesh_error
from meshcommon.logging import get_logger

RETRY_S: Final = 0.25
PUSH_TIMEOUT_S: Final = 3.0
AGING_CHECK_S: Final = 60.0
"""How often a version is looked at that no change announces: a delegation that the wall clock makes old."""

_log = get_logger(__name__)


class ConfigPush:
    """Keeps one service configured.

    Args:
        service: Name for people, for example `data plane`.
        channel: To the service.
        push: Sends what is in force now; called on the loop.
        version: A value that is equal as long as there is nothing new to push.
        changed: Tells when `version` may have changed.
        readiness: Gets a warning while the service does not answer.
    """

    def __init__(
        self,
        service: str,
        channel: grpc.aio.Channel,
        push: Callable[[], Awaitable[None]],
        version: Callable[[], object],
        changed: Changes,
        readiness: Readiness,
    ) -> None:
        self._service = service
        self._watch = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        self._push = push
        self._version = version
        self._changed = changed
        self._readiness = readiness
        self._in_force: object = None
        self._pushed = Changes()

    async def run(self) -> None:
        """Pushes whenever it is due, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._push_changes(), name=f"configure {self._service}")
            group.create_task(self._watch_health(), name=f"watch {self._service}")

    async def settle(self, timeout_s: float) -> bool:
        """Waits until what is in force now has arrived; False when the service did not take it in time."""
        wanted = self._version()
        return await self._pushed.wait_until(lambda: self._in_force in (wanted, self._version()), timeout_s)

    async def _push_changes(self) -> None:
        while True:
            version = self._version()
            if version == self._in_force:
                await self._changed.wait(AGING_CHECK_S)
                continue
            if await self._try_to_push():
                self._in_force = version
                self._readiness.clear(self._service)
                self._pushed.notify()
            else:
                await self._changed.wait(RETRY_S)

    async def _try_to_push(self) -> bool:
        with barrier("control_push", service=self._service):
            try:
                await self._push()
            except grpc.aio.AioRpcError as error:
                self._away(mesh_error(error, self._service))
                return False
            return True
        # What cannot even be sent, for example a view that outgrew its limit, must not end the control plane.
        self._away(MeshError(ErrorCode.INTERNAL, "it could not be sent; the log has the details."))
        return False

    async def _watch_health(self) -> None:
        while True:
            try:
                call = self._watch(health_pb2.HealthCheckRequest(), wait_for_ready=True)
                async for _status in call:
                    # Also the first status of a process that has just started: it may know nothing.
                    self._in_force = None
                    self._changed.notify()
            except grpc.aio.AioRpcError as error:
                self._away(mesh_error(error, self._service))
            await asyncio.sleep(RETRY_S)

    def _away(self, error: MeshError) -> None:
        warning = f"The {self._service} does not take its configuration: {error.message}"
        if warning not in self._readiness.warnings():
            _log.warning("configuration_not_taken", target=self._service, code=error.code, reason=error.message)
        self._readiness.warn(self._service, warning)
