"""Runs one connection as a lane: first the handshake, then a reader and a writer until either ends.

Purpose: the only place where a lane's socket and the overlay core meet. Leaves out: every decision (the cores').
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mesh_data.core.handshake import Handshake, PeerNode, encode_reject
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.frame_socket import CLOSE_TIMEOUT_S, FrameSocket, SocketClosed, TextFrame, with_head
from meshwire.buffers import Buffer


async def shake_hands(socket: FrameSocket, handshake: Handshake, clock: Callable[[], float]) -> PeerNode:
    """Drives a handshake to its end; on failure the other side is told and the socket closed.

    Raises:
        MeshError: why there is no lane.
    """
    try:
        async with asyncio.timeout(handshake.next_deadline() - clock()):
            await _exchange(socket, handshake)
    except TimeoutError:
        handshake.tick(handshake.next_deadline())
    except SocketClosed as error:
        handshake.fail(
            MeshError(ErrorCode.HANDSHAKE_FAILED, f"The connection ended during the handshake ({error}): try again.")
        )
    if handshake.peer is not None:
        return handshake.peer
    failure = handshake.failure or MeshError(ErrorCode.HANDSHAKE_FAILED, "The handshake did not finish.")
    await refuse(socket, failure)
    raise failure


async def refuse(socket: FrameSocket, error: MeshError) -> None:
    """Tells the other side why, and closes; gives up on that after a second."""
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await socket.send(encode_reject(error))
            await socket.close(str(error.code))
    except (TimeoutError, SocketClosed):
        socket.abort()


async def _exchange(socket: FrameSocket, handshake: Handshake) -> None:
    while True:
        if handshake.failure is not None:
            return
        for frame in handshake.take_outgoing():
            await socket.send(frame)
        if handshake.is_done:
            return
        try:
            handshake.receive(await socket.receive())
        except TextFrame:
            handshake.fail(
                MeshError(ErrorCode.WRONG_PROTOCOL, "A text frame came: lanes carry binary frames of mesh.v1 only.")
            )


class LaneSession:
    """The reader and writer of one established lane."""

    def __init__(self, lane_id: int, socket: FrameSocket, next_frame: Callable[[int], list[Buffer] | None]) -> None:
        self.lane_id = lane_id
        self.reason = ""
        self._socket = socket
        self._next_frame = next_frame
        self._wake = asyncio.Event()
        self._is_closing = False
        self.ended = asyncio.Event()
        """Set by the owner when nothing of the lane is left."""

    def wake(self) -> None:
        """Something waits to be written."""
        self._wake.set()

    def close(self, reason: str) -> None:
        """Writes what waits, then closes; drops the connection when that takes longer than a second."""
        if self._is_closing:
            return
        self._is_closing = True
        self.reason = self.reason or reason
        self._wake.set()
        asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self._socket.abort)

    def abort(self, reason: str) -> None:
        """Drops the connection at once."""
        self.reason = self.reason or reason
        self._socket.abort()

    async def run(self, receive: Callable[[int, bytes], None]) -> None:
        """Hands each frame to `receive`; returns when the connection is gone, with the reason in `reason`."""
        async with asyncio.TaskGroup() as tasks:
            writer = tasks.create_task(self._write(), name=f"lane {self.lane_id} writer")
            try:
                while True:
                    receive(self.lane_id, await self._socket.receive())
            except SocketClosed as error:
                self.reason = self.reason or str(error)
            except TextFrame:
                self.reason = "the peer sent a text frame"
                self._socket.abort()
            finally:
                writer.cancel()

    async def _write(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while (frame := self._next_frame(self.lane_id)) is not None:
                    await self._socket.send(with_head(frame))
                if self._is_closing:
                    await self._socket.close(self.reason)
                    return
        except SocketClosed as error:
            # The reader meets the same end and runs the rest.
            self.reason = self.reason or str(error)
