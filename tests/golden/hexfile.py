"""How golden bytes are kept: lower-case hex, 16 bytes a line, so that a diff shows which field moved."""

from __future__ import annotations

from pathlib import Path
from typing import Final

WIRE_DIRECTORY: Final = Path(__file__).resolve().parent / "wire"
_BYTES_PER_LINE: Final = 16


def render(data: bytes) -> str:
    """Text of a golden file."""
    lines = (data[at : at + _BYTES_PER_LINE].hex(" ") for at in range(0, len(data), _BYTES_PER_LINE))
    return "".join(f"{line}\n" for line in lines)


def path_of(name: str) -> Path:
    """Where the golden bytes of a sample are kept."""
    return WIRE_DIRECTORY / f"{name}.hex"


def read(name: str) -> bytes:
    """Golden bytes of a sample."""
    return bytes.fromhex(path_of(name).read_text(encoding="ascii"))
