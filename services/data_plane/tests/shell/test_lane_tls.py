"""Lanes over TLS: they run in it, nothing comes up without it, and whoever ends it in between is found out."""

from __future__ import annotations

import asyncio
import socket
import ssl

import pytest

from data_plane_testing.identities import local_node
from data_plane_testing.tls_middle import Middle, running, up, view_with
from mesh_data.core.forwarder import Delivery
from mesh_data.core.timing import OverlayTiming
from mesh_data.shell.overlay.dialler import connect_lane
from mesh_data.shell.overlay.listener import PeerListener
from mesh_data.shell.overlay.overlay import Overlay
from meshcommon.boot_certificate import BootCertificate, any_server, certificate_digest
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshtest.waiting import eventually
from meshwire.packet import Protocol, TrafficClass

SECRET = b"what must not be read on the wire"


async def test_lane_runs_over_tls_and_a_node_without_a_listener_keeps_it() -> None:
    listener = PeerListener("127.0.0.1:0", BootCertificate())
    listening, dialling = Overlay(OverlayTiming(), {}, listener), Overlay(OverlayTiming(), {}, None)
    received: list[Delivery] = []
    listening.bind(Protocol.SWIM, received.append)
    wire = Middle(listener.port, None, None)
    async with wire.listening() as port, running(listening), running(dialling):
        view = view_with(f"wss://127.0.0.1:{port}")
        # Long enough for a task group without a task to end, if it did.
        await asyncio.sleep(0.05)
        listening.configure(local_node(1, None), view, is_running=True)
        dialling.configure(local_node(2, None), view, is_running=True)
        await up(dialling, 1)
        await up(listening, 2)
        assert dialling.send(Protocol.SWIM, TrafficClass.CONTROL, NodeId(1), SECRET)

        async def came() -> bool:
            return bool(received)

        await eventually("the packet", came, timeout_s=10, poll_s=0.01)
        assert bytes(received[0].payload) == SECRET
        lane = dialling.core.control_lane(NodeId(1))
        assert lane is not None
        assert not lane.is_silent(asyncio.get_running_loop().time())
    # A node's name stands in its hello, which nothing but TLS hides; the subprotocol in the upgrade.
    assert len(wire.read) > 1000
    assert not [text for text in (SECRET, b"mesh.v1", b"n1", b"n2") if text in wire.read and len(text) > 2]


@pytest.mark.parametrize(
    ("accepts", "dials", "node"),
    [
        (BootCertificate, any_server, BootCertificate),  # TLS on both sides, each with another certificate
        (BootCertificate, None, None),  # TLS ends at the proxy; the node behind it listens in clear
        (None, any_server, BootCertificate),  # the victim is talked into speaking in clear
    ],
    ids=["own tls", "terminates", "strips"],
)
async def test_man_in_the_middle_who_relays_the_whole_handshake_is_found_out(
    accepts: type[BootCertificate] | None, dials: object, node: type[BootCertificate] | None
) -> None:
    listener = PeerListener("127.0.0.1:0", node() if node is not None else None)
    listening = Overlay(OverlayTiming(), {}, listener, allows_clear=True)
    dialling = Overlay(OverlayTiming(), {}, None, allows_clear=True)
    middle = Middle(listener.port, accepts().server() if accepts else None, any_server() if dials else None)
    async with middle.listening() as port, running(listening), running(dialling):
        view = view_with(f"{'wss' if accepts else 'ws'}://127.0.0.1:{port}")
        listening.configure(local_node(1), view, is_running=True)
        dialling.configure(local_node(2), view, is_running=True)

        async def refused() -> bool:
            return ErrorCode.TLS_TERMINATED in dialling.refusals and ErrorCode.TLS_TERMINATED in listening.refusals

        await eventually("both ends to see it", refused, timeout_s=10, poll_s=0.01)
        assert not dialling.core.is_link_up(NodeId(1))
        assert not listening.core.is_link_up(NodeId(2))
        assert b"mesh.v1" in middle.read, "the middle must have read the exchange, or the test shows nothing"


async def test_listener_with_tls_takes_nothing_in_clear_and_a_dialler_with_it_says_nothing_in_clear() -> None:
    listener = PeerListener("127.0.0.1:0", BootCertificate())
    async with running(Overlay(OverlayTiming(), {}, listener)):
        with pytest.raises(MeshError) as clear:
            await connect_lane(f"ws://127.0.0.1:{listener.port}", 2.0)
        with pytest.raises(MeshError) as downgraded:
            await connect_lane(f"ws://127.0.0.1:{listener.port}", 2.0, any_server())
    assert clear.value.code in {ErrorCode.WRONG_PROTOCOL, ErrorCode.ADDRESS_UNREACHABLE}
    assert downgraded.value.code is ErrorCode.INVALID_ARGUMENT
    assert "wss://" in downgraded.value.message


async def test_what_speaks_no_tls_is_named_as_no_peer_port() -> None:
    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    with pytest.raises(MeshError) as caught:
        await connect_lane(f"wss://127.0.0.1:{server.sockets[0].getsockname()[1]}", 2.0, any_server())
    server.close()
    assert caught.value.code is ErrorCode.WRONG_PROTOCOL
    assert "TLS failed" in caught.value.message


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2])
async def test_older_tls_is_refused_at_both_ends(version: ssl.TLSVersion) -> None:
    certificate = BootCertificate()
    listener = PeerListener("127.0.0.1:0", certificate)
    old = any_server()
    old.minimum_version, old.maximum_version = version, version
    async with running(Overlay(OverlayTiming(), {}, listener)):
        with pytest.raises(MeshError) as caught:
            await connect_lane(f"wss://127.0.0.1:{listener.port}", 2.0, old)
    assert caught.value.code is ErrorCode.WRONG_PROTOCOL


async def test_digest_is_the_same_at_both_ends_and_another_at_each_start() -> None:
    one, other = BootCertificate(), BootCertificate()
    assert one.digest != other.digest
    server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0, ssl=one.server())
    port = server.sockets[0].getsockname()[1]
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=any_server(), family=socket.AF_INET)
    assert certificate_digest(writer.get_extra_info("ssl_object")) == one.digest
    assert certificate_digest(None) == b""
    writer.close()
    server.close()
