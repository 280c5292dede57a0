"""The byte containers that codecs accept, and a bounds-checked cursor over them.

Purpose: variable-length fields (names, messages, key/value pairs) read the same way everywhere, so that no parser can run
past its input. Leaves out: the fixed layouts of packets and batches, which unpack with one `struct` call because they are
on the hot path.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, TypeAlias

from meshwire.errors import WireCode, WireError

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Contiguous bytes. A memoryview must have item size 1."""

_U16: Final = Struct("!H")
_U32: Final = Struct("!I")
_U64: Final = Struct("!Q")


class Cursor:
    """Reads fields from the front of a buffer; every method raises WireError(TRUNCATED) rather than run past the end."""

    __slots__ = ("_data", "_offset")

    def __init__(self, data: Buffer) -> None:
        self._data = memoryview(data)
        self._offset = 0

    def _advance(self, count: int, field: str) -> int:
        start = self._offset
        if start + count > len(self._data):
            raise WireError(f"the message ends inside {field}", WireCode.TRUNCATED)
        self._offset = start + count
        return start

    def u8(self, field: str) -> int:
        """The next byte."""
        return self._data[self._advance(1, field)]

    def u16(self, field: str) -> int:
        """The next two bytes, network order."""
        return int(_U16.unpack_from(self._data, self._advance(2, field))[0])

    def u32(self, field: str) -> int:
        """The next four bytes, network order."""
        return int(_U32.unpack_from(self._data, self._advance(4, field))[0])

    def u64(self, field: str) -> int:
        """The next eight bytes, network order."""
        return int(_U64.unpack_from(self._data, self._advance(8, field))[0])

    def text(self, size_bytes: int, field: str) -> str:
        """The next `size_bytes` bytes as UTF-8; invalid UTF-8 is BAD_FIELD."""
        start = self._advance(size_bytes, field)
        try:
            return str(self._data[start : self._offset], "utf-8")
        except UnicodeDecodeError:
            raise WireError(f"{field} is not valid UTF-8") from None

    def rest(self) -> memoryview:
        """All that is left, without copying. The view shares memory with the input."""
        start = self._offset
        self._offset = len(self._data)
        return self._data[start:]

    def finish(self, what: str) -> None:
        """Refuses bytes after the last field: a message has exactly one encoding."""
        if self._offset != len(self._data):
            raise WireError(f"{len(self._data) - self._offset} bytes follow the end of {what}")


def utf8(text: str, size_bytes_max: int, field: str) -> bytes:
    """Encodes text for a length-prefixed field.

    Raises:
        WireError: TOO_LARGE beyond `size_bytes_max` bytes of UTF-8; BAD_FIELD for a lone surrogate.
    """
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError:
        raise WireError(f"{field} holds a character that UTF-8 cannot express") from None
    if len(encoded) > size_bytes_max:
        raise WireError(f"{field} is {len(encoded)} bytes, the limit is {size_bytes_max}", WireCode.TOO_LARGE)
    return encoded


def require_uint(value: int, bits: int, field: str) -> int:
    """Returns `value` when it fits an unsigned integer of that many bits, else raises WireError(BAD_FIELD)."""
    if 0 <= value < 1 << bits:
        return value
    raise WireError(f"{field} is {value}, which does not fit {bits} unsigned bits")
