"""A lane between two members of which one knows a newer membership: it carries no packets until both know it.

Purpose: the exchange on such a lane. Whoever is *behind* asks, part by part, and says when it knows; whoever is *ahead* answers
asks and waits for that. Leaves out: what is believed (`membership_desk`), and beats (`lane`).
Source: docs/design/overlay.md "Membership".

States: *settling* → in service (the link takes the lane over) or closed (refused, or `SETTLE_S` are over).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from google.protobuf.message import DecodeError

from mesh_data.core.handshake import PeerNode, Standing
from mesh_data.core.open_lane import OpenLane
from meshapi.overlay.v1 import lane_pb2
from meshcommon.membership import MEMBERSHIP_BYTES_MAX
from meshwire.buffers import Buffer
from meshwire.frame import frame_parts

SETTLE_S: Final = 2.0
"""A lane that is not settled by then is closed."""
PART_BYTES_MAX: Final = 16 * 1024
MESSAGE_BYTES_MAX: Final = PART_BYTES_MAX + 1024
"""A larger message on such a lane is malformed."""
ANSWERS_MAX: Final = MEMBERSHIP_BYTES_MAX // PART_BYTES_MAX + 8
"""Asks that are answered on one lane."""
_KINDS: Final = frozenset({"membership_ask", "membership_part", "membership_known"})


class SettlingLane:
    """One such lane. `now` is monotonic seconds."""

    __slots__ = ("_answers", "_content", "_shown", "_total_bytes", "deadline", "open_lane", "peer", "wanted")

    def __init__(self, open_lane: OpenLane, peer: PeerNode, now: float) -> None:
        self.open_lane = open_lane
        self.peer = peer
        self.deadline = now + SETTLE_S
        self.wanted: lane_pb2.LaneMembershipAsk | None = None
        """An ask that waits for a vouch."""
        self._content = bytearray()
        self._total_bytes = 0
        self._shown: bytes | None = None
        self._answers = 0

    @property
    def is_behind(self) -> bool:
        """Whether this side has to be shown what the other one knows."""
        return self.peer.standing is Standing.BEHIND

    def next_frame_parts(self, lane: OpenLane) -> list[Buffer] | None:
        """The next frame to write on its lane, not yet joined; None when nothing waits."""
        packets = lane.take()
        return frame_parts(packets) if packets else None

    def ask(self, voters: Iterable[int]) -> bytes:
        """The message that asks for the next part."""
        ask = lane_pb2.LaneMembershipAsk(offset=len(self._content), voters=voters)
        return lane_pb2.LaneControl(membership_ask=ask).SerializeToString()

    def take_part(self, part: lane_pb2.LaneMembershipPart) -> bool:
        """Takes a part; False when it does not continue what is here."""
        size, total_bytes = len(part.content), part.total_bytes
        if (
            not self.is_behind
            or not 0 < size <= PART_BYTES_MAX
            or not 0 < total_bytes <= MEMBERSHIP_BYTES_MAX
            or part.offset != len(self._content)
            or (self._content and total_bytes != self._total_bytes)
            or part.offset + size > total_bytes
        ):
            return False
        self._total_bytes = total_bytes
        self._content += part.content
        return True

    def whole(self) -> bytes | None:
        """The membership, once all of it is here."""
        return bytes(self._content) if self._content and len(self._content) == self._total_bytes else None

    def may_answer(self) -> bool:
        """Counts an ask; False when the other side asks more than it needs."""
        self._answers += 1
        return not self.is_behind and self._answers <= ANSWERS_MAX

    @property
    def has_shown(self) -> bool:
        """Whether it was decided which membership this lane shows: it stays the same for all its parts."""
        return self._shown is not None

    def show(self, membership: bytes) -> None:
        """Decides that."""
        self._shown = membership

    def part(self, offset: int) -> bytes | None:
        """The message with the part that begins at `offset`; None when there is none."""
        shown = self._shown or b""
        content = shown[offset : offset + PART_BYTES_MAX]
        if not content:
            return None
        part = lane_pb2.LaneMembershipPart(total_bytes=len(shown), offset=offset, content=content)
        return lane_pb2.LaneControl(membership_part=part).SerializeToString()


def encode_known() -> bytes:
    """The message that ends the exchange."""
    return lane_pb2.LaneControl(membership_known=lane_pb2.LaneMembershipKnown()).SerializeToString()


def decode_membership_message(payload: bytes | memoryview) -> lane_pb2.LaneControl | None:
    """The message about membership in a payload of protocol LANE; None when it is another one, or malformed."""
    if len(payload) > MESSAGE_BYTES_MAX:
        return None
    try:
        message = lane_pb2.LaneControl.FromString(bytes(payload))
    except DecodeError:
        return None
    return message if message.WhichOneof("kind") in _KINDS else None
