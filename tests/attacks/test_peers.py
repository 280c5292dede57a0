"""Kind 1: what one peer, connection, request or packet says wrong ends that one at most, never the service."""

from __future__ import annotations

import secrets

import pytest

from mesh_data.core.handshake import VERSION_MAX, LocalNode
from mesh_data.core.view import view_from_proto
from mesh_data.shell.overlay.lane_socket import SUBPROTOCOL
from meshapi.common.v1 import error_pb2
from meshapi.control.v1 import join_pb2, mcg_pb2
from meshapi.overlay.v1 import lane_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshtest.delegated import delegated_signer
from meshwire import frame, packet
from meshwire.frame import MAX_HANDSHAKE_BYTES, decode_handshake, encode_handshake
from meshwire.packet import Protocol, TrafficClass
from meshwire.request import ErrorResponse
from tests.attacks.lanes import JOIN_METHOD, LaneEndedError, RawLane, lane, link_local, new_key, public_key, stranger
from tests.attacks.mallory import Mallory
from tests.attacks.raw_socket import Opcode, RawSocket, websocket, websocket_frame
from tests.attacks.target import Target

LISTENING = ("a", "b")
PROPOSE_METHOD = 2
MEGABYTES = 1_900_000
FLOOD_BYTES_MAX = 150 << 20
FLOOD_SECONDS_MAX = 2.0
UNPROVEN_MB_MAX = 40.0


def hello(**changes: object) -> lane_pb2.LaneHello:
    """A stranger's hello that is right but for the changes."""
    message = lane_pb2.LaneHello(
        version_min=1,
        version_max=VERSION_MAX,
        name="stranger",
        public_key=public_key(new_key()),
        nonce=secrets.token_bytes(32),
    )
    message.delegation.CopyFrom(stranger().signer.delegation.to_proto())
    changes.setdefault("ephemeral_key", secrets.token_bytes(32))
    for name, value in changes.items():
        if name in message.DESCRIPTOR.fields_by_name:
            setattr(message, name, value)
    return message


async def refusal(socket: RawSocket) -> error_pb2.ErrorDetail | None:
    """The reject that ends a handshake; None when the connection ends without one."""
    found = None
    while (received := await socket.receive()) is not None:
        opcode, payload = received
        if opcode == Opcode.CLOSE:
            return found
        assert len(payload) <= MAX_HANDSHAKE_BYTES
        message = lane_pb2.LaneHandshake.FromString(bytes(decode_handshake(payload)))
        if message.WhichOneof("step") == "reject":
            found = message.reject.error
    return found


def assert_quotes_little(detail: error_pb2.ErrorDetail | ErrorResponse) -> None:
    """What a peer said is quoted in a few printable characters."""
    texts = [detail.message, *detail.details.keys(), *detail.details.values()]
    assert all(text.isprintable() for text in texts), texts
    assert sum(map(len, texts)) <= 2_000, [len(text) for text in texts]


@pytest.mark.parametrize("site", LISTENING)
async def test_hello_whose_refusal_would_outgrow_the_frame(target: Target, site: str) -> None:
    """The refusal once quoted the name: 20,000 control characters are 80,000 as text."""
    message = lane_pb2.LaneHandshake(hello=hello(version_min=9, version_max=9, name="\x01" * 20_000))
    async with websocket(target.port(site, "peer"), SUBPROTOCOL) as socket:
        await socket.send(websocket_frame(Opcode.BINARY, encode_handshake(message.SerializeToString())))
        detail = await refusal(socket)
    assert detail is not None
    assert detail.code == ErrorCode.VERSION_MISMATCH
    assert_quotes_little(detail)


async def test_reject_of_a_peer_with_endless_unprintable_text(target: Target) -> None:
    error = error_pb2.ErrorDetail(code="\x1b[2J" * 2_000, message="\x00\x1b" * 10_000, details={"leader": "x" * 20_000})
    reject = lane_pb2.LaneHandshake(reject=lane_pb2.LaneReject(error=error))
    for site in LISTENING:
        async with websocket(target.port(site, "peer"), SUBPROTOCOL) as socket:
            await socket.send(websocket_frame(Opcode.BINARY, encode_handshake(reject.SerializeToString())))
            assert await socket.is_closed()


