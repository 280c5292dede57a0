"""One WebSocket to a data plane: messages out in as few frames as possible, answers to whoever asked.

Leaves out: connecting again (`client`), and what is asked. Everything runs on one event loop. Source: `meshwire.client`.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Final, TypeAlias, TypeVar

from meshcommon.errors import ErrorCode, MeshError, parse_code
from meshcommon.frame_ports import DialRefused, HungUpError, TlsFailedError, dial
from meshcommon.frame_socket import FrameSocket, SocketClosed, SocketLimits, TextFrame
from meshcommon.peer_text import printable
from meshcommon.tls_contexts import tls_failed
from meshwire import client as wire
from meshwire.client import Kind
from meshwire.errors import WireError
from meshwire.request import ErrorResponse, decode_response

T = TypeVar("T")

Receiver: TypeAlias = Callable[[int, int, memoryview], None]
"""Called with kind, correlation and body of an answer."""

_FRAME_BYTES_TARGET: Final = 256 * 1024
_REFUSALS: Final[dict[int, ErrorCode]] = {
    HTTPStatus.UNAUTHORIZED: ErrorCode.OPERATOR_TOKEN_REQUIRED,
    HTTPStatus.SERVICE_UNAVAILABLE: ErrorCode.BACKPRESSURE,
    HTTPStatus.TOO_MANY_REQUESTS: ErrorCode.BACKPRESSURE,
}
"""What a status other than 101 means; any other says that it is no client port."""
_LIMITS: Final = SocketLimits(frame_bytes_max=wire.MAX_FRAME_BYTES, ping_s=20.0)


class Connection:
    """An open connection; `open` makes one. It is lost for good when `is_lost`, and `lost` is then set."""

    def __init__(self, socket: FrameSocket, address: str) -> None:
        self.address = address
        self.lost = asyncio.Event()
        self.failure = MeshError(ErrorCode.UNAVAILABLE, f"The connection to {address} was lost.")
        self._socket = socket
        self._receivers: dict[int, Receiver] = {}
        self._next_correlation = itertools.count(1)
        self._unwritten: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._losers: dict[int, Callable[[], None]] = {}
        self._reader = asyncio.create_task(self._read(), name=f"mesh client {address}: reader")
        self._writer = asyncio.create_task(self._write(), name=f"mesh client {address}: writer")

    @classmethod
    async def open(
        cls, address: str, timeout_s: float, tls: ssl.SSLContext | None = None, token: str | None = None
    ) -> Connection:
        """Connects to `ws://host:port` or `wss://host:port`. `tls` judges the certificate and refuses an address in clear.

        `token` is the operator's, for a listener that other machines reach.

        Raises:
            MeshError: ADDRESS_UNREACHABLE, TLS_FAILED, WRONG_PROTOCOL, OPERATOR_TOKEN_REQUIRED, OPERATOR_TOKEN_WRONG,
                BACKPRESSURE or INVALID_ARGUMENT.
        """
        shown = [("Authorization", f"Bearer {token}")] if token is not None else []
        try:
            socket = await dial(address, wire.SUBPROTOCOL, _LIMITS, timeout_s, tls=tls, headers=shown)
        except ValueError as error:
            forms = "wss://host:port" if tls is not None else "ws://host:port or wss://host:port"
            raise MeshError(ErrorCode.INVALID_ARGUMENT, f"{address} is not an address: use {forms}.") from error
        except TlsFailedError as error:
            raise tls_failed(address, error.reason) from error
        except HungUpError as error:
            # A process that dies or stops does that to whoever is just connecting, and comes back.
            raise _unreachable(address, f"it hung up{_hint(address)}") from error
        except DialRefused as error:
            if not error.status:
                raise MeshError(
                    ErrorCode.WRONG_PROTOCOL, f"What answers at {address} is no data plane: {error}"
                ) from error
            said = printable(error.body.decode(errors="replace").strip())
            code = _REFUSALS.get(error.status, ErrorCode.WRONG_PROTOCOL)
            if code is ErrorCode.OPERATOR_TOKEN_REQUIRED and token is not None:
                code = ErrorCode.OPERATOR_TOKEN_WRONG
            raise MeshError(code, f"{address} refused with HTTP status {error.status}: {said}") from error
        except (OSError, TimeoutError) as error:
            raise _unreachable(address, str(error) or f"timeout{_hint(address)}") from error
        return cls(socket, address)

    @property
    def is_lost(self) -> bool:
        """Whether nothing more can be sent."""
        return self.lost.is_set()

    def correlate(self, receiver: Receiver, on_lost: Callable[[], None] | None = None) -> int:
        """A correlation number whose answers go to `receiver` until `forget`; `on_lost` is called if the connection goes."""
        correlation = next(self._next_correlation)
        self._receivers[correlation] = receiver
        if on_lost is not None:
            self._losers[correlation] = on_lost
        return correlation

    def forget(self, correlation: int) -> None:
        """No answer with that number is expected any more."""
        self._receivers.pop(correlation, None)
        self._losers.pop(correlation, None)

    def put(self, message: bytes) -> None:
        """Sends a message, together with others of this turn of the loop. On a lost connection nothing happens."""
        self._unwritten.append(message)
        self._wake.set()

    def flush(self) -> None:
        """Writes at once what was put, unless the connection has too much unsent; then it follows by itself."""
        with suppress(SocketClosed):  # the reader meets the same end
            while self._unwritten and self._socket.is_writable:
                self._socket.write(self._next_frame())

    async def ask(self, kind: Kind, body: bytes, timeout_s: float) -> tuple[int, memoryview]:
        """One request; returns kind and body of its answer.

        Raises:
            MeshError: what the node answered, UNAVAILABLE for a lost connection, DEADLINE_EXCEEDED.
        """
        answer: asyncio.Future[tuple[int, memoryview]] = asyncio.get_running_loop().create_future()

        def receive(kind: int, _correlation: int, body: memoryview) -> None:
            if not answer.done():
                answer.set_result((kind, body))

        def lose() -> None:
            if not answer.done():
                answer.set_exception(self.failure)

        if self.is_lost:
            raise self.failure
        correlation = self.correlate(receive, lose)
        self.put(wire.encode_message(kind, correlation, body))
        try:
            async with asyncio.timeout(timeout_s):
                found, answered = await answer
        except TimeoutError:
            raise MeshError(ErrorCode.DEADLINE_EXCEEDED, f"{self.address} did not answer in {timeout_s:g} s.") from None
        finally:
            self.forget(correlation)
        if found == Kind.ERROR:
            raise read_error(answered)
        return found, answered

    async def close(self) -> None:
        """Closes the connection and waits until nothing of it is left."""
        # A transport that asyncio has closed for good must not be touched again.
        if not self.is_lost:
            await self._socket.close("")
        self._lose("closed")
        self._writer.cancel()
        await asyncio.gather(self._reader, self._writer, return_exceptions=True)

    def abort(self, reason: str) -> None:
        """Drops the connection: the peer breaks the protocol, or went silent."""
        self._lose(reason)
        self._socket.abort()

    async def _read(self) -> None:
        try:
            while True:
                for kind, correlation, body in wire.decode_messages(await self._socket.receive()):
                    receiver = self._receivers.get(correlation)
                    if receiver is not None:
                        receiver(kind, correlation, body)
                    elif kind == Kind.ERROR and not correlation:
                        self.failure = read_error(body)
        except SocketClosed as error:
            self._lose(str(error))
        except TextFrame:
            self.abort("the node sent a text frame")
        except WireError as error:
            self.abort(f"the node sent what cannot be read: {error.reason}")
        finally:
            self._writer.cancel()

    def _lose(self, reason: str) -> None:
        if self.lost.is_set():
            return
        if self.failure.code is ErrorCode.UNAVAILABLE:
            self.failure = MeshError(ErrorCode.UNAVAILABLE, f"The connection to {self.address} was lost ({reason}).")
        self.lost.set()
        losers, self._losers = self._losers, {}
        self._receivers.clear()
        for lose in losers.values():
            lose()

    async def _write(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._unwritten:
                    await self._socket.send(self._next_frame())
        except SocketClosed as error:
            self._lose(str(error))

    def _next_frame(self) -> bytes:
        messages = [self._unwritten.popleft()]
        size_bytes = len(messages[0])
        while self._unwritten and len(messages) < wire.MAX_FRAME_MESSAGES:
            size_bytes += len(self._unwritten[0])
            if size_bytes > _FRAME_BYTES_TARGET:
                break
            messages.append(self._unwritten.popleft())
        return b"".join(messages) if len(messages) > 1 else messages[0]


def read_error(body: memoryview) -> MeshError:
    """The error in an ERROR message.

    Raises:
        WireError: it cannot be read.
    """
    response = decode_response(body)
    if not isinstance(response, ErrorResponse):
        raise WireError("an error message holds no error")
    return MeshError(parse_code(response.code), response.message, dict(response.details), retryable=response.retryable)


def encoded(encode: Callable[[], bytes]) -> bytes:
    """What `encode` gives. Raises INVALID_ARGUMENT when an argument of the caller does not fit the protocol."""
    try:
        return encode()
    except WireError as error:
        raise MeshError(ErrorCode.INVALID_ARGUMENT, f"The request cannot be made: {error.reason}.") from error


def decoded(decode: Callable[[], T]) -> T:
    """What `decode` gives. Raises WRONG_PROTOCOL for an answer that cannot be read."""
    try:
        return decode()
    except WireError as error:
        raise MeshError(ErrorCode.WRONG_PROTOCOL, f"The node sent a malformed response: {error.reason}.") from error


def _hint(address: str) -> str:
    """A port that is spoken to in clear where it wants TLS hangs up, and one in clear waits for the rest of a request."""
    return ": does it speak TLS, wss://?" if address.startswith("ws:") else ": does it speak TLS, or only ws://?"


def _unreachable(address: str, why: str) -> MeshError:
    return MeshError(
        ErrorCode.ADDRESS_UNREACHABLE,
        f"No data plane answers at {address} ({why}): check the address and MESH_DATA_CLIENT_LISTEN.",
    )
