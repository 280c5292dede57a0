"""Fuzz target of the control plane: the join protocol, as a stranger on a join lane speaks it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from mesh_control.core.join_tokens import JoinKey, encode_token
from mesh_control.core.model import JoinPolicy
from meshapi.control.v1 import join_pb2
from meshapi.overlay.v1 import overlay_pb2
from meshcommon.ids import NodeId
from meshwire import request
from meshwire.packet import Protocol, TrafficClass
from services.control_plane.tests.shell.conftest import OneNode, SmallMesh
from tests.attacks.lanes import new_key, public_key
from tests.fuzz.shell_targets import Attempt, ShellTarget, check_code
from tests.join_requests import join_request

_LANE: Final = 77
_JOIN, _PROPOSE = 1, 2
_KEY: Final = public_key(new_key())
_ANSWER_S: Final = 0.3
_MESH_ID: Final = "6f0d6c52-0000-4000-8000-000000000001"


class _Joiner:
    """Speaks to the control plane as the overlay would hand it over."""

    def __init__(self, node: OneNode) -> None:
        self._node = node
        self._answers: list[bytes] = []
        self._number = 0
        node.send = self._send  # type: ignore[method-assign]

    def _send(
        self, protocol: Protocol, traffic_class: TrafficClass, destination: NodeId, payload: bytes, lane_id: int = 0
    ) -> None:
        if lane_id == _LANE:
            self._answers.append(payload)

    async def attempt(self, data: bytes) -> None:
        """One payload as it comes, and one as a request with a fresh id; the answers are documented ones."""
        self._number += 1
        for payload in (data, b"\x00" + self._number.to_bytes(8, "big") + data):
            arrived = overlay_pb2.InPacket(protocol=Protocol.JOIN, lane_id=_LANE, payload=payload)
            if "lane_public_key" in arrived.DESCRIPTOR.fields_by_name:
                setattr(arrived, "lane_public_key", _KEY)  # noqa: B010 - newer than the message this may run with
            # Another host each time: wrong proofs of one must not keep the next one from being read.
            arrived.lane_host = f"host {self._number}"
            self._node.receive(arrived)
        loop = asyncio.get_running_loop()
        until = loop.time() + _ANSWER_S
        while self._node.calls.executing and loop.time() < until:  # noqa: ASYNC110 - it tells nobody when it has none
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.001)  # a failure needs a few turns of the loop to end the service
        task = self._node._task
        assert task is not None
        assert not task.done(), "the control plane has ended"
        answers, self._answers = self._answers, []
        for answer in answers:
            response = request.decode_response(answer[9:])
            if isinstance(response, request.ErrorResponse):
                check_code(response.code, response.message)


@asynccontextmanager
async def _open_join_protocol(directory: Path) -> AsyncIterator[Attempt]:
    small = SmallMesh(directory)
    try:
        (node,) = await small.grow("a", policy=JoinPolicy.KEY_REQUIRED)
        yield _Joiner(node).attempt
    finally:
        for name in list(small.nodes):
            await small.crash(name)


def _encoded(method: int, message: Any) -> bytes:
    return request.encode_request(request.Request(method, 200, message.SerializeToString()))


def _requests() -> tuple[bytes, ...]:
    proposal = join_pb2.ProposeRequest(proposal_id=5)
    proposal.command.remove_node.node_id = 1
    known = join_request("n", _KEY, encode_token(JoinKey(_MESH_ID, (), bytes(32))))
    known.mesh_id = ""
    return (
        _encoded(_JOIN, known),
        _encoded(_JOIN, join_pb2.JoinRequest(name="n", public_key=_KEY, token_id="0" * 16, proof=b"short")),
        _encoded(_JOIN, join_pb2.JoinRequest(name="n", public_key=_KEY, token_id="no id", proof=bytes(64))),
        _encoded(_JOIN, join_pb2.JoinRequest(mesh_id="another", name="n", public_key=_KEY)),
        _encoded(_JOIN, join_pb2.JoinRequest(name="bad name", public_key=_KEY, peer_address="ws://h:1")),
        _encoded(_JOIN, join_pb2.JoinRequest(name="n", public_key=bytes(32), peer_address="ws://h:1")),
        _encoded(_JOIN, join_pb2.JoinRequest(name="n", public_key=_KEY, peer_address="ws://u@é:1")),
        _encoded(_PROPOSE, proposal),
        _encoded(200, proposal),
    )


CONTROL_TARGETS: Final = (ShellTarget("join_protocol", _open_join_protocol, _requests()),)
