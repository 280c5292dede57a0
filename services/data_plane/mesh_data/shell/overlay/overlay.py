"""The overlay of a running node: drives the overlay core with sockets, a clock and a timer.

Purpose: the implementation of `OverlayPort`, and what OverlayService and the data service need on top: attaching sinks,
join lanes, configuration. Leaves out: decisions (the cores') and gRPC. Source: architecture §5.

All methods run on the event loop; nothing here waits for a disk, a database or another service (invariant I8). Barriers stand
around each dial, connection, lane, frame, delivery and callback: what fails there for an unexpected reason ends that one, is
tried again where it would have been, and is counted in `mesh_unexpected_errors_total`.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Final, TypeAlias

from mesh_data.core.dial_policy import Dial, DialPolicy
from mesh_data.core.forwarder import Delivery, DropReason
from mesh_data.core.handshake import LocalNode, PeerNode
from mesh_data.core.join_limits import JoinLimits
from mesh_data.core.lane_limits import LaneLimits
from mesh_data.core.overlay import LaneClosing, LinkChanged, OverlayCore
from mesh_data.core.settlement import LaneSettled, LaneUnsettled, MembershipLearned, VouchWanted
from mesh_data.core.timing import OverlayTiming
from mesh_data.core.view import View
from mesh_data.shell.overlay.dialler import connect_lane
from mesh_data.shell.overlay.lane_handshakes import LaneHandshakes, Proxies
from mesh_data.shell.overlay.lane_session import LaneSession, refuse
from mesh_data.shell.overlay.lane_wire import LaneWire
from mesh_data.shell.overlay.listener import PeerListener
from mesh_data.shell.overlay.overlay_port import PacketCallback, RequestHandler, ViewCallback
from mesh_data.shell.overlay.refused_lanes import RefusedLanes
from mesh_data.shell.overlay.vouches import Vouches
from meshapi.data.v1 import data_pb2
from meshcommon.barrier import barrier
from meshcommon.boot_certificate import any_server
from meshcommon.deadline_timer import DeadlineTimer
from meshcommon.delegation import DelegatedSigner, Delegations
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.frame_socket import FrameSocket
from meshcommon.ids import NO_NODE, NodeId
from meshcommon.logging import get_logger
from meshcommon.membership import Vouch
from meshcommon.overlay_calls import OverlayCalls
from meshcommon.peer_text import printable
from meshcommon.requests import Outgoing, RequestLimits
from meshcommon.token_bucket import TokenBucket
from meshwire.packet import Protocol, TrafficClass

_log = get_logger(__name__)
Sink: TypeAlias = Callable[[Delivery], None]
LinksCallback: TypeAlias = Callable[[], None]
_STRANGER_HANDSHAKES_PER_S: Final = 100.0
"""From addresses where no member has proved itself: about 4 % of a core."""
_STALL_NOISE_S: Final = 0.02
"""A turn that is late by less says nothing."""
_TURN_GAP_S: Final = 0.005
"""Least time between two turns: what is due within it shares one."""


@dataclass(frozen=True, slots=True)
class JoinLane:
    """A lane to a member, opened by a node that is not one."""

    lane_id: int
    peer: PeerNode


class Overlay:
    """See `OverlayPort` for what the stream groups may use. `run` must be running."""

    def __init__(
        self,
        timing: OverlayTiming,
        dial_overrides: dict[str, str],
        listener: PeerListener | None,
        *,
        allows_clear: bool = False,
        proxies: Proxies | None = None,
    ) -> None:
        """`allows_clear`: whether other nodes are dialled at addresses without TLS as well."""
        self._timing = timing
        self._clock = time.monotonic
        self._listener = listener
        self._dial_tls = any_server()
        self._allows_clear = allows_clear
        self._delegations = Delegations(time.time)
        self._core = OverlayCore(timing, secrets.randbits(63), secrets.token_bytes, self._delegations)
        self._policy = DialPolicy(dial_overrides, timing, Random(secrets.randbits(64)))
        self._join_limits = JoinLimits(self._clock())
        self._handshakes = LaneHandshakes(
            self._core,
            self._delegations,
            self._join_limits,
            listener,
            timing=timing,
            proxies=proxies or Proxies(),
            clock=self._clock,
        )
        self._join_lanes_from: Counter[str] = Counter()
        self._lane_limits = LaneLimits()
        self._stranger_handshakes = TokenBucket(
            _STRANGER_HANDSHAKES_PER_S, 2 * _STRANGER_HANDSHAKES_PER_S, self._clock()
        )
        self._calls = OverlayCalls(
            "overlay_request",
            self._send_request,
            self._clock,
            secrets.randbits(62),
            request_class=TrafficClass.BULK,
            limits=RequestLimits(),
        )
        self._local: LocalNode | None = None
        self._view: View | None = None
        self._is_running = False
        self._sessions: dict[int, LaneSession] = {}
        self._next_lane_id = 1
        self._sinks: dict[Protocol, Sink] = {}
        self._view_callbacks: list[ViewCallback] = []
        self._links_callbacks: list[LinksCallback] = []
        self._tasks: asyncio.TaskGroup | None = None
        self._timer = DeadlineTimer("overlay_turn", self._turn, self._clock, _TURN_GAP_S)
        self._dial_timer = DeadlineTimer("dial_turn", self._start_dials, self._clock, _TURN_GAP_S)
        self._settling_dials: dict[int, NodeId] = {}
        """Lanes that this node dialled and that are not in service yet, with whom they lead to."""
        self.refused = RefusedLanes(self._clock)
        self.on_packet(Protocol.REQUEST, self._calls.receive)
        self._vouches = Vouches(self, self._core.membership)

    @property
    def node_id(self) -> NodeId:
        """This node's id; 0 when it is in no mesh."""
        return self._core.local

    def view(self) -> View | None:
        """The MeshView in force."""
        return self._view

    def on_view(self, callback: ViewCallback) -> None:
        """Calls back at once with the present view, then at each change."""
        self._view_callbacks.append(callback)
        callback(self._view, self._is_running)

    def on_packet(self, protocol: Protocol, callback: PacketCallback) -> None:
        """Binds the one receiver of a protocol's packets; a later one replaces it."""
        self._sinks[protocol] = lambda delivery: callback(delivery.source, delivery.payload)

    def send(self, protocol: Protocol, cls: TrafficClass, destination: NodeId, payload: bytes, flow: int = 0) -> bool:
        """Sends a packet, best effort; False when it was dropped here (and counted)."""
        if destination == self._core.local and destination:
            delivery = Delivery(destination, 0, protocol, cls, payload)
            asyncio.get_running_loop().call_soon(self._deliver, delivery)
            return True
        is_sent = self._core.send(protocol, cls, destination, payload, flow, self._clock())
        self._after_core()
        return is_sent

    def queued_bytes(self, destination: NodeId) -> int:
        """Bulk bytes waiting on the first hop towards `destination`; 0 when there is no route."""
        return self._core.queued_bytes(destination, self._clock())

    def is_reachable(self, node: NodeId) -> bool:
        """Whether a route or a direct link leads there now; true for this node itself."""
        return node == self._core.local or self.path_to(node) is not None

    async def call(self, destination: NodeId, method: int, body: bytes, timeout_s: float) -> bytes:
        """An overlay request; raises MeshError of the other side, NO_PATH or DEADLINE_EXCEEDED."""
        if destination == self._core.local:
            return await self._calls.call_local(destination, method, body, timeout_s)
        try:
            return await self._calls.call(method, body, timeout_s, peer=destination)
        except MeshError as error:
            if error.code is ErrorCode.DEADLINE_EXCEEDED and not self.is_reachable(destination):
                raise self.no_path(destination) from error
            raise

    def serve(self, method: int, handler: RequestHandler) -> None:
        """Binds the handler of an overlay request method."""
        self._calls.serve(method, lambda caller, body, _timeout_s: handler(caller.node, body))

    def add_vouch(self, vouch: Vouch) -> bool:
        """Takes a member's word for the membership; False when it is for another one, or not signed by that member."""
        is_taken = self._core.add_vouch(vouch, self._clock())
        self._after_core()
        return is_taken

    @property
    def core(self) -> OverlayCore:
        """The core, to read from: metrics, link states."""
        return self._core

    @property
    def refusals(self) -> Mapping[str, int]:
        """Lanes that did not come up, by error code."""
        return self.refused.counts

    @property
    def undiallable(self) -> dict[NodeId, str]:
        """Members that should be dialled and whose address is none, with what stands there."""
        return self._policy.undiallable

    @property
    def is_running(self) -> bool:
        """Whether this node should run."""
        return self._is_running

    def no_path(self, destination: NodeId) -> MeshError:
        """The error for a node that cannot be reached now."""
        name = self._view.name_of(destination) if self._view is not None else str(destination)
        return MeshError(
            ErrorCode.NO_PATH,
            f"No path leads to node {name} now: check that it runs and the links to it.",
            {"node": name},
        )

    def path_to(self, destination: NodeId) -> tuple[NodeId, ...] | None:
        """The path that a packet would take now, both ends included."""
        return self._core.forwarder.paths.path_to(destination, self._clock())

    def backup_to(self, destination: NodeId) -> tuple[NodeId, ...] | None:
        """The path that would be taken if that one broke."""
        return self._core.forwarder.paths.backup_to(destination, self._clock())

    def uptime_s(self, since: float) -> float:
        """Seconds since a moment that the core noted."""
        return self._clock() - since

    def bind(self, protocol: Protocol, sink: Sink) -> None:
        """Binds a receiver that wants the whole delivery; a later one replaces it."""
        self._sinks[protocol] = sink

    def unbind(self, protocol: Protocol, sink: Sink) -> None:
        """Removes a receiver, unless another has replaced it."""
        if self._sinks.get(protocol) == sink:
            del self._sinks[protocol]

    def on_links(self, callback: LinksCallback) -> None:
        """Calls back whenever a link comes up or goes down."""
        self._links_callbacks.append(callback)

    def off_links(self, callback: LinksCallback) -> None:
        """Ends `on_links`."""
        self._links_callbacks.remove(callback)

    def send_link_local(self, protocol: Protocol, cls: TrafficClass, peer: NodeId, payload: bytes) -> bool:
        """Sends a packet to a direct neighbour only."""
        is_sent = self._core.send_link_local(protocol, cls, peer, payload, self._clock())
        self._after_core()
        return is_sent

    def send_join(self, lane_id: int, cls: TrafficClass, payload: bytes) -> bool:
        """Sends a packet of the join protocol on a join lane."""
        is_sent = self._core.send_join(lane_id, cls, payload, self._clock())
        self._after_core()
        return is_sent

    def configure(
        self, local: LocalNode | None, view: View | None, is_running: bool, *, vouch: Vouch | None = None
    ) -> None:
        """Takes a new identity and view; both None when the node is in no mesh. `vouch` is its own, for that view."""
        now = self._clock()
        self._local, self._is_running = local, is_running
        self._core.configure(local, view, now, vouch=vouch)
        if local is not None and view is not None and not is_running:
            self._core.close_all("the node was stopped", is_node_stopping=True, now=now)
        self._put_view_in_force(now)

    def _put_view_in_force(self, now: float) -> None:
        """The core has another view: by configuration, or because a neighbour has shown a newer membership."""
        self._view, is_running = self._core.membership.view, self._is_running
        view = self._view
        up = {link.peer for link in self._core.links() if link.is_up}
        self._policy.configure(view if is_running else None, self._core.local, up, now)
        self._plan_dials()
        self._after_core()
        for callback in list(self._view_callbacks):
            with barrier("view_callback"):
                callback(view, is_running)

    def push_routes(self, push: data_pb2.PushRoutesRequest) -> int:
        """Applies a difference of the route table; returns the version in force. Raises INVALID_ARGUMENT."""
        self._core.forwarder.paths.routes.apply(push)
        return self._core.forwarder.paths.routes.version

    async def open_join_lane(self, address: str, name: str, signer: DelegatedSigner) -> JoinLane:
        """Dials a member as a node that is none; the delegation must name no mesh.

        Raises:
            MeshError: ADDRESS_UNREACHABLE, WRONG_PROTOCOL, HANDSHAKE_FAILED or another reason of the handshake.
        """
        tasks = self._tasks
        if tasks is None:
            raise MeshError(ErrorCode.UNAVAILABLE, "The data plane is starting: try again.")
        opened: asyncio.Future[JoinLane] = asyncio.get_running_loop().create_future()
        local = LocalNode(NO_NODE, name, signer)
        tasks.create_task(self._join(address, local, opened), name=f"join lane to {address}")
        return await opened

    def close_join_lane(self, lane_id: int) -> None:
        """Closes a join lane; one that is gone already is no error."""
        self._core.close_join_lane(lane_id, "the join is over", self._clock())
        self._after_core()

    async def run(self) -> None:
        """Listens, dials and keeps time until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                self._timer.start()
                self._dial_timer.start()
                tasks.create_task(self._calls.run(), name="overlay requests")
                if self._listener is not None:
                    listening = self._listener.run(self._accept, self._timing.handshake_s)
                    tasks.create_task(listening, name="peer listener")
                # Dials and join lanes come and go in this group, so it stays open without any.
                await asyncio.get_running_loop().create_future()
        finally:
            self._tasks = None
            self._timer.stop()
            self._dial_timer.stop()

    async def say_goodbye(self) -> None:
        """Tells every neighbour that this node stops, and waits until the lanes are closed (at most a second or so)."""
        self._policy.configure(None, NO_NODE, set(), self._clock())
        self._is_running = False
        self._core.close_all("the node is shutting down", is_node_stopping=True, now=self._clock())
        self._after_core()
        for session in list(self._sessions.values()):
            await session.ended.wait()

    def _turn(self, now: float, late_s: float) -> float:
        """Ticks the core. How late the loop woke is how long this process stood still: no peer is blamed for that."""
        for lane_id in self._core.lane_ids():
            with barrier("lane_tick", lane=lane_id) as lane:
                self._core.tick_lane(lane_id, now, late_s if late_s > _STALL_NOISE_S else 0.0)
            if lane.failed:
                self._abort_lane(lane_id)
        with barrier("overlay_tick"):
            self._core.end_tick(now)
        with barrier("overlay_events"):
            self._after_core()
        return self._core.next_deadline()

    def _abort_lane(self, lane_id: int) -> None:
        """Something failed for an unexpected reason on this lane: it ends, and is dialled again."""
        with barrier("lane_abort", lane=lane_id):
            self._core.abort_lane(lane_id, "an internal failure; the log has details", self._clock())
        session = self._sessions.get(lane_id)
        if session is not None:
            session.abort("an internal failure; the log has details")

    def _start_dials(self, now: float, _late_s: float) -> float | None:
        if self._tasks is None or self._local is None:
            return None
        for dial in self._policy.take_due(now):
            self._tasks.create_task(self._dial(dial, self._local), name=f"dial node {dial.peer}")
        return self._policy.next_deadline()

    def _dial_failed(self, peer: NodeId) -> None:
        self._policy.failed(peer, self._clock())
        self._plan_dials()

    def _plan_dials(self) -> None:
        """The policy was told something: a dial may be due sooner."""
        self._dial_timer.no_later_than(self._policy.next_deadline())

    async def _dial(self, dial: Dial, local: LocalNode) -> None:
        with barrier("dial", peer=dial.peer, address=dial.address) as attempt:
            await self._dial_once(dial, local)
        if attempt.failed:
            # As after any other failure: it is tried again, later each time.
            self._dial_failed(dial.peer)

    async def _dial_once(self, dial: Dial, local: LocalNode) -> None:
        try:
            wire, peer = await self._connect(dial.address, local, dial.peer)
        except MeshError as error:
            self.refused.dial_failed(dial, error)
            self._dial_failed(dial.peer)
            return
        self.refused.dial_succeeded(dial.peer)
        await self._run_lane(wire, peer, local, is_dialled=True)

    async def _connect(self, address: str, local: LocalNode, expected: NodeId) -> tuple[LaneWire, PeerNode]:
        tls = None if self._allows_clear and address.startswith("ws://") else self._dial_tls
        socket = await connect_lane(address, self._timing.handshake_s, tls)
        return await self._handshakes.dial(socket, address, local, expected, is_running=self._is_running)

    async def _join(self, address: str, local: LocalNode, opened: asyncio.Future[JoinLane]) -> None:
        with barrier("join_dial", address=printable(address)) as attempt:
            await self._join_once(address, local, opened)
        if attempt.failed and not opened.done():
            opened.set_exception(
                MeshError(ErrorCode.INTERNAL, "The join lane failed for an internal reason; the log has details.")
            )

    async def _join_once(self, address: str, local: LocalNode, opened: asyncio.Future[JoinLane]) -> None:
        try:
            wire, peer = await self._connect(address, local, NO_NODE)
        except MeshError as error:
            if not opened.done():
                opened.set_exception(error)
            return
        except asyncio.CancelledError:
            # The node shuts down: the caller must not wait for ever.
            opened.cancel()
            raise
        if opened.cancelled():
            # The caller gave up while we were dialling.
            wire.abort()
            return
        await self._run_lane(
            wire, peer, local, is_dialled=True, on_open=lambda lane_id: opened.set_result(JoinLane(lane_id, peer))
        )

    async def _accept(self, socket: FrameSocket) -> None:
        local = self._local
        is_known = self._listener is not None and self._listener.gate.is_known(socket.remote_host)
        if not is_known and not self._stranger_handshakes.take(self._clock()):
            # Each costs a signature, two checks and a key agreement, some 400 µs: not even a refusal then.
            self.refused.count("RATE_LIMITED")
            socket.abort()
            return
        try:
            wire, peer = await self._handshakes.accept(socket, local, is_running=self._is_running)
            if not peer.node_id:
                of_address = self._join_lanes_from.get(socket.remote_host, 0)
                refusal = self._join_limits.admit(self._core.join_lane_count(), of_address, self._clock())
                if refusal is not None:
                    await refuse(wire, refusal)
                    raise refusal
        except MeshError as error:
            self.refused.stranger_refused(socket.remote, error)
            return
        if local is not None:  # who is in no mesh refuses everybody
            await self._run_lane(wire, peer, local, is_dialled=False)

    async def _run_lane(
        self,
        wire: LaneWire,
        peer: PeerNode,
        local: LocalNode,
        *,
        is_dialled: bool,
        on_open: Callable[[int], None] | None = None,
    ) -> None:
        is_join = not local.node_id or not peer.node_id
        # The membership may have changed while the handshake ran.
        is_current = local == self._local or (is_join and is_dialled)
        is_welcome = is_join or (self._is_running and self._is_member(peer))
        if not is_current or not is_welcome:
            wire.abort()
            if is_dialled:
                self._dial_failed(peer.node_id)
            return
        # A node that is no member stays within the limits of a stranger; what it dialled itself is another matter.
        wire.prove(is_bounded=is_join and not is_dialled)
        if is_join:
            self._join_lanes_from[wire.remote_host] += not is_dialled
            try:
                await self._run_session(wire, peer, is_dialled, is_join, on_open)
            finally:
                self._join_lanes_from[wire.remote_host] -= not is_dialled
                self._join_lanes_from += Counter()  # forgets the addresses without a lane
            return
        if self._listener is not None:
            # Also after a dial: when this node starts, its members are known before strangers take all places.
            self._listener.gate.remember(wire.remote_host)
        refusal = self._lane_limits.enter(peer.node_id)
        if refusal is not None:
            self.refused.count(refusal.code)
            if is_dialled:
                self._dial_failed(peer.node_id)
            await refuse(wire, refusal)
            return
        try:
            await self._run_session(wire, peer, is_dialled, is_join, on_open)
        finally:
            self._lane_limits.leave(peer.node_id)

    def _is_member(self, peer: PeerNode) -> bool:
        """Whether the view in force names that node with the key that it proved."""
        node = self._view.nodes.get(peer.node_id) if self._view is not None else None
        return node is not None and node.public_key == peer.public_key

    async def _run_session(
        self,
        wire: LaneWire,
        peer: PeerNode,
        is_dialled: bool,
        is_join: bool,
        on_open: Callable[[int], None] | None,
    ) -> None:
        lane_id = self._next_lane_id
        self._next_lane_id += 1
        session = LaneSession(lane_id, wire, self._core.next_frame_parts)
        self._sessions[lane_id] = session
        if is_dialled and not is_join:
            self._settling_dials[lane_id] = peer.node_id
        try:
            self._core.open_lane(
                lane_id,
                peer.node_id,
                is_dialled,
                is_join,
                self._clock(),
                peer.public_key,
                host=wire.remote_host,
                shown=peer,
            )
            if not self._core.is_settling(lane_id):
                self._lane_settled(lane_id)
            _log.info("lane_up", lane=lane_id, peer=peer.node_id, is_dialled=is_dialled, remote=wire.remote)
            if on_open is not None:
                on_open(lane_id)
            self._after_core()
            await session.run(self._receive)
        finally:
            wire.abort()
            del self._sessions[lane_id]
            session.ended.set()
            _log.info("lane_down", lane=lane_id, peer=peer.node_id, reason=printable(session.reason))
            if self._settling_dials.pop(lane_id, None) is not None:
                # It never came into service: as after any other dial that failed.
                self._dial_failed(peer.node_id)
            self._core.close_lane(lane_id, session.reason, self._clock())
            self._after_core()

    def _receive(self, lane_id: int, frame: bytes) -> None:
        for delivery in self._core.receive(lane_id, frame, self._clock()):
            self._deliver(delivery)
        self._after_core()

    def _deliver(self, delivery: Delivery) -> None:
        sink = self._sinks.get(delivery.protocol)
        if sink is None:
            self._core.forwarder.drop(DropReason.NO_RECEIVER)
        else:
            with barrier("delivery", protocol=delivery.protocol.name, source=delivery.source):
                sink(delivery)

    def _send_request(self, cls: TrafficClass, outgoing: Outgoing) -> bool:
        return self.send(Protocol.REQUEST, cls, NodeId(outgoing.peer), outgoing.payload)

    def _after_core(self) -> None:
        """Does what the core decided: wakes writers, closes sockets, tells of links."""
        for event in self._core.take_events():
            match event:
                case LaneClosing():
                    self._close_session(event)
                case LinkChanged():
                    self._link_changed(event)
                case LaneSettled():
                    self._lane_settled(event.lane_id)
                case LaneUnsettled():
                    self.refused.lane_not_settled(event.lane_id, event.error)
                case MembershipLearned():
                    _log.info("membership_learned", peer=event.peer, revision=self._core.membership.revision)
                    self._put_view_in_force(self._clock())
                case VouchWanted():
                    self._vouches.want(event, self._tasks)
        for lane_id in self._core.take_ready():
            session = self._sessions.get(lane_id)
            if session is not None:
                session.wake()
        self._timer.no_later_than(self._core.next_deadline())

    def _close_session(self, event: LaneClosing) -> None:
        session = self._sessions.get(event.lane_id)
        if session is None:
            return
        if event.is_abrupt:
            session.abort(event.reason)
        else:
            session.close(event.reason)

    def _lane_settled(self, lane_id: int) -> None:
        """The lane is up: what was dialled for it is over."""
        if (peer := self._settling_dials.pop(lane_id, None)) is not None:
            self._policy.attempt_ended(peer)
            self._plan_dials()

    def _link_changed(self, event: LinkChanged) -> None:
        if event.is_up:
            self._policy.link_up(event.peer)
        else:
            self._policy.link_down(event.peer, self._clock())
            self._plan_dials()
        _log.info("link_changed", peer=event.peer, is_up=event.is_up, reason=event.reason)
        for callback in list(self._links_callbacks):
            with barrier("links_callback"):
                callback()
