"""`python -m tests.bench.unsealed -m mesh_data`: a data plane that does not encrypt its packets, to measure what that costs.

The product cannot be told to do so. Here the cipher of its sessions is replaced by a copy of the payload and sixteen zero
bytes, so headers, counters, replay windows and sizes stay. All nodes of a mesh must be started like this.
"""

from __future__ import annotations

import runpy
import sys

from mesh_data.core.packet_session import PacketSession, SealFault
from meshwire.buffers import Buffer
from meshwire.packet import TAG_BYTES, SealedPart, TrafficClass


def _seal(_session: PacketSession, _cls: TrafficClass, _counter: int, payload: Buffer, _associated: bytes) -> bytes:
    return b"".join((payload, bytes(TAG_BYTES)))


def _open(session: PacketSession, cls: TrafficClass, part: SealedPart) -> bytes | SealFault:
    window = session._windows[cls]
    if not window.is_new(part.counter):
        return SealFault.REPLAYED
    window.accept(part.counter)
    return bytes(part.sealed[:-TAG_BYTES])


def main() -> None:
    """Runs the module that is named as an interpreter would."""
    if sys.argv[1:2] != ["-m"] or len(sys.argv) != 3:
        raise SystemExit("usage: python -m tests.bench.unsealed -m MODULE")
    PacketSession.seal = _seal  # type: ignore[assignment, method-assign]
    PacketSession.open = _open  # type: ignore[assignment, method-assign]
    module = sys.argv.pop()
    sys.argv[:] = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