async def test_hellos_of_wrong_shapes(target: Target) -> None:
    wrong = [
        hello(public_key=b"short"),
        hello(public_key=bytes(32)),  # a point of small order
        hello(nonce=b""),
        hello(ephemeral_key=bytes(32), version_min=2),
        hello(mesh_id="\x00" * 9_000),
        hello(node_id=2**64 - 1, mesh_id=target.mesh_id, name="\r\n\x1b]0;b"),
        hello(version_max=2**32 - 1, version_min=2**32 - 1),
    ]
    for message in wrong:
        async with websocket(target.port("a", "peer"), SUBPROTOCOL) as socket:
            encoded = lane_pb2.LaneHandshake(hello=message).SerializeToString()
            await socket.send(websocket_frame(Opcode.BINARY, encode_handshake(encoded)))
            # One that could still be proven is waited for; what follows is no proof.
            await socket.send(websocket_frame(Opcode.BINARY, encode_handshake(b"")))
            detail = await refusal(socket)
        assert detail is not None, message
        assert_quotes_little(detail)


async def test_mesh_id_whose_refusal_would_outgrow_its_length_field(target: Target) -> None:
    """The error text once quoted it, and its length is a u16."""
    key = new_key()
    request = join_pb2.JoinRequest(mesh_id="m" * 66_000, name="longid", public_key=public_key(key))
    for size in (60_000, 66_000):  # the second is more than a stranger may send: the lane may end instead
        request.mesh_id = "m" * size
        async with lane(target.port("a", "peer"), stranger("longid", key)) as found:
            try:
                answer = await found.join(request)
            except LaneEndedError:
                assert size > 65_000
                continue
        assert isinstance(answer, ErrorResponse)
        assert_quotes_little(answer)


@pytest.mark.parametrize("body", [b"", b"\xff" * 40, b"\x0a\xff\xff\xff\xff\x0f", bytes(50_000)])
async def test_join_request_that_is_no_message(target: Target, body: bytes) -> None:
    async with lane(target.port("b", "peer"), stranger()) as found:
        answer = await found.ask(JOIN_METHOD, body)
        assert isinstance(answer, ErrorResponse)
        assert_quotes_little(answer)
        unknown = await found.ask(200, body)
        assert isinstance(unknown, ErrorResponse)


def padded_beat(payload_bytes: int) -> bytes:
    """A beat with a long field that nobody knows; an echo that copies the beat would return it."""
    padding = b"\x7a" + varint(payload_bytes) + bytes(payload_bytes)  # field 15, length-delimited
    beat = lane_pb2.LaneBeat(sequence=1, sent_at_us=1).SerializeToString() + padding
    return b"\x0a" + varint(len(beat)) + beat


