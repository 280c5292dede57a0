"""Requests between control planes when one of them is not ready yet."""

from __future__ import annotations

import asyncio
from typing import Final

from mesh_control.shell.peer_calls import Method, PeerCalls
from meshapi.overlay.v1 import overlay_pb2
from meshcommon.ids import NO_NODE, NodeId
from meshwire.packet import Protocol, TrafficClass

LANE: Final = 7
MEMBER: Final = NodeId(1)


class Wire:
    """One end of a lane between a newcomer and a member; a packet arrives at once."""

    def __init__(self, source: NodeId) -> None:
        self._source = source
        self.other: PeerCalls | None = None
        self.sent = 0
        self.has_sent = asyncio.Event()

    def send(
        self, protocol: Protocol, traffic_class: TrafficClass, destination: NodeId, payload: bytes, lane_id: int = 0
    ) -> None:
        """Delivers it to the other end."""
        assert self.other is not None
        self.sent += 1
        self.has_sent.set()
        packet = overlay_pb2.InPacket(protocol=protocol, payload=payload, lane_id=lane_id, source=self._source)
        self.other.receive(packet)


async def test_request_that_came_before_the_other_side_was_ready_is_answered_when_repeated() -> None:
    """It was once noted as under way, executed by nobody, and every repeat of it passed for a duplicate."""
    to_member, to_newcomer = Wire(NO_NODE), Wire(MEMBER)
    newcomer, member = PeerCalls(to_member, first_id=1), PeerCalls(to_newcomer, first_id=2)
    to_member.other, to_newcomer.other = member, newcomer
    executed: list[bytes] = []

    async def admit(_peer: NodeId, body: bytes, _timeout_s: float) -> bytes:
        executed.append(body)
        return b"welcome"

    member.serve(Method.JOIN, admit)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(newcomer.run())]
        with newcomer.join_lane(LANE):
            answer = group.create_task(newcomer.call(Method.JOIN, b"please", 5.0, lane_id=LANE))
            await to_member.has_sent.wait()
            tasks.append(group.create_task(member.run()))
            assert await answer == b"welcome"
        for task in tasks:
            task.cancel()
    assert (executed, to_member.sent) == ([b"please"], 2)
