"""Text of peers, made safe to quote in a log, an error or a frame.

What another node or a client says is quoted only through `printable`: at most 200 characters, none of which can forge a
line, move a cursor or grow when it is encoded again. Leaves out: deciding whether the text is legal. Source:
architecture §11 "Everything from outside".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

PEER_TEXT_MAX: Final = 200
"""Characters of a peer's text that are kept."""
DETAILS_MAX: Final = 16
"""Error details of a peer that are kept."""
_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
_CUT: Final = "…"


def printable(text: str, characters_max: int = PEER_TEXT_MAX) -> str:
    """`text` with unprintable characters replaced, cut to `characters_max` characters (the last one is then `…`)."""
    # Cut before the loop: the text may be megabytes long.
    head = text[: characters_max + 1]
    safe = "".join(character if character.isprintable() else _REPLACEMENT for character in head)
    return safe if len(safe) <= characters_max else safe[: characters_max - 1] + _CUT


def printable_details(details: Mapping[str, str]) -> dict[str, str]:
    """The first `DETAILS_MAX` error details of a peer, keys and values made printable."""
    pairs = list(details.items())[:DETAILS_MAX]
    return {printable(key, 64): printable(value) for key, value in pairs}
