"""Opens connections to other nodes and says in one error why one could not be opened.

Leaves out: when to dial (`core/dial_policy`) and the lane handshake that follows.
"""

from __future__ import annotations

from typing import Final

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.typing import Subprotocol

from mesh_data.shell.lane_socket import LANE_OPTIONS, SUBPROTOCOL, LaneSocket
from meshcommon.errors import ErrorCode, MeshError

_SERVER_FAULT: Final = 500


async def connect_lane(address: str, timeout_s: float) -> LaneSocket:
    """Dials `address` (`ws://host:port` or `wss://host:port`).

    Raises:
        MeshError: ADDRESS_UNREACHABLE, WRONG_PROTOCOL, or INVALID_ARGUMENT for what is no address.
    """
    try:
        connection = await connect(
            address,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            open_timeout=timeout_s,
            # Proxies named in the environment are for browsing; a peer's address is dialled as it was given.
            proxy=None,
            **LANE_OPTIONS,
        )
    except (InvalidURI, ValueError) as error:
        raise MeshError(
            ErrorCode.INVALID_ARGUMENT, f"{address!r} is no address of a node: use ws://host:port or wss://host:port."
        ) from error
    except InvalidHandshake as error:
        if isinstance(error, InvalidStatus) and error.response.status_code >= _SERVER_FAULT:
            raise _unreachable(address, str(error)) from error
        raise _wrong_protocol(address, str(error)) from error
    except (AssertionError, ConnectionClosed) as error:
        # websockets asserts its own state when a server talks and hangs up before our request is written.
        raise _wrong_protocol(address, "it closed the connection before the handshake") from error
    except (OSError, TimeoutError) as error:
        raise _unreachable(address, str(error) or type(error).__name__) from error
    if connection.subprotocol != SUBPROTOCOL:
        connection.transport.abort()
        raise _wrong_protocol(address, f"it chose the subprotocol {connection.subprotocol}")
    return LaneSocket(connection)


def _unreachable(address: str, reason: str) -> MeshError:
    return MeshError(
        ErrorCode.ADDRESS_UNREACHABLE,
        f"Nobody answers at {address} ({reason}): check the address, and that the node there is running.",
        {"address": address},
    )


def _wrong_protocol(address: str, reason: str) -> MeshError:
    return MeshError(
        ErrorCode.WRONG_PROTOCOL,
        f"What answers at {address} is no peer port of a mesh node ({reason}): use the node's peer address.",
        {"address": address},
    )
