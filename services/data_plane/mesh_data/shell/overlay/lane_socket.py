"""How the socket of a lane is bounded: what both sides of a lane give to `meshcommon.frame_socket`.

Source: architecture §5 "Lane", "Detection" (unsent bytes in the kernel are capped).
"""

from __future__ import annotations

from typing import Final

from meshcommon.frame_socket import SocketLimits
from meshwire.frame import MAX_FRAME_BYTES, SEAL_OVERHEAD_BYTES

SUBPROTOCOL: Final = "mesh.v1"
LANE_LIMITS: Final = SocketLimits(
    frame_bytes_max=MAX_FRAME_BYTES + SEAL_OVERHEAD_BYTES,
    # Until the node is proved, and on a lane that a node which is no member dialled, for good.
    unproven_bytes_max=64 * 1024,
    write_buffer_bytes=64 * 1024,
    # What the kernel may hold unsent: more would let bulk that is already written delay control.
    unsent_bytes_max=128 * 1024,
    # Lanes beat by themselves, faster and measured.
    ping_s=None,
    # A neighbour that sends beats and reads nothing is not silent: this ends its lane.
    stall_s=10.0,
)
