"""Members of a group change under faults: many seeds without a finding, and planted mistakes that are seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mesh_data.core import group_leader
from mesh_data.core.group_steps import Step, next_step
from mesh_data.core.view import Stream
from meshcommon import store_guard
from meshcommon.ids import MemberId
from meshcommon.store_lineage import Verdict
from meshraft import group
from meshraft.configuration import Configuration, Witness, configuration_of
from tests.sim.membership import MembershipRun, Outcome

SEEDS = range(201, 231)
"""Others than those of test_simulation, which runs this simulation, too."""
MUTANT_SEEDS = range(1, 41)
pytestmark = pytest.mark.sim


def runs(seeds: range) -> list[Outcome]:
    return [MembershipRun(seed).run() for seed in seeds]


@pytest.mark.timeout(600)
def test_no_change_of_members_loses_anything_or_gets_stuck() -> None:
    """I1, I4, I11: partitions, crashes, lost disks and stale catalogues in the middle of changes."""
    outcomes = runs(SEEDS)
    assert {f"SEED={outcome.seed}": outcome.findings[:3] for outcome in outcomes if outcome.findings} == {}
    # The runs did something.
    assert sum(outcome.steps for outcome in outcomes) > 10 * len(outcomes)
    assert sum(outcome.lost_disks for outcome in outcomes) > len(outcomes) // 10
    assert sum(outcome.rolled_back for outcome in outcomes) > len(outcomes) // 10
    # Each disk that forgot something was noticed; that no other was, each run checks itself.
    assert all(outcome.given_up == outcome.lost_disks + outcome.rolled_back for outcome in outcomes)
    assert sum(outcome.crashes for outcome in outcomes) > len(outcomes)
    assert all(outcome.acknowledged for outcome in outcomes)


def test_the_same_seed_does_the_same() -> None:
    """I10."""
    assert MembershipRun(3).run() == MembershipRun(3).run()


@pytest.mark.timeout(600)
def test_a_leader_that_follows_an_older_catalogue_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: nobody compares the catalogue's revision with that of the group's last change (G5)."""

    def forgetful(stream: Stream, raft: Configuration, revision: int) -> Step | None:
        return next_step(stream, raft, min(revision, stream.revision))

    monkeypatch.setattr(group_leader, "next_step", forgetful)
    assert any(MembershipRun(seed).run().findings for seed in MUTANT_SEEDS)


@pytest.mark.timeout(600)
def test_a_leader_that_counts_on_members_without_data_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: everybody passes for caught up and in touch (G4)."""

    def credulous(*given: Any) -> Configuration:
        known = configuration_of(*given)
        return replace(known, heard=known.members, caught_up=known.members)

    monkeypatch.setattr(group, "configuration_of", credulous)
    assert any(MembershipRun(seed).run().findings for seed in MUTANT_SEEDS)


@pytest.mark.timeout(600)
def test_data_that_go_before_the_removal_is_committed_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: who retires is told to be out at once (G3)."""

    def hasty(stream: Stream, _raft: Configuration, _revision: int) -> tuple[MemberId, ...]:
        return tuple(item.member_id for item in stream.retiring if not item.is_out)

    monkeypatch.setattr(group_leader, "members_out", hasty)
    assert any(MembershipRun(seed).run().findings for seed in MUTANT_SEEDS)


@pytest.mark.timeout(600)
def test_peers_that_believe_every_store_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: nobody compares what a node says of its disk with what it said before (I1)."""
    monkeypatch.setattr(store_guard, "judge", lambda _seen, _lineage: Verdict.GOES_ON)
    assert any(MembershipRun(seed).run().findings for seed in MUTANT_SEEDS)


@pytest.mark.timeout(600)
def test_a_change_without_a_witness_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: a committed change is enough (G7). Only crashes of all others right after it, and a lost disk, show that."""
    monkeypatch.setattr(Witness, "is_committed", lambda *_args, **_named: True)
    crash = MembershipRun._crash

    def together(self: MembershipRun, node: Any, *, loses_disk: bool = False) -> None:
        for other in self.nodes.values():
            if loses_disk and other is not node and other.host is not None:
                crash(self, other)
        crash(self, node, loses_disk=loses_disk)

    monkeypatch.setattr(MembershipRun, "_crash", together)
    assert any(MembershipRun(seed, on_engine=True).run().findings for seed in range(70, 200))
