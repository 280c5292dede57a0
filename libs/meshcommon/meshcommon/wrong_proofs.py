"""Limit on wrong proofs (of join tokens, operator's tokens) by the host that they come from (docs/design/identity.md J4).

A secret has 256 bits, so nobody guesses one; the limit keeps a stranger from spending this node's time. The table is bounded: a
flood from very many hosts pushes out the oldest entries. A host is an IPv4 address or an IPv6 network (`host_group`). `now`
is monotonic seconds. Pure.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from meshcommon.address import host_group
from meshcommon.errors import ErrorCode, MeshError

WRONG_PROOFS_MAX: Final = 5
"""In one window; then the host is refused."""
WINDOW_S: Final = 60.0
REFUSED_S: Final = 60.0
HOSTS_MAX: Final = 1_024


@dataclass(slots=True)
class _Host:
    window_from: float
    wrong: int = 0
    refused_until: float = float("-inf")


class WrongProofs:
    """Wrong proofs of the last minute."""

    def __init__(self, what: str = "proofs of join tokens") -> None:
        """`what` was wrong, for the text."""
        self._what = what
        self._hosts: OrderedDict[str, _Host] = OrderedDict()

    def check(self, host: str, now: float) -> None:
        """Raises BACKPRESSURE while `host` is refused."""
        known = self._hosts.get(host_group(host))
        if known is not None and now < known.refused_until:
            raise MeshError(
                ErrorCode.BACKPRESSURE,
                f"{WRONG_PROOFS_MAX} wrong {self._what} came from this address: try again in a minute, with the token "
                "as it was printed.",
            )

    def note(self, host: str, now: float) -> None:
        """A wrong proof came from `host`."""
        group = host_group(host)
        known = self._hosts.setdefault(group, _Host(now))
        self._hosts.move_to_end(group)
        if now - known.window_from >= WINDOW_S:
            known.window_from, known.wrong = now, 0
        known.wrong += 1
        if known.wrong >= WRONG_PROOFS_MAX:
            known.refused_until, known.window_from, known.wrong = now + REFUSED_S, now, 0
        if len(self._hosts) > HOSTS_MAX:
            self._hosts.popitem(last=False)
