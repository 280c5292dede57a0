"""The overlay packet: a fixed routing prefix, the source route, and the payload, sealed or not.

Purpose: what one node sends another through any number of relays, and the fast path by which a relay reads and patches
only what routing needs. Leaves out: what the payload means (each protocol's own business), keys, and who has to seal
what. Source: architecture, "The overlay", "Security".

Layout (network byte order, offsets in bytes)::

    0 version u8      3 flags u8        13 destination u64   33 message id u64       45 route length u8
    1 class u8        4 hop limit u8    21 tenant tag u32    41 fragment index u16   46 position u8
    2 protocol u8     5 source u64      25 flow u64          43 fragment count u16   47 route, n x u64; rest

The rest is the payload, or with `FLAG_SEALED`::

    0 suite u8        1 three zero bytes     4 key id u32     8 counter u64     16 ciphertext     behind it: tag, 16 bytes

Suite 2 is AES-256-GCM: the plaintext is the payload, and the associated data are what no relay may change, bytes 0 to 3
(without `FLAG_REPAIRED`) and 5 to 44 of the prefix, then the security header. The nonce is class u8, three zero bytes,
counter u64: one counter per class, so that classes can overtake each other. Suite 1, which only authenticated, is gone.

Bytes 0 to 46 and the place of the route never change between versions. A relay checks only size, structure, route and
position (`forwarding_view`), so packets of later versions, with flags, protocols and classes that it does not know, pass
it. The destination checks the rest (`check_arrived`, `sealed_part`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple
from typing import Protocol as Interface

from meshwire.buffers import Buffer
from meshwire.errors import WireCode, WireError

VERSION: Final = 2
MAX_PACKET_BYTES: Final = 2 * 1024 * 1024
"""Largest encoded packet, header and route included."""
MAX_ROUTE_NODES: Final = 16
"""Longest source route, both ends included."""
FIRST_HOP_LIMIT: Final = MAX_ROUTE_NODES - 1
"""Hop limit of a new packet on its first link: a source route cannot be longer, so this only stops what should not exist."""

FLAG_REPAIRED: Final = 1
"""A relay has replaced the source route once; it must not be replaced again."""
FLAG_RESPONSE: Final = 2
"""The payload answers the request with the same message id."""
FLAG_SEALED: Final = 4
"""The payload is encrypted; a security header stands before it and a tag behind it."""
_KNOWN_FLAGS: Final = FLAG_REPAIRED | FLAG_RESPONSE | FLAG_SEALED
_FLAGS_UNCHANGED: Final = 0xFF & ~FLAG_REPAIRED

SUITE_AEAD: Final = 2
"""AES-256-GCM: the payload is encrypted, the rest authenticated."""
SECURITY_HEADER_BYTES: Final = 16
TAG_BYTES: Final = 16
SEAL_BYTES: Final = SECURITY_HEADER_BYTES + TAG_BYTES
"""What sealing adds to a packet."""

_PREFIX: Final = Struct("!BBBBBQQIQQHHBB")
PREFIX_BYTES: Final = _PREFIX.size
"""Size of the fixed prefix: no packet is shorter."""
_ROUTES: Final = tuple(Struct(f"!{count}Q") for count in range(MAX_ROUTE_NODES + 1))
_ENDS: Final = Struct("!QQ")
_FRAGMENTS: Final = Struct("!HH")
_SECURITY: Final = Struct("!BBHIQ")
_NONCE: Final = Struct("!B3xQ")
_FLAGS_AT: Final = 3
_HOP_LIMIT_AT: Final = 4
_SOURCE_AT: Final = 5
_FRAGMENTS_AT: Final = 41
_ROUTE_LENGTH_AT: Final = 45
_POSITION_AT: Final = 46
_BYTE: Final = tuple(bytes((value,)) for value in range(256))


class TrafficClass(IntEnum):
    """Which queue and lane a packet takes; a lower value goes first."""

    CONTROL = 0
    PRIORITY = 1
    BULK = 2


class Protocol(IntEnum):
    """Who at the destination gets the payload."""

    LANE = 1
    """Heartbeats, goodbyes and credits of one lane; never forwarded."""
    JOIN = 2
    RAFT_MCG = 3
    RAFT_DSG = 4
    LSA = 5
    REQUEST = 6
    PATH_ERROR = 7
    SWIM = 8
    ECHO = 9
    KEYS = 10
    """Agreement on the keys that seal packets between two nodes."""


_CLASSES: Final = {int(member): member for member in TrafficClass}
PROTOCOLS: Final = {int(member): member for member in Protocol}
"""Protocols by number."""


class Seal(NamedTuple):
    """What sealing added to a packet. `tag` covers what the module says."""

    key_id: int
    counter: int
    tag: bytes
    suite: int = SUITE_AEAD


@dataclass(frozen=True, slots=True)
class Packet:
    """One overlay packet, decoded.

    Attributes:
        version: always `VERSION`.
        cls: traffic class.
        protocol: receiver at the destination.
        flags: any of the flags; `FLAG_SEALED` exactly when there is a `seal`.
        hop_limit: links that the packet may still cross, 0 to 255.
        source: id of the sending node; 0 for a node that is not yet a member (link-local packets only).
        destination: id of the receiving node; may be 0 on a link-local packet.
        tenant_tag: u32 that names the tenant without telling who it is; 0 for the mesh's own traffic.
        flow: u64 that keeps packets of one stream or group on one path.
        message_id: u64, unique per source for as long as the message can be in flight.
        fragment: index of this fragment.
        fragments: how many there are, at least 1.
        route: node ids from source to destination, both included; empty for a packet to the direct neighbour.
        position: index in `route` of the node that now holds the packet; 0 when the route is empty.
        payload: opaque, and encrypted if there is a seal. After `decode` a view that shares memory with the input.
        seal: security header and tag of a sealed packet. Opening it needs the key.
    """

    version: int
    cls: TrafficClass
    protocol: Protocol
    flags: int
    hop_limit: int
    source: int
    destination: int
    tenant_tag: int = 0
    flow: int = 0
    message_id: int = 0
    fragment: int = 0
    fragments: int = 1
    route: tuple[int, ...] = ()
    position: int = 0
    payload: bytes | memoryview = b""
    seal: Seal | None = None


class ForwardingView(NamedTuple):
    """What a relay needs of a packet. A tuple because one is built for each packet that passes.

    `cls` is BULK for a class that is unknown here; `protocol` and `flags` may hold what is unknown here.
    """

    cls: TrafficClass
    protocol: int
    flags: int
    hop_limit: int
    source: int
    destination: int
    route: tuple[int, ...]
    position: int
    message_id: int


class Sealer(Interface):
    """What seals packets from one node to another."""

    @property
    def key_id(self) -> int:
        """Names the key to the destination."""
        ...

    def next_counter(self, cls: TrafficClass) -> int:
        """A counter that this key has not used in this class."""
        ...

    def seal(self, cls: TrafficClass, counter: int, payload: Buffer, associated: bytes) -> bytes:
        """The encrypted payload of a packet and behind it the tag, with the nonce of `nonce_of`."""
        ...


class SealedPart(NamedTuple):
    """What the destination of a sealed packet needs to open it. `associated` is a copy, the rest a view."""

    key_id: int
    counter: int
    associated: bytes
    sealed: memoryview
    """Ciphertext and tag."""


def encode(packet: Packet) -> bytes:
    """Bytes of a packet.

    Raises:
        WireError: a field is out of range, the route is not a loopless path from source to destination, or the result
            would exceed `MAX_PACKET_BYTES`.
    """
    _check_kind(packet.version, packet.cls, packet.protocol, packet.flags)
    _check_fragments(packet.fragment, packet.fragments)
    _check_route(packet.route, packet.position, packet.source, packet.destination)
    security, tag = _seal_parts(packet.seal, packet.flags)
    _check_size(PREFIX_BYTES + 8 * len(packet.route) + len(security) + len(packet.payload) + len(tag))
    try:
        prefix = _PREFIX.pack(
            packet.version,
            packet.cls,
            packet.protocol,
            packet.flags,
            packet.hop_limit,
            packet.source,
            packet.destination,
            packet.tenant_tag,
            packet.flow,
            packet.message_id,
            packet.fragment,
            packet.fragments,
            len(packet.route),
            packet.position,
        )
        route = _ROUTES[len(packet.route)].pack(*packet.route)
    except struct.error as error:
        raise WireError(f"a packet field does not fit its width: {error}") from None
    return b"".join((prefix, route, security, packet.payload, tag))


def decode(data: Buffer) -> Packet:
    """Packet from bytes; the payload is a view that keeps `data` alive. A seal is not opened.

    Raises:
        WireError: the bytes are not exactly one well-formed packet of this version.
    """
    fields, route = _parse(data)
    check_arrived(data)
    seal, payload = None, memoryview(data)[PREFIX_BYTES + 8 * len(route) :]
    if fields[3] & FLAG_SEALED:
        part = sealed_part(data, len(route))
        seal, payload = Seal(part.key_id, part.counter, bytes(part.sealed[-TAG_BYTES:])), part.sealed[:-TAG_BYTES]
    return Packet(
        version=fields[0],
        cls=_CLASSES[fields[1]],
        protocol=PROTOCOLS[fields[2]],
        flags=fields[3],
        hop_limit=fields[4],
        source=fields[5],
        destination=fields[6],
        tenant_tag=fields[7],
        flow=fields[8],
        message_id=fields[9],
        fragment=fields[10],
        fragments=fields[11],
        route=route,
        position=fields[13],
        payload=payload,
        seal=seal,
    )


def encode_sealed(
    sealer: Sealer,
    cls: TrafficClass,
    protocol: Protocol,
    ends: tuple[int, int],
    route: tuple[int, ...],
    payload: Buffer,
    *,
    flow: int,
    message_id: int,
) -> bytes:
    """Bytes of a new sealed packet for the first link of its route. Not from a `Packet`, because it is the hot path.

    Args:
        sealer: seals packets to the destination.
        cls: see `Packet`, as for all others.
        protocol: see `Packet`.
        ends: source and destination.
        route: a path from source to destination that was checked before; empty for the direct neighbour.
        payload: see `Packet`.
        flow: see `Packet`.
        message_id: see `Packet`.

    Raises:
        WireError: a field does not fit its width, or the result would exceed `MAX_PACKET_BYTES`.
    """
    nodes = len(route)
    if nodes > MAX_ROUTE_NODES:
        raise WireError(f"a route of {nodes} nodes is longer than {MAX_ROUTE_NODES}")
    _check_size(PREFIX_BYTES + 8 * nodes + SEAL_BYTES + len(payload))
    counter = sealer.next_counter(cls)
    try:
        prefix = _PREFIX.pack(
            VERSION,
            cls,
            protocol,
            FLAG_SEALED,
            FIRST_HOP_LIMIT,
            *ends,
            0,
            flow,
            message_id,
            0,
            1,
            nodes,
            1 if nodes else 0,
        )
        encoded_route = _ROUTES[nodes].pack(*route)
        security = _SECURITY.pack(SUITE_AEAD, 0, 0, sealer.key_id, counter)
    except struct.error as error:
        raise WireError(f"a packet field does not fit its width: {error}") from None
    associated = b"".join((prefix[:_HOP_LIMIT_AT], prefix[_SOURCE_AT:_ROUTE_LENGTH_AT], security))
    return b"".join((prefix, encoded_route, security, sealer.seal(cls, counter, payload, associated)))


def nonce_of(cls: int, counter: int) -> bytes:
    """The nonce of a sealed packet, 12 bytes: never twice with one key."""
    return _NONCE.pack(cls, counter)


def check_arrived(data: Buffer) -> None:
    """What the destination checks of a packet beyond `forwarding_view`: version, class, protocol, flags, fragments.

    Raises:
        WireError: BAD_VERSION, or BAD_FIELD for what this version does not know.
    """
    _check_kind(data[0], data[1], data[2], data[_FLAGS_AT])
    _check_fragments(*_FRAGMENTS.unpack_from(data, _FRAGMENTS_AT))


def sealed_part(data: Buffer, route_nodes: int) -> SealedPart:
    """Security header, ciphertext and tag of a packet with `FLAG_SEALED`, and what the tag covers beside them.

    Args:
        data: a packet that `forwarding_view` accepted.
        route_nodes: length of its route.

    Raises:
        WireError: too short to be sealed, or a suite or bytes that this version does not know.
    """
    view = memoryview(data)
    at = PREFIX_BYTES + 8 * route_nodes
    if len(view) - at < SEAL_BYTES:
        raise WireError("the packet ends inside its seal", WireCode.TRUNCATED)
    suite, zero, zeros, key_id, counter = _SECURITY.unpack_from(data, at)
    if suite != SUITE_AEAD or zero or zeros:
        raise WireError(f"suite {suite} is unknown")
    associated = b"".join(
        (
            view[:_FLAGS_AT],
            _BYTE[data[_FLAGS_AT] & _FLAGS_UNCHANGED],
            view[_SOURCE_AT:_ROUTE_LENGTH_AT],
            view[at : at + SECURITY_HEADER_BYTES],
        )
    )
    return SealedPart(key_id, counter, associated, view[at + SECURITY_HEADER_BYTES :])


def forwarding_view(data: Buffer) -> ForwardingView:
    """What a relay needs, without touching the payload.

    Raises:
        WireError: size, structure, route or position are not those of a packet; nothing else is checked.
    """
    fields, route = _parse(data)
    cls = _CLASSES.get(fields[1], TrafficClass.BULK)
    return ForwardingView(cls, fields[2], fields[3], fields[4], fields[5], fields[6], route, fields[13], fields[9])


def advance(data: Buffer, position: int, hop_limit: int) -> bytes:
    """A copy of a packet that `forwarding_view` accepted, as the node at `position` of its route will see it.

    Args:
        data: the packet.
        position: index of the next node in the route.
        hop_limit: hops left after this link.

    Raises:
        WireError: the position is not on the route, or the hop limit does not fit a byte.
    """
    if len(data) < PREFIX_BYTES:
        raise WireError(f"{len(data)} bytes are too short for a packet", WireCode.TRUNCATED)
    if not 0 <= position < data[_ROUTE_LENGTH_AT]:
        raise WireError(f"position {position} is not on a route of {data[_ROUTE_LENGTH_AT]} nodes")
    _check_hop_limit(hop_limit)
    view = memoryview(data)
    # One join copies the payload once; patching a bytearray and converting it back copies it twice.
    return b"".join(
        (
            view[:_HOP_LIMIT_AT],
            _BYTE[hop_limit],
            view[_HOP_LIMIT_AT + 1 : _POSITION_AT],
            _BYTE[position],
            view[PREFIX_BYTES:],
        )
    )


def reroute(data: Buffer, route: tuple[int, ...], position: int, flags: int, hop_limit: int) -> bytes:
    """A copy of a packet with another source route; the rest stays as it is.

    Args:
        data: the packet.
        route: the whole new route: the part already travelled, then the new part, so that it still runs from source to
            destination and a node that was crossed cannot be crossed again.
        position: index in the new route of the node that will hold the packet.
        flags: the new flags, with `FLAG_REPAIRED` when a relay calls this.
        hop_limit: hops left.

    Raises:
        WireError: the packet is malformed, or the new route is not a loopless path from its source to its destination.
    """
    _, old_route = _parse(data)
    source, destination = _ENDS.unpack_from(data, _SOURCE_AT)
    if not 0 <= flags <= 255:
        raise WireError(f"flags {flags} do not fit a byte")
    _check_hop_limit(hop_limit)
    _check_route(route, position, source, destination)
    view = memoryview(data)
    payload = view[PREFIX_BYTES + 8 * len(old_route) :]
    _check_size(PREFIX_BYTES + 8 * len(route) + len(payload))
    try:
        encoded_route = _ROUTES[len(route)].pack(*route)
    except struct.error:
        raise WireError("a node id on the route does not fit 64 unsigned bits") from None
    return b"".join(
        (
            view[:_FLAGS_AT],
            _BYTE[flags],
            _BYTE[hop_limit],
            view[_SOURCE_AT:_ROUTE_LENGTH_AT],
            _BYTE[len(route)],
            _BYTE[position],
            encoded_route,
            payload,
        )
    )


def _parse(data: Buffer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The prefix's fields in order, and the route; only what routing needs is checked."""
    if len(data) < PREFIX_BYTES:
        raise WireError(f"{len(data)} bytes are too short for a packet", WireCode.TRUNCATED)
    _check_size(len(data))
    fields = _PREFIX.unpack_from(data)
    count = fields[12]
    if count > MAX_ROUTE_NODES:
        raise WireError(f"a route of {count} nodes is longer than {MAX_ROUTE_NODES}")
    if len(data) < PREFIX_BYTES + 8 * count:
        raise WireError("the packet ends inside its route", WireCode.TRUNCATED)
    route = _ROUTES[count].unpack_from(data, PREFIX_BYTES)
    _check_route(route, fields[13], fields[5], fields[6])
    return fields, route


