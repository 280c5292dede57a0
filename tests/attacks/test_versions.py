"""Kind 8: what a node does not know is neither applied nor turned into a replicated refusal."""

from __future__ import annotations

import secrets

from meshapi.common.v1 import view_pb2
from meshapi.control.v1 import join_pb2, mcg_pb2
from meshtest.waiting import eventually
from meshwire import frame, packet, request
from meshwire.packet import Protocol
from tests.attacks.lanes import LaneEndedError, lane, new_key, public_key, routed, stranger
from tests.attacks.mallory import Mallory
from tests.attacks.target import Target
from tests.attacks.test_forgeries import request_payload
from tests.attacks.test_peers import PROPOSE_METHOD, varint

NEIGHBOURS = ("a", "b")


def unknown_field(number: int, payload: bytes) -> bytes:
    """A length-delimited field of a later version."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


async def applied(target: Target) -> dict[str, int]:
    """How far each node has applied the control group's log, as soon as all are equally far."""

    async def agreed() -> dict[str, int] | None:
        found = {name: (await gateway.status()).mcg_applied for name, gateway in target.gateways.items()}
        return found if len(set(found.values())) == 1 else None

    return await eventually("all nodes have applied the same", agreed)


async def test_command_of_a_later_version_is_not_proposed(mallory: Mallory, target: Target) -> None:
    """An old replica would refuse it, a new one apply it: they would differ for ever."""
    before = await applied(target)
    for body in (unknown_field(500, b"\x08\x01"), unknown_field(2000, secrets.token_bytes(50)), b""):
        message = unknown_field(1, body) + b"\x10" + varint(secrets.randbits(60))
        for node in NEIGHBOURS:
            answer = await mallory.ask_control_plane(node, PROPOSE_METHOD, message)
            assert isinstance(answer, request.ErrorResponse), body
    assert await applied(target) == before


async def test_known_command_with_a_field_of_a_later_version(mallory: Mallory, target: Target) -> None:
    """Taken without the field it would mean something else than its sender meant."""
    command = mcg_pb2.Command(
        set_node_state=mcg_pb2.SetNodeState(node_id=int(mallory.local.node_id), state=view_pb2.NODE_STATE_ACTIVE)
    )
    inner = command.set_node_state.SerializeToString() + unknown_field(900, b"later")
    encoded = unknown_field(6, inner)
    message = unknown_field(1, encoded) + b"\x10" + varint(secrets.randbits(60))
    for node in NEIGHBOURS:
        answer = await mallory.ask_control_plane(node, PROPOSE_METHOD, message)
        assert isinstance(answer, request.ErrorResponse)


async def test_relays_meet_flags_and_protocols_of_later_versions(mallory: Mallory, target: Target) -> None:
    """A relay looks at the routing prefix alone; the destination drops what it does not know."""
    own, a, c = int(mallory.local.node_id), mallory.ids["a"], mallory.ids["c"]
    whole = packet.encode(routed(Protocol.REQUEST, request_payload(1, b"x"), (own, a, c), 1))
    async with mallory.lane(target.port("a", "peer")) as found:
        for at, values in ((2, (10, 99, 255)), (3, (4, 8, 0x80, 0xFF)), (0, (2, 3, 255))):
            for value in values:
                data = bytearray(whole)
                data[at] = value
                await found.send_frame(frame.encode_packets([bytes(data)] * 5))


async def test_join_request_with_fields_of_a_later_version(target: Target) -> None:
    """They are passed over or refused; with a megabyte of them nothing grows."""
    key = new_key()
    known = join_pb2.JoinRequest(mesh_id="another mesh", name="later", public_key=public_key(key)).SerializeToString()
    for padding_bytes in (1_000, 1_000_000):
        async with lane(target.port("b", "peer"), stranger("later", key)) as found:
            try:
                answer = await found.ask(1, known + unknown_field(77, bytes(padding_bytes)))
            except LaneEndedError:
                assert padding_bytes > 64 * 1024
                continue
        assert isinstance(answer, request.ErrorResponse)
