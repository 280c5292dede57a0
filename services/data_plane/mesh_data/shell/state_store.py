"""What the data plane keeps on disk so that it can start alone: identity and view, and the route table.

Files: `view.bin` (the last ConfigureRequest, with the delegation) and `routes.bin` (the whole table as one
PushRoutesRequest). Written off the loop, newest state only, so that neither forwarding nor a call waits for the disk.
Leaves out: stream data. Source: architecture §2 (data plane restarts with the last MeshView and routes), invariant I8.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from meshapi.data.v1 import data_pb2
from meshcommon.admin import Readiness
from meshcommon.durable import sync_directory, write_durably
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.logging import get_logger

_log = get_logger(__name__)
_RETRY_S: Final = 1.0
VIEW_FILE: Final = "view.bin"
ROUTES_FILE: Final = "routes.bin"


class StateStore:
    """Keeps the newest state; `run` writes it. None removes a file."""

    def __init__(self, directory: Path, readiness: Readiness) -> None:
        self._directory = directory
        self._readiness = readiness
        self._waiting: dict[str, bytes | None] = {}
        self._changed = asyncio.Event()

    def load(self) -> tuple[data_pb2.ConfigureRequest | None, data_pb2.PushRoutesRequest | None]:
        """What was kept; blocking, for the start.

        Raises:
            MeshError: DATA_DIR_INCOMPLETE when `view.bin` is damaged. Routes are computed anew, so damaged ones are only
                logged.
        """
        view, routes = None, None
        if (encoded := self._read(VIEW_FILE)) is not None:
            try:
                view = data_pb2.ConfigureRequest.FromString(encoded)
            except DecodeError:
                path = self._directory / VIEW_FILE
                raise MeshError(
                    ErrorCode.DATA_DIR_INCOMPLETE,
                    f"{path} is damaged: remove it, the control plane sends its content again.",
                    {"path": str(path)},
                ) from None
        if (encoded := self._read(ROUTES_FILE)) is not None:
            try:
                routes = data_pb2.PushRoutesRequest.FromString(encoded)
            except DecodeError:
                _log.warning("routes_damaged", path=str(self._directory / ROUTES_FILE))
        return view, routes

    def keep_view(self, request: data_pb2.ConfigureRequest | None) -> None:
        """Keeps identity and view; None forgets them, and the routes with them."""
        self._keep(VIEW_FILE, request.SerializeToString() if request is not None else None)
        if request is None:
            self._keep(ROUTES_FILE, None)

    def keep_routes(self, table: data_pb2.PushRoutesRequest) -> None:
        """Keeps the whole route table."""
        self._keep(ROUTES_FILE, table.SerializeToString())

    async def run(self) -> None:
        """Writes until cancelled; a disk that refuses is tried again and reported as a warning."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if not await self.flush():
                await asyncio.sleep(_RETRY_S)
                self._changed.set()

    async def flush(self) -> bool:
        """Writes what waits; False when the disk refused some of it."""
        while self._waiting:
            name, content = next(iter(self._waiting.items()))
            try:
                await asyncio.to_thread(self._write, name, content)
            except OSError as error:
                self._readiness.warn("state", f"The data plane cannot keep its state on disk ({error.strerror}).")
                _log.warning("state_not_kept", file=name, reason=error.strerror)
                return False
            # A newer content may have come while the older one was written.
            if self._waiting.get(name) is content:
                del self._waiting[name]
        self._readiness.clear("state")
        return True

    def _keep(self, name: str, content: bytes | None) -> None:
        self._waiting[name] = content
        self._changed.set()

    def _read(self, name: str) -> bytes | None:
        try:
            return (self._directory / name).read_bytes()
        except FileNotFoundError:
            return None

    def _write(self, name: str, content: bytes | None) -> None:
        path = self._directory / name
        if content is not None:
            write_durably(path, content)
            return
        path.unlink(missing_ok=True)
        sync_directory(self._directory)
