"""Binding to an address, with an error that says what to do when it is taken.

An address is `host:port`, or `unix:/path` for a socket that only this user's processes of this machine reach: its
directory is 0700 and the socket 0600. A socket left by a process that is gone is replaced, one that is served is not.
Leaves out: which TCP addresses may be listened on at all (`meshcommon.address.check_listen`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from meshcommon.address import split, unix_path
from meshcommon.errors import ErrorCode, MeshError

BACKLOG: Final = 128
"""Connections that the kernel holds until the service takes them."""
_PRIVATE_DIRECTORY: Final = 0o700
_PRIVATE_SOCKET: Final = 0o600
_OTHERS: Final = 0o077


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
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise _in_use(listen, what) from error
        raise MeshError(ErrorCode.SETTING_INVALID, f"{what} cannot listen on {listen}: {error.strerror}.") from error
    sock.setblocking(False)
    return sock


@dataclass(slots=True)
class UnixPlace:
    """The path of a unix socket, held for one process. `close` removes the socket and lets the path go.

    Two processes that start at once must not both find the socket of a dead one: an flock beside it decides. The kernel
    drops it with the process, so nothing has to be cleaned up after a crash.
    """

    path: Path
    _lock: int

    @classmethod
    def take(cls, listen: str, what: str) -> UnixPlace:
        """Takes the path of `listen` (`unix:/path`): makes its directory, removes a socket that nobody serves.

        Raises:
            MeshError: ADDRESS_IN_USE; SETTING_INVALID when the directory is open to others or the path is no socket.
        """
        path = Path(unix_path(listen))
        lock = -1
        try:
            _private_directory(path.parent, listen, what)
            lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PRIVATE_SOCKET)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_stale(path, listen, what)
        except BaseException as error:
            if lock >= 0:
                os.close(lock)
            if isinstance(error, BlockingIOError):
                raise _in_use(listen, what) from error
            if isinstance(error, OSError):
                text = f"{what} cannot listen on {listen}: {error.strerror}."
                raise MeshError(ErrorCode.SETTING_INVALID, text) from error
            raise
        return cls(path, lock)

    def protect(self) -> None:
        """Takes the bound socket from other users; its directory keeps them out already."""
        self.path.chmod(_PRIVATE_SOCKET)

    def close(self) -> None:
        """Removes the socket and lets the path go; may be called again."""
        if self._lock >= 0:
            self.path.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1


def bind_unix(place: UnixPlace) -> socket.socket:
    """A listening unix socket at `place`. Raises MeshError(SETTING_INVALID)."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(place.path))
        place.protect()
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise MeshError(ErrorCode.SETTING_INVALID, f"Cannot listen on {place.path}: {error.strerror}.") from error
    sock.setblocking(False)
    return sock


def _private_directory(directory: Path, listen: str, what: str) -> None:
    directory.mkdir(mode=_PRIVATE_DIRECTORY, parents=True, exist_ok=True)
    found = directory.stat()
    # Not tightened by us: it may be /tmp, or the home of something else.
    if found.st_uid != os.geteuid() or found.st_mode & _OTHERS:
        raise MeshError(
            ErrorCode.SETTING_INVALID,
            f"{what} cannot listen on {listen}: other users may enter {directory}. Name a directory of its own "
            "user with mode 0700; one that does not exist is made.",
            {"address": listen},
        )


def _remove_stale(path: Path, listen: str, what: str) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise MeshError(
            ErrorCode.SETTING_INVALID,
            f"{what} cannot listen on {listen}: {path} is there and is no socket. Choose another path.",
            {"address": listen},
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise _in_use(listen, what)


def _in_use(listen: str, what: str) -> MeshError:
    place = "socket" if listen.startswith("unix:") else "port"
    return MeshError(
        ErrorCode.ADDRESS_IN_USE,
        f"{what} cannot listen on {listen}: the {place} is in use. Stop the other process or choose another {place}.",
        {"address": listen},
    )
