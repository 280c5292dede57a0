"""One session between two nodes: the keys under which packets between their present boots are sealed, and replay windows.

Purpose: seal and open the packets between this boot and one boot of a peer. Leaves out: how the two agree on boot
keys (`packet_keys.py`) and the bytes of packets (`meshwire.packet`). Source: architecture §11 "Packets"; NIST SP 800-38D
(GCM: no nonce twice with one key); RFC 6479 (replay windows).

Invariants: a nonce is used once per key (one counter per class, class in the nonce, a key per direction, counters only
rise); a counter is accepted once per class; what is older than the window is refused, as nobody remembers whether it came.
No key encrypts more than 2**16 packets of a class: GCM's margin shrinks with what one key has encrypted (RFC 8446, 5.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mesh_data.core.key_agreement import derive
from meshcommon.ids import NodeId
from meshcommon.signed_parts import join_parts, number
from meshwire.buffers import Buffer
from meshwire.packet import SealedPart, TrafficClass, nonce_of

REPLAY_WINDOW: Final = 2048
"""Packets of one class that may overtake another and it is still accepted. Cost: as many bits per peer and class."""
_CONTEXT: Final = b"mesh.v3 packet keys"
_KEY_CONTEXT: Final = b"mesh.v3 packet key of a generation"
_GENERATION_BITS: Final = 16
"""The generation of a packet's key is its counter without these low bits."""
_KEY_BYTES: Final = 32
_KEY_ID_BYTES: Final = 4
_MASK: Final = (1 << REPLAY_WINDOW) - 1


class SealFault(StrEnum):
    """Why a sealed packet was not accepted; the forwarder counts it under the same name."""

    NO_SESSION = "no_session"
    BAD_SEAL = "bad_seal"
    REPLAYED = "replayed"


@dataclass(frozen=True, slots=True)
class Boot:
    """One boot of a node: its id and the X25519 key that it made then."""

    node_id: NodeId
    boot_key: bytes


class ReplayWindow:
    """Which counters of one class were accepted. Counters start at 1."""

    __slots__ = ("_seen", "_top")

    def __init__(self) -> None:
        self._top = 0
        self._seen = 0

    def is_new(self, counter: int) -> bool:
        """Whether it was not accepted before and is not too old to know."""
        behind = self._top - counter
        return behind < 0 or (behind < REPLAY_WINDOW and counter > 0 and not self._seen >> behind & 1)

    def accept(self, counter: int) -> None:
        """Remembers a counter that `is_new`."""
        ahead = counter - self._top
        if ahead <= 0:
            self._seen |= 1 << -ahead
            return
        # A jump beyond the window must not shift by billions of bits.
        self._seen = (self._seen << ahead | 1) & _MASK if ahead < REPLAY_WINDOW else 1
        self._top = counter


class _DirectionKeys:
    """The keys of one direction, one for each generation."""

    __slots__ = ("_cipher", "_generation", "_secret")

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._generation = -1
        self._cipher: AESGCM

    def cipher(self, counter: int) -> AESGCM:
        """The key for a counter. Keeps none, since whoever forges counters must not drive out the key in use."""
        generation = counter >> _GENERATION_BITS
        return self._cipher if generation == self._generation else self._derive(generation)

    def used(self, counter: int, cipher: AESGCM) -> None:
        """Keeps the key of a genuine packet for the next ones, unless it is that of a straggler."""
        generation = counter >> _GENERATION_BITS
        if generation > self._generation:
            self._generation, self._cipher = generation, cipher

    def _derive(self, generation: int) -> AESGCM:
        return AESGCM(derive(self._secret, b"", join_parts(_KEY_CONTEXT, number(generation)), _KEY_BYTES))


class PacketSession:
    """Seals packets to one boot of a peer and opens those that come from it."""

    __slots__ = ("_counters", "_openers", "_sealers", "_windows", "key_id")

    def __init__(self, secret: bytes, mesh_id: str, mesh_epoch: int, own: Boot, peer: Boot, first_counter: int) -> None:
        """Both nodes derive the same keys. Counters of sent packets start behind `first_counter`."""
        low, high = (own, peer) if own.node_id < peer.node_id else (peer, own)
        salt = join_parts(mesh_id.encode(), number(mesh_epoch))
        info = join_parts(_CONTEXT, number(low.node_id), low.boot_key, number(high.node_id), high.boot_key)
        keys = derive(secret, salt, info, 2 * _KEY_BYTES + _KEY_ID_BYTES)
        of_low, of_high = keys[:_KEY_BYTES], keys[_KEY_BYTES : 2 * _KEY_BYTES]
        self.key_id = int.from_bytes(keys[2 * _KEY_BYTES :], "big")
        self._sealers = _DirectionKeys(of_low if own is low else of_high)
        self._openers = _DirectionKeys(of_high if own is low else of_low)
        self._counters = [first_counter for _ in TrafficClass]
        self._windows = [ReplayWindow() for _ in TrafficClass]

    @property
    def highest_counter(self) -> int:
        """The highest counter that any class has used."""
        return max(self._counters)

    def next_counter(self, cls: TrafficClass) -> int:
        """A counter for one packet of a class; never the same again."""
        counter = self._counters[cls] + 1
        self._counters[cls] = counter
        return counter

    def seal(self, cls: TrafficClass, counter: int, payload: Buffer, associated: bytes) -> bytes:
        """Ciphertext and tag of a packet to the peer. The counter must be one of `next_counter`."""
        cipher = self._sealers.cipher(counter)
        self._sealers.used(counter, cipher)
        return cipher.encrypt(nonce_of(cls, counter), payload, associated)

    def open(self, cls: TrafficClass, part: SealedPart) -> bytes | SealFault:
        """The payload of a packet from the peer when it is genuine and new, which is remembered."""
        window = self._windows[cls]
        if not window.is_new(part.counter):
            return SealFault.REPLAYED
        cipher = self._openers.cipher(part.counter)
        try:
            payload = cipher.decrypt(nonce_of(cls, part.counter), part.sealed, part.associated)
        except InvalidTag:
            return SealFault.BAD_SEAL
        self._openers.used(part.counter, cipher)
        window.accept(part.counter)
        return payload
