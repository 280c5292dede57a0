"""The one driver of the routing core: owns its clock and its timer, feeds it, and hands on what comes out.

Everything runs on the event loop, nothing here waits for a disk or another service. A barrier goes around each message
and each turn: what one neighbour sends can fail only itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from mesh_routing.core.origination import LocalLink
from mesh_routing.core.route_table import RouteTable
from mesh_routing.core.router import OutMessage, Router
from mesh_routing.core.view import View
from mesh_routing.shell.metrics import RoutingMetrics
from meshcommon.barrier import LOG_EVERY_S, barrier
from meshcommon.delegation import DelegatedSigner
from meshcommon.ids import NO_NODE, NodeId
from meshcommon.logging import get_logger
from meshcommon.peer_text import printable
from meshwire.errors import WireError

RETRY_S: Final = 1.0
"""Pause after a turn that failed unexpectedly: its deadline still lies in the past."""
_log = get_logger(__name__)
Send = Callable[[Sequence[OutMessage]], None]


class RoutingDriver:
    """Drives a Router. Call it from its event loop only."""

    def __init__(self, router: Router, metrics: RoutingMetrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._router = router
        self._metrics = metrics
        self._clock = clock
        self._view = View()
        self._send: Send | None = None
        self._reported_node = NO_NODE
        self._reported_links: Sequence[LocalLink] = ()
        self._wake = asyncio.Event()
        self._watchers: list[asyncio.Event] = []
        self._seen = (-1, -1)
        self._forgeries_seen = 0
        self._next_warning_at = float("-inf")

    @property
    def view(self) -> View:
        """The view in force."""
        return self._view

    @property
    def router(self) -> Router:
        """The core; read only."""
        return self._router

    @property
    def table(self) -> RouteTable:
        """The newest routes."""
        return self._router.table

    def watch(self) -> asyncio.Event:
        """An event that is set whenever view, database or routes have changed; the watcher clears it."""
        event = asyncio.Event()
        self._watchers.append(event)
        return event

    def send_through(self, send: Send | None) -> None:
        """Where outgoing messages go from now on; None: they are dropped, flooding repeats them."""
        self._send = send

    def configure(self, view: View, signer: DelegatedSigner | None) -> None:
        """Takes a newer view, and what signs for this node; None: the node advertises nothing."""
        now = self._clock()
        self._router.configure(view, signer, now)
        self._view = view
        self._apply_links(now, is_fresh=False)
        self._settle(now)
        self._notify()

    def set_links(self, node_id: NodeId, links: Sequence[LocalLink], *, is_fresh: bool) -> None:
        """Takes the links that are up, as the data plane of `node_id` reports them."""
        now = self._clock()
        self._reported_node, self._reported_links = node_id, links
        self._apply_links(now, is_fresh=is_fresh)
        self._settle(now)

    def receive(self, packets: Sequence[tuple[NodeId, bytes]]) -> None:
        """Takes messages of neighbours; what is malformed is dropped and counted."""
        now = self._clock()
        for peer, payload in packets:
            self._metrics.messages_in.inc()
            with barrier("routing_message", peer=peer):
                self._receive(peer, payload, now)
        self._metrics.observe_refusals(self._router)
        self._warn_of_forgeries(now)
        self._settle(now)

    async def run(self) -> None:
        """Calls the core at its deadlines until cancelled."""
        while True:
            self._wake.clear()
            deadline = self._router.next_deadline()
            timeout = None if deadline is None else max(0.0, deadline - self._clock())
            try:
                async with asyncio.timeout(timeout):
                    await self._wake.wait()
            except TimeoutError:
                if not self._settle(self._clock()):
                    await asyncio.sleep(RETRY_S)

    def _receive(self, peer: NodeId, payload: bytes, now: float) -> None:
        try:
            self._router.receive(peer, payload, now)
        except WireError as error:
            self._metrics.messages_malformed.labels(error.code).inc()
            if self._may_warn(now):
                _log.warning("message_malformed", peer=peer, reason=printable(error.reason))

    def _warn_of_forgeries(self, now: float) -> None:
        flooding = self._router.flooding
        if flooding is None or flooding.last_forgery is None:
            return
        count = flooding.counters.bad_signatures
        if count != self._forgeries_seen and self._may_warn(now):
            self._forgeries_seen = count
            peer, origin, is_out_of_time = flooding.last_forgery
            event = "advertisement_out_of_time" if is_out_of_time else "advertisement_forged"
            _log.warning(event, peer=peer, origin=origin, since_the_start=count)

    def _may_warn(self, now: float) -> bool:
        """Whether a line about what neighbours do wrong may be written now; the counters have the rest."""
        if now < self._next_warning_at:
            return False
        self._next_warning_at = now + LOG_EVERY_S
        return True

    def _apply_links(self, now: float, *, is_fresh: bool) -> None:
        # Links of another identity: the data plane has not heard yet what the control plane told us, or the reverse.
        is_ours = self._reported_node == self._router.node_id
        self._router.set_links(self._reported_links if is_ours else (), now, is_fresh=is_fresh)

    def _settle(self, now: float) -> bool:
        """Sends first, then computes: the neighbours should not wait for our computation. False when it failed."""
        started = time.perf_counter()
        with barrier("routing_turn") as turn:
            self._flush()
            self._router.tick(now)
            self._flush()
        self._metrics.turn_seconds.observe(time.perf_counter() - started)
        self._wake.set()
        versions = (self._router.lsdb.version, self._router.table.version)
        if versions != self._seen:
            self._seen = versions
            self._notify()
        return not turn.failed

    def _notify(self) -> None:
        self._metrics.observe(self._router)
        for event in self._watchers:
            event.set()

    def _flush(self) -> None:
        outgoing = self._router.take_outgoing()
        if not outgoing:
            return
        if self._send is None:
            self._metrics.messages_dropped.inc(len(outgoing))
        else:
            self._send(outgoing)
