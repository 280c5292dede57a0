"""Binary codecs shared by services and clients: bytes in, values out, no input or output of their own.

Malformed input of any kind raises `WireError` and nothing else. The bytes are pinned by golden files, so a change of layout
shows as a diff. Names are imported from the modules; only the error is re-exported, because every caller needs it.

Files:

    batch          The record batch, format 2: a clear header, and a body that nobody between producer and reader opens
    buffers        The byte containers that codecs accept, and a bounds-checked cursor over them
    client         The client protocol: what an application's library and a data plane say to each other over one
                   WebSocket
    entry          What a data stream group proposes to its Raft log: one typed command per log entry
    errors         The one error that this library raises
    frame          The frame: one binary WebSocket message on a lane
    packet         The overlay packet: a fixed routing prefix, the source route, and the payload, sealed or not
    records        The records in a batch's body: for producers and readers
    request        Body of an overlay request and of its response
    store_message  What two nodes tell each other about the stores under their Raft logs, ahead of Raft's own frames
"""

from __future__ import annotations

from meshwire.errors import WireCode, WireError

__all__ = ["WireCode", "WireError"]
