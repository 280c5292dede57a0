"""Runs one connection as a lane: first the handshake, then a reader and a writer until either ends.

Purpose: the only place where a lane's socket and the overlay core meet. Whatever fails here for reasons of its own ends that
connection only. Leaves out: every decision (the cores').
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from mesh_data.core.handshake import Handshake, PeerNode, encode_reject
from mesh_data.shell.overlay.lane_wire import LaneWire
from meshcommon.barrier import barrier, report
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.frame_socket import CLOSE_TIMEOUT_S, FrameSocket, SocketClosed, TextFrame
from meshcommon.peer_text import printable, printable_details
from meshwire.buffers import Buffer
from meshwire.errors import WireError


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
    except Exception as error:
        report("handshake", error, remote=socket.remote)
        socket.abort("the handshake failed for an internal reason")
        raise MeshError(ErrorCode.HANDSHAKE_FAILED, "The handshake failed; the log of the node has details.") from error
    if handshake.peer is not None:
        return handshake.peer
    failure = handshake.failure or MeshError(ErrorCode.HANDSHAKE_FAILED, "The handshake did not finish.")
    await refuse(LaneWire(socket, None, clock), failure)
    raise failure


async def refuse(wire: LaneWire, error: MeshError) -> None:
    """Tells the other side why, and closes; gives up on that after a second."""
    said = MeshError(error.code, printable(error.message), printable_details(error.details), retryable=error.retryable)
    with barrier("refuse", remote=wire.remote), suppress(TimeoutError, SocketClosed):
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await wire.send([encode_reject(said)])
            await wire.close(str(said.code))
    wire.abort()


async def _exchange(socket: FrameSocket, handshake: Handshake) -> None:
    while True:
        if handshake.failure is not None:
            return
        for frame in handshake.take_outgoing():
            await socket.send(frame)
        if handshake.is_done:
            return
        try:
            frame = await socket.receive()
        except TextFrame:
            handshake.fail(
                MeshError(ErrorCode.WRONG_PROTOCOL, "A text frame came: lanes carry binary frames of mesh.v1 only.")
            )
            return
        handshake.receive(frame)


class LaneSession:
    """The reader and writer of one established lane."""

    def __init__(self, lane_id: int, wire: LaneWire, next_frame: Callable[[int], list[Buffer] | None]) -> None:
        self.lane_id = lane_id
        self.reason = ""
        self._wire = wire
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
        asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self._wire.abort)

    def abort(self, reason: str) -> None:
        """Drops the connection at once."""
        self.reason = self.reason or reason
        self._wire.abort(reason)

    async def run(self, receive: Callable[[int, bytes], None]) -> None:
        """Hands each frame to `receive`; returns when the connection is gone, with the reason in `reason`.

        A frame whose handling fails for an unexpected reason ends the lane: what it left behind cannot be trusted.
        """
        async with asyncio.TaskGroup() as tasks:
            writer = tasks.create_task(self._write(), name=f"lane {self.lane_id} writer")
            try:
                while True:
                    frame = await self._wire.receive()
                    try:
                        receive(self.lane_id, frame)
                    except Exception as error:  # noqa: BLE001 - a barrier: this lane ends, the others live
                        report("lane_frame", error, lane=self.lane_id, remote=self._wire.remote)
                        self.abort("a frame could not be handled; the log has details")
                        return
            except SocketClosed as error:
                self.reason = self.reason or str(error)
            except TextFrame:
                self.reason = "the peer sent a text frame"
                self._wire.abort()
            except WireError as error:
                # On a sealed lane: changed, doubled, lost or in clear. Nothing after it opens either.
                self.abort(f"a sealed frame could not be opened: {error.reason}")
            finally:
                writer.cancel()

    async def _write(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while (frame := self._next_frame(self.lane_id)) is not None:
                    await self._wire.send(frame)
                if self._is_closing:
                    await self._wire.close(self.reason)
                    return
        except SocketClosed as error:
            # The reader meets the same end and runs the rest.
            self.reason = self.reason or str(error)
