"""Known bugs, planted one at a time to prove that the checkers see them.

Three kinds: those of meshraft's driver and log are switches of the simulated disks, which no real one has; those
of the state machines and of the leader's steps replace one function of product code for the time of a run, from here: no
product file knows of them. Leaves out: how many seeds each takes (`mutation`), and `SimDisk`'s "vote_not_saved", which these
simulations do not meet: a voter that restarts between the questions of two candidates of one term (docs/design/simulator.md).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final
from unittest.mock import patch

from mesh_data.core import group_leader, stream_state
from mesh_data.core.group_steps import Step, next_step
from mesh_data.core.offset_index import OffsetIndex
from mesh_data.core.producers import IsNext, IsRefused, IsRepeated, ProducerTable, Verdict
from mesh_data.core.replica_life import ReplicaLife
from mesh_data.core.replica_life import Step as LifeStep
from mesh_data.core.stream_snapshot import Snapshot, encode_snapshot
from mesh_data.core.stream_state import Appended, Result, StreamState
from mesh_data.core.view import Stream
from mesh_routing.core.lsa import Lsa
from meshcommon.errors import ErrorCode
from meshcommon.ids import MemberId
from meshraft import group
from meshraft.configuration import Configuration, configuration_of
from meshraft.proposals import Proposals
from meshwire.batch import decode_header
from meshwire.entry import BatchEntry, decode_entry
from tests.sim.node import SimNode
from tests.sim.raft_host import Answer, ReadAnswer, SimulatedHost

Patch = tuple[object, str, Any]
_NOT_NEXT: Final = StreamState._not_next


@dataclass(frozen=True, slots=True)
class Mutant:
    """One planted bug.

    Attributes:
        name: as reports have it.
        what: what is wrong, in a sentence.
        disk: the switch of `SimDisk`, or none; of `EngineDisk` with `on_engine`, and then every seed runs on it.
        patches: what is replaced where, made anew for each run.
        of_membership: only the simulation of membership changes can meet it.
    """

    name: str
    what: str
    disk: str | None = None
    patches: Callable[[], list[Patch]] = list
    of_membership: bool = False
    on_engine: bool = False


@contextmanager
def planted(mutant: Mutant | None) -> Iterator[None]:
    """The bug is there inside of the block only."""
    patches = [patch.object(*it) for it in mutant.patches()] if mutant is not None else []
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in reversed(patches):
            one.stop()


def _checks_differently(change: Callable[[ProducerTable, Verdict, tuple[int, int, int, int]], Verdict]) -> list[Patch]:
    check = ProducerTable.check

    def wrong(self: ProducerTable, producer_id: int, epoch: int, sequence: int, count: int) -> Verdict:
        return change(self, check(self, producer_id, epoch, sequence, count), (producer_id, epoch, sequence, count))

    # The product asks only about batches that do not continue the sequence, so it has no way to append one of those.
    return [(ProducerTable, "check", wrong), (StreamState, "_not_next", _append_what_is_next)]


def _append_what_is_next(self: StreamState, producer_id: int, epoch: int, sequence: int, count: int) -> Result:
    verdict = self.producers.check(producer_id, epoch, sequence, count)
    if not isinstance(verdict, IsNext):
        return _NOT_NEXT(self, producer_id, epoch, sequence, count)
    offset = self.next_offset
    verdict.producer.append(offset, count, self.applied_index)
    self.next_offset += count
    return Appended(offset, count, self.time_ms)


def _dedupe_check_dropped() -> list[Patch]:
    def change(table: ProducerTable, verdict: Verdict, asked: tuple[int, int, int, int]) -> Verdict:
        producer = table.get(asked[0])
        return IsNext(producer) if isinstance(verdict, IsRepeated) and producer is not None else verdict

    return _checks_differently(change)


def _sequence_gap_accepted() -> list[Patch]:
    def change(table: ProducerTable, verdict: Verdict, asked: tuple[int, int, int, int]) -> Verdict:
        producer = table.get(asked[0])
        is_gap = isinstance(verdict, IsRefused) and verdict.code is ErrorCode.SEQUENCE_GAP
        return IsNext(producer) if is_gap and producer is not None else verdict

    return _checks_differently(change)


def _epoch_not_checked() -> list[Patch]:
    check = ProducerTable.check

    def change(table: ProducerTable, verdict: Verdict, asked: tuple[int, int, int, int]) -> Verdict:
        producer = table.get(asked[0])
        is_fenced = isinstance(verdict, IsRefused) and verdict.code is ErrorCode.PRODUCER_FENCED
        return check(table, asked[0], producer.epoch, asked[2], asked[3]) if is_fenced and producer else verdict

    return _checks_differently(change)


def _repetition_at_another_offset() -> list[Patch]:
    def change(table: ProducerTable, verdict: Verdict, asked: tuple[int, int, int, int]) -> Verdict:
        producer = table.get(asked[0])
        is_repeated = isinstance(verdict, IsRepeated) and producer is not None
        return IsRepeated(producer.runs[-1].offset) if is_repeated and producer and producer.runs else verdict

    return _checks_differently(change)


def _offset_reported_before_commit() -> list[Patch]:
    propose = SimulatedHost.propose

    def hasty(self: SimulatedHost, group: int, data: bytes, answer: Answer) -> bool:
        is_taken = propose(self, group, data, answer)
        node = getattr(self._settle, "__self__", None)
        if is_taken and isinstance(node, SimNode) and self is node._data and (replica := node.replicas.get(group)):
            entry = decode_entry(data)
            if isinstance(entry, BatchEntry):
                answer(Appended(replica.state.next_offset, decode_header(entry.batch).record_count, 0))
        return is_taken

    return [(SimulatedHost, "propose", hasty)]


def _read_without_read_index() -> list[Patch]:
    def at_once(self: SimulatedHost, group: int, answer: ReadAnswer) -> None:
        answer()

    return [(SimulatedHost, "ask_read_index", at_once)]


def _floor_moved_without_checkpoint() -> list[Patch]:
    def present_state(self: StreamState, index: int) -> bytes | None:
        return self.snapshot()

    return [(StreamState, "checkpoint_snapshot", present_state)]


def _snapshot_omits_producers() -> list[Patch]:
    def forgetful(snapshot: Snapshot) -> bytes:
        return encode_snapshot(replace(snapshot, producers=()))

    return [(stream_state, "encode_snapshot", forgetful)]


def _snapshot_omits_epochs() -> list[Patch]:
    def forgetful(snapshot: Snapshot) -> bytes:
        return encode_snapshot(replace(snapshot, producers=tuple(replace(it, epoch=1) for it in snapshot.producers)))

    return [(stream_state, "encode_snapshot", forgetful)]


def _apply_uses_local_clock() -> list[Patch]:
    clock = itertools.count(1)
    apply = StreamState.apply

    def wrong(self: StreamState, index: int, data: bytes) -> Result:
        self.time_ms = max(self.time_ms, next(clock))
        return apply(self, index, data)

    return [(StreamState, "apply", wrong)]


def _term_not_compared() -> list[Patch]:
    decide = Proposals.decide

    def wrong(self: Proposals[Any, Any], first: int, last: int, term: int, result: Any) -> None:
        for proposal in self._proposals:
            proposal.term = term if first <= proposal.index <= last else proposal.term
        decide(self, first, last, term, result)

    return [(Proposals, "decide", wrong)]


def _refused_batches_not_indexed() -> list[Patch]:
    def wrong(self: OffsetIndex, index: int) -> None:
        return

    return [(OffsetIndex, "refuse", wrong)]


def _follows_an_older_catalogue() -> list[Patch]:
    def forgetful(stream: Stream, raft: Configuration, revision: int) -> Step | None:
        return next_step(stream, raft, min(revision, stream.revision))

    return [(group_leader, "next_step", forgetful)]


def _learner_votes_before_catch_up() -> list[Patch]:
    def credulous(*given: Any) -> Configuration:
        known = configuration_of(*given)
        return replace(known, heard=known.members, caught_up=known.members)

    return [(group, "configuration_of", credulous)]


def _data_destroyed_before_removal() -> list[Patch]:
    def hasty(stream: Stream, _raft: Configuration, _revision: int) -> tuple[MemberId, ...]:
        return tuple(item.member_id for item in stream.retiring if not item.is_out)

    return [(group_leader, "members_out", hasty)]


def _follows_differently(change: Callable[[Stream, dict[str, Any]], Stream]) -> list[Patch]:
    follow = ReplicaLife._follow

    def wrong(self: ReplicaLife, stream: Stream, **given: Any) -> list[LifeStep]:
        return follow(self, change(stream, given), **given)

    return [(ReplicaLife, "_follow", wrong)]


def _destroyed_before_the_seal() -> list[Patch]:
    def change(stream: Stream, _given: dict[str, Any]) -> Stream:
        return replace(stream, is_sealed=True)

    return _follows_differently(change)


def _successor_begins_at_once() -> list[Patch]:
    def change(stream: Stream, _given: dict[str, Any]) -> Stream:
        return replace(stream, retiring=tuple(replace(item, is_out=True) for item in stream.retiring))

    return _follows_differently(change)


def _foreign_data_opened() -> list[Patch]:
    def change(stream: Stream, given: dict[str, Any]) -> Stream:
        given["is_identified"] = True
        return stream

    return _follows_differently(change)


def _stale_lsa_wins() -> list[Patch]:
    def older(self: Lsa, other: Lsa) -> bool:
        return (self.sequence, self.links) < (other.sequence, other.links)

    return [(Lsa, "is_newer_than", older)]


ALL: Final = (
    Mutant("release_before_fsync", "Messages that must wait for the disk are sent at once.", "release_before_fsync"),
    Mutant("fsync_lies", "A write counts as durable as soon as it is queued.", "fsync_lies"),
    Mutant("engine_fsync_lies", "The same under raft-engine: a file is never synced.", "fsync_lies", on_engine=True),
    Mutant("hard_state_not_written", "Term and vote are written once only.", "hard_state_not_written"),
    Mutant("conflict_not_replaced", "Entries that replace others are not written.", "conflict_not_replaced"),
    Mutant(
        "deaf_while_quiesced",
        "A sleeping follower hears nobody but its leader, and does not miss it.",
        "deaf_while_quiesced",
    ),
    Mutant("dedupe_check_dropped", "A repeated batch is appended again.", patches=_dedupe_check_dropped),
    Mutant("sequence_gap_accepted", "A batch is taken whose predecessor is missing.", patches=_sequence_gap_accepted),
    Mutant("epoch_not_checked", "A zombie producer may go on.", patches=_epoch_not_checked),
    Mutant(
        "repetition_at_another_offset",
        "A repetition is answered with the offset of the latest run.",
        patches=_repetition_at_another_offset,
    ),
    Mutant(
        "offset_reported_before_commit",
        "The leader answers what it has only appended.",
        patches=_offset_reported_before_commit,
    ),
    Mutant("read_without_read_index", "A member reads what it has, unasked.", patches=_read_without_read_index),
    Mutant(
        "floor_moved_without_checkpoint",
        "The log is cut at the floor with the present state, not the one of that index.",
        patches=_floor_moved_without_checkpoint,
    ),
    Mutant("snapshot_omits_producers", "A snapshot has no producer table.", patches=_snapshot_omits_producers),
    Mutant("snapshot_omits_epochs", "A snapshot forgets who was fenced.", patches=_snapshot_omits_epochs),
    Mutant("apply_uses_local_clock", "The state depends on when a member applies.", patches=_apply_uses_local_clock),
    Mutant("term_not_compared", "A proposal counts as committed by its index alone.", patches=_term_not_compared),
    Mutant(
        "refused_batches_not_indexed",
        "The offset index takes refused batches for appended ones.",
        patches=_refused_batches_not_indexed,
    ),
    Mutant(
        "follows_an_older_catalogue",
        "A leader makes changes for a wish that is past.",
        patches=_follows_an_older_catalogue,
        of_membership=True,
    ),
    Mutant(
        "learner_votes_before_catch_up",
        "Everybody passes for caught up and in touch.",
        patches=_learner_votes_before_catch_up,
        of_membership=True,
    ),
    Mutant(
        "data_destroyed_before_removal",
        "Who retires is told to be out before that is committed.",
        patches=_data_destroyed_before_removal,
        of_membership=True,
    ),
    Mutant(
        "destroyed_before_the_seal",
        "The replicas of a deleted stream go before its group has sealed itself.",
        patches=_destroyed_before_the_seal,
    ),
    Mutant(
        "successor_begins_at_once",
        "A node begins its next membership while the group still has its former one.",
        patches=_successor_begins_at_once,
        of_membership=True,
    ),
    Mutant(
        "foreign_data_opened",
        "What is stored is taken for the successor's without a look.",
        patches=_foreign_data_opened,
        of_membership=True,
    ),
    Mutant("stale_lsa_wins", "Of two LSAs of a node the older one replaces the other.", patches=_stale_lsa_wins),
)


def named(name: str) -> Mutant:
    """Raises KeyError with the known names."""
    known = {mutant.name: mutant for mutant in ALL}
    if name not in known:
        raise KeyError(f"unknown mutant {name!r}: use one of {', '.join(known)}")
    return known[name]
