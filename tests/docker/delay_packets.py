#!/usr/bin/python3
"""Delays every packet that iptables hands to an NFQUEUE, for kernels without netem.

Order is kept: packets leave as they came, each after the same time. Runs with Debian's python3-netfilterqueue in the
tests' side container, until it is killed.
"""

from __future__ import annotations

import sys
from collections import deque
from select import select
from time import monotonic
from typing import Any

from netfilterqueue import NetfilterQueue  # type: ignore[import-not-found] # only in the side container


def main(queue_number: int, delay_s: float) -> None:
    """Serves one queue for ever."""
    waiting: deque[tuple[float, Any]] = deque()
    queue = NetfilterQueue()

    def hold(packet: Any) -> None:
        packet.retain()
        waiting.append((monotonic() + delay_s, packet))

    queue.bind(queue_number, hold)
    descriptor = queue.get_fd()
    print("ready", flush=True)
    while True:
        pause = max(0.0, waiting[0][0] - monotonic()) if waiting else None
        if select([descriptor], [], [], pause)[0]:
            queue.run(block=False)
        while waiting and waiting[0][0] <= monotonic():
            waiting.popleft()[1].accept()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
