"""What two nodes tell each other about the stores under their Raft logs, ahead of Raft's own frames.

Purpose: a node says what its log directory is and how often it was begun anew; a peer answers whether that goes on from what
it has seen before. Leaves out: the judgement (`meshcommon.store_lineage`) and the exchange (`meshcommon.store_guard`).
Source: architecture §7 "Member ids" (store id and boot number, checked by peers).

Layout (network byte order)::

    kind u8, then
    1 HELLO     lineage, others u8, (node u64, seen) each
    2 WELCOME   incarnation u64
    3 REFUSAL   seen, lineage
    4 ASK

    lineage     store u64, incarnations u8, (incarnation u64, boot u64) each, renounced
    seen        store u64, incarnation u64, boot u64, renounced
    renounced   count u8, store u64 each
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final, TypeAlias

from meshwire.buffers import Buffer, Cursor, require_uint
from meshwire.errors import WireError

INCARNATIONS_MAX: Final = 32
"""Incarnations in a lineage; an older one is judged by its boot number alone."""
RENOUNCED_MAX: Final = 16
OTHERS_MAX: Final = 32
_U64: Final = Struct("!Q")


class StoreMessageKind(IntEnum):
    """First byte of a message."""

    HELLO = 1
    WELCOME = 2
    REFUSAL = 3
    ASK = 4


@dataclass(frozen=True, slots=True)
class Incarnation:
    """One start of a store: a random id, and the highest boot number that it made durable."""

    incarnation_id: int
    boot: int


@dataclass(frozen=True, slots=True)
class Lineage:
    """What a store says of itself, as it is on its disk.

    Attributes:
        store_id: random, drawn when the log directory was made, or given up as a whole.
        incarnations: its starts, oldest first, boot numbers rising; the last is the present one.
        renounced: earlier stores of the same node. Nothing that they confirmed is confirmed by this one.
    """

    store_id: int
    incarnations: tuple[Incarnation, ...]
    renounced: tuple[int, ...] = ()

    @property
    def present(self) -> Incarnation:
        """The present incarnation."""
        return self.incarnations[-1]


@dataclass(frozen=True, slots=True)
class Seen:
    """The newest that a node has seen of a peer's store, with what that one had renounced."""

    store_id: int
    incarnation_id: int
    boot: int
    renounced: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Hello:
    """This is my store: may I speak?

    Attributes:
        lineage: of the sender's store.
        others: what it knows of other nodes' stores, at most `OTHERS_MAX` of them.
    """

    lineage: Lineage
    others: tuple[tuple[int, Seen], ...] = ()


@dataclass(frozen=True, slots=True)
class Welcome:
    """The sender has noted this incarnation durably, and recognises it if the receiver's disk forgets it."""

    incarnation_id: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Your store does not go on from what I have seen of it.

    With the lineage of who says so: a disk that was set back remembers what is long past, and must not be believed.
    """

    seen: Seen
    lineage: Lineage


@dataclass(frozen=True, slots=True)
class Ask:
    """I do not know your store: say hello."""


StoreMessage: TypeAlias = Hello | Welcome | Refusal | Ask


def encode_store_message(message: StoreMessage) -> bytes:
    """Bytes of a message.

    Raises:
        WireError: a number does not fit 64 bits, or there are too few or too many incarnations or stores.
    """
    match message:
        case Hello(lineage, others):
            _check_others(len(others))
            told = b"".join(_u64(node) + _encode_seen(seen) for node, seen in others)
            return bytes((StoreMessageKind.HELLO,)) + _encode_lineage(lineage) + bytes((len(others),)) + told
        case Welcome(incarnation_id):
            return bytes((StoreMessageKind.WELCOME,)) + _u64(incarnation_id)
        case Refusal(seen, lineage):
            return bytes((StoreMessageKind.REFUSAL,)) + _encode_seen(seen) + _encode_lineage(lineage)
        case Ask():
            return bytes((StoreMessageKind.ASK,))


def decode_store_message(data: Buffer) -> StoreMessage:
    """Message from bytes.

    Raises:
        WireError: the bytes are not exactly one well-formed message.
    """
    cursor = Cursor(data)
    kind = cursor.u8("the message's kind")
    message: StoreMessage
    if kind == StoreMessageKind.HELLO:
        lineage, count = _decode_lineage(cursor), cursor.u8("the other nodes")
        _check_others(count)
        message = Hello(lineage, tuple((cursor.u64("a node"), _decode_seen(cursor)) for _ in range(count)))
    elif kind == StoreMessageKind.WELCOME:
        message = Welcome(cursor.u64("the incarnation"))
    elif kind == StoreMessageKind.REFUSAL:
        message = Refusal(_decode_seen(cursor), _decode_lineage(cursor))
    elif kind == StoreMessageKind.ASK:
        message = Ask()
    else:
        raise WireError(f"store message kind {kind} is unknown")
    cursor.finish("the store message")
    return message


def _encode_lineage(lineage: Lineage) -> bytes:
    _check_lineage(lineage)
    parts = [_u64(lineage.store_id), bytes((len(lineage.incarnations),))]
    parts += [_u64(incarnation.incarnation_id) + _u64(incarnation.boot) for incarnation in lineage.incarnations]
    return b"".join(parts) + _encode_renounced(lineage.renounced)


def _decode_lineage(cursor: Cursor) -> Lineage:
    store_id = cursor.u64("the store")
    incarnations = tuple(
        Incarnation(cursor.u64("an incarnation"), cursor.u64("its boot number")) for _ in range(cursor.u8("the lives"))
    )
    lineage = Lineage(store_id, incarnations, _decode_renounced(cursor))
    _check_lineage(lineage)
    return lineage


def _encode_seen(seen: Seen) -> bytes:
    return _u64(seen.store_id) + _u64(seen.incarnation_id) + _u64(seen.boot) + _encode_renounced(seen.renounced)


def _decode_seen(cursor: Cursor) -> Seen:
    store_id, incarnation_id, boot = (
        cursor.u64("the store"),
        cursor.u64("the incarnation"),
        cursor.u64("the boot number"),
    )
    return Seen(store_id, incarnation_id, boot, _decode_renounced(cursor))


def _encode_renounced(renounced: tuple[int, ...]) -> bytes:
    if len(renounced) > RENOUNCED_MAX:
        raise WireError(f"a store renounces {len(renounced)} others, {RENOUNCED_MAX} are possible")
    return bytes((len(renounced),)) + b"".join(_u64(store_id) for store_id in renounced)


def _decode_renounced(cursor: Cursor) -> tuple[int, ...]:
    count = cursor.u8("the renounced stores")
    if count > RENOUNCED_MAX:
        raise WireError(f"a store renounces {count} others, {RENOUNCED_MAX} are possible")
    return tuple(cursor.u64("a renounced store") for _ in range(count))


def _check_others(count: int) -> None:
    if count > OTHERS_MAX:
        raise WireError(f"a store tells of {count} other nodes, {OTHERS_MAX} are possible")


def _check_lineage(lineage: Lineage) -> None:
    if not 1 <= len(lineage.incarnations) <= INCARNATIONS_MAX:
        raise WireError(f"a lineage of {len(lineage.incarnations)} incarnations, 1 to {INCARNATIONS_MAX} are possible")
    boots = [incarnation.boot for incarnation in lineage.incarnations]
    if any(later <= earlier for earlier, later in itertools.pairwise(boots)):
        raise WireError("the boot numbers of a store's incarnations do not rise")


def _u64(value: int) -> bytes:
    return _U64.pack(require_uint(value, 64, "an id or boot number"))
