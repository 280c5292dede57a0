"""Addresses as text, and which of them a listener may have that cannot authenticate anyone yet.

Pure, so that cores may use it; binding is in `meshcommon.listen`. Source: architecture §11.
"""

from __future__ import annotations

import ipaddress

from meshcommon.errors import ErrorCode, MeshError


def split(listen: str) -> tuple[str, int]:
    """`host:port` as (host, port); IPv6 hosts in brackets."""
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether `host` is `localhost` or a loopback address; other names count as not, whatever they resolve to."""
    if host.lower() in {"localhost", "localhost."}:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_listen(listen: str, what: str, *, is_insecure_dev: bool) -> None:
    """Refuses an address that others than this machine can reach.

    Args:
        listen: `host:port`.
        what: Name of the listener, for the text.
        is_insecure_dev: Whether the operator accepts that.

    Raises:
        MeshError: INSECURE_NOT_ALLOWED.
    """
    host, _ = split(listen)
    if not is_insecure_dev and not is_loopback(host):
        raise MeshError(
            ErrorCode.INSECURE_NOT_ALLOWED,
            f"{what} would listen on {listen}, where other machines reach it, but cannot authenticate anyone yet: "
            "listen on 127.0.0.1, or set MESH_INSECURE_DEV=1 on a network you trust.",
            {"address": listen},
        )
