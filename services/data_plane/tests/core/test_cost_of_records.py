"""Between producer and reader nothing is done for each record: a batch costs the same calls whatever it holds (§2)."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import FrameType

import pytest

from data_plane_testing.identities import delegations, local_node, view_of
from mesh_data.core.forwarder import Forwarder
from mesh_data.core.stream_requests import Fetched, StoredBatch, encode_fetched
from mesh_data.core.stream_snapshot import StreamConfig
from mesh_data.core.stream_state import Appended, StreamState
from mesh_data.core.timing import OverlayTiming
from meshcommon.ids import NodeId, StreamId
from meshraft import publish_runs
from meshwire.batch import decode_header
from meshwire.client import decode_messages, decode_publish, encode_publish, encode_published
from meshwire.entry import encode_batch_entry
from meshwire.packet import VERSION, Packet, Protocol, TrafficClass, encode
from meshwire.records import Record, encode_batch, iter_values


def calls(work: Callable[[], object]) -> int:
    """Calls that `work` makes, of Python and of C functions."""
    count = 0

    def see(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    # A collection in the middle would count too, when somebody listens to it.
    gc.disable()
    sys.setprofile(see)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


def lead(batch: bytes) -> None:
    """What a leader does with a client's batch, from its frame to the answer, without Raft."""
    for message in decode_messages(encode_publish(1, 7, batch)):
        stream_id, _wait, body = decode_publish(message.body)
        header = decode_header(body, verify=True)
        entry = encode_batch_entry(1_700_000_000_000, body)
        appended = StreamState(StreamConfig.of(StreamId(stream_id), 1 << 30)).apply(2, entry)
        assert isinstance(appended, Appended)
        assert encode_published(message.correlation, appended.offset, header.record_count, False)


def follow(batch: bytes) -> None:
    """What a follower does with a committed entry, and with a reader that wants it."""
    entry = encode_batch_entry(1_700_000_000_000, batch)
    assert isinstance(StreamState(StreamConfig.of(StreamId(7), 1 << 30)).apply(2, entry), Appended)
    assert encode_fetched(Fetched([StoredBatch(0, 5, batch)], 1, 0))


def relay(batch: bytes) -> None:
    """What a relay does with the packet."""
    forwarder = Forwarder(OverlayTiming(), 1, bytes, delegations())
    forwarder.configure(local_node(2), view_of(1, 2, 3))
    forwarder.set_link(NodeId(3), True, 0.0)
    packet = Packet(
        version=VERSION,
        cls=TrafficClass.BULK,
        protocol=Protocol.RAFT_DSG,
        flags=0,
        hop_limit=4,
        source=1,
        destination=3,
        route=(1, 2, 3),
        position=1,
        payload=batch,
    )
    assert forwarder.receive(NodeId(1), encode(packet), 0.0) is not None


@pytest.mark.parametrize("role", [lead, follow, relay])
def test_a_batch_costs_the_same_whatever_it_holds(role: Callable[[bytes], None]) -> None:
    one = encode_batch([Record(b"x" * 100)])
    many = encode_batch([Record(b"x" * 100) for _ in range(5_000)])
    role(one)  # what is made once, such as caches of the interpreter
    assert calls(lambda: role(many)) == calls(lambda: role(one))


def test_a_run_of_batches_costs_the_same_whatever_they_hold() -> None:
    def take(frame: bytes) -> None:
        for run in publish_runs(frame) or ():
            assert run.batch(0)
            assert run.answers(5)

    one, many = (encode_publish(1, 7, encode_batch([Record(b"x" * 100)] * count, 3)) for count in (1, 5_000))
    take(one)
    assert calls(lambda: take(many)) == calls(lambda: take(one)) > 3


def test_the_count_would_show_work_for_each_record() -> None:
    many = encode_batch([Record(b"x") for _ in range(5_000)])
    assert calls(lambda: list(iter_values(many))) > 5_000
