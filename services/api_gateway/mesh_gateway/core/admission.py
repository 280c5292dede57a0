"""Who may speak to a gateway that cannot authenticate anyone yet: only programs of its own machine.

Two ways in from outside remain even on loopback, both through a browser on that machine: a foreign web page may send
requests here (cross-site request forgery, which also holds for WebSockets), and a foreign host name may be made to
resolve to 127.0.0.1 (DNS rebinding). So the Host has to be a loopback name, unless the operator opened the gateway with
MESH_INSECURE_DEV=1, and an Origin, which only browsers send, has to be the gateway's own. Source: architecture §11;
RFC 6454 (Origin).
"""

from __future__ import annotations

from urllib.parse import urlsplit

from meshcommon.address import is_loopback
from meshcommon.errors import ErrorCode, MeshError


def check_caller(host: str, origin: str | None, *, is_insecure_dev: bool) -> None:
    """Refuses requests that a foreign web page made a browser send.

    Args:
        host: Host header.
        origin: Origin header, None when there is none.
        is_insecure_dev: Whether any host name is accepted.

    Raises:
        MeshError: ORIGIN_NOT_ALLOWED.
    """
    name = _host_name(host)
    if not is_insecure_dev and not is_loopback(name):
        raise MeshError(
            ErrorCode.ORIGIN_NOT_ALLOWED,
            f"The gateway is not known as {name!r}: use 127.0.0.1 or localhost.",
            {"host": host},
        )
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        raise MeshError(
            ErrorCode.ORIGIN_NOT_ALLOWED,
            f"Web pages of {origin} may not use this gateway: open its own pages, or call it from a program.",
            {"origin": origin},
        )


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return host
