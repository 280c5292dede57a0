"""Addresses as text: the one strict parser, and which listeners may be reached from other machines.

Every address of a peer (advertised, joined, dialled, configured) passes `parse_peer_address` before it is committed or
dialled; every listen address passes `split`. Pure, so that cores may use it; binding is in `meshcommon.listen`. The
result does not depend on the machine: host names are checked by a grammar, never resolved. Source: RFC 3986 §3.2,
RFC 1123 §2.1, RFC 5890 (A-labels); architecture §11.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from meshcommon.errors import ErrorCode, MeshError
from meshcommon.peer_text import printable

ADDRESS_CHARACTERS_MAX: Final = 255
UNIX_PATH_BYTES_MAX: Final = 107
"""What the kernel takes as the path of a socket (`sun_path`, without its end)."""
_HOST_PREFIX: Final = 64
_UNIX: Final = "unix:"
_UNIX_PATH: Final = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._+@-]+)+", re.ASCII)
_PORT_MAX: Final = 65_535
_HOST_CHARACTERS_MAX: Final = 253
_PEER_ADDRESS: Final = re.compile(r"(wss?)://(\[[0-9A-Fa-f:.]+\]|[^\[\]/?#@:\s\\]+):([0-9]{1,5})", re.ASCII)
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_LOOKS_LIKE_IPV4: Final = re.compile(r"[0-9.]+|0x[0-9a-f.x]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where a peer listens. `str()` gives the canonical text: lower case, A-labels, IPv6 in brackets.

    Attributes:
        scheme: "ws" or "wss".
        host: DNS name in lower-case ASCII, or an IP address without brackets.
        port: 1 to 65535.
    """

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def parse_peer_address(text: str) -> PeerAddress:
    """The one parser of peer addresses: `ws://host:port` or `wss://host:port`, nothing before, between or after.

    The host is an IP address (IPv6 in brackets, no zone) or a DNS name; a name with other letters becomes its IDNA form.

    Raises:
        MeshError: INVALID_ARGUMENT, with the reason.
    """
    if len(text) > ADDRESS_CHARACTERS_MAX:
        raise _bad_address(text, f"it has more than {ADDRESS_CHARACTERS_MAX} characters")
    match = _PEER_ADDRESS.fullmatch(text)
    if match is None:
        raise _bad_address(text, "it is not of that form")
    scheme, host, port = match.group(1), match.group(2), int(match.group(3))
    if not 1 <= port <= _PORT_MAX:
        raise _bad_address(text, f"the port is not between 1 and {_PORT_MAX}")
    address = PeerAddress(scheme, _host(text, host), port)
    if len(str(address)) > ADDRESS_CHARACTERS_MAX:
        raise _bad_address(text, f"its IDNA form has more than {ADDRESS_CHARACTERS_MAX} characters")
    return address


def is_peer_address(text: str) -> bool:
    """Whether `parse_peer_address` takes it."""
    try:
        parse_peer_address(text)
    except MeshError:
        return False
    return True


def _host(text: str, host: str) -> str:
    if host.startswith("["):
        try:
            return str(plain_ip(ipaddress.IPv6Address(host[1:-1])))
        except ValueError:
            raise _bad_address(text, "the brackets hold no IPv6 address") from None
    if host.isascii():
        name = host.lower()
    else:
        try:
            name = host.encode("idna").decode("ascii").lower()
        except UnicodeError:
            raise _bad_address(text, "the host name has no IDNA form") from None
    if _LOOKS_LIKE_IPV4.fullmatch(name):
        # Resolvers read 127.1 and 0x7f.1 as addresses too; only the one canonical form is taken.
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError:
            raise _bad_address(text, "the host looks like an IPv4 address and is none") from None
    labels = name.removesuffix(".").split(".")
    if len(name) > _HOST_CHARACTERS_MAX or not all(_LABEL.fullmatch(label) for label in labels):
        raise _bad_address(text, "the host is no IP address and no DNS name")
    return name


def _bad_address(text: str, why: str) -> MeshError:
    shown = printable(text)
    return MeshError(
        ErrorCode.INVALID_ARGUMENT,
        f"{shown!r} is no address of a node: use ws://host:port or wss://host:port ({why}).",
        {"address": shown},
    )


