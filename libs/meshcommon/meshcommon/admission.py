"""Who may speak to an HTTP listener that cannot authenticate anyone yet: programs, never foreign web pages.

A listener on the loopback, or on a network that its operator trusts, is still reached through every browser there: a
foreign page may send requests to it (cross-site request forgery, which also holds for WebSockets), and a foreign host
name may be made to resolve to its address (DNS rebinding). So, for every request and with every setting:

1. `Host` is there once, well formed, and names the listener: a loopback name or address, the address at which the
   connection arrived (a page has that address only if this listener served it), or a name that the operator listed or
   listens by.
2. `Origin`, which only browsers send, is that of the listener's own pages.
3. `Sec-Fetch-Site`, which only browsers send, is `same-origin` or `none`; `same-site` (another port of the same host) only
   for following a link.

Anything malformed is INVALID_ARGUMENT. Pure. Source: architecture §11; RFC 9110 §7.2, RFC 6454, Fetch Metadata.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

from meshcommon.address import is_loopback, is_unix, plain_ip, split
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.peer_text import printable

Headers = Iterable[tuple[bytes, bytes]]
"""Names in lower case, as ASGI gives them."""
Host = tuple[str, int | None]
"""Name in lower case (IP addresses in their canonical form, IPv6 without brackets), and the port if there is one."""

_AUTHORITY: Final = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?", re.ASCII)
_ORIGIN: Final = re.compile(r"([a-z][a-z0-9+.-]{0,31})://([^/?#@]+)", re.ASCII)
_PORTS: Final = {"http": 80, "https": 443}
_OWN_SITE: Final = frozenset({"same-origin", "none"})


def parse_host(text: str) -> Host | None:
    """`host[:port]` as a Host, None when it is malformed; no user part, no path, no spaces, nothing outside ASCII."""
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        return None
    name, port = match.group(1), int(match.group(2)) if match.group(2) else None
    if port is not None and not 1 <= port <= 65_535:
        return None
    if name.startswith("["):
        try:
            return str(ipaddress.IPv6Address(name[1:-1])), port
        except ValueError:
            return None
    return name.lower(), port


def own_names(listen: str) -> frozenset[str]:
    """The name under which a listener was told to listen, if it is one: whoever runs it chose that name."""
    host = "" if is_unix(listen) else split(listen)[0].lower()
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return frozenset({host} - {""})
    # An address is no name: 0.0.0.0 would let any page of the machine's browsers in.
    return frozenset()


def check_caller(headers: Headers, method: str, *, own_address: str, names: frozenset[str]) -> None:
    """Refuses requests that a foreign web page made a browser send, and requests that do not say whom they mean.

    Args:
        headers: All headers of the request.
        method: HTTP method; GET for a WebSocket.
        own_address: IP address at which the connection arrived; empty for a unix socket.
        names: Further host names of this listener, in lower case.

    Raises:
        MeshError: HOST_NOT_ALLOWED, ORIGIN_NOT_ALLOWED; INVALID_ARGUMENT for malformed headers.
    """
    found = _single(headers)
    host = _host(found.get("host"), own_address, names)
    if (origin := found.get("origin")) is not None:
        _check_origin(origin, host)
    if (site := found.get("sec-fetch-site")) is not None:
        _check_site(site, found, method)


def _single(headers: Headers) -> dict[str, str]:
    """The headers that decide, each at most once: of two, somebody else might read the other one."""
    found: dict[str, str] = {}
    for name, value in headers:
        key = name.decode("latin-1")
        if key not in _DECIDING:
            continue
        if key in found:
            raise MeshError(ErrorCode.INVALID_ARGUMENT, f"The header {key!r} is there twice: send it once.")
        found[key] = value.decode("latin-1")
    return found


_DECIDING: Final = frozenset({"host", "origin", "sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest"})


def _host(given: str | None, own_address: str, names: frozenset[str]) -> Host:
    host = None if given is None else parse_host(given)
    if host is None:
        shown = "missing" if given is None else f"malformed ({printable(given)!r})"
        raise MeshError(ErrorCode.INVALID_ARGUMENT, f"The header Host is {shown}: send it as host or host:port.")
    name = host[0]
    if not (is_loopback(name) or name in names or _is_same_address(name, own_address)):
        shown = printable(name)
        raise MeshError(
            ErrorCode.HOST_NOT_ALLOWED,
            f"This listener is not known as {shown!r}: use 127.0.0.1 or localhost, or add the name to the setting "
            "of its host names (MESH_GATEWAY_HOSTS, for admin pages MESH_NODE_ADMIN_HOSTS).",
            {"host": shown},
        )
    return host


def _is_same_address(name: str, own_address: str) -> bool:
    try:
        # A listener of both families sees addresses of the older one in their IPv6 form.
        return plain_ip(ipaddress.ip_address(name)) == plain_ip(ipaddress.ip_address(own_address.partition("%")[0]))
    except ValueError:
        return False


def _check_origin(origin: str, host: Host) -> None:
    if origin != "null":
        match = _ORIGIN.fullmatch(origin)
        other = None if match is None else parse_host(match.group(2))
        if match is None or other is None:
            shown = printable(origin)
            raise MeshError(ErrorCode.INVALID_ARGUMENT, f"The header Origin is malformed ({shown!r}).")
        # The scheme is not compared: behind a proxy that ends TLS it differs from ours.
        default = _PORTS.get(match.group(1))
        if (other[0], other[1] or default) == (host[0], host[1] or default):
            return
    shown = printable(origin)
    raise MeshError(
        ErrorCode.ORIGIN_NOT_ALLOWED,
        f"Web pages of {shown} may not use this listener: open its own pages, or call it from a program.",
        {"origin": shown},
    )


def _check_site(site: str, found: dict[str, str], method: str) -> None:
    follows_link = (
        method == "GET" and found.get("sec-fetch-mode") == "navigate" and found.get("sec-fetch-dest") == "document"
    )
    if site in _OWN_SITE or (site == "same-site" and follows_link):
        return
    shown = printable(site)
    raise MeshError(
        ErrorCode.ORIGIN_NOT_ALLOWED,
        f"A web page of another site ({shown}) may not use this listener: open its own pages, or call it from a program.",
        {"sec_fetch_site": shown},
    )
