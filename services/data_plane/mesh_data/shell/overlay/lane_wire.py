"""The connection of a lane behind its handshake: frames as they are, or sealed with the lane's own keys.

Purpose: nobody who writes or reads frames of a lane has to know which it is, and on a sealed lane nothing gets out in clear.
Leaves out: the seal itself (`core/frame_seal`) and the socket (`meshcommon.frame_socket`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mesh_data.core.frame_seal import FrameSeal
from meshcommon.frame_socket import FrameSocket, with_head
from meshwire.buffers import Buffer


class LaneWire:
    """One connection. `clock` tells monotonic seconds. Not for concurrent senders or receivers."""

    def __init__(self, socket: FrameSocket, seal: FrameSeal | None, clock: Callable[[], float]) -> None:
        self._socket = socket
        self._seal = seal
        self._clock = clock

    @property
    def remote(self) -> str:
        """Address of the other end, for logs."""
        return self._socket.remote

    @property
    def remote_host(self) -> str:
        """Its IP address."""
        return self._socket.remote_host

    @property
    def is_sealed(self) -> bool:
        """Whether frames are sealed with the lane's own keys."""
        return self._seal is not None

    def prove(self, *, is_bounded: bool) -> None:
        """See FrameSocket."""
        self._socket.prove(is_bounded=is_bounded)

    async def send(self, parts: Sequence[Buffer]) -> None:
        """Writes a frame, given in parts, and waits while more is unsent than should be. Raises SocketClosed."""
        if self._seal is None:
            await self._socket.send(with_head(parts))
        else:
            await self._socket.send(self._seal.seal(b"".join(parts), self._clock()))

    async def receive(self) -> bytes:
        """The next frame. Raises SocketClosed, TextFrame, or WireError for a seal that is not good."""
        frame = await self._socket.receive()
        return frame if self._seal is None else self._seal.open(frame)

    async def close(self, reason: str) -> None:
        """Closes with a close frame, whose reason a proxy can read."""
        await self._socket.close("closed" if self._seal is not None else reason)

    def abort(self, why: str = "") -> None:
        """Drops the connection without a word."""
        self._socket.abort(why)