def plain_ip(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address that a mapped one (`::ffff:1.2.3.4`, RFC 4291 §2.5.5.2) stands for; any other as it is.

    A socket of both families shows IPv4 peers as mapped, and Python's versions differ in how they write and judge those.
    """
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped


def host_group(remote: str) -> str:
    """What counts as one host in limits: an IPv4 address, an IPv6 network of 64 bits, or the text when it is neither.

    One host owns a whole IPv6 network of that length (RFC 4291 §2.5.4) and may send from any address of it.
    """
    try:
        address = plain_ip(ipaddress.ip_address(remote.partition("%")[0]))
    except ValueError:
        return remote
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((address, _HOST_PREFIX), strict=False))
    return str(address)


def split(listen: str) -> tuple[str, int]:
    """`host:port` as (host, port); IPv6 hosts in brackets, without a zone: which interface has it differs by machine.

    Raises:
        MeshError: SETTING_INVALID.
    """
    host, colon, port = listen.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    is_host = bool(bare) and len(listen) <= ADDRESS_CHARACTERS_MAX and not re.search(r"[\[\]/?#@%\s]", bare)
    # `::1:7000` would be read as host `::1` by us and as an address without a port by others; `[a]` is no IPv6 address.
    if is_host and (bare != host) != _is_ipv6(bare):
        is_host = False
    if not colon or not is_host or not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or int(port) > _PORT_MAX:
        shown = printable(listen)
        raise MeshError(
            ErrorCode.SETTING_INVALID,
            f"{shown!r} is no address to listen on: use host:port, with IPv6 hosts in brackets and a port up to 65535.",
            {"address": shown},
        )
    return bare, int(port)


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def is_unix(listen: str) -> bool:
    """Whether the address is that of a unix socket, `unix:/path`."""
    return listen.startswith(_UNIX)


def unix_path(listen: str) -> str:
    """The path of `unix:/path`: absolute, of plain characters, as short as the kernel wants it.

    gRPC reads the address as a URI, where other characters would mean something else.

    Raises:
        MeshError: SETTING_INVALID.
    """
    path = listen.removeprefix(_UNIX)
    if is_unix(listen) and len(path) <= UNIX_PATH_BYTES_MAX and _UNIX_PATH.fullmatch(path):
        return path
    shown = printable(listen)
    raise MeshError(
        ErrorCode.SETTING_INVALID,
        f"{shown!r} is no socket to listen on: use unix:/path, absolute, at most {UNIX_PATH_BYTES_MAX} of A-Z, a-z, 0-9 "
        "and ._-+@/ in the path, none of its parts being '.' or '..'.",
        {"address": shown},
    )


def check_endpoint(address: str) -> str:
    """Returns `address` if it is `host:port` or `unix:/path`, else raises SETTING_INVALID."""
    if is_unix(address):
        unix_path(address)
    else:
        split(address)
    return address


def is_loopback(host: str) -> bool:
    """Whether `host` is `localhost` or a loopback address; other names count as not, whatever they resolve to."""
    if host.lower() in {"localhost", "localhost."}:
        return True
    try:
        return plain_ip(ipaddress.ip_address(host)).is_loopback
    except ValueError:
        return False


def is_exposed(endpoint: str) -> bool:
    """Whether `host:port` or `unix:/path` is something that other machines may reach. Raises MeshError(SETTING_INVALID)."""
    if is_unix(endpoint):
        unix_path(endpoint)
        return False
    return not is_loopback(split(endpoint)[0])


def check_listen(
    listen: str, what: str, *, is_insecure_dev: bool, is_encrypted: bool = False, is_authenticated: bool = False
) -> None:
    """Refuses an address that other machines can reach, unless the listener is encrypted and knows its callers.

    Args:
        listen: `host:port` or `unix:/path`; a unix socket is reached only by processes of its own user.
        what: Name of the listener, for the text.
        is_insecure_dev: Whether the operator accepts everything.
        is_encrypted: Whether the listener speaks TLS only.
        is_authenticated: Whether it lets in only callers that prove who they are.

    Raises:
        MeshError: INSECURE_NOT_ALLOWED, or SETTING_INVALID for what is no address.
    """
    if not is_exposed(listen) or is_insecure_dev or (is_encrypted and is_authenticated):
        return
    lacks, remedies = [], []
    if not is_encrypted:
        lacks.append("without TLS")
        remedies.append("set MESH_NODE_TLS_DIR, the folder of this site's certificates")
    if not is_authenticated:
        lacks.append("without authentication of callers")
        remedies.append("make a token with `meshctl operator-token rotate`")
    raise MeshError(
        ErrorCode.INSECURE_NOT_ALLOWED,
        f"{what} would listen on {listen}, where other machines reach it, {' and '.join(lacks)}: "
        f"{' and '.join(remedies)}, or listen on 127.0.0.1, or set MESH_INSECURE_DEV=1 on a network you trust.",
        {"address": listen},
    )


def check_target(target: str, what: str, *, is_insecure_dev: bool) -> None:
    """Refuses to call another machine in clear.

    Raises:
        MeshError: INSECURE_NOT_ALLOWED, or SETTING_INVALID for what is no address.
    """
    if is_exposed(target) and not is_insecure_dev:
        raise MeshError(
            ErrorCode.INSECURE_NOT_ALLOWED,
            f"{what} at {target} would be called in clear over a network: set MESH_NODE_TLS_DIR, the folder of this "
            "site's certificates, or MESH_INSECURE_DEV=1 on a network you trust.",
            {"address": target},
        )
