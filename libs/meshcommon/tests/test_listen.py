"""Binding, and what is said when it does not work."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from meshcommon.address import UNIX_PATH_BYTES_MAX, check_endpoint, check_listen, split
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.listen import UnixPlace, bind, bind_unix


@pytest.mark.parametrize(
    ("listen", "expected"), [("127.0.0.1:7101", ("127.0.0.1", 7101)), ("[::1]:80", ("::1", 80)), ("h:0", ("h", 0))]
)
def test_split(listen: str, expected: tuple[str, int]) -> None:
    assert split(listen) == expected


def test_kernel_chooses_the_port_and_connections_are_taken() -> None:
    with bind("127.0.0.1:0", "a test") as listener:
        assert not listener.getblocking()
        with socket.create_connection(listener.getsockname(), timeout=5) as connection:
            assert connection.getpeername() == listener.getsockname()


def test_port_in_use_says_so() -> None:
    with bind("127.0.0.1:0", "the first") as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(MeshError) as caught:
            bind(address, "the second")
    assert caught.value.code is ErrorCode.ADDRESS_IN_USE
    assert caught.value.details == {"address": address}
    assert "the second" in caught.value.message


def test_port_is_free_again_at_once_after_a_connection() -> None:
    with bind("127.0.0.1:0", "the first") as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        listener.setblocking(True)
        with socket.create_connection(listener.getsockname(), timeout=5):
            accepted, _ = listener.accept()
            accepted.close()
    bind(address, "the second").close()


@pytest.mark.parametrize("listen", ["192.0.2.1:1", "no-such-host.invalid:1"])
def test_address_that_is_not_ours_is_an_invalid_setting(listen: str) -> None:
    with pytest.raises(MeshError) as caught:
        bind(listen, "a test")
    assert caught.value.code is ErrorCode.SETTING_INVALID
    assert listen in caught.value.message


def test_a_unix_socket_and_its_directory_are_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "run" / "a.sock"
    previous = os.umask(0)
    try:
        place = UnixPlace.take(f"unix:{path}", "a test")
        with bind_unix(place):
            assert path.stat().st_mode & 0o777 == 0o600
            assert path.parent.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(previous)
    place.close()
    place.close()
    assert not path.exists()


def test_a_socket_that_is_served_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    listen = f"unix:{tmp_path}/run/a.sock"
    place = UnixPlace.take(listen, "the first")
    with pytest.raises(MeshError) as caught:
        UnixPlace.take(listen, "the second")
    assert caught.value.code is ErrorCode.ADDRESS_IN_USE
    place.close()
    # Also one that a program without our lock serves.
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(listen.removeprefix("unix:"))
        other.listen()
        with pytest.raises(MeshError) as caught:
            UnixPlace.take(listen, "the second")
    assert caught.value.code is ErrorCode.ADDRESS_IN_USE


def test_the_socket_of_a_process_that_is_gone_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    path = tmp_path / "run" / "a.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    place = UnixPlace.take(f"unix:{path}", "a test")
    with bind_unix(place), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    place.close()


def test_a_file_is_not_taken_for_a_socket(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    path = tmp_path / "run" / "a.sock"
    path.write_text("precious")
    with pytest.raises(MeshError) as caught:
        UnixPlace.take(f"unix:{path}", "a test")
    assert caught.value.code is ErrorCode.SETTING_INVALID
    assert path.read_text() == "precious"


def test_a_directory_that_others_may_enter_is_refused_not_changed(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(MeshError) as caught:
        UnixPlace.take(f"unix:{shared}/a.sock", "a test")
    assert caught.value.code is ErrorCode.SETTING_INVALID
    assert "0700" in caught.value.message
    assert shared.stat().st_mode & 0o777 == 0o777


@pytest.mark.parametrize(
    "address",
    [
        "unix:",
        "unix:a.sock",
        "unix:/",
        "unix:/run/",
        "unix:/run/../a.sock",
        "unix:/run/./a.sock",
        "unix:///run/a.sock",
        "unix:/run/a b.sock",
        "unix:/run/a%2e.sock",
        "unix:/run/a.sock?x",
        "unix:/run/\x00.sock",
        "unix:/run/ä.sock",
        "unix:/" + "a" * UNIX_PATH_BYTES_MAX,
        "unix-abstract:a",
        "127.0.0.1",
        "dns:///localhost:1",
    ],
)
def test_what_is_no_endpoint(address: str) -> None:
    with pytest.raises(MeshError) as caught:
        check_endpoint(address)
    assert caught.value.code is ErrorCode.SETTING_INVALID


@pytest.mark.parametrize(
    "address", ["unix:/run/mesh/a.sock", "unix:/" + "a" * (UNIX_PATH_BYTES_MAX - 1), "h:1", "[::1]:1"]
)
def test_endpoints(address: str) -> None:
    assert check_endpoint(address) == address


def test_a_unix_socket_needs_no_leave() -> None:
    check_listen("unix:/run/mesh/a.sock", "a test", is_insecure_dev=False)
    with pytest.raises(MeshError):
        check_listen("unix:a.sock", "a test", is_insecure_dev=True)
