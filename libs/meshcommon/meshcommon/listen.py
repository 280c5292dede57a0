"""Binding to an address, with an error that says what to do when it is taken."""

from __future__ import annotations

import errno
import socket

from meshcommon.address import split
from meshcommon.errors import ErrorCode, MeshError


def bind(listen: str, what: str) -> socket.socket:
    """A listening TCP socket on `listen`.

    Args:
        listen: `host:port`; port 0 lets the kernel choose.
        what: What listens there, for the error text.

    Raises:
        MeshError: ADDRESS_IN_USE or SETTING_INVALID.
    """
    host, port = split(listen)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise MeshError(ErrorCode.SETTING_INVALID, f"{what} cannot listen on {listen}: {error.strerror}.") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(128)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise MeshError(
                ErrorCode.ADDRESS_IN_USE,
                f"{what} cannot listen on {listen}: the port is in use. Stop the other process or choose another port.",
                {"address": listen},
            ) from error
        raise MeshError(ErrorCode.SETTING_INVALID, f"{what} cannot listen on {listen}: {error.strerror}.") from error
    sock.setblocking(False)
    return sock
