"""Binding, and what is said when it does not work."""

from __future__ import annotations

import socket

import pytest

from meshcommon.address import split
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.listen import bind


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
