"""Members of two versions of the software never come to different states: the older one stands still.

The later version is a subclass here, as a later release may be: it has a kind of entry and a batch format of its own.
"""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_data.core.stream_snapshot import StreamConfig
from mesh_data.core.stream_state import FIRST_INDEX, LaterEntry, Refused, Result, StreamState, Unchanged
from mesh_data.core.view import view_from_proto
from meshapi.common.v1 import view_pb2
from meshcommon.errors import ErrorCode
from meshcommon.ids import StreamId
from meshtest.effort import scaled
from meshwire import batch as batch_format
from meshwire.entry import (
    INTRODUCED,
    BatchEntry,
    EntryKind,
    InitProducerEntry,
    MoveFloorEntry,
    SealEntry,
    encode_entry,
    introduced_in,
)
from meshwire.records import Record, encode_batch

CONFIG: Final = StreamConfig(StreamId(7), retained_bytes_max=400, checkpoint_bytes=120, producers_max=4)
LATER_KIND: Final = 200
BATCH: Final = encode_entry(BatchEntry(1, encode_batch([Record(b"v")])))
HEADER_AT: Final = 9
LATER: Final = {
    "a kind": bytes((LATER_KIND,)) + b"whatever it holds",
    "the next kind, without a body": bytes((max(EntryKind) + 1,)),
    "a batch format": BATCH[: HEADER_AT + 2] + b"\x03" + BATCH[HEADER_AT + 3 :],
    "the batch format of before": BATCH[: HEADER_AT + 2] + b"\x01" + BATCH[HEADER_AT + 3 :],
    "a chunk": BATCH[: HEADER_AT + 3] + b"\x01" + BATCH[HEADER_AT + 4 :],
    "a codec": BATCH[: HEADER_AT + 28] + b"\x02" + BATCH[HEADER_AT + 29 :],
    "a suite": BATCH[: HEADER_AT + 33] + b"\x01" + BATCH[HEADER_AT + 34 :],
}
MALFORMED: Final = {
    "kind 0": bytes(20),
    "a batch cut short": BATCH[:-1],
    "a salt without a suite": BATCH[: HEADER_AT + 40] + b"\x01" + BATCH[HEADER_AT + 41 :],
    "foreign bytes in place of a batch": BATCH[:HEADER_AT] + b"XX" + BATCH[HEADER_AT + 2 :],
    "a name cut short": encode_entry(InitProducerEntry(1, "meter"))[:-1],
}


class LaterState(StreamState):
    """A state of a later release: what the present one does not know changes something."""

    def apply(self, index: int, data: bytes) -> Result:
        try:
            return super().apply(index, data)
        except LaterEntry:
            self.applied_index = index
            self.time_ms += 1000
            self.total_bytes += len(data)
            return Unchanged()


@pytest.mark.parametrize("what", LATER)
def test_an_entry_of_a_later_version_changes_nothing(what: str) -> None:
    state = StreamState(CONFIG)
    state.apply(2, BATCH)
    before = state.snapshot()
    for _ in range(2):
        with pytest.raises(LaterEntry):
            state.apply(3, LATER[what])
    assert state.snapshot() == before
    assert (state.applied_index, state.next_offset) == (2, 1)


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_entry_is_refused_alike_by_every_version(what: str) -> None:
    present, later = StreamState(CONFIG), LaterState(CONFIG)
    for state in (present, later):
        result = state.apply(2, MALFORMED[what])
        assert isinstance(result, Refused)
        assert result.code is ErrorCode.INVALID_ARGUMENT
    assert present.snapshot() == later.snapshot()


entries = st.one_of(
    st.sampled_from([BATCH, *LATER.values(), *MALFORMED.values(), encode_entry(SealEntry(9))]),
    st.builds(
        lambda stamp, size: encode_entry(BatchEntry(stamp, encode_batch([Record(bytes(size))]))),
        st.integers(0, 99),
        st.integers(0, 60),
    ),
    st.builds(lambda name: encode_entry(InitProducerEntry(1, name)), st.sampled_from(["", "a", "b"])),
    st.builds(lambda index: encode_entry(MoveFloorEntry(index)), st.integers(1, 40)),
    st.binary(min_size=1, max_size=60),
)


@settings(max_examples=scaled(100), deadline=None)
@given(log=st.lists(entries, max_size=40), restart_at=st.integers(0, 40))
def test_two_versions_never_differ_at_an_index_that_both_have_applied(log: list[bytes], restart_at: int) -> None:
    """I4 across versions; and the older one, updated and restarted where it stood, comes to the same state as the others."""
    present, later = StreamState(CONFIG), LaterState(CONFIG)
    stopped_at = None
    for index, data in enumerate(log, FIRST_INDEX + 1):
        later.apply(index, data)
        if stopped_at is not None:
            continue
        try:
            present.apply(index, data)
        except LaterEntry:
            stopped_at = index
            continue
        assert present.snapshot() == later.snapshot()
    applied = stopped_at - 1 if stopped_at is not None else FIRST_INDEX + len(log)
    assert present.applied_index == applied
    # Checkpoints and floor of the one that stands still are of what it applied.
    assert all(item.index <= applied for item in present.checkpoints)
    updated = LaterState.restore(present.snapshot(), present.kept_snapshots())
    for index, data in enumerate(log, FIRST_INDEX + 1):
        if index > applied:
            updated.apply(index, data)
    assert updated.snapshot() == later.snapshot()


def test_every_kind_says_which_version_introduced_it() -> None:
    """A new kind without a line in the table would be proposed in meshes that do not know it."""
    assert set(INTRODUCED) == set(EntryKind)
    assert [introduced_in(data) for data in (BATCH, encode_entry(SealEntry(1)))] == [1, 1]
    # A later format needs a version in which it may be proposed. Nodes that know format 1 only are refused by the handshake.
    assert batch_format.FORMAT == 2


def test_a_view_without_a_mesh_version_is_of_version_1() -> None:
    assert view_from_proto(view_pb2.MeshView(mesh_id="m")).mesh_version == 1
