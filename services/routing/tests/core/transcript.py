"""What routing neighbours say to each other, as text: one line a message, for golden transcripts.

Times are milliseconds of the virtual clock, sequence numbers count from the origin's first one, so that a transcript
shows the protocol and not the random start.
"""

from __future__ import annotations

from mesh_routing.core.lsa import LsaKey
from mesh_routing.core.lsa_codec import decode_message
from meshcommon.ids import NodeId


class Transcript:
    """Collects messages; `text` is what a golden file holds."""

    def __init__(self) -> None:
        self._first: dict[NodeId, int] = {}
        self._lines: list[str] = []

    def note(self, what: str) -> None:
        """A line of its own, for an event."""
        self._lines.append(f"# {what}")

    def sent(self, now: float, source: NodeId, peer: NodeId, payload: bytes) -> None:
        """One message."""
        message = decode_message(payload)
        parts = []
        for lsa in message.lsas:
            links = ",".join(str(link.peer) for link in lsa.links)
            parts.append(f"lsa {self._key(lsa.key)}[{links}]")
        if message.acks:
            parts.append("ack " + " ".join(self._key(key) for key in message.acks))
        if message.database is not None:
            parts.append("digest " + (" ".join(self._key(key) for key in message.database) or "empty"))
        self._lines.append(f"{now * 1e3:9.1f} {source} > {peer}  " + "; ".join(parts))

    @property
    def text(self) -> str:
        """All lines."""
        return "\n".join(self._lines) + "\n"

    def _key(self, key: LsaKey) -> str:
        first = self._first.setdefault(key.origin, key.sequence)
        return f"{key.origin}.{key.sequence - first + 1}"
