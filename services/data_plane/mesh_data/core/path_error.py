"""The path error: tells a packet's source which link on its path is down.

Layout (network byte order): destination of the lost packet u64, near end of the link u64, far end u64. Source:
architecture §5 "Source routes".
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final

from meshcommon.ids import NodeId

_LAYOUT: Final = Struct("!QQQ")


@dataclass(frozen=True, slots=True)
class PathError:
    """The relay `near` could not pass a packet for `destination` on to `far`."""

    destination: NodeId
    near: NodeId
    far: NodeId

    def encode(self) -> bytes:
        """Payload of protocol PATH_ERROR."""
        return _LAYOUT.pack(self.destination, self.near, self.far)

    @classmethod
    def decode(cls, payload: bytes | memoryview) -> PathError | None:
        """The path error in a payload, None when it is malformed."""
        if len(payload) != _LAYOUT.size:
            return None
        destination, near, far = _LAYOUT.unpack(payload)
        return cls(NodeId(destination), NodeId(near), NodeId(far))