def varint(value: int) -> bytes:
    """Protobuf's encoding of a number."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


async def flood_with_beats(found: RawLane, source: int, destination: int, padding_bytes: int) -> None:
    """Padded beats until the node stops reading; not one echo is read."""
    beat = link_local(Protocol.LANE, padded_beat(padding_bytes), destination, source)
    data = websocket_frame(Opcode.BINARY, frame.encode_packets([packet.encode(beat)]))
    await found.socket.flood(data, FLOOD_BYTES_MAX, FLOOD_SECONDS_MAX)


@pytest.mark.parametrize("padding_bytes", [MEGABYTES, 1_000])
async def test_padded_beats_whose_echoes_are_never_read(target: Target, padding_bytes: int) -> None:
    async with target.peak_bounded("a/data", UNPROVEN_MB_MAX), lane(target.port("a", "peer"), stranger()) as found:
        assert found.peer is not None
        await flood_with_beats(found, 0, int(found.peer.node_id), padding_bytes)


async def test_padded_beats_of_a_member(mallory: Mallory, target: Target) -> None:
    async with target.peak_bounded("b/data", UNPROVEN_MB_MAX), mallory.lane(target.port("b", "peer")) as found:
        await flood_with_beats(found, int(mallory.local.node_id), mallory.ids["b"], MEGABYTES)


async def test_bye_with_a_megabyte_of_control_characters(mallory: Mallory, target: Target) -> None:
    """The reason goes into logs and link states of the other side."""
    bye = lane_pb2.LaneControl(bye=lane_pb2.LaneBye(reason="\x1b[31m\r\n" * 150_000, is_node_stopping=False))
    port = target.port("a", "peer")
    for opening in (mallory.lane(port), lane(port, stranger())):
        async with opening as found:
            await found.send_control(bye)
            assert await found.socket.is_closed()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02",
        b"\x02\xff\xff\xff\xff",
        b"\x02\x00\x00\x00\x01\x00",
        b"\x07zzz",
        b"\x01" + bytes(70_000),
        b"\x02" * 4_000,
    ],
    ids=["empty", "no packets", "length beyond", "one byte", "unknown type", "handshake again", "noise"],
)
async def test_frames_of_nonsense_after_the_handshake(mallory: Mallory, target: Target, data: bytes) -> None:
    port = target.port("a", "peer")
    for opening in (mallory.lane(port), lane(port, stranger())):
        async with opening as found:
            for _ in range(50):
                await found.send_frame(data)
            await found.socket.send(websocket_frame(Opcode.TEXT, b"\xff\xfe text"))
            assert await found.socket.is_closed()


async def test_packets_of_nonsense_for_every_protocol(mallory: Mallory, target: Target) -> None:
    """Sealed as a member's: each receiver has to refuse the payload itself."""
    payloads = [b"", b"\x00", b"\xff" * 64, secrets.token_bytes(3_000), bytes(500_000)]
    for protocol in (
        Protocol.RAFT_MCG,
        Protocol.RAFT_DSG,
        Protocol.REQUEST,
        Protocol.JOIN,
        Protocol.SWIM,
        Protocol.ECHO,
    ):
        for payload in payloads:
            for node in ("a", "b", "c"):
                mallory.send(protocol, node, payload, TrafficClass.CONTROL)
    for payload in payloads:
        mallory.overlay.send_link_local(Protocol.LSA, TrafficClass.CONTROL, mallory.overlay_id("a"), payload)


async def test_proposal_with_a_truncated_command(mallory: Mallory, target: Target) -> None:
    command = mcg_pb2.Command()
    command.delete_stream.stream_id = 1
    whole = join_pb2.ProposeRequest(command=command, proposal_id=7).SerializeToString()
    for body in (whole[:1], whole[:3], whole[:-1], b"\x0a\x05\xff\xff\xff\xff\xff", b""):
        for node in LISTENING:
            answer = await mallory.ask_control_plane(node, PROPOSE_METHOD, body)
            assert isinstance(answer, ErrorResponse), body
            assert_quotes_little(answer)


async def test_stranger_proposes(target: Target) -> None:
    """A node that is no member may only ask to join."""
    command = mcg_pb2.Command()
    command.remove_node.node_id = 2
    body = join_pb2.ProposeRequest(command=command, proposal_id=9).SerializeToString()
    async with lane(target.port("a", "peer"), stranger()) as found:
        answer = await found.ask(PROPOSE_METHOD, body)
    assert isinstance(answer, ErrorResponse)


async def test_stranger_under_the_name_and_id_of_a_member(mallory: Mallory, target: Target) -> None:
    """The id of b with a key of its own: no lane."""
    epoch = mallory.view.mesh_epoch
    signer = delegated_signer(new_key(), target.mesh_id, mallory.ids["b"], mesh_epoch=epoch)
    local = LocalNode(NodeId(mallory.ids["b"]), "b", signer, target.mesh_id, epoch)
    with pytest.raises(MeshError) as caught:
        async with lane(target.port("a", "peer"), local, view_from_proto(mallory.view)):
            pass
    assert caught.value.code is ErrorCode.KEY_MISMATCH
