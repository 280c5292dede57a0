"""Runs the handshake of each connection with the terms of the moment: who is a member, what is known, what the way may be.

Leaves out: every decision (`core/handshake`), and what becomes of the lane.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from mesh_data.core.handshake import Handshake, LocalNode, PeerNode, Role, Terms
from mesh_data.core.join_limits import JoinLimits
from mesh_data.core.overlay import OverlayCore
from mesh_data.core.timing import OverlayTiming
from mesh_data.shell.overlay.lane_session import shake_hands
from mesh_data.shell.overlay.lane_wire import LaneWire
from mesh_data.shell.overlay.listener import PeerListener
from meshcommon.address import parse_peer_address
from meshcommon.delegation import DelegatedSigner, Delegations, Grantor, Use
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.frame_socket import FrameSocket
from meshcommon.ids import NO_NODE, NodeId
from meshcommon.key_signer import PRIVATE_KEY_BYTES, KeySigner


@dataclass(frozen=True, slots=True)
class Proxies:
    """Where a proxy that ends TLS may stand. Both ends of a lane have to say so.

    Attributes:
        dialled: addresses that lead to one.
        is_listening_behind: whether the own listener stands behind one.
    """

    dialled: frozenset[str] = frozenset()
    is_listening_behind: bool = False

    @classmethod
    def of_settings(cls, addresses: Collection[str], *, is_listening_behind: bool) -> Proxies:
        """As the settings have it; the addresses in any spelling."""
        dialled = frozenset(str(parse_peer_address(address)) for address in addresses)
        return cls(dialled, is_listening_behind)


class LaneHandshakes:
    """Handshakes of one node. `clock` tells monotonic seconds."""

    def __init__(
        self,
        core: OverlayCore,
        delegations: Delegations,
        join_limits: JoinLimits,
        listener: PeerListener | None,
        *,
        timing: OverlayTiming,
        proxies: Proxies,
        clock: Callable[[], float],
    ) -> None:
        self._core = core
        self._delegations = delegations
        self._join_limits = join_limits
        self._certificate = listener.certificate if listener is not None else b""
        self._timing = timing
        self._proxies = proxies
        self._clock = clock

    async def dial(
        self, socket: FrameSocket, address: str, local: LocalNode, expected: NodeId, *, is_running: bool
    ) -> tuple[LaneWire, PeerNode]:
        """The handshake on a connection to `address`, where `expected` is, or 0 for whoever answers; raises MeshError."""
        seals_frames = str(parse_peer_address(address)) in self._proxies.dialled
        terms = self._terms(socket, local, expected, b"", is_running=is_running, seals_frames=seals_frames)
        return await self._shake(socket, Role.DIALLER, local, terms)

    async def accept(
        self, socket: FrameSocket, local: LocalNode | None, *, is_running: bool
    ) -> tuple[LaneWire, PeerNode]:
        """The handshake on a connection that came in; raises MeshError. Who is in no mesh shows a key for this one refusal."""
        own = local or LocalNode(NO_NODE, "", _throwaway_signer())
        seals_frames = self._proxies.is_listening_behind
        terms = self._terms(socket, own, NO_NODE, self._certificate, is_running=is_running, seals_frames=seals_frames)
        return await self._shake(socket, Role.LISTENER, own, terms)

    def _terms(
        self,
        socket: FrameSocket,
        local: LocalNode,
        expected: NodeId,
        certificate: bytes,
        *,
        is_running: bool,
        seals_frames: bool,
    ) -> Terms:
        refusal = None
        if local.node_id and not is_running:
            refusal = MeshError(
                ErrorCode.NODE_STOPPED, f"Node {local.name} is stopped: start it first.", retryable=True
            )
        known = self._core.membership
        return Terms(
            self._delegations,
            view=known.view,
            expected_peer=expected,
            join_refusal=self._join_limits.refusal(self._core.join_lane_count()),
            refusal=refusal,
            certificate_shown=certificate,
            certificate_seen=socket.peer_certificate,
            membership_revision=known.revision if local.node_id else 0,
            membership_digest=known.digest if local.node_id else b"",
            seals_frames=seals_frames,
        )

    async def _shake(
        self, socket: FrameSocket, role: Role, local: LocalNode, terms: Terms
    ) -> tuple[LaneWire, PeerNode]:
        deadline = self._clock() + self._timing.handshake_s
        handshake = Handshake(role, local, terms, secrets.token_bytes(32), secrets.token_bytes(32), deadline)
        peer = await shake_hands(socket, handshake, self._clock)
        return LaneWire(socket, handshake.seal, self._clock), peer


def _throwaway_signer() -> DelegatedSigner:
    key = KeySigner(secrets.token_bytes(PRIVATE_KEY_BYTES))
    return DelegatedSigner.signed(key, Grantor(key.public_key), Use.LANES, key, time.time())
