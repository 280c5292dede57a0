"""Timing and bounds of stream groups, by preset.

Leaves out: lanes and handshakes (`timing`). Source: architecture §7 (election timeout ≥ 10 × the slowest voter's round trip).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final


@dataclass(frozen=True, slots=True)
class StreamTiming:
    """How stream groups keep time.

    Attributes:
        tick_s: length of a Raft tick.
        election_ticks: ticks without a leader before an election, doubled at random at most.
        heartbeat_ticks: ticks between a leader's heartbeats.
        uncommitted_bytes_max: a leader takes no more before a quorum has this much; costs that much memory per group.
        publish_deadline_s: one batch is answered within this time.
        attempt_s: one try of a batch that may be repeated safely; then the leader is looked for again.
        read_barrier_s: a linearizable read waits this long for a leader to confirm the end of the stream, then fails;
            long enough for an election.
        stale_wait_s: a read that may be stale waits this long for the same, then takes what is there.
        boot_raise_s: while its log is written a node raises its boot number this often, which costs a few small fsyncs; what
            a disk confirmed last, for this long at most, is not missed by the peers when it is rolled back.
    """

    tick_s: float
    election_ticks: int
    heartbeat_ticks: int
    uncommitted_bytes_max: int = 32 * 1024 * 1024
    publish_deadline_s: float = 10.0
    attempt_s: float = 1.5
    read_barrier_s: float = 5.0
    stale_wait_s: float = 0.1
    boot_raise_s: float = 5.0

    @property
    def election_s(self) -> float:
        """Shortest time after which a lost leader is replaced."""
        return self.tick_s * self.election_ticks

    @classmethod
    def preset(cls, name: str) -> StreamTiming:
        """The preset `lan`, `wan` or `test`."""
        return _PRESETS[name]


_LAN: Final = StreamTiming(tick_s=0.05, election_ticks=12, heartbeat_ticks=2)
_PRESETS: Final = {
    "lan": _LAN,
    "test": _LAN,
    "wan": replace(_LAN, election_ticks=60, heartbeat_ticks=10, attempt_s=4.0, read_barrier_s=10.0, stale_wait_s=0.3),
}
