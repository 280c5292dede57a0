"""When a disk is short of room, and how long a peer's word about its own holds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh_data.core.disk_room import DiskRoom, RoomLimits
from meshcommon.ids import NodeId

OWN, PEER, OTHER = NodeId(1), NodeId(2), NodeId(3)
GIB = 1 << 30


def test_a_disk_is_short_from_its_share_on_until_some_has_been_given_back() -> None:
    room = DiskRoom(RoomLimits())
    assert not room.measured(10 * GIB, 2 * GIB)
    assert room.measured(10 * GIB, 2 * GIB - 1)
    assert room.is_short
    # Not on and off at the edge.
    assert not room.measured(9 * GIB + GIB // 2, 2 * GIB - 1)
    assert room.measured(8 * GIB, 2 * GIB - 1)
    assert not room.is_short


def test_a_large_disk_with_plenty_left_is_not_short() -> None:
    room = DiskRoom(RoomLimits())
    assert not room.measured(10_000 * GIB, 2 * GIB)
    assert room.measured(10_000 * GIB, 2 * GIB - 1)


def test_a_peers_word_holds_for_a_while() -> None:
    room = DiskRoom(RoomLimits(heard_s=3.0))
    assert room.short_member(OWN, (OWN, PEER), 10.0) is None
    room.heard(PEER, 10.0)
    assert room.short_member(OWN, (OWN, PEER), 12.9) == PEER
    assert room.short_member(OWN, (OWN, OTHER), 12.9) is None
    doubts = [room.has_no_doubt]
    assert room.short_member(OWN, (OWN, PEER), 13.0) is None
    doubts.append(room.has_no_doubt)
    assert doubts == [False, True]
    room.measured(GIB, 0)
    assert room.short_member(OWN, (PEER, OWN), 20.0) == OWN
    assert room.short_member(OWN, (PEER,), 20.0) is None


@given(st.lists(st.tuples(st.integers(1, 100), st.integers(0, 100)), max_size=30))
def test_it_is_short_exactly_when_the_share_says_so(looks: list[tuple[int, int]]) -> None:
    """Against the rule written down once more; with the plenty out of the way."""
    room = DiskRoom(RoomLimits(used_share=0.8, plenty_bytes=1 << 60, give_back_share=0.05))
    was_short = False
    for total, free in looks:
        used_percent = 100 * (total - min(free, total)) / total
        is_short = used_percent >= (75 if was_short else 80)
        if abs(used_percent - (75 if was_short else 80)) < 1e-9:
            continue  # where rounding decides
        assert room.measured(total, min(free, total)) == (is_short != was_short)
        assert room.is_short == is_short
        was_short = is_short
