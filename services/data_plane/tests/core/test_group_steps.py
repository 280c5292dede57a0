"""Steps from a group's configuration to the members that the catalogue names, against a simulated group.

Invariants: one voter changes at a time; no step leaves fewer voters in touch than the next configuration needs; a member
that retired never comes back; when everybody is in touch the steps end at the wish.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_data.core.chain_audit import compare
from mesh_data.core.group_steps import Step, Waiting, members_out, next_step
from mesh_data.core.view import Member, Retiring, Stream, StreamPhase
from meshcommon.ids import MemberId, NodeId, StreamId
from meshraft.configuration import ConfChange, Configuration, Transfer
from meshtest.effort import scaled


def stream(members: list[int], retiring: list[int] | None = None, *, learners: int = 0, revision: int = 5) -> Stream:
    """Member m lives on node m; the last `learners` have no vote."""
    voting = len(members) - learners
    return Stream(
        StreamId(1),
        "x/y",
        tuple(Member(NodeId(m), MemberId(m), at < voting) for at, m in enumerate(members)),
        StreamPhase.ACTIVE,
        revision,
        0,
        tuple(Retiring(NodeId(m), MemberId(m), revision, is_out=False) for m in retiring or []),
    )


def raft(
    own: int,
    voters: set[int],
    learners: set[int] = frozenset(),  # type: ignore[assignment]
    *,
    silent: set[int] = frozenset(),  # type: ignore[assignment]
    behind: set[int] = frozenset(),  # type: ignore[assignment]
) -> Configuration:
    ids = frozenset(voters | learners)
    return Configuration(
        own,
        frozenset(voters),
        frozenset(learners),
        heard=(ids - silent) | {own},
        caught_up=(ids - silent - behind) | {own},
        is_witnessed=True,
    )


def step(change: str, member: int) -> ConfChange:
    return ConfChange(change, MemberId(member), NodeId(member))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wish", "group", "revision", "expected"),
    [
        pytest.param(stream([1, 2, 3]), raft(1, {1, 2, 3}), 5, None, id="settled"),
        pytest.param(stream([1, 2, 3]), raft(1, {1, 2}), 5, step("add_learner", 3), id="newcomer learns"),
        pytest.param(stream([1, 2, 3]), raft(1, {1, 2}, {3}), 5, step("add_voter", 3), id="caught up"),
        pytest.param(stream([1, 2, 3], learners=1), raft(1, {1, 2}, {3}), 5, None, id="learner stays one"),
        pytest.param(stream([1, 2, 3], learners=1), raft(1, {1, 2, 3}), 5, step("add_learner", 3), id="loses its vote"),
        pytest.param(stream([1, 2], [3]), raft(1, {1, 2, 3}), 5, step("remove", 3), id="retires"),
        pytest.param(stream([1, 2], [3]), raft(1, {1, 2}, {3}), 5, step("remove", 3), id="retires as learner"),
        pytest.param(
            stream([1, 2, 4], [3]), raft(1, {1, 2, 3}, {4}), 5, step("add_voter", 4), id="vote before removal"
        ),
        pytest.param(
            stream([1, 2, 4], [3]), raft(1, {1, 2, 3}, {4}, silent={3}), 5, step("remove", 3), id="silent one first"
        ),
        pytest.param(stream([2, 3], [1]), raft(1, {1, 2, 3}), 5, Transfer(MemberId(2)), id="leader retires"),
        pytest.param(stream([1, 2], [3]), raft(1, {1, 2}), 4, step("remove", 3), id="absence goes on record"),
        pytest.param(stream([1, 2], [3]), raft(1, {1, 2}), 5, None, id="absence is on record"),
    ],
)
def test_next_step(wish: Stream, group: Configuration, revision: int, expected: Step | None) -> None:
    assert next_step(wish, group, revision) == expected


@pytest.mark.parametrize(
    ("wish", "group", "reason"),
    [
        (stream([1, 2, 3]), raft(1, {1, 2}, {3}, behind={3}), "has not caught up"),
        (stream([1, 2, 3]), raft(1, {1, 2}, {3}, silent={3}), "has not caught up"),
        (stream([1, 3], [2]), raft(1, {1, 2, 3}, silent={3}), "2 voters would need 2 in touch, and of them 3"),
        (stream([1, 2, 3], revision=4), raft(1, {1, 2}), "older"),
        (stream([2, 3], [1]), raft(1, {1, 2, 3}, behind={2, 3}), "silent or behind"),
    ],
)
def test_waits_and_says_for_what(wish: Stream, group: Configuration, reason: str) -> None:
    waiting = next_step(wish, group, 5)
    assert isinstance(waiting, Waiting)
    assert reason in str(waiting)


def test_a_renewed_member_waits_until_its_node_is_free() -> None:
    base = stream([1, 2], [3])
    wish = replace(base, members=(*base.members, Member(NodeId(3), MemberId(9), is_voter=True)))
    assert next_step(wish, raft(1, {1, 2, 3}), 5) == step("remove", 3)
    assert next_step(wish, raft(1, {1, 2}), 5) == ConfChange("add_learner", MemberId(9), NodeId(3))


def test_a_member_is_out_only_when_its_removal_is_on_record() -> None:
    wish = stream([1, 2], [3])
    assert members_out(wish, raft(1, {1, 2, 3}), 5) == ()
    assert members_out(wish, raft(1, {1, 2}), 4) == ()
    assert members_out(wish, raft(1, {1, 2}), 5) == (3,)
    assert members_out(wish, replace(raft(1, {1, 2}), is_witnessed=False), 5) == ()


@dataclass
class Group:
    """A group that does what its leader says; every step is checked."""

    wish: Stream
    voters: set[int]
    learners: set[int] = field(default_factory=set)
    leader: int = 0
    silent: set[int] = field(default_factory=set)
    revision: int = 0

    def configuration(self) -> Configuration:
        return raft(self.leader, self.voters, self.learners, silent=self.silent)

    def advance(self) -> Step | None:
        taken = next_step(self.wish, self.configuration(), self.revision)
        match taken:
            case Transfer(member):
                assert member in self.voters - self.silent
                self.leader = int(member)
            case ConfChange(change, member, _):
                self._change(change, int(member))
            case _:
                pass
        return taken

    def _change(self, change: str, member: int) -> None:
        before = set(self.voters)
        assert member != self.leader
        self.voters.discard(member)
        self.learners.discard(member)
        if change == "add_voter":
            self.voters.add(member)
        elif change == "add_learner":
            self.learners.add(member)
        self.revision = self.wish.revision
        assert len(before ^ self.voters) <= 1
        if before != self.voters:
            assert len(self.voters - self.silent) > len(self.voters) // 2


@settings(max_examples=scaled(100), deadline=None)
@given(data=st.data())
def test_steps_end_at_the_wish_when_everybody_answers(data: st.DataObject) -> None:
    """Also when some are silent for a while, leaders change, and the wish changes in the middle."""
    present = data.draw(st.sets(st.integers(1, 8), min_size=2, max_size=5))
    group = Group(stream(sorted(present), revision=1), set(present), leader=min(present), revision=1)
    retired: list[int] = []
    for revision in range(2, data.draw(st.integers(2, 4)) + 1):
        kept = data.draw(st.sets(st.sampled_from(sorted({int(m.member_id) for m in group.wish.members}))))
        fresh = data.draw(st.sets(st.integers(revision * 10, revision * 10 + 3), max_size=5 - len(kept)))
        members = [*sorted(kept), *sorted(fresh)]
        if len(members) < 2:
            continue
        retired += [int(m.member_id) for m in group.wish.members if m.member_id not in members]
        group.wish = stream(members, retired, revision=revision)
        minority = st.sets(st.sampled_from(sorted(group.voters - {group.leader}) or [0]))
        group.silent = data.draw(minority.filter(lambda it: len(group.voters - it) > len(group.voters) // 2))
        for _ in range(data.draw(st.integers(0, 12))):
            group.advance()
            heirs = sorted(group.voters - group.silent)
            if data.draw(st.booleans()):
                group.leader = data.draw(st.sampled_from(heirs))
    group.silent = set()
    for _ in range(60):
        if group.advance() is None:
            break
    wished = {int(member.member_id) for member in group.wish.members}
    assert group.voters == wished
    assert group.learners == set()
    assert set(members_out(group.wish, group.configuration(), group.revision)) == {
        int(item.member_id) for item in group.wish.retiring
    }


def test_audit_compares_the_highest_index_that_most_know() -> None:
    found = compare({"a": {4: b"x", 8: b"y", 9: b"z"}, "b": {4: b"x", 8: b"y"}, "c": {4: b"x", 8: b"y", 12: b"q"}})
    assert (found.index, found.chain, found.is_divergent) == (8, b"y", False)


def test_audit_names_no_culprit_without_a_majority() -> None:
    found = compare({"a": {4: b"x"}, "b": {4: b"y"}})
    assert (found.index, found.chain, found.is_divergent) == (4, b"", True)
    assert compare({"a": {4: b"x"}}).index == 0
    assert compare({}).index == 0
    assert compare({"a": {4: b"x"}, "b": {4: b"y"}, "c": {4: b"y"}}).chain == b"y"
