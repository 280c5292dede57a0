"""Message ids rise by one, wrap, and are recent for a while."""

from __future__ import annotations

from mesh_data.core.message_ids import RECENT_S, MessageIds

LAST = 2**64 - 1


def test_ids_rise_and_wrap() -> None:
    ids = MessageIds(LAST - 1)
    assert [ids.next(0.0) for _ in range(3)] == [LAST, 0, 1]


def test_only_ids_given_out_lately_are_recent() -> None:
    ids = MessageIds(LAST - 1)
    assert not ids.is_recent(LAST, 0.0)
    old = ids.next(0.0)
    new = ids.next(RECENT_S - 0.1)
    assert ids.is_recent(old, RECENT_S)
    assert not ids.is_recent(old, RECENT_S + 0.1)
    assert ids.is_recent(new, RECENT_S + 0.1)
    assert not ids.is_recent(new + 1, RECENT_S + 0.1)
    assert not ids.is_recent(new, 3 * RECENT_S)