def _check_kind(version: int, cls: int, protocol: int, flags: int) -> None:
    if version != VERSION:
        raise WireError(f"packet version {version} is not {VERSION}", WireCode.BAD_VERSION)
    if cls not in _CLASSES:
        raise WireError(f"traffic class {cls} is unknown")
    if protocol not in PROTOCOLS:
        raise WireError(f"protocol {protocol} is unknown")
    if flags & ~_KNOWN_FLAGS:
        raise WireError(f"flags {flags:#x} hold bits that version {VERSION} does not know")


def _seal_parts(seal: Seal | None, flags: int) -> tuple[bytes, bytes]:
    """Security header and tag as bytes, both empty for a packet without a seal."""
    if (seal is not None) != bool(flags & FLAG_SEALED):
        raise WireError("a packet has a seal if and only if its flags say so")
    if seal is None:
        return b"", b""
    if seal.suite != SUITE_AEAD or len(seal.tag) != TAG_BYTES:
        raise WireError(f"a seal of suite {seal.suite} with a tag of {len(seal.tag)} bytes is unknown")
    try:
        return _SECURITY.pack(seal.suite, 0, 0, seal.key_id, seal.counter), seal.tag
    except struct.error:
        raise WireError("a key id or counter does not fit its width") from None


def _check_hop_limit(hop_limit: int) -> None:
    if not 0 <= hop_limit <= 255:
        raise WireError(f"hop limit {hop_limit} is not between 0 and 255")


