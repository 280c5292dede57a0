"""Fuzz targets of what a lane carries before its packets: hellos, memberships, vouches, messages of a lane that settles, seals.

Each keeps its promise for any bytes: it refuses them by a value or an error of its own, and never raises anything else.
"""

from __future__ import annotations

from typing import Final

from mesh_data.core.frame_seal import FrameSeal
from mesh_data.core.handshake import Handshake, LocalNode, PeerNode, Role, Standing, Terms
from mesh_data.core.membership_desk import membership_of
from mesh_data.core.overlay import OverlayCore
from mesh_data.core.settling_lane import SETTLE_S
from mesh_data.core.timing import OverlayTiming
from mesh_data.core.view import Node, NodeState, View
from meshapi.overlay.v1 import lane_pb2
from meshcommon.delegation import Delegations
from meshcommon.ids import NodeId
from meshcommon.key_signer import KeySigner
from meshcommon.membership import MEMBERS_MAX, MEMBERSHIP_BYTES_MAX, Membership, Vouch, decode_membership
from meshtest.delegated import NOW_S, delegated_signer
from meshwire import frame, packet
from meshwire.errors import WireError
from meshwire.packet import Packet, Protocol, TrafficClass

_MESH: Final = "0b8e1f0a-5c1d-4e0f-9a53-2f6f0e6d9c01"
_NOW: Final = 100.0


def _seed(node: int) -> bytes:
    return node.to_bytes(32, "big")


def _view(*ids: int, revision: int) -> View:
    keys = {node: KeySigner(_seed(node)).public_key for node in ids}
    nodes = {NodeId(n): Node(NodeId(n), f"n{n}", key, "", NodeState.ACTIVE, is_voter=n == 1) for n, key in keys.items()}
    return View(revision, _MESH, 0, nodes, {})


_OLD: Final = _view(1, 2, 3, revision=10)
_NEW: Final = _view(1, 2, 3, 4, revision=20)


def _local(node: int) -> LocalNode:
    return LocalNode(NodeId(node), f"n{node}", delegated_signer(_seed(node), _MESH, node, now_s=NOW_S), _MESH)


def _vouch(view: View) -> Vouch:
    return Vouch.signed(KeySigner(_seed(1)), NodeId(1), view.revision, membership_of(view))


def fuzz_membership(data: bytes) -> None:
    """What another node shows as the membership, and whether it is believed."""
    decoded = decode_membership(data)
    core = _core(2, _OLD)
    refused = core.membership.believe(NodeId(3), data, _NOW)
    if decoded is None:
        assert refused is not None
        return
    shown, vouch = decoded
    assert 0 < len(shown.members) <= MEMBERS_MAX
    assert decode_membership(shown.encode(vouch)) == decoded
    if refused is None:
        assert (vouch.node_id, vouch.digest) == (1, shown.digest)
        assert vouch.revision > _OLD.revision
        assert core.membership.digest == shown.digest
    else:
        assert core.membership.digest == membership_of(_OLD).digest


def fuzz_vouch(data: bytes) -> None:
    """What another node gives as its word; kept only when it is for the present members."""
    vouch = Vouch.decode(data)
    if vouch is not None and _core(3, _NEW).add_vouch(vouch, _NOW):
        assert vouch.digest == membership_of(_NEW).digest


def fuzz_hello(data: bytes) -> None:
    """A whole first message of a lane, as a member and as a node that is none takes it."""
    for view in (_OLD, None):
        local = _local(2) if view is not None else LocalNode(NodeId(0), "", delegated_signer(_seed(9), now_s=NOW_S))
        terms = Terms(Delegations(lambda: NOW_S), view, seals_frames=view is not None)
        handshake = Handshake(Role.LISTENER, local, terms, b"n" * 32, b"N" * 32, _NOW)
        handshake.receive(frame.encode_handshake(data[: frame.MAX_HANDSHAKE_BYTES - 1]))
        assert handshake.peer is None, "one message proves nobody"
        assert all(len(item) <= frame.MAX_HANDSHAKE_BYTES for item in handshake.take_outgoing())


