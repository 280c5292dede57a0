"""Lanes whose two ends know other members: what is shown, what is believed, and that nothing passes before.

Node 1 votes. The old view has members 1 to 4; the new one is without 4, which was forgotten.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from data_plane_testing.identities import MESH
from data_plane_testing.settling import Mesh, view, vouch
from mesh_data.core.forwarder import DropReason
from mesh_data.core.handshake import Standing
from mesh_data.core.membership_desk import BELIEFS_BURST, membership_of
from mesh_data.core.overlay import LinkChanged
from mesh_data.core.settlement import LaneSettled, LaneUnsettled, MembershipLearned, VouchWanted
from mesh_data.core.settling_lane import ANSWERS_MAX, PART_BYTES_MAX, SETTLE_S
from mesh_data.core.view import View
from meshapi.overlay.v1 import lane_pb2
from meshcommon.errors import ErrorCode
from meshcommon.ids import NodeId
from meshcommon.membership import MEMBERSHIP_BYTES_MAX, Membership, Vouch
from meshwire.packet import Protocol, TrafficClass

ALL = (1, 2, 3, 4)


OLD = view(*ALL, revision=10)
NEW = view(1, 2, 3, revision=20)


def test_node_that_is_behind_is_shown_the_membership_before_the_lane_carries_packets() -> None:
    mesh = Mesh(n1=NEW, n2=OLD)
    mesh.wire(2, 1)
    assert not mesh.is_up(1, 2)
    assert not mesh.is_up(2, 1)
    mesh.send(1, 2, b"early")
    mesh.run()
    assert mesh.knows(2) == {1, 2, 3}
    assert mesh.is_up(1, 2)
    assert mesh.is_up(2, 1)
    mesh.send(1, 2, b"late")
    mesh.run()
    assert mesh.delivered[2] == [b"late"]
    assert mesh.cores[2].forwarder.counters.dropped[DropReason.UNSETTLED] == 0, (
        "an honest neighbour sends nothing early"
    )


def test_forgotten_node_is_cut_off_when_a_member_that_missed_it_meets_another_one() -> None:
    mesh = Mesh(n1=NEW, n2=OLD, n4=OLD)
    mesh.wire(4, 2)
    mesh.run()
    assert mesh.is_up(2, 4), "both know the old membership"
    mesh.wire(2, 1)
    mesh.run()
    assert not mesh.is_up(2, 4)
    downs = [event for event in mesh.of(2, LinkChanged) if not event.is_up]
    assert [(event.peer, event.reason) for event in downs] == [(4, "it is no member of the mesh any more")]


def test_lanes_of_the_same_membership_are_in_service_at_once_whatever_the_revision() -> None:
    mesh = Mesh(n1=replace(OLD, revision=15), n2=OLD)
    mesh.wire(1, 2)
    assert mesh.is_up(1, 2)
    assert mesh.is_up(2, 1)
    assert not mesh.of(1, LaneSettled)


def test_member_without_a_vote_shows_what_a_voter_has_vouched_for() -> None:
    mesh = Mesh(n1=NEW, n2=OLD, n3=NEW)
    mesh.wire(2, 3)
    mesh.run()
    assert not mesh.is_up(2, 3), "the word of a member without a vote is not enough"
    assert [event.voters for event in mesh.of(3, VouchWanted)] == [(1,)]
    assert mesh.cores[3].add_vouch(vouch(1, NEW), mesh.now)
    mesh.run()
    assert mesh.is_up(2, 3)
    assert mesh.knows(2) == {1, 2, 3}


def test_who_learned_of_a_membership_passes_it_on_with_the_same_vouch() -> None:
    mesh = Mesh(n1=NEW, n2=OLD, n3=OLD)
    mesh.wire(2, 1)
    mesh.run()
    mesh.wire(3, 2)
    mesh.run()
    assert mesh.knows(3) == {1, 2, 3}
    assert mesh.is_up(3, 2)


def test_without_a_vouch_that_lane_alone_is_closed_after_two_seconds_by_its_name() -> None:
    mesh = Mesh(n1=OLD, n2=OLD, n3=NEW)
    mesh.wire(2, 1)
    mesh.run()
    lane = mesh.wire(2, 3)
    mesh.run(SETTLE_S - 0.1)
    assert mesh.cores[2].is_settling(lane)
    mesh.run(0.3)
    assert {event.error.code for event in mesh.of(2, LaneUnsettled)} == {ErrorCode.MEMBERSHIP_OUTDATED}
    assert {event.error.code for event in mesh.of(3, LaneUnsettled)} <= {ErrorCode.MEMBERSHIP_OUTDATED}
    assert mesh.is_up(2, 1)
    assert mesh.knows(2) == set(ALL)


def test_node_that_its_control_plane_tells_in_the_meantime_needs_no_vouch() -> None:
    mesh = Mesh(n2=OLD, n3=NEW)
    mesh.wire(2, 3)
    mesh.run()
    mesh.tell(2, NEW)
    mesh.run()
    assert mesh.is_up(2, 3)
    assert mesh.is_up(3, 2)
    assert not mesh.of(2, MembershipLearned)


def test_older_view_of_the_own_control_plane_does_not_bring_a_forgotten_node_back() -> None:
    mesh = Mesh(n1=NEW, n2=OLD)
    mesh.wire(2, 1)
    mesh.run()
    mesh.tell(2, replace(OLD, revision=12))
    assert mesh.knows(2) == {1, 2, 3}
    mesh.tell(2, replace(view(1, 2, 3, 5, revision=21)))
    assert mesh.knows(2) == {1, 2, 3, 5}


def believe(known: View, shown: Membership, word: Vouch) -> str:
    """What node 2 says to a membership that its neighbour 3 shows; empty when it believes it."""
    mesh = Mesh(n2=known)
    before = mesh.cores[2].membership.digest
    refused = mesh.cores[2].membership.believe(NodeId(3), shown.encode(word), mesh.now)
    assert (mesh.cores[2].membership.digest == before) is (refused is not None)
    return refused.reason if refused is not None else ""


def test_voters_word_for_a_newer_membership_is_believed() -> None:
    assert believe(OLD, membership_of(NEW), vouch(1, NEW)) == ""


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        (vouch(1, NEW, revision=10), "no newer"),
        (vouch(1, NEW, revision=9), "no newer"),
        (vouch(3, NEW), "nobody who is known here as a voter"),
        (vouch(9, NEW), "nobody who is known here as a voter"),
        (vouch(1, NEW, key=3), "signature"),
        (vouch(1, OLD, revision=20), "other members"),
        (replace(vouch(1, NEW), revision=21), "signature"),
    ],
    ids=["same-revision", "older", "no-voter", "no-member", "forged", "of-other-members", "raised-revision"],
)
def test_membership_that_no_voter_vouches_for_as_newer_is_refused(word: Vouch, reason: str) -> None:
    assert reason in believe(OLD, membership_of(NEW), word)


def test_replayed_old_membership_never_rolls_back() -> None:
    between = view(1, 2, 3, 4, 5, revision=15)
    assert "no newer" in believe(NEW, membership_of(between), vouch(1, between))


def test_membership_of_another_mesh_or_epoch_is_refused() -> None:
    for other in (replace(NEW, mesh_epoch=1), replace(NEW, mesh_id=MESH[:-1] + "2")):
        assert "another mesh" in believe(OLD, membership_of(other), vouch(1, other))


def test_membership_without_this_node_is_not_taken() -> None:
    without = view(1, 3, revision=20)
    assert "forgotten" in believe(OLD, membership_of(without), vouch(1, without))


def test_voter_of_the_new_membership_alone_cannot_vouch_for_it() -> None:
    promoted = view(1, 2, 3, revision=20, voters=(3,))
    assert "nobody who is known here as a voter" in believe(OLD, membership_of(promoted), vouch(3, promoted))
    assert believe(OLD, membership_of(promoted), vouch(1, promoted)) == "", "who was known as a voter may be none now"


def test_vouch_of_an_earlier_time_with_the_same_members_does_not_show_it_as_newer() -> None:
    """A node was known, then another one, and then the first again: the old word is older than what lies between."""
    mesh = Mesh(n3=NEW)
    mesh.cores[3].add_vouch(vouch(1, NEW, revision=5), mesh.now)
    assert mesh.cores[3].membership.shown_to([1], behind=10) is None
    mesh.cores[3].add_vouch(vouch(1, NEW, revision=18), mesh.now)
    assert mesh.cores[3].membership.shown_to([1], behind=10) is not None


def test_vouch_is_kept_only_for_the_present_members_and_from_its_signer() -> None:
    mesh = Mesh(n3=NEW)
    core = mesh.cores[3]
    assert not core.add_vouch(vouch(1, OLD), mesh.now)
    assert not core.add_vouch(vouch(1, NEW, key=2), mesh.now)
    assert not core.add_vouch(vouch(9, NEW), mesh.now)


def test_neighbour_that_shows_memberships_all_the_time_is_not_listened_to() -> None:
    mesh = Mesh(n2=OLD)
    desk, junk = mesh.cores[2].membership, b"\xff" * 100
    reasons = [desk.believe(NodeId(3), junk, mesh.now) for _ in range(int(BELIEFS_BURST) + 1)]
    assert [item.reason if item else "" for item in reasons[-2:]] == [
        "it is not well formed",
        "it shows memberships too often",
    ]
    assert desk.believe(NodeId(1), membership_of(NEW).encode(vouch(1, NEW)), mesh.now) is None, "others are listened to"


def settle_by_hand(node: int, known: View, standing: Standing) -> tuple[Mesh, int]:
    """A lane of `node` to node 3, whose side the test plays."""
    mesh = Mesh(**{f"n{node}": known, "n3": OLD})
    shown = replace(mesh.peer(node, 3, standing), membership_revision=20 if standing is Standing.BEHIND else 1)
    mesh.lanes += 1
    mesh.cores[node].open_lane(
        mesh.lanes, NodeId(3), True, False, mesh.now, shown=replace(shown, membership_digest=b"\x01" * 32)
    )
    return mesh, mesh.lanes


def say(mesh: Mesh, node: int, lane: int, message: lane_pb2.LaneControl, protocol: Protocol = Protocol.LANE) -> None:
    """Node 3 sends a message of the lane."""
    hand = mesh.cores[3].forwarder
    packet = hand.lane_packet(protocol, TrafficClass.CONTROL, NodeId(node), message.SerializeToString(), mesh.now)
    assert packet is not None
    mesh.cores[node].receive(lane, b"\x02" + len(packet).to_bytes(4, "big") + packet, mesh.now)
    mesh.events[node] += mesh.cores[node].take_events()


def part(total: int, offset: int, content: bytes) -> lane_pb2.LaneControl:
    return lane_pb2.LaneControl(
        membership_part=lane_pb2.LaneMembershipPart(total_bytes=total, offset=offset, content=content)
    )


@pytest.mark.parametrize(
    "parts",
    [
        [part(10, 1, b"x")],
        [part(10, 0, b"")],
        [part(0, 0, b"x")],
        [part(1, 0, b"xx")],
        [part(MEMBERSHIP_BYTES_MAX + 1, 0, b"x")],
        [part(2 * PART_BYTES_MAX, 0, bytes(PART_BYTES_MAX + 1))],
        [part(10, 0, b"x"), part(11, 1, b"x")],
        [part(10, 0, b"x"), part(10, 0, b"x")],
        [part(3, 0, b"xyz")],
    ],
    ids=["gap", "empty", "no-size", "longer", "huge", "huge-part", "other-size", "again", "junk"],
)
def test_pieces_that_do_not_fit_end_that_lane(parts: list[lane_pb2.LaneControl]) -> None:
    mesh, lane = settle_by_hand(2, OLD, Standing.BEHIND)
    for message in parts:
        say(mesh, 2, lane, message)
    assert len(mesh.refusals(2)) == 1
    assert not mesh.is_up(2, 3)
    assert mesh.knows(2) == set(ALL)


def test_claim_to_know_what_one_has_shown_does_not_bring_the_lane_into_service() -> None:
    mesh, lane = settle_by_hand(2, OLD, Standing.BEHIND)
    say(mesh, 2, lane, lane_pb2.LaneControl(membership_known=lane_pb2.LaneMembershipKnown()))
    assert not mesh.is_up(2, 3)
    assert len(mesh.refusals(2)) == 1


def test_packets_on_a_lane_that_is_not_settled_are_dropped_and_counted() -> None:
    mesh, lane = settle_by_hand(2, OLD, Standing.BEHIND)
    say(mesh, 2, lane, lane_pb2.LaneControl(), Protocol.KEYS)
    assert mesh.cores[2].forwarder.counters.dropped[DropReason.UNSETTLED] == 1
    assert mesh.cores[2].is_settling(lane)


def test_node_that_asks_without_end_loses_the_lane() -> None:
    mesh, lane = settle_by_hand(1, NEW, Standing.AHEAD)
    ask = lane_pb2.LaneControl(membership_ask=lane_pb2.LaneMembershipAsk(voters=[1]))
    for _ in range(ANSWERS_MAX):
        say(mesh, 1, lane, ask)
        mesh.cores[1].next_frame(lane)
    assert not mesh.refusals(1)
    say(mesh, 1, lane, ask)
    assert len(mesh.refusals(1)) == 1


def test_answers_that_nobody_reads_do_not_pile_up() -> None:
    mesh, lane = settle_by_hand(1, NEW, Standing.AHEAD)
    ask = lane_pb2.LaneControl(membership_ask=lane_pb2.LaneMembershipAsk(voters=[1]))
    for _ in range(ANSWERS_MAX):
        say(mesh, 1, lane, ask)
    opened = mesh.cores[1].lane(lane)
    assert opened is not None
    assert opened.output_bytes <= 128 * 1024


@pytest.mark.parametrize(
    "ask",
    [
        lane_pb2.LaneMembershipAsk(voters=[1], offset=10**6),
        lane_pb2.LaneMembershipAsk(voters=[1] * 17),
    ],
    ids=["offset", "voters"],
)
def test_ask_that_no_node_sends_ends_the_lane(ask: lane_pb2.LaneMembershipAsk) -> None:
    mesh, lane = settle_by_hand(1, NEW, Standing.AHEAD)
    say(mesh, 1, lane, lane_pb2.LaneControl(membership_ask=ask))
    assert len(mesh.refusals(1)) == 1


def test_large_membership_comes_in_parts() -> None:
    many = tuple(range(1, 600))
    mesh = Mesh(n1=view(*many, revision=20), n2=OLD)
    assert len(membership_of(mesh.views[1]).encode(vouch(1, mesh.views[1]))) > PART_BYTES_MAX
    mesh.wire(2, 1)
    mesh.run()
    assert mesh.is_up(2, 1)
    assert mesh.knows(2) == set(many)