def _check_fragments(fragment: int, fragments: int) -> None:
    if not fragment < fragments:
        raise WireError(f"fragment {fragment} of {fragments} does not exist")


def _check_route(route: tuple[int, ...], position: int, source: int, destination: int) -> None:
    """A route is empty, or a loopless path from source to destination that holds the position."""
    if not route:
        if position:
            raise WireError(f"position {position} on a packet without a route")
        return
    if len(route) > MAX_ROUTE_NODES:
        raise WireError(f"a route of {len(route)} nodes is longer than {MAX_ROUTE_NODES}")
    if not 0 <= position < len(route):
        raise WireError(f"position {position} is not on a route of {len(route)} nodes")
    if route[0] != source or route[-1] != destination:
        raise WireError("the route does not run from the packet's source to its destination")
    if len(set(route)) != len(route):
        raise WireError("the route crosses a node twice")
    # Id 0 is a node that is not yet a member: it speaks to its direct neighbour only, so it is on no route.
    if 0 in route:
        raise WireError("node id 0 cannot be on a route")


def _check_size(size_bytes: int) -> None:
    if size_bytes > MAX_PACKET_BYTES:
        raise WireError(f"a packet of {size_bytes} bytes exceeds {MAX_PACKET_BYTES}", WireCode.TOO_LARGE)
