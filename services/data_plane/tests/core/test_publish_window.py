"""What becomes of proposals when leaders change, and credit."""

from __future__ import annotations

from mesh_data.core.publish_window import Credit, Outcome, ProposalWindow


def test_proposal_is_committed_only_with_its_own_term() -> None:
    window: ProposalWindow[str] = ProposalWindow()
    window.add(3, 10, 100, "a")
    window.add(3, 11, 50, "b")
    assert window.committed(9, 3) == []
    assert window.committed(10, 3) == [("a", Outcome.COMMITTED)]
    assert window.size_bytes == 50
    assert window.committed(11, 4) == [("b", Outcome.OVERWRITTEN)]
    assert len(window) == window.size_bytes == 0


def test_commit_beyond_a_proposal_means_that_it_was_overwritten() -> None:
    window: ProposalWindow[str] = ProposalWindow()
    window.add(3, 10, 1, "a")
    window.add(3, 12, 1, "b")
    assert window.committed(12, 3) == [("a", Outcome.OVERWRITTEN), ("b", Outcome.COMMITTED)]


def test_reused_index_overwrites_what_this_member_had_proposed_there() -> None:
    window: ProposalWindow[str] = ProposalWindow()
    for index, token in ((10, "a"), (11, "b"), (12, "c")):
        assert window.add(3, index, 1, token) == []
    assert window.add(5, 11, 1, "d") == ["c", "b"]
    assert window.committed(10, 3) == [("a", Outcome.COMMITTED)]
    assert window.committed(11, 5) == [("d", Outcome.COMMITTED)]


def test_closing_gives_everything_back() -> None:
    window: ProposalWindow[str] = ProposalWindow()
    window.add(1, 2, 5, "a")
    window.add(1, 3, 5, "b")
    assert window.take_all() == ["a", "b"]
    assert not window
    assert window.size_bytes == 0


def test_credit_lets_one_large_batch_into_an_empty_window_only() -> None:
    credit = Credit(100)
    assert credit.has_room(1_000)
    credit.take(60)
    assert credit.has_room(40)
    assert not credit.has_room(41)
    credit.give_back(60)
    assert credit.has_room(1_000)
