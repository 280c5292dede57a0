"""Asking voters for their word on behalf of a node that is behind: whom, how many at once, and what counts as an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from data_plane_testing.identities import local_node, seed_of, view_of
from mesh_data.core.membership_desk import MembershipDesk, membership_of
from mesh_data.core.settlement import VouchWanted
from mesh_data.core.stream_requests import Method
from mesh_data.core.view import View
from mesh_data.shell.overlay.overlay_port import RequestHandler
from mesh_data.shell.overlay.vouches import ASKS_MAX, Vouches
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshcommon.key_signer import KeySigner
from meshcommon.membership import Vouch


def known() -> View:
    base = view_of(1, 2, 3, 4, revision=20)
    return replace(base, nodes={n: replace(item, is_voter=n != 4) for n, item in base.nodes.items()})


VIEW = known()


def word(node: int, key: int | None = None) -> bytes:
    vouch = Vouch.signed(KeySigner(seed_of(key or node)), NodeId(node), 20, membership_of(VIEW))
    return vouch.to_proto().SerializeToString()


class Requests:
    """The overlay of node 4 as Vouches sees it."""

    def __init__(self, answer: Callable[[int], Awaitable[bytes]], *unreachable: int) -> None:
        self.node_id = NodeId(4)
        self.desk = MembershipDesk()
        self.desk.configure(local_node(4), VIEW, None)
        self.asked: list[int] = []
        self.handlers: dict[int, RequestHandler] = {}
        self._answer = answer
        self._unreachable = unreachable

    def is_reachable(self, node: NodeId) -> bool:
        return node not in self._unreachable

    async def call(self, destination: NodeId, method: int, body: bytes, timeout_s: float) -> bytes:
        assert (method, body, timeout_s < 1) == (Method.VOUCH, b"", True)
        self.asked.append(destination)
        return await self._answer(destination)

    def serve(self, method: int, handler: RequestHandler) -> None:
        self.handlers[method] = handler

    def add_vouch(self, vouch: Vouch) -> bool:
        return self.desk.add_vouch(vouch)


async def ask(overlay: Requests, *voters: int, lanes: int = 1) -> None:
    vouches = Vouches(overlay, overlay.desk)
    async with asyncio.TaskGroup() as tasks:
        for lane in range(lanes):
            vouches.want(VouchWanted(lane, tuple(map(NodeId, voters))), tasks)


async def test_one_voter_after_the_other_is_asked_until_one_has_vouched() -> None:
    async def answer(node: int) -> bytes:
        if node == 1:
            raise MeshError(ErrorCode.DEADLINE_EXCEEDED, "too late")
        return word(node)

    overlay = Requests(answer)
    await ask(overlay, 1, 2, 3)
    assert overlay.asked == [1, 2]
    assert overlay.desk.shown_to([2], behind=10) is not None
    assert overlay.desk.shown_to([1, 3], behind=10) is None


async def test_nobody_is_asked_who_is_no_member_cannot_be_reached_or_is_this_node() -> None:
    async def answer(node: int) -> bytes:
        return word(node)

    overlay = Requests(answer, 1)
    await ask(overlay, 9, 4, 1)
    assert overlay.asked == []


@pytest.mark.parametrize(
    "given", [b"", b"\xff" * 20, word(2), word(1, key=2)], ids=["empty", "junk", "of-another", "forged"]
)
async def test_answer_that_is_not_the_voters_own_word_does_not_count(given: bytes) -> None:
    async def answer(_node: int) -> bytes:
        return given

    overlay = Requests(answer)
    await ask(overlay, 1)
    assert overlay.asked == [1]
    assert overlay.desk.shown_to([1, 2], behind=10) is None


async def test_voters_are_asked_for_a_few_lanes_at_once() -> None:
    async def answer(_node: int) -> bytes:
        await asyncio.sleep(0.01)
        return b""

    overlay = Requests(answer)
    await ask(overlay, 1, lanes=3 * ASKS_MAX)
    assert len(overlay.asked) == ASKS_MAX


async def test_node_gives_its_own_word_and_says_when_it_has_none() -> None:
    async def answer(_node: int) -> bytes:
        return b""

    overlay = Requests(answer)
    Vouches(overlay, overlay.desk)
    give = overlay.handlers[Method.VOUCH]
    with pytest.raises(MeshError) as caught:
        await give(NodeId(1), b"")
    assert caught.value.code is ErrorCode.UNAVAILABLE
    own = Vouch.decode(word(4))
    overlay.desk.configure(local_node(4), VIEW, own)
    assert Vouch.decode(await give(NodeId(1), b"")) == own
