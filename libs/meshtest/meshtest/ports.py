"""Free TCP ports on the loopback, below the range from which the kernel takes ports for outgoing connections.

A port from that range could be taken by any outgoing connection between a node's stop and its restart.
"""

from __future__ import annotations

import random
import socket
from collections import deque
from typing import Final

FIRST: Final = 20_000
LAST: Final = 32_000
_TRIES: Final = 1_000
_AGAIN: Final = 4_000
"""How many ports this process asks for before it may get one again: nobody listens on one that was just handed out."""

_recent: deque[int] = deque(maxlen=_AGAIN)


def free_ports(count: int) -> list[int]:
    """`count` different ports on which nobody listens right now, none of which this process was given lately.

    Raises:
        RuntimeError: The range is full.
    """
    chosen: list[int] = []
    draw = random.SystemRandom()
    for _ in range(_TRIES):
        if len(chosen) == count:
            return chosen
        port = draw.randint(FIRST, LAST)
        if port not in _recent and is_free(port):
            chosen.append(port)
            _recent.append(port)
    raise RuntimeError(f"no {count} free ports between {FIRST} and {LAST}")


def is_free(port: int) -> bool:
    """Whether nobody listens on the port of the loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
