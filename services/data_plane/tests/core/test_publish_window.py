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


def test_publishers_share_credit_and_one_that_waits_for_nothing_still_gets_a_batch_through() -> None:
    everybodys = Credit(100)
    first, second = Credit(80, everybodys), Credit(80, everybodys)
    first.take(70)
    assert second.has_room(70)
    second.take(10)
    assert second.has_room(20)
    assert not second.has_room(21)
    first.give_back(70)
    assert second.has_room(70)
    second.close()
    assert everybodys.used_bytes == 0


def test_a_repetition_shares_the_outcome_of_what_is_on_its_way() -> None:
    window: ProposalWindow[str] = ProposalWindow()
    window.add(3, 10, 5, "a", key=(7, 1, 0))
    window.add(3, 11, 5, "b", key=(7, 1, 20))
    assert not window.may_hold((7, 1, 40))
    assert not window.may_hold((8, 1, 0))
    assert window.may_hold((7, 1, 0))
    assert window.join((7, 1, 0), "a again")
    assert not window.join((7, 0, 0), "of an older epoch")
    assert window.size_bytes == 10
    assert window.committed(10, 3) == [("a", Outcome.COMMITTED), ("a again", Outcome.COMMITTED)]
    assert not window.join((7, 1, 0), "too late")
    assert window.join((7, 1, 20), "b again")
    assert window.add(4, 11, 5, "c") == ["b", "b again"]
    assert window.take_all() == ["c"]
    assert not window.may_hold((7, 1, 0))


def test_newest_is_forgotten_with_the_last_proposal() -> None:
    window: ProposalWindow[str] = ProposalWindow()
    window.add(3, 10, 5, "a", key=(7, 1, 0))
    window.committed(10, 3)
    assert not window.may_hold((7, 1, 0))
