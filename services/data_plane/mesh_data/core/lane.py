"""One lane after its handshake: heartbeats, round trip estimate, silence detection, goodbye.

Purpose: tell within a few hundred milliseconds that a lane carries nothing any more, without taking this process's own
pauses for the peer's silence. Leaves out: packets of other protocols, and what a dead lane means for the link.
Source: RFC 6298 §2 (SRTT, RTTVAR); architecture §5 "Detection".

States: *up* → *down* (silence, bye, closed); a lane never comes back.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from mesh_data.core.timing import OverlayTiming
from meshapi.overlay.v1 import lane_pb2
from meshcommon.ids import NodeId

_ALPHA = 1 / 8
_BETA = 1 / 4
_UNANSWERED_MAX = 64


class Lane:
    """Timers and estimates of one lane. `now` is monotonic seconds."""

    __slots__ = (
        "_beat_at",
        "_heard_at",
        "_outgoing",
        "_sequence",
        "_timing",
        "_unanswered",
        "bye",
        "is_dialled",
        "lane_id",
        "opened_at",
        "peer",
        "rttvar_s",
        "srtt_s",
    )

    def __init__(self, lane_id: int, peer: NodeId, is_dialled: bool, timing: OverlayTiming, now: float) -> None:
        self.lane_id = lane_id
        self.peer = peer
        self.is_dialled = is_dialled
        self.opened_at = now
        self.srtt_s: float | None = None
        self.rttvar_s = 0.0
        self.bye: lane_pb2.LaneBye | None = None
        self._timing = timing
        self._heard_at = now
        self._beat_at = now
        self._sequence = 0
        self._unanswered: dict[int, float] = {}
        self._outgoing: list[bytes] = []

    def silence_limit_s(self) -> float:
        """Silence after which the lane is down."""
        timing = self._timing
        srtt_s = self.srtt_s or 0.0
        adapted = timing.silence_base_s + timing.srtt_factor * srtt_s + timing.rttvar_factor * self.rttvar_s
        return max(timing.silence_floor_s, adapted)

    def heard(self, now: float) -> None:
        """A frame arrived; any frame counts."""
        self._heard_at = max(self._heard_at, now)

    def receive(self, payload: bytes | memoryview, now: float) -> bool:
        """Takes a payload of protocol LANE; returns False when it is malformed (then nothing has changed)."""
        try:
            message = lane_pb2.LaneControl.FromString(bytes(payload))
        except DecodeError:
            return False
        kind = message.WhichOneof("kind")
        if kind == "beat":
            self._outgoing.append(lane_pb2.LaneControl(echo=message.beat).SerializeToString())
        elif kind == "echo":
            sent_at = self._unanswered.pop(message.echo.sequence, None)
            if sent_at is not None:
                self._sample(max(now - sent_at, 0.0))
        elif kind == "bye":
            self.bye = message.bye
        else:
            return False
        return True

    def tick(self, now: float) -> None:
        """Queues a beat when one is due."""
        if now < self._beat_at:
            return
        self._sequence += 1
        # From the time it was due, not from now: else the ticker's grain would stretch every period.
        due = self._beat_at + self._timing.beat_s
        self._beat_at = due if due > now else now + self._timing.beat_s
        if len(self._unanswered) >= _UNANSWERED_MAX:
            del self._unanswered[next(iter(self._unanswered))]
        self._unanswered[self._sequence] = now
        beat = lane_pb2.LaneBeat(sequence=self._sequence, sent_at_us=int(now * 1e6))
        self._outgoing.append(lane_pb2.LaneControl(beat=beat).SerializeToString())

    def stalled(self, stall_s: float, now: float) -> None:
        """This process itself stood still for `stall_s`: the peer is not to blame, nor is the path."""
        self._heard_at = min(self._heard_at + stall_s, now)
        if stall_s >= self._timing.beat_s:
            self._unanswered.clear()

    def is_silent(self, now: float) -> bool:
        """Whether it has been silent for too long."""
        return now - self._heard_at > self.silence_limit_s()

    def next_deadline(self) -> float:
        """When `tick` or `is_silent` may change its mind."""
        return min(self._beat_at, self._heard_at + self.silence_limit_s())

    def take_outgoing(self) -> list[bytes]:
        """Payloads of protocol LANE to send, ahead of everything else."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def _sample(self, rtt_s: float) -> None:
        if self.srtt_s is None:
            self.srtt_s = rtt_s
            self.rttvar_s = rtt_s / 2
            return
        self.rttvar_s += _BETA * (abs(self.srtt_s - rtt_s) - self.rttvar_s)
        self.srtt_s += _ALPHA * (rtt_s - self.srtt_s)


def encode_bye(is_node_stopping: bool, reason: str) -> bytes:
    """Payload that announces the end of a lane."""
    bye = lane_pb2.LaneBye(is_node_stopping=is_node_stopping, reason=reason)
    return lane_pb2.LaneControl(bye=bye).SerializeToString()
