"""Brings lanes whose two ends know other members to the same knowledge, before they carry packets.

Purpose: what each message about membership on a lane leads to. Leaves out: what is believed (`membership_desk`), the state of one
lane (`settling_lane`), and how a vouch of another member is come by, which the driver is asked for.
Source: docs/design/overlay.md "Membership".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from mesh_data.core.membership_desk import VOTERS_MAX, MembershipDesk
from mesh_data.core.open_lane import OpenLane
from mesh_data.core.settling_lane import SettlingLane, decode_membership_message, encode_known
from meshapi.overlay.v1 import lane_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshcommon.membership import Vouch

NO_MEMBER: Final = "it is no member of the mesh any more"


@dataclass(frozen=True, slots=True)
class LaneSettled:
    """Both ends of a lane know the same membership now: it carries packets."""

    lane_id: int


@dataclass(frozen=True, slots=True)
class LaneUnsettled:
    """A lane is closed because the newer membership did not come, or was not believed."""

    lane_id: int
    error: MeshError


@dataclass(frozen=True, slots=True)
class MembershipLearned:
    """Another node has shown a newer membership: `view` has changed."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class VouchWanted:
    """A node that is behind knows these voters, and no vouch of theirs is here: ask them, and call `add_vouch`."""

    lane_id: int
    voters: tuple[NodeId, ...]


SettlementEvent: TypeAlias = LaneSettled | LaneUnsettled | MembershipLearned | VouchWanted


class Lanes(Protocol):
    """What the overlay core does for a settlement."""

    def put_control(self, lane: OpenLane, payload: bytes, now: float) -> None:
        """Queues a payload of protocol LANE."""

    def close_politely(self, lane: OpenLane, reason: str, now: float) -> None:
        """Says bye, sends what waits and closes."""

    def take_into_service(self, lane: OpenLane, now: float) -> None:
        """The lane carries packets from now on."""

    def settling_lanes(self) -> list[SettlingLane]:
        """Lanes that are not in service yet."""

    def members_learned(self, now: float) -> None:
        """The desk believes a newer membership: it comes into force."""


class Settlement:
    """The settling of all lanes of a node. `now` is monotonic seconds."""

    def __init__(self, lanes: Lanes, desk: MembershipDesk, tell: Callable[[SettlementEvent], None]) -> None:
        self._lanes = lanes
        self._desk = desk
        self._tell = tell

    def open(self, owner: SettlingLane, now: float) -> None:
        """Begins with a lane whose handshake is done."""
        if not self._settle_if_known(owner, now) and owner.is_behind:
            self._lanes.put_control(owner.open_lane, owner.ask(self._desk.voters), now)

    def receive(self, owner: SettlingLane, payload: memoryview, now: float) -> bool:
        """Takes a payload of protocol LANE; False when it is no message about membership."""
        message = decode_membership_message(payload)
        if message is None:
            return False
        if message.HasField("membership_ask"):
            self._take_ask(owner, message.membership_ask, now)
        elif message.HasField("membership_part"):
            self._take_part(owner, message.membership_part, now)
        elif owner.is_behind:
            self.unsettled(owner, "the other side claims to know what it has shown to be newer", now)
        else:
            self._settled(owner, now)
        return True

    def add_vouch(self, vouch: Vouch, now: float) -> bool:
        """Takes what a member vouches for, and answers those who wait for it; False when it is for other members."""
        if not self._desk.add_vouch(vouch):
            return False
        for owner in self._lanes.settling_lanes():
            if owner.wanted is not None:
                self._answer(owner, owner.wanted, now)
        return True

    def membership_changed(self, now: float) -> None:
        """The desk knows other members than before."""
        view = self._desk.view
        for owner in self._lanes.settling_lanes():
            if view is not None and owner.open_lane.lane.peer not in view.nodes:
                self._lanes.close_politely(owner.open_lane, NO_MEMBER, now)
            else:
                self._settle_if_known(owner, now)

    def unsettled(self, owner: SettlingLane, why: str, now: float) -> None:
        """The lane is closed, and it alone: other neighbours may show the same and be believed."""
        lane = owner.open_lane
        if lane.is_closing:
            return
        error = MeshError(
            ErrorCode.MEMBERSHIP_OUTDATED,
            f"The lane to node {lane.lane.peer} was closed, because its two ends know other members and {why}: it is tried "
            "again; if that goes on, look at the voters, and join again with a token where a node was away too long.",
        )
        self._tell(LaneUnsettled(lane.lane_id, error))
        self._lanes.close_politely(lane, f"{error.code}: {why}", now)

    def _take_ask(self, owner: SettlingLane, ask: lane_pb2.LaneMembershipAsk, now: float) -> None:
        if not owner.may_answer() or len(ask.voters) > VOTERS_MAX or owner.open_lane.is_full:
            self.unsettled(owner, "the other side asks more than it needs", now)
        else:
            self._answer(owner, ask, now)

    def _answer(self, owner: SettlingLane, ask: lane_pb2.LaneMembershipAsk, now: float) -> None:
        if not owner.has_shown:
            shown = self._desk.shown_to(ask.voters, owner.peer.membership_revision)
            if shown is None:
                if owner.wanted is None:
                    self._tell(VouchWanted(owner.open_lane.lane_id, tuple(map(NodeId, ask.voters))))
                owner.wanted = ask
                return
            owner.show(shown)
        owner.wanted = None
        part = owner.part(ask.offset)
        if part is None:
            self.unsettled(owner, "the other side asks for what is not there", now)
        else:
            self._lanes.put_control(owner.open_lane, part, now)

    def _take_part(self, owner: SettlingLane, part: lane_pb2.LaneMembershipPart, now: float) -> None:
        if not owner.take_part(part):
            self.unsettled(owner, "the other side shows a membership in pieces that do not fit", now)
            return
        whole = owner.whole()
        if whole is None:
            self._lanes.put_control(owner.open_lane, owner.ask(self._desk.voters), now)
            return
        peer = owner.open_lane.lane.peer
        refused = self._desk.believe(peer, whole, now)
        if refused is not None:
            self.unsettled(owner, f"what the other side shows is not believed: {refused.reason}", now)
            return
        self._tell(MembershipLearned(peer))
        self._lanes.members_learned(now)

    def _settle_if_known(self, owner: SettlingLane, now: float) -> bool:
        """Ends the settling of a lane whose other side is not ahead any more."""
        peer, desk = owner.peer, self._desk
        is_known = peer.membership_digest == desk.digest or peer.membership_revision <= desk.revision
        if not owner.is_behind or not is_known or owner.open_lane.is_closing:
            return False
        self._lanes.put_control(owner.open_lane, encode_known(), now)
        self._settled(owner, now)
        return True

    def _settled(self, owner: SettlingLane, now: float) -> None:
        lane = owner.open_lane
        if not lane.is_closing:
            self._tell(LaneSettled(lane.lane_id))
            self._lanes.take_into_service(lane, now)
