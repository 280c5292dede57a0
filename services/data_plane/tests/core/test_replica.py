"""What a replica makes of its log: floors and compactions, entries of later versions, batches read back."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from mesh_data.core.offset_index import Position
from mesh_data.core.replica import ReplicaCore
from mesh_data.core.stream_snapshot import StreamConfig
from mesh_data.core.stream_state import Appended, FloorMoved, LaterEntry, StreamState
from meshcommon.ids import StreamId
from meshraft import ENTRY_CONF_CHANGE, ENTRY_EMPTY, ENTRY_NORMAL
from meshwire.entry import BatchEntry, MoveFloorEntry, encode_entry
from meshwire.records import Record, encode_batch

CONFIG = StreamConfig(StreamId(1), 3_000, 600)
FIRST = StreamState(CONFIG).snapshot()
BATCH = encode_entry(BatchEntry(1_000, encode_batch([Record(b"x" * 100)])))


@dataclass(frozen=True)
class Logged:
    """An entry as the host hands it out and reads it back."""

    index: int
    data: bytes
    kind: int = ENTRY_NORMAL
    term: int = 1
    group: int = 1


def filled(count: int) -> tuple[ReplicaCore, list[Logged]]:
    """A replica that has applied so many batches, and its log."""
    replica, log = ReplicaCore(CONFIG), [Logged(index, BATCH) for index in range(2, 2 + count)]
    replica.restore(FIRST, 1)
    for entry in log:
        assert isinstance(replica.apply(entry), Appended)  # type: ignore[arg-type]
    return replica, log


def test_a_replica_is_blank_until_a_state_comes_and_formed_by_its_first_entry() -> None:
    replica = ReplicaCore(CONFIG)
    assert replica.is_blank
    replica.restore(FIRST, 1)
    assert (replica.is_blank, replica.is_formed) == (False, False)
    replica.apply(Logged(2, b"", ENTRY_EMPTY))  # type: ignore[arg-type]
    assert replica.is_formed


def test_a_snapshot_of_a_later_index_means_that_the_group_has_formed() -> None:
    source, _ = filled(3)
    replica = ReplicaCore(CONFIG)
    replica.restore(source.state.snapshot(), source.state.applied_index)
    assert replica.is_formed
    assert replica.floor_offset == source.state.next_offset  # what lies before is not in its log


def test_the_floor_is_proposed_once_in_a_leadership() -> None:
    replica, _ = filled(60)
    floor = replica.floor_entry()
    assert floor is not None
    assert replica.floor_entry() == floor  # it was not appended
    replica.floor_was_proposed(floor[0])
    assert replica.floor_entry() is None
    replica.role_changed()
    assert replica.floor_entry() == floor


def test_a_moved_floor_compacts_to_the_state_of_that_index_and_only_once() -> None:
    replica, _log = filled(60)
    index, entry = replica.floor_entry() or (0, b"")
    assert replica.apply(Logged(62, entry)) == FloorMoved(index)  # type: ignore[arg-type]
    compaction = replica.take_compaction()
    assert compaction is not None
    assert compaction.index == index
    assert StreamState.restore(compaction.snapshot).applied_index == index
    assert replica.floor_offset == compaction.offset > 0
    assert replica.take_compaction() is None
    # A member that restored a later snapshot has nothing to compact.
    later = ReplicaCore(CONFIG)
    later.restore(replica.state.snapshot(), replica.state.applied_index)
    later.apply(Logged(63, encode_entry(MoveFloorEntry(index))))  # type: ignore[arg-type]
    assert later.take_compaction() is None


def test_batches_read_back_have_the_offsets_that_they_got() -> None:
    replica, log = filled(5)
    found = [(batch, after) for batch, after in replica.batches(log, Position(0, 2, 0)) if batch is not None]  # type: ignore[arg-type]
    assert [batch.base_offset for batch, _ in found] == [0, 1, 2, 3, 4]
    assert found[-1][1] == Position(5, 7, 1_000)


def test_a_change_of_a_later_version_changes_nothing() -> None:
    replica, _ = filled(1)
    before = replica.state.snapshot()
    with pytest.raises(LaterEntry):
        replica.apply(Logged(3, b"not a revision", ENTRY_CONF_CHANGE))  # type: ignore[arg-type]
    assert replica.state.snapshot() == before
    replica.apply(Logged(3, (9).to_bytes(8, "big"), ENTRY_CONF_CHANGE))  # type: ignore[arg-type]
    assert replica.state.members_revision == 9
