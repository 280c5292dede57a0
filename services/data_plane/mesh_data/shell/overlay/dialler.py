"""Opens connections to other nodes and says in one error why one could not be opened.

Leaves out: when to dial (`core/dial_policy`) and the lane handshake that follows.
"""

from __future__ import annotations

import ssl
from typing import Final

from mesh_data.shell.overlay.lane_socket import LANE_LIMITS, SUBPROTOCOL
from meshcommon.address import parse_peer_address
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.frame_ports import DialRefused, HungUpError, TlsFailedError, dial
from meshcommon.frame_socket import FrameSocket

_SERVER_FAULT: Final = 500


async def connect_lane(address: str, timeout_s: float, tls: ssl.SSLContext | None = None) -> FrameSocket:
    """Dials `address` (`ws://host:port` or `wss://host:port`, with `tls` the second only).

    Raises:
        MeshError: ADDRESS_UNREACHABLE, WRONG_PROTOCOL, also when TLS fails (certificates are judged in the lane's handshake), or
            INVALID_ARGUMENT for what is no address, or one in clear where TLS is wanted.
    """
    target = str(parse_peer_address(address))
    try:
        return await dial(target, SUBPROTOCOL, LANE_LIMITS, timeout_s, tls=tls)
    except ValueError as error:
        raise MeshError(
            ErrorCode.INVALID_ARGUMENT,
            f"{target!r} cannot be dialled ({error}): use "
            + ("wss://host:port." if tls is not None else "ws://host:port or wss://host:port."),
            {"address": target},
        ) from error
    except HungUpError as error:
        raise MeshError(
            ErrorCode.WRONG_PROTOCOL,
            f"What is at {target} takes connections and closes them without a word: it is no peer port of a mesh node, or a "
            "node that restarts or has no room for more now (then try again).",
            {"address": target},
        ) from error
    except TlsFailedError as error:
        raise _wrong_protocol(target, str(error)) from error
    except DialRefused as error:
        if error.status >= _SERVER_FAULT:
            raise _unreachable(target, str(error)) from error
        raise _wrong_protocol(target, str(error)) from error
    except (OSError, TimeoutError) as error:
        raise _unreachable(target, str(error) or type(error).__name__) from error


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
