"""Opens connections to other nodes and says in one error why one could not be opened.

Leaves out: when to dial (`core/dial_policy`) and the lane handshake that follows.
"""

from __future__ import annotations

from typing import Final

from mesh_data.shell.lane_socket import LANE_LIMITS, SUBPROTOCOL
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.frame_ports import DialRefused, dial
from meshcommon.frame_socket import FrameSocket

_SERVER_FAULT: Final = 500


async def connect_lane(address: str, timeout_s: float) -> FrameSocket:
    """Dials `address` (`ws://host:port` or `wss://host:port`).

    Raises:
        MeshError: ADDRESS_UNREACHABLE, WRONG_PROTOCOL, or INVALID_ARGUMENT for what is no address.
    """
    try:
        return await dial(address, SUBPROTOCOL, LANE_LIMITS, timeout_s)
    except ValueError as error:
        raise MeshError(
            ErrorCode.INVALID_ARGUMENT, f"{address!r} is no address of a node: use ws://host:port or wss://host:port."
        ) from error
    except DialRefused as error:
        if error.status >= _SERVER_FAULT:
            raise _unreachable(address, str(error)) from error
        raise _wrong_protocol(address, str(error)) from error
    except (OSError, TimeoutError) as error:
        raise _unreachable(address, str(error) or type(error).__name__) from error


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
