"""Timing of the control plane by preset.

Formula: an election starts after `election_ticks` to twice that many ticks of silence; it must be at least ten times the
slowest voter's path round trip (architecture §7). Shorter notices a dead leader sooner and costs false elections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Timing:
    """All times in seconds or Raft ticks.

    Attributes:
        tick_s: length of a Raft tick.
        election_ticks: least silence before an election.
        heartbeat_ticks: ticks between a leader's heartbeats.
        unreachable_after_s: silence after which the leader commits that a node is unreachable.
        proposal_deadline_s: how long a change may take before it is answered with NO_QUORUM.
        stream_forms_within_s: how long CreateStream waits for the group.
        leaderless_after_s: how long a stream may be without a leader before the status says so; longer than two elections.
    """

    tick_s: float = 0.05
    election_ticks: int = 20
    heartbeat_ticks: int = 2
    unreachable_after_s: float = 3.0
    proposal_deadline_s: float = 10.0
    stream_forms_within_s: float = 10.0
    leaderless_after_s: float = 10.0

    @property
    def unreachable_after_ticks(self) -> int:
        """`unreachable_after_s` in ticks."""
        return round(self.unreachable_after_s / self.tick_s)

    @property
    def leader_lost_ticks(self) -> int:
        """Silence of the leader after which a follower no longer claims to see a quorum."""
        return 2 * self.election_ticks


TIMINGS: Final[dict[str, Timing]] = {
    "lan": Timing(),
    "test": Timing(),
    "wan": Timing(
        election_ticks=100,
        heartbeat_ticks=10,
        unreachable_after_s=15.0,
        proposal_deadline_s=30.0,
        leaderless_after_s=20.0,
    ),
}
