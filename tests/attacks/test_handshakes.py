"""The lane handshake of a running mesh under attack: cut, replay, reflection, truncation, and memberships that are lies.

What each message means is tested without a wire (`test_handshake_attacks.py` and others of the data plane). Here it counts that
the node refuses on its port, keeps nothing of it, and goes on to serve others. The table is in docs/design/overlay.md.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from mesh_data.core.handshake import Handshake, Role, Terms
from mesh_data.core.membership_desk import membership_of
from mesh_data.core.view import View
from mesh_data.shell.overlay.lane_socket import SUBPROTOCOL
from meshapi.overlay.v1 import lane_pb2
from meshcommon.delegation import Delegations
from meshcommon.ids import NodeId
from meshcommon.key_signer import KeySigner
from meshcommon.membership import Vouch
from meshwire import frame
from meshwire.packet import Protocol, decode
from tests.attacks.lanes import RawLane, stranger
from tests.attacks.mallory import Mallory
from tests.attacks.raw_socket import Opcode, websocket
from tests.attacks.target import Target

STEPS = (0, 1, 2)
NAMES = ["hello", "proof", "finished"]


class Exchange:
    """A handshake of a stranger that the test drives by hand."""

    def __init__(self, lane: RawLane) -> None:
        self.lane = lane
        terms = Terms(Delegations(time.time), certificate_seen=lane.socket.certificate_seen)
        seeds = secrets.token_bytes(32), secrets.token_bytes(32)
        self.handshake = Handshake(Role.DIALLER, lane.local, terms, *seeds, time.monotonic() + 15)
        self.sent: list[bytes] = []
        self.heard: list[bytes] = []

    async def run(self, steps: int) -> bytes:
        """Exchanges so many messages; returns the next one, which was not sent."""
        for _ in range(steps):
            self.sent.append(self.handshake.take_outgoing()[-1])
            await self.lane.send_frame(self.sent[-1])
            await self.hear()
        return self.handshake.take_outgoing()[-1]

    async def hear(self) -> None:
        received = await self.lane.receive_frame()
        assert received is not None
        self.heard.append(received)
        self.handshake.receive(received)
        assert self.handshake.failure is None, self.handshake.failure


@asynccontextmanager
async def exchange(target: Target) -> AsyncIterator[Exchange]:
    async with websocket(target.port("a", "peer"), SUBPROTOCOL) as socket:
        yield Exchange(RawLane(socket, stranger()))


async def is_refused(lane: RawLane) -> bool:
    """Whether the node ends it: with a reject, and without a packet of its own."""
    while (received := await lane.receive_frame()) is not None:
        assert frame.frame_type(received) == frame.FRAME_HANDSHAKE, "nothing but the handshake may come"
    return True


async def serves_others(target: Target) -> None:
    """A newcomer still gets a lane."""
    async with websocket(target.port("a", "peer"), SUBPROTOCOL) as socket:
        assert (await RawLane(socket, stranger()).shake()).node_id


@pytest.mark.parametrize("step", STEPS, ids=NAMES)
async def test_connection_that_is_cut_at_each_step_leaves_nothing(target: Target, step: int) -> None:
    for _ in range(20):
        async with exchange(target) as found:
            await found.run(step)
    await serves_others(target)


@pytest.mark.parametrize("step", STEPS, ids=NAMES)
async def test_handshake_that_stops_at_each_step_is_ended_in_time(target: Target, step: int) -> None:
    async with exchange(target) as found:
        await found.run(step)
        begun = time.monotonic()
        assert await is_refused(found.lane)
        assert time.monotonic() - begun < 10
    await serves_others(target)


@pytest.mark.parametrize("step", STEPS, ids=NAMES)
async def test_messages_of_a_recorded_handshake_are_refused_in_another_one(target: Target, step: int) -> None:
    async with exchange(target) as first:
        recorded = [*first.sent, await first.run(2)]
        recorded = [*first.sent, recorded[-1]]
        await first.lane.send_frame(recorded[-1])
    async with exchange(target) as second:
        await second.run(step)
        for message in recorded[step:]:
            await second.lane.send_frame(message)
        assert await is_refused(second.lane)
    await serves_others(target)


@pytest.mark.parametrize("step", STEPS, ids=NAMES)
async def test_what_the_node_says_is_refused_when_it_comes_back(target: Target, step: int) -> None:
    async with exchange(target) as found:
        await found.run(step)
        if not step:
            await found.hear()
        await found.lane.send_frame(found.heard[-1])
        assert await is_refused(found.lane)
    await serves_others(target)


@pytest.mark.parametrize("step", STEPS, ids=NAMES)
async def test_truncated_message_is_refused(target: Target, step: int) -> None:
    for left in (0, 1, 2, 3, 0.25, 0.5, 0.75, -1):
        async with exchange(target) as found:
            message = await found.run(step)
            size = int(left * len(message)) if isinstance(left, float) else left
            await found.lane.send_frame(message[:size])
            assert await is_refused(found.lane)
    await serves_others(target)


def lie(mallory: Mallory, signer: bytes | None) -> tuple[View, bytes]:
    """A membership without b, far in the future, and the word that mallory has for it: its own, or a voter's that it forged."""
    view = mallory.overlay.view()
    assert view is not None
    kept = {node: item for node, item in view.nodes.items() if item.name != "b"}
    false = replace(view, revision=2**62, nodes=kept)
    of = mallory.local.node_id if signer is None else mallory.overlay_id("c")
    vouch = Vouch.signed(KeySigner(signer or mallory.key), NodeId(of), false.revision, membership_of(false))
    return false, membership_of(false).encode(vouch)


