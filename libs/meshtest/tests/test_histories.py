"""C3 and C5 pass what is right, report each planted violation, and C3 agrees with a search over all orders."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshtest.effort import scaled
from meshtest.histories import Publish, Read, check_linearizable, check_progress, longest_stall_s


def published(name: bytes, invoked_s: float, responded_s: float | None, offset: int | None) -> Publish:
    return Publish(invoked_s, responded_s, (name,), offset)


def test_c3_passes_calls_one_after_the_other() -> None:
    publishes = [published(b"a", 0, 1, 0), Publish(2, 3, (b"b", b"c"), 1)]
    reads = [
        Read(0, 0.5, 0),
        Read(1.5, 1.6, 0, (b"a",)),
        Read(4, 5, 1, (b"b", b"c")),
        Read(4, 5, 0, (b"a", b"b"), False),
    ]
    assert check_linearizable(publishes, reads, {0: b"a", 1: b"b", 2: b"c"}) == []


def test_c3_lets_an_unknown_outcome_take_effect_late_or_never() -> None:
    late = [published(b"a", 0, None, None), published(b"b", 5, 6, 0)]
    assert check_linearizable(late, [Read(8, 9, 0, (b"b", b"a"))]) == []
    assert check_linearizable(late, [Read(8, 9, 0, (b"b",))]) == []


@pytest.mark.parametrize(
    ("publishes", "reads", "log", "word"),
    [
        ([published(b"a", 0, 1, 0)], [Read(2, 3, 0)], {}, "cannot be older"),
        ([published(b"a", 2, 3, 0)], [Read(0, 1, 0, (b"a",))], {}, "cannot have been that"),
        ([published(b"a", 0, 1, 1), published(b"b", 2, 3, 0)], [], {}, "cannot be older"),
        ([published(b"a", 0, 1, 0), published(b"b", 0, 1, 0)], [], {}, "where b'a' is"),
        ([published(b"a", 0, 1, 0)], [Read(2, 3, 0, (b"x",))], {}, "where b'a' is"),
        ([published(b"a", 0, 1, None)], [], {0: b"a"}, "was refused"),
        ([published(b"a", 0, None, None)], [], {0: b"a", 1: b"a"}, "a second time"),
        ([], [], {0: b"a"}, "nobody published b'a'"),
        ([published(b"a", 0, 1, 1)], [], {}, "nobody published it"),
        ([published(b"a", 0, 1, 1), published(b"b", 5, None, None)], [], {}, "cannot be older"),
        ([Publish(0, 1, (b"a", b"b"), 0)], [Read(0, 1, 0, (b"a",))], {}, "inside the batch"),
        (
            [published(b"a", 0, 1, 0), published(b"b", 0, None, None)],
            [Read(2, 3, 0, (b"a", b"b")), Read(4, 5, 1)],
            {},
            "cannot have been that",
        ),
    ],
    ids=[
        "stale read",
        "read of the future",
        "order against time",
        "two at one offset",
        "another value",
        "refused and there",
        "appended twice",
        "from nowhere",
        "hole",
        "hole filled too late",
        "torn batch",
        "seen and gone",
    ],
)
def test_c3_reports(publishes: list[Publish], reads: list[Read], log: dict[int, bytes], word: str) -> None:
    findings = check_linearizable(publishes, reads, log)
    assert findings, "the planted violation passed"
    assert word in findings[0]


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Publish], list[Read]]:
    times = st.tuples(st.integers(0, 8), st.integers(0, 3)).map(lambda pair: (pair[0], pair[0] + pair[1]))
    publishes = []
    for name in (b"a", b"b", b"c", b"d")[: draw(st.integers(1, 4))]:
        invoked_s, responded_s = draw(times)
        if draw(st.booleans()):
            publishes.append(published(name, invoked_s, responded_s, draw(st.integers(0, 3))))
        else:
            publishes.append(published(name, invoked_s, draw(st.sampled_from([None, None, responded_s])), None))
    order = draw(st.permutations([item.values[0] for item in publishes]))
    reads = []
    for _ in range(draw(st.integers(0, 3))):
        invoked_s, responded_s = draw(times)
        first, last = sorted((draw(st.integers(0, len(order))), draw(st.integers(0, len(order)))))
        reads.append(Read(invoked_s, responded_s, first, tuple(order[first:last]), draw(st.booleans())))
    return publishes, reads


def is_linearizable(publishes: list[Publish], reads: list[Read]) -> bool:
    """Wing and Gong's search, without any cleverness: tries every call that may be next."""
    calls: list[Publish | Read] = [*publishes, *reads]

    def search(left: frozenset[int], log: tuple[bytes, ...]) -> bool:
        must = [at for at in left if calls[at].responded_s is not None]
        if not must:
            return True
        first_answer_s = min(calls[at].responded_s or 0.0 for at in must)
        return any(
            search(left - {at}, after)
            for at in left
            if calls[at].invoked_s <= first_answer_s
            for after in outcomes(calls[at], log)
        )

    return search(frozenset(range(len(calls))), ())


def outcomes(call: Publish | Read, log: tuple[bytes, ...]) -> list[tuple[bytes, ...]]:
    if isinstance(call, Read):
        if len(log) < call.end or log[call.offset : call.end] != call.values:
            return []
        return [] if call.is_at_end and len(log) > call.end else [log]
    if call.responded_s is not None and call.offset is None:
        return [log]
    return [(*log, *call.values)] if call.offset in (None, len(log)) else []


@settings(max_examples=scaled(400), deadline=None)
@given(histories())
def test_c3_agrees_with_a_search_over_all_orders(history: tuple[list[Publish], list[Read]]) -> None:
    publishes, reads = history
    assert (check_linearizable(publishes, reads) == []) == is_linearizable(publishes, reads)


def test_c3_takes_long_histories() -> None:
    publishes = [published(b"%d" % n, n, n + 1.5, n) for n in range(20_000)]
    reads = [Read(n, n + 1.5, n, (b"%d" % n,), is_at_end=False) for n in range(20_000)]
    assert check_linearizable(publishes, reads) == []


def test_c5_passes_when_answers_come_within_the_bound() -> None:
    calls: list[Publish | Read] = [published(b"a", 0, 12, 0), published(b"b", 13, 15, 1), Read(20, 21, 0)]
    assert longest_stall_s(calls, healed_s=10, ended_s=30) == 2
    assert check_progress({"s": calls, "idle": []}, healed_s=10, ended_s=30, bound_s=2) == []


def test_c5_asks_nothing_before_the_heal_and_nothing_of_the_idle() -> None:
    assert longest_stall_s([published(b"a", 0, 9, 0)], healed_s=10, ended_s=60) == 0


@pytest.mark.parametrize(
    "calls",
    [
        [published(b"a", 0, None, None)],
        [published(b"a", 0, 11, 0), published(b"b", 12, None, None)],
        [published(b"a", 0, 18, 0)],
        [published(b"a", 0, 11, 0), Read(5, None, 0), Read(30, 31, 0)],
    ],
    ids=["never", "only at first", "late", "a read hangs"],
)
def test_c5_reports_a_stall(calls: list[Publish | Read]) -> None:
    findings = check_progress({"s": calls}, healed_s=10, ended_s=40, bound_s=5)
    assert len(findings) == 1
    assert findings[0].startswith("C5 s: nothing was answered for")