def fuzz_settling(data: bytes) -> None:
    """A message on a lane that settles, at the end that is behind and at the one that is ahead; the lane ends in time."""
    for view, standing in ((_OLD, Standing.BEHIND), (_NEW, Standing.AHEAD)):
        core = _core(2, view)
        key = KeySigner(_seed(3)).public_key
        shown = PeerNode(NodeId(3), "n3", _MESH, key, 5, standing, 20 if standing is Standing.BEHIND else 10, b"d" * 32)
        core.open_lane(1, NodeId(3), True, False, _NOW, shown=shown)
        packed = packet.encode(
            Packet(
                version=packet.VERSION,
                cls=TrafficClass.CONTROL,
                protocol=Protocol.LANE,
                flags=0,
                hop_limit=1,
                source=3,
                destination=2,
                payload=data[: packet.MAX_PACKET_BYTES // 2],
            )
        )
        for _ in range(3):
            assert core.receive(1, frame.encode_packets([packed]), _NOW) == []
        lane = core.lane(1)
        assert lane is None or lane.output_bytes <= 2 * MEMBERSHIP_BYTES_MAX
        core.tick(_NOW + SETTLE_S, 0.0)
        assert not core.is_settling(1) or lane is None or lane.is_closing


def fuzz_sealed_frame(data: bytes) -> None:
    """A frame on a sealed lane: nothing opens that the other side did not seal next."""
    here, there = FrameSeal(b"a" * 32, b"b" * 32), FrameSeal(b"b" * 32, b"a" * 32)
    expected = here.seal(_SEALED, 0.0)
    try:
        opened = there.open(data)
    except WireError:
        return
    assert (data, opened) == (expected, _SEALED)


def _core(node: int, view: View) -> OverlayCore:
    core = OverlayCore(OverlayTiming(), 1, lambda count: bytes(count - 1) + b"\x01", Delegations(lambda: NOW_S))
    core.configure(_local(node), view, _NOW, vouch=_vouch(view))
    return core


def _memberships() -> tuple[bytes, ...]:
    shown: Membership = membership_of(_NEW)
    return shown.encode(_vouch(_NEW)), shown.encode(_vouch(_OLD)), membership_of(_OLD).encode(_vouch(_OLD))


def _hellos() -> tuple[bytes, ...]:
    handshake = Handshake(
        Role.DIALLER,
        _local(3),
        Terms(Delegations(lambda: NOW_S), _NEW, membership_revision=20, membership_digest=b"d" * 32, seals_frames=True),
        b"d" * 32,
        b"D" * 32,
        _NOW,
    )
    return tuple(bytes(frame.decode_handshake(item)) for item in handshake.take_outgoing())


def _settling() -> tuple[bytes, ...]:
    whole = _memberships()[0]
    part = lane_pb2.LaneMembershipPart(total_bytes=len(whole), offset=0, content=whole)
    messages = (
        lane_pb2.LaneControl(membership_part=part),
        lane_pb2.LaneControl(membership_ask=lane_pb2.LaneMembershipAsk(offset=0, voters=[1])),
        lane_pb2.LaneControl(membership_known=lane_pb2.LaneMembershipKnown()),
        lane_pb2.LaneControl(beat=lane_pb2.LaneBeat(sequence=1, sent_at_us=2)),
    )
    return tuple(message.SerializeToString() for message in messages)


_SEALED: Final = frame.encode_packets([])
LANE_TARGETS: Final = (
    ("membership", fuzz_membership, _memberships()),
    ("vouch", fuzz_vouch, (_vouch(_NEW).to_proto().SerializeToString(), _vouch(_OLD).to_proto().SerializeToString())),
    ("hello", fuzz_hello, _hellos()),
    ("settling", fuzz_settling, _settling()),
    ("sealed_frame", fuzz_sealed_frame, (FrameSeal(b"a" * 32, b"b" * 32).seal(_SEALED, 0.0),)),
)
"""Name, what to call, and the inputs to start from."""
