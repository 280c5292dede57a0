"""Frames sealed with a lane's own keys, for a lane whose TLS somebody in between ends.

Purpose: nothing behind the handshake is read or changed by a proxy that both sides allow. ChaCha20-Poly1305, a key for each
direction, and the number of the frame as nonce: a WebSocket keeps order, so a frame that is lost, doubled, moved or changed
opens with no key. Leaves out: whether a lane is sealed (`handshake`), and time (`now` is monotonic seconds).
Source: RFC 8439; the rekeying is RFC 8446 §7.2's: the next key is derived from the present one, which is forgotten.

Layout of a sealed frame::

    3 SEALED      u8, generation of the key u32 (network byte order), ciphertext and tag of the frame inside
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from mesh_data.core.key_agreement import derive
from meshwire.buffers import Buffer
from meshwire.errors import WireCode, WireError
from meshwire.frame import FRAME_SEALED, MAX_FRAME_BYTES, SEAL_OVERHEAD_BYTES, SEALED_HEAD_BYTES

REKEY_S: Final = 3600.0
"""Life of a key."""
REKEY_BYTES: Final = 64 * 1024**3
"""Bytes that are sealed with one key; far below what the cipher bears."""
_HEAD: Final = Struct("!BI")
_NONCE: Final = Struct("!4xQ")
_GENERATION_MAX: Final = 2**32 - 1
_NEXT: Final = b"mesh.v2 lane next key"


class _Direction:
    """The key of one direction, and what was done with it."""

    __slots__ = ("_key", "cipher", "frames", "generation")

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.cipher = ChaCha20Poly1305(key)
        self.generation = 0
        self.frames = 0

    def next_key(self) -> None:
        """Goes on to the next key; the present one is forgotten."""
        self._key = derive(self._key, b"", _NEXT)
        self.cipher = ChaCha20Poly1305(self._key)
        self.generation += 1
        self.frames = 0


class FrameSeal:
    """Both directions of one lane."""

    __slots__ = ("_due_at", "_incoming", "_outgoing", "_sealed_bytes")

    def __init__(self, outgoing_key: bytes, incoming_key: bytes) -> None:
        """Keys of 32 bytes each, of this lane alone."""
        self._outgoing = _Direction(outgoing_key)
        self._incoming = _Direction(incoming_key)
        self._due_at: float | None = None
        self._sealed_bytes = 0

    @property
    def generation(self) -> int:
        """How often the key of the outgoing direction was replaced."""
        return self._outgoing.generation

    def seal(self, frame: Buffer, now: float) -> bytes:
        """The next frame, sealed. Each one must be sent, in this order."""
        sender = self._outgoing
        if self._due_at is None:
            self._due_at = now + REKEY_S
        if now >= self._due_at or self._sealed_bytes + len(frame) > REKEY_BYTES:
            sender.next_key()
            self._due_at, self._sealed_bytes = now + REKEY_S, 0
        self._sealed_bytes += len(frame)
        head = _HEAD.pack(FRAME_SEALED, sender.generation)
        nonce = _NONCE.pack(sender.frames)
        sender.frames += 1
        return head + sender.cipher.encrypt(nonce, frame, head)

    def open(self, data: Buffer) -> bytes:
        """The frame inside the next sealed one.

        Raises:
            WireError: it is not the next frame that the other side sealed. The lane must end: nothing after it opens either.
        """
        if not SEAL_OVERHEAD_BYTES <= len(data) <= MAX_FRAME_BYTES + SEAL_OVERHEAD_BYTES:
            raise WireError("the sealed frame has a size that no node sends", WireCode.TRUNCATED)
        kind, generation = _HEAD.unpack_from(data)
        receiver = self._incoming
        if kind != FRAME_SEALED:
            raise WireError("a frame came in clear on a lane that is sealed")
        if generation == receiver.generation + 1 <= _GENERATION_MAX:
            receiver.next_key()
        elif generation != receiver.generation:
            raise WireError("the frame is sealed with a key of another time")
        view = memoryview(data)
        nonce = _NONCE.pack(receiver.frames)
        receiver.frames += 1
        try:
            return receiver.cipher.decrypt(nonce, view[SEALED_HEAD_BYTES:], bytes(view[:SEALED_HEAD_BYTES]))
        except InvalidTag:
            raise WireError("the frame was changed, or is not the next one that was sealed") from None
