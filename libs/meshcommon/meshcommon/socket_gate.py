"""How many sockets strangers may hold open on one port before they have shown who they are.

A socket counts from the moment the kernel hands it over until its peer is proved (or, where nobody proves anything, until
the WebSocket is open). Beyond the limits the newest is turned away at once: it costs no task and no parser. A few places are
kept for addresses from which a member has proved itself before, and no other address gets more than its share.
Leaves out: sockets themselves (`frame_ports`). Pure. Source: architecture §11 "Everything from outside".
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from meshcommon.address import host_group

KNOWN_MAX: Final = 1024
"""Addresses that are remembered; the one that proved itself longest ago is forgotten first."""


@dataclass(frozen=True, slots=True)
class GateLimits:
    """How many sockets may be unproven at once.

    Attributes:
        sockets_max: from all addresses.
        reserved: of those, how many only known addresses may take.
        per_address_max: from one address that is not known; a known one may have twice as many.
    """

    sockets_max: int = 64
    reserved: int = 16
    per_address_max: int = 16


class SocketGate:
    """Counts unproven sockets of one port. Every `enter` that returned True needs one `leave`."""

    def __init__(self, limits: GateLimits | None = None) -> None:
        self._limits = limits or GateLimits()
        self._unproven: dict[str, int] = {}
        self._known: OrderedDict[str, None] = OrderedDict()
        self.unproven = 0
        """Sockets whose peer is not proved."""
        self.refused = 0
        """Sockets that were turned away."""

    def enter(self, remote: str) -> bool:
        """Counts one more socket from the IP address `remote`; False when it has to be turned away."""
        address = host_group(remote)
        limits, held = self._limits, self._unproven.get(address, 0)
        is_known = self.is_known(remote)
        room = limits.sockets_max if is_known else limits.sockets_max - limits.reserved
        share = 2 * limits.per_address_max if is_known else limits.per_address_max
        if self.unproven >= room or held >= share:
            self.refused += 1
            return False
        self._unproven[address] = held + 1
        self.unproven += 1
        return True

    def leave(self, remote: str) -> None:
        """The socket is gone, or its peer is proved."""
        address = host_group(remote)
        held = self._unproven.pop(address) - 1
        self.unproven -= 1
        if held:
            self._unproven[address] = held

    def is_known(self, remote: str) -> bool:
        """Whether a member has proved itself from there."""
        return host_group(remote) in self._known

    def remember(self, remote: str) -> None:
        """A member has proved itself from there."""
        address = host_group(remote)
        self._known[address] = None
        self._known.move_to_end(address)
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)
