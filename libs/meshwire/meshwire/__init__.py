"""Binary codecs shared by services and clients: bytes in, values out, no input or output of their own.

    packet    the overlay packet: routing prefix, source route, payload; a relay's fast path
    frame     many packets in one WebSocket message
    batch     the record batch of a stream
    entry     a command in a stream group's log
    request   body of an overlay request and its response
    store_message  what nodes tell each other about the stores under their Raft logs

Malformed input of any kind raises `WireError` and nothing else. The bytes are pinned by golden files, so a change of layout
shows as a diff. Names are imported from the modules; only the error is re-exported, because every caller needs it.
"""

from __future__ import annotations

from meshwire.errors import WireCode, WireError

__all__ = ["WireCode", "WireError"]
