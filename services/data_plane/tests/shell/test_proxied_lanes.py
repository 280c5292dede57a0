"""Lanes through a proxy that ends TLS: refused unless both ends allow it, and then the proxy reads no byte of what is said.

One test runs a real nginx; it is skipped where there is none (`apt-get install nginx-light`).
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from data_plane_testing.identities import local_node, public_key, signer_of
from data_plane_testing.tls_middle import Middle, running, up, view_with
from mesh_data.core.forwarder import Delivery
from mesh_data.core.timing import OverlayTiming
from mesh_data.shell.overlay.lane_handshakes import Proxies
from mesh_data.shell.overlay.listener import PeerListener
from mesh_data.shell.overlay.overlay import Overlay
from meshcommon.boot_certificate import BootCertificate, any_server
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshtest.certificates import SelfSigned
from meshtest.ports import free_ports
from meshtest.waiting import eventually
from meshwire.packet import Protocol, TrafficClass

SECRET: Final = b"what no proxy may read"
NGINX: Final = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
_CONFIGURATION: Final = """
daemon off; master_process off; worker_processes 1; pid {directory}/nginx.pid; error_log stderr;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  server {{
    listen 127.0.0.1:{port} ssl; ssl_protocols TLSv1.3;
    ssl_certificate {certificate}; ssl_certificate_key {key};
    location / {{
      proxy_pass http://127.0.0.1:{target}; proxy_http_version 1.1; proxy_read_timeout 1h;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; proxy_set_header Host $host;
    }}
  }}
}}
"""


def proxied(*addresses: str, behind: bool = False) -> Proxies:
    return Proxies.of_settings(addresses, is_listening_behind=behind)


@asynccontextmanager
async def nginx(directory: Path, target: int) -> AsyncIterator[int]:
    """The port of an nginx that ends TLS and passes everything on in clear to `target`."""
    assert NGINX is not None
    (port,), files = free_ports(1), SelfSigned.make(directory, "proxy")
    configuration = directory / "nginx.conf"
    content = _CONFIGURATION.format(
        directory=directory, port=port, target=target, certificate=files.certificate, key=files.key
    )
    configuration.write_text(content)
    arguments = ["-c", str(configuration), "-p", str(directory)]
    process = await asyncio.create_subprocess_exec(NGINX, *arguments, stderr=asyncio.subprocess.DEVNULL)
    try:

        async def listens() -> bool:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return True
            return False

        await eventually("nginx to listen", listens, timeout_s=10, poll_s=0.05)
        yield port
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def own_proxy(_directory: Path, target: int) -> AsyncIterator[int]:
    """The same without nginx: ends TLS and passes everything on in clear."""
    async with Middle(target, BootCertificate().server(), None).listening() as port:
        yield port


@pytest.fixture(
    params=[
        pytest.param(nginx, marks=pytest.mark.skipif(NGINX is None, reason="needs nginx: apt-get install nginx-light")),
        own_proxy,
    ],
    ids=["nginx", "own proxy"],
)
async def way(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[str, PeerListener, Middle]]:
    """Address at the proxy, the listener behind it, and what passes between the two in clear."""
    listener = PeerListener("127.0.0.1:0", BootCertificate())
    tap = Middle(listener.port, None, any_server())
    async with tap.listening() as tapped, request.param(tmp_path, tapped) as port:
        yield f"wss://127.0.0.1:{port}", listener, tap


@pytest.mark.parametrize(("dials", "listens"), [(False, False), (True, False), (False, True)])
async def test_proxy_that_not_both_ends_allow_is_refused(
    way: tuple[str, PeerListener, Middle], dials: bool, listens: bool
) -> None:
    address, listener, tap = way
    listening = Overlay(OverlayTiming(), {}, listener, proxies=proxied(behind=listens))
    dialling = Overlay(OverlayTiming(), {}, None, proxies=proxied(*([address] if dials else [])))
    async with running(listening), running(dialling):
        view = view_with(address)
        listening.configure(local_node(1, None), view, is_running=True)
        dialling.configure(local_node(2, None), view, is_running=True)

        async def refused() -> bool:
            return ErrorCode.TLS_TERMINATED in dialling.refusals and ErrorCode.TLS_TERMINATED in listening.refusals

        await eventually("both ends to see it", refused, timeout_s=10, poll_s=0.01)
        assert not dialling.core.is_link_up(NodeId(1))
        assert b"mesh.v1" in tap.read, "the proxy must have read the exchange, or the test shows nothing"


async def test_lane_through_a_proxy_that_both_ends_allow_shows_it_nothing_of_what_is_said(
    way: tuple[str, PeerListener, Middle],
) -> None:
    address, listener, tap = way
    listening = Overlay(OverlayTiming(), {}, listener, proxies=proxied(behind=True))
    dialling = Overlay(OverlayTiming(), {}, None, proxies=proxied(address))
    received: list[Delivery] = []
    for overlay in (listening, dialling):
        overlay.bind(Protocol.SWIM, received.append)
    async with running(listening), running(dialling):
        view = view_with(address)
        listening.configure(local_node(1, None), view, is_running=True)
        dialling.configure(local_node(2, None), view, is_running=True)
        await up(dialling, 1)
        await up(listening, 2)
        clear = len(tap.read)
        assert dialling.send(Protocol.SWIM, TrafficClass.CONTROL, NodeId(1), SECRET)
        assert listening.send(Protocol.SWIM, TrafficClass.BULK, NodeId(2), SECRET * 1000)

        async def came() -> bool:
            return len(received) == 2

        await eventually("the packets", came, timeout_s=10, poll_s=0.01)
        assert sorted(len(item.payload) for item in received) == [len(SECRET), 1000 * len(SECRET)]
        # Beats go on in both directions, and show no clock, no number and no kind.
        await asyncio.sleep(0.5)
    seen = bytes(tap.read)
    assert len(seen) > clear + 1000 * len(SECRET)
    assert b"mesh.v1" in seen, "the proxy sees the upgrade"
    assert SECRET not in seen
    assert SECRET[:8] not in seen


async def test_frames_behind_the_handshake_are_sealed_ones_only(way: tuple[str, PeerListener, Middle]) -> None:
    """Packets are sealed from end to end anyway; here their prefixes, the beats and the goodbye are, too."""
    address, listener, tap = way
    listening = Overlay(OverlayTiming(), {}, listener, proxies=proxied(behind=True))
    dialling = Overlay(OverlayTiming(), {}, None, proxies=proxied(address))
    async with running(listening), running(dialling):
        view = view_with(address)
        listening.configure(local_node(1, None), view, is_running=True)
        dialling.configure(local_node(2, None), view, is_running=True)
        await up(dialling, 1)
        await up(listening, 2)
        await asyncio.sleep(0.3)
        await dialling.say_goodbye()
    kinds = [kind for kind, _ in frames(tap.sent_back)]
    assert kinds[:3] == [1, 1, 1], "hello, proof and Finished"
    assert len(kinds) > 4
    assert set(kinds[3:]) == {3}
    assert b"shutting down" not in tap.read


async def test_newcomer_joins_through_a_proxy_and_the_proxy_reads_neither_request_nor_answer(
    way: tuple[str, PeerListener, Middle],
) -> None:
    address, listener, tap = way
    listening = Overlay(OverlayTiming(), {}, listener, proxies=proxied(behind=True))
    joining = Overlay(OverlayTiming(), {}, None, proxies=proxied(address))
    asked: list[Delivery] = []
    listening.bind(Protocol.JOIN, asked.append)
    async with running(listening), running(joining):
        await asyncio.sleep(0.05)  # both have to run before anything is asked of them
        listening.configure(local_node(1, None), view_with(address), is_running=True)
        signer = signer_of(9, now_s=None, mesh_id="")
        lane = await joining.open_join_lane(address, "n9", signer)
        assert joining.send_join(lane.lane_id, TrafficClass.CONTROL, SECRET)

        async def came() -> bool:
            return bool(asked)

        await eventually("the request", came, timeout_s=10, poll_s=0.01)
        assert (bytes(asked[0].payload), asked[0].lane_public_key) == (SECRET, public_key(9))
    assert SECRET not in tap.read


async def test_unmarked_newcomer_is_told_that_tls_is_terminated(way: tuple[str, PeerListener, Middle]) -> None:
    address, listener, _ = way
    listening = Overlay(OverlayTiming(), {}, listener, proxies=proxied(behind=True))
    joining = Overlay(OverlayTiming(), {}, None)
    async with running(listening), running(joining):
        await asyncio.sleep(0.05)  # both have to run before anything is asked of them
        listening.configure(local_node(1, None), view_with(address), is_running=True)
        with pytest.raises(MeshError) as caught:
            await joining.open_join_lane(address, "n9", signer_of(9, now_s=None, mesh_id=""))
    assert caught.value.code is ErrorCode.TLS_TERMINATED
    assert "behind a proxy" in caught.value.message


async def test_proxy_that_changes_one_byte_of_a_sealed_frame_ends_that_lane() -> None:
    listener = PeerListener("127.0.0.1:0", BootCertificate())
    tap = Middle(listener.port, BootCertificate().server(), any_server())
    listening = Overlay(OverlayTiming(), {}, listener, proxies=proxied(behind=True))
    async with tap.listening() as port:
        address = f"wss://127.0.0.1:{port}"
        dialling = Overlay(OverlayTiming(), {}, None, proxies=proxied(address))
        async with running(listening), running(dialling):
            view = view_with(address)
            listening.configure(local_node(1, None), view, is_running=True)
            dialling.configure(local_node(2, None), view, is_running=True)
            await up(dialling, 1)
            await up(listening, 2)
            tap.flip_next = True

            async def told() -> bool:
                link = listening.core.link(NodeId(2)), dialling.core.link(NodeId(1))
                return any(item is not None and "sealed frame" in item.down_reason for item in link)

            await eventually("the lane to end", told, timeout_s=10, poll_s=0.005)
            await up(dialling, 1)


def frames(stream: Iterable[int]) -> list[tuple[int, int]]:
    """Type byte and size of each binary frame in what a server sent after its upgrade; such frames are not masked."""
    data = bytes(stream)
    at = data.index(b"\r\n\r\n") + 4
    found: list[tuple[int, int]] = []
    while at + 2 <= len(data):
        kind, size = data[at] & 0x0F, data[at + 1] & 0x7F
        at += 2
        if size >= 126:
            wide = 2 if size == 126 else 8
            size, at = int.from_bytes(data[at : at + wide], "big"), at + wide
        if kind == 2:
            found.append((data[at], size))
        at += size
    return found
