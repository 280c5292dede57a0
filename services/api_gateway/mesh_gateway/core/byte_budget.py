"""A bound on bytes that are in hand at a time, over all requests of one kind."""

from __future__ import annotations

from typing import Self

from meshcommon.errors import ErrorCode, MeshError


class ByteBudget:
    """Bytes that may be in hand. What cannot be taken is refused at once: to wait would hold what is in hand already."""

    def __init__(self, bytes_max: int, what: str) -> None:
        self.bytes_max = bytes_max
        self._what = what
        self.used_bytes = 0

    def share(self) -> Share:
        """A share for one request; use it as a context manager."""
        return Share(self)

    def take(self, size_bytes: int) -> None:
        """Takes some. Raises MeshError(BACKPRESSURE) and takes nothing when that is too much."""
        if self.used_bytes + size_bytes > self.bytes_max:
            raise MeshError(
                ErrorCode.BACKPRESSURE,
                f"The gateway holds as many bytes of {self._what} as it may ({self.bytes_max}): try again in a while.",
                {"limit": str(self.bytes_max)},
            )
        self.used_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        """Gives some back."""
        self.used_bytes -= size_bytes


class Share:
    """What one request has taken; given back when the context ends."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._budget.give_back(self.bytes)
        self.bytes = 0

    def take(self, size_bytes: int) -> None:
        """Takes more. Raises MeshError(BACKPRESSURE)."""
        self._budget.take(size_bytes)
        self.bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        """Gives some of it back before the end."""
        self._budget.give_back(size_bytes)
        self.bytes -= size_bytes
