"""Byte strings for signatures, key derivations and hashes: a list of parts, each behind its length.

Concatenation alone is ambiguous: ("ab", "c") and ("a", "bc") would sign alike. With a u32 length in network byte order before
each part, two different lists never give the same bytes. Used by lanes, packets and delegations.
Source: architecture §5 "Lane" (length-prefixed transcript).
"""

from __future__ import annotations

from collections.abc import Iterator


def join_parts(*parts: bytes) -> bytes:
    """The parts, each behind its length."""
    return b"".join(_prefixed(parts))


def number(value: int) -> bytes:
    """An unsigned 64-bit number as a part."""
    return value.to_bytes(8, "big")


def _prefixed(parts: tuple[bytes, ...]) -> Iterator[bytes]:
    for part in parts:
        yield len(part).to_bytes(4, "big")
        yield part
