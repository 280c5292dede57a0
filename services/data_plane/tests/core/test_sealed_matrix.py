"""Every bit of a sealed packet: changed on its way it is refused, or it is one that relays may change; replayed, never taken.

The named fields, with the reasons under which they are counted, are in `test_sealed_packets.py`. Source: architecture §11
"Packets"; docs/design/overlay.md "Who says it".
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from data_plane_testing.line import Line, at_destination
from mesh_data.core.forwarder import Delivery, DropReason
from meshwire.packet import FLAG_REPAIRED, PREFIX_BYTES, SEAL_BYTES

ROUTE_BYTES = 24
FIELDS = {
    "version": range(1),
    "class": range(1, 2),
    "protocol": range(2, 3),
    "flags": range(3, 4),
    "hop limit": range(4, 5),
    "source": range(5, 13),
    "destination": range(13, 21),
    "tenant tag": range(21, 25),
    "flow": range(25, 33),
    "message id": range(33, 41),
    "fragment index": range(41, 43),
    "fragment count": range(43, 45),
    "route length": range(45, 46),
    "position": range(46, 47),
    "route": range(47, 71),
    "suite": range(71, 72),
    "zero bytes": range(72, 75),
    "key id": range(75, 79),
    "counter": range(79, 87),
    "payload": range(87, 96),
    "tag": range(96, 112),
}
"""Where each field lies in a packet of nine bytes on a route of three nodes (`meshwire.packet`)."""
FOR_RELAYS = {"hop limit"}
"""What may arrive changed. The route and the position may be changed too, but only to what leads here by the last hop."""


def flips(data: bytes, field: str) -> Iterator[tuple[int, int, bytes]]:
    """Each bit of a field turned round: its byte, its mask, and the packet."""
    for at in FIELDS[field]:
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            yield at, 1 << bit, bytes(changed)


def is_for_relays(field: str, mask: int) -> bool:
    """Whether the destination takes a packet of which a relay changed this bit."""
    return field in FOR_RELAYS or (field == "flags" and mask == FLAG_REPAIRED)


def test_the_fields_are_the_whole_packet() -> None:
    line = Line().agreed()
    data = at_destination(line, line.send(1, 3))
    assert len(data) == PREFIX_BYTES + ROUTE_BYTES + SEAL_BYTES + len(b"heartbeat")
    assert [at for field in FIELDS.values() for at in field] == list(range(len(data)))


@pytest.mark.parametrize("field", FIELDS)
def test_packet_of_which_one_bit_was_changed(field: str) -> None:
    """It is dropped and counted, and the genuine one arrives after it; a bit that relays own changes nothing that is said."""
    line = Line().agreed()
    for at, mask, _changed in flips(at_destination(line, line.send(1, 3)), field):
        genuine = at_destination(line, line.send(1, 3))
        changed = bytearray(genuine)
        changed[at] ^= mask
        before = sum(line.dropped(3).values())
        taken = line.carry(3, 2, bytes(changed))
        if is_for_relays(field, mask):
            assert isinstance(taken, Delivery), (at, mask)
            assert (taken.source, bytes(taken.payload)) == (1, b"heartbeat")
            continue
        assert not isinstance(taken, Delivery), (at, mask)
        assert taken is not None or sum(line.dropped(3).values()) == before + 1, (at, mask)
        assert isinstance(line.carry(3, 2, genuine), Delivery), (at, mask)


@pytest.mark.parametrize("field", FIELDS)
def test_packet_that_has_arrived_is_not_taken_again_with_one_bit_changed(field: str) -> None:
    """Neither as it was nor with any field that is not covered made another."""
    line = Line().agreed()
    data = at_destination(line, line.send(1, 3))
    assert isinstance(line.carry(3, 2, data), Delivery)
    for at, mask, changed in flips(data, field):
        assert not isinstance(line.carry(3, 2, changed), Delivery), (at, mask)
        if is_for_relays(field, mask):
            assert line.dropped(3)[DropReason.REPLAYED] >= 1
    assert line.carry(3, 2, data) is None