async def end_of_settling(lane: RawLane, answer: bytes) -> str:
    """Answers the node's ask with `answer`; returns the reason of its bye."""
    while (received := await lane.receive_frame()) is not None:
        for data in frame.decode_packets(received):
            packet = decode(data)
            assert packet.protocol is Protocol.LANE, "no packet passes on a lane that is not settled"
            message = lane_pb2.LaneControl.FromString(bytes(packet.payload))
            if message.HasField("bye"):
                return message.bye.reason
            if message.HasField("membership_ask"):
                part = lane_pb2.LaneMembershipPart(total_bytes=len(answer), offset=0, content=answer)
                await lane.send_control(lane_pb2.LaneControl(membership_part=part))
            if message.HasField("beat"):
                await lane.send_control(lane_pb2.LaneControl(echo=message.beat))
    return ""


@pytest.mark.parametrize("kind", ["own word", "forged word", "junk"])
async def test_member_cannot_forge_a_newer_membership(target: Target, mallory: Mallory, kind: str) -> None:
    false, shown = lie(mallory, secrets.token_bytes(32) if kind == "forged word" else None)
    async with websocket(target.port("a", "peer"), SUBPROTOCOL) as socket:
        found = RawLane(socket, mallory.local, false)
        await found.shake()
        reason = await end_of_settling(found, b"\xff" * 100 if kind == "junk" else shown)
    assert reason.startswith("MEMBERSHIP_OUTDATED"), reason
    view = (await target.gateways["a"].status()).view
    assert "b" in {node.name for node in view.nodes}
    links = await target.gateways["a"].status()
    assert all(node.is_reachable for node in links.view.nodes if node.name in {"a", "b", "c"})


async def test_member_that_claims_newer_memberships_all_the_time_costs_only_its_own_lanes(
    target: Target, mallory: Mallory
) -> None:
    false, shown = lie(mallory, None)
    begun = time.monotonic()
    reasons = []
    for _ in range(12):
        async with websocket(target.port("a", "peer"), SUBPROTOCOL) as socket:
            found = RawLane(socket, mallory.local, false)
            await found.shake()
            reasons.append(await end_of_settling(found, shown))
    assert all(reason.startswith("MEMBERSHIP_OUTDATED") for reason in reasons), reasons
    if time.monotonic() - begun < 8:
        assert any("too often" in reason for reason in reasons), "beyond its budget nothing is looked at"
    await serves_others(target)


async def test_lane_of_a_member_that_never_shows_what_it_claims_is_closed_in_time(
    target: Target, mallory: Mallory
) -> None:
    false, _ = lie(mallory, None)
    async with websocket(target.port("a", "peer"), SUBPROTOCOL) as socket:
        found = RawLane(socket, mallory.local, false)
        await found.shake()
        begun = time.monotonic()
        reason = ""
        while not reason and (received := await found.socket.receive()) is not None:
            if received[0] != Opcode.BINARY:
                continue
            for data in frame.decode_packets(received[1]):
                message = lane_pb2.LaneControl.FromString(bytes(decode(data).payload))
                reason = message.bye.reason if message.HasField("bye") else reason
                if message.HasField("beat"):
                    await found.send_control(lane_pb2.LaneControl(echo=message.beat))
        assert "in time" in reason
        assert 1 < time.monotonic() - begun < 10
