"""A store that forgot something is told from one that did not, whatever was copied, restored, wiped or told in between."""

from __future__ import annotations

import itertools

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from meshcommon.store_lineage import (
    Incarnation,
    Lineage,
    Seen,
    Verdict,
    begin,
    judge,
    next_incarnation,
    raised,
    renounced,
    seen_of,
)
from meshtest.effort import scaled
from meshwire.store_message import INCARNATIONS_MAX, RENOUNCED_MAX


def test_a_stranger_is_believed() -> None:
    assert judge(None, begin(1, 10)) is Verdict.GOES_ON


def test_a_restart_goes_on() -> None:
    first = begin(1, 10)
    assert judge(seen_of(first), next_incarnation(first, 11)) is Verdict.GOES_ON
    assert judge(seen_of(first), next_incarnation(next_incarnation(first, 11), 12)) is Verdict.GOES_ON


def test_an_older_copy_is_recognised_although_its_boot_number_is_the_same() -> None:
    copy = begin(1, 10)
    assert judge(seen_of(next_incarnation(copy, 11)), next_incarnation(copy, 12)) is Verdict.ROLLED_BACK


def test_a_copy_from_the_middle_of_a_life_is_recognised_once_the_number_was_raised() -> None:
    copy = next_incarnation(begin(1, 10), 11)
    assert judge(seen_of(raised(copy)), next_incarnation(copy, 12)) is Verdict.ROLLED_BACK
    # The copy stays in use with peers that had not seen it, and is still recognised when its number is long past.
    later = raised(raised(raised(next_incarnation(copy, 12))))
    assert judge(seen_of(raised(copy)), next_incarnation(later, 13)) is Verdict.ROLLED_BACK


def test_another_store_is_recognised_until_it_renounces_the_former() -> None:
    former, new = begin(1, 10), begin(2, 20)
    assert judge(seen_of(former), new) is Verdict.ANOTHER_STORE
    given_up = renounced(new, 3, 30, [former.store_id])
    assert judge(seen_of(former), given_up) is Verdict.GOES_ON
    assert judge(seen_of(new), given_up) is Verdict.GOES_ON
    assert judge(seen_of(given_up), next_incarnation(former, 11)) is Verdict.ANOTHER_STORE


def test_an_overtaken_message_is_no_rollback() -> None:
    lineage = begin(1, 10)
    assert judge(seen_of(raised(lineage)), lineage) is Verdict.OVERTAKEN


def test_what_is_kept_has_a_bound_and_old_memories_are_judged_by_number() -> None:
    lineage = old = begin(1, 10)
    for incarnation in range(11, 11 + 2 * INCARNATIONS_MAX):
        lineage = next_incarnation(lineage, incarnation)
    assert len(lineage.incarnations) == INCARNATIONS_MAX
    assert judge(seen_of(old), lineage) is Verdict.GOES_ON
    assert judge(Seen(1, 999, lineage.incarnations[0].boot), lineage) is Verdict.ROLLED_BACK
    for store in range(2, 2 + 2 * RENOUNCED_MAX):
        lineage = renounced(lineage, store, store, [])
    assert len(lineage.renounced) == RENOUNCED_MAX
    assert lineage.incarnations == (Incarnation(store, lineage.present.boot),)


class DiskThatForgets(RuleBasedStateMachine):
    """The oracle keeps, beside the lineage, everything that was ever written to that disk; copies copy both."""

    def __init__(self) -> None:
        super().__init__()
        self.ids = itertools.count(100)
        self.events = itertools.count()
        self.lineage: Lineage = begin(next(self.ids), next(self.ids))
        self.written: frozenset[int] = frozenset()
        self.copies: list[tuple[Lineage, frozenset[int]]] = []
        self.told: tuple[Lineage, frozenset[int]] | None = None
        self._write()

    def _write(self) -> None:
        self.written |= {next(self.events)}

    @rule()
    def restart(self) -> None:
        self.lineage = next_incarnation(self.lineage, next(self.ids))
        self._write()

    @rule()
    def raise_number(self) -> None:
        self.lineage = raised(self.lineage)
        self._write()

    @rule()
    def copy(self) -> None:
        self.copies.append((self.lineage, self.written))

    @rule(which=st.integers(0, 20))
    def restore(self, which: int) -> None:
        if self.copies:
            self.lineage, self.written = self.copies[which % len(self.copies)]
            self.restart()

    @rule()
    def wipe(self) -> None:
        self.lineage, self.written = begin(next(self.ids), next(self.ids)), frozenset()
        self._write()

    @rule()
    def tell(self) -> None:
        """A peer that accepts remembers; one that does not makes the store renounce, then accepts."""
        if self.told is not None and judge(seen_of(self.told[0]), self.lineage) is not Verdict.GOES_ON:
            self.lineage = renounced(self.lineage, next(self.ids), next(self.ids), [self.told[0].store_id])
            self._write()
            assert judge(seen_of(self.told[0]), self.lineage) is Verdict.GOES_ON
        self.told = (self.lineage, self.written)

    @invariant()
    def a_store_is_accepted_only_when_nothing_told_is_missing(self) -> None:
        if self.told is None or self.told[0].store_id in self.lineage.renounced:
            return
        lineage, written = self.told
        has_forgotten = not written <= self.written
        assert (judge(seen_of(lineage), self.lineage) is not Verdict.GOES_ON) == has_forgotten


TestDiskThatForgets = DiskThatForgets.TestCase
TestDiskThatForgets.settings = settings(max_examples=scaled(60), stateful_step_count=30, deadline=None)
