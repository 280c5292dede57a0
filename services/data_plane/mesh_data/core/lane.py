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
from meshcommon.peer_text import printable

CONTROL_BYTES_MAX = 1024
"""A larger LaneControl is malformed: none that this protocol knows comes near."""
ECHOES_MAX = 4
"""Echoes that wait to be sent; the beats of a peer that sends more at once go unanswered."""
BEATS_MAX = 4
"""Beats that wait to be sent; a peer that takes none is told nothing by more of them."""
_ALPHA = 1 / 8
_BETA = 1 / 4
_UNANSWERED_MAX = 64


class Lane:
    """Timers and estimates of one lane. `now` is monotonic seconds."""

    __slots__ = (
        "_beat_at",
        "_echoes",
        "_heard_at",
        "_outgoing",
        "_sequence",
        "_timing",
        "_unanswered",
        "bye",
        "echoes_dropped",
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
        self._echoes = 0
        self.echoes_dropped = 0

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
        if len(payload) > CONTROL_BYTES_MAX:
            return False
        try:
            message = lane_pb2.LaneControl.FromString(bytes(payload))
        except DecodeError:
            return False
        kind = message.WhichOneof("kind")
        if kind == "beat":
            self._echo(message.beat)
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
        # At a multiple of the period: all lanes share one wake, and lateness of the driver stretches no period.
        beat_s = self._timing.beat_s
        due = (now // beat_s + 1) * beat_s
        self._beat_at = due if due > now else due + beat_s
        if len(self._unanswered) >= _UNANSWERED_MAX:
            del self._unanswered[next(iter(self._unanswered))]
        self._unanswered[self._sequence] = now
        beat = lane_pb2.LaneBeat(sequence=self._sequence, sent_at_us=int(now * 1e6))
        if len(self._outgoing) - self._echoes < BEATS_MAX:
            self._outgoing.append(lane_pb2.LaneControl(beat=beat).SerializeToString())

    def stalled(self, stall_s: float, now: float) -> None:
        """This process itself stood still for `stall_s`: the peer is not to blame, nor is the path."""
        self._heard_at = min(self._heard_at + stall_s, now)
        if stall_s >= self._timing.beat_s:
            self._unanswered.clear()

    def is_silent(self, now: float) -> bool:
        """Whether it has been silent for too long."""
        return now >= self._heard_at + self.silence_limit_s()

    def next_deadline(self) -> float:
        """When `tick` has something to do or `is_silent` becomes true.

        A frame that is heard moves it later. A shorter round trip may bring it nearer, which a beat later at most is seen.
        """
        return min(self._beat_at, self._heard_at + self.silence_limit_s())

    def take_outgoing(self) -> list[bytes]:
        """Payloads of protocol LANE to send, ahead of everything else."""
        outgoing, self._outgoing, self._echoes = self._outgoing, [], 0
        return outgoing

    def _echo(self, beat: lane_pb2.LaneBeat) -> None:
        if self._echoes >= ECHOES_MAX:
            self.echoes_dropped += 1
            return
        self._echoes += 1
        # From the fields that are known: a copy would return whatever else the peer put into its beat.
        echo = lane_pb2.LaneBeat(sequence=beat.sequence, sent_at_us=beat.sent_at_us)
        self._outgoing.append(lane_pb2.LaneControl(echo=echo).SerializeToString())

    def _sample(self, rtt_s: float) -> None:
        if self.srtt_s is None:
            self.srtt_s = rtt_s
            self.rttvar_s = rtt_s / 2
            return
        self.rttvar_s += _BETA * (abs(self.srtt_s - rtt_s) - self.rttvar_s)
        self.srtt_s += _ALPHA * (rtt_s - self.srtt_s)


def encode_bye(is_node_stopping: bool, reason: str) -> bytes:
    """Payload that announces the end of a lane."""
    bye = lane_pb2.LaneBye(is_node_stopping=is_node_stopping, reason=printable(reason))
    return lane_pb2.LaneControl(bye=bye).SerializeToString()
