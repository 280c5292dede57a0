"""Kind 3: joining trusts nothing that it is told, and one that never speaks weighs nothing."""

from __future__ import annotations

import asyncio

import pytest

from meshapi.common.v1 import view_pb2
from meshapi.control.v1 import join_pb2
from meshapi.supervisor.v1 import mesh_pb2
from meshwire.request import ErrorResponse
from tests.attacks.lanes import LaneEndedError, lane, new_key, public_key, stranger
from tests.attacks.mallory import Mallory, admitted
from tests.attacks.target import Target
from tests.attacks.test_peers import MEGABYTES, assert_quotes_little
from tests.join_requests import join_request

SILENT = ("silent-1", "silent-2", "silent-3")


async def refused(target: Target, request: join_pb2.JoinRequest, key: bytes, site: str = "a") -> ErrorResponse:
    """The refusal; the test fails when the join succeeds."""
    async with lane(target.port(site, "peer"), stranger("joiner", key)) as found:
        answer = await found.join(request)
    assert isinstance(answer, ErrorResponse), answer
    assert_quotes_little(answer)
    return answer


async def refused_or_ended(target: Target, request: join_pb2.JoinRequest, key: bytes, site: str = "a") -> None:
    """A request of more than a stranger's 64 KiB: the node may end the lane instead of reading it."""
    async with lane(target.port(site, "peer"), stranger("joiner", key)) as found:
        try:
            answer = await found.join(request)
        except LaneEndedError:
            return
    assert isinstance(answer, ErrorResponse), answer
    assert_quotes_little(answer)


async def test_proven_key_is_used_for_another_nodes_join(target: Target) -> None:
    """The lane proves one key, the request names another."""
    request = join_request("other", public_key(new_key()), target.tokens[0])
    for site in ("a", "b"):
        await refused(target, request, new_key(), site)


async def test_key_of_a_member_is_claimed(mallory: Mallory, target: Target) -> None:
    """With b's public key, which everybody knows, its address is not changed."""
    key_of_b = next(node.public_key for node in mallory.view.nodes if node.name == "b")
    await refused(
        target, join_pb2.JoinRequest(name="b", public_key=key_of_b, peer_address="ws://127.0.0.1:9"), new_key()
    )


async def test_repeated_join_changes_nothing(mallory: Mallory, target: Target) -> None:
    """The same proven key with another address: answered or refused, but the committed entry stays."""
    own = stranger(mallory.local.name, mallory.key)
    request = join_pb2.JoinRequest(name=own.name, public_key=own.public_key, peer_address="ws://127.0.0.1:19")
    async with lane(target.port("b", "peer"), own) as found:
        answer = await found.join(request)
    if isinstance(answer, join_pb2.JoinResponse):
        entry = next(node for node in answer.view.nodes if node.name == own.name)
        assert entry.peer_address == ""
        assert answer.node_id == int(mallory.local.node_id)


async def test_name_of_a_member_with_another_key(target: Target) -> None:
    key = new_key()
    answer = await refused(target, join_pb2.JoinRequest(name="c", public_key=public_key(key)), key)
    assert answer.code == "TOKEN_REQUIRED", "names are told to nobody who has no token"
    answer = await refused(target, join_request("c", public_key(key), target.tokens[0]), key)
    assert answer.code == "NAME_TAKEN"


async def test_five_joins_with_megabytes_of_address(target: Target) -> None:
    """Committed, they would push every MeshView over the limit of gRPC."""
    for number in range(5):
        key = new_key()
        request = join_pb2.JoinRequest(
            name=f"long-{number}", public_key=public_key(key), peer_address="ws://" + "a" * MEGABYTES + ":1"
        )
        await refused_or_ended(target, request, key, "ab"[number % 2])


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "nul\x00"},
        {"name": "line\nbreak"},
        {"name": "../../etc"},
        {"name": ""},
        {"name": "ü" * 40},
        {"mesh_id": "\x00"},
        {"public_key": b""},
        {"public_key": b"\x01" * 31},
    ],
    ids=["nul", "line", "path", "empty", "letters", "mesh id", "no key", "short key"],
)
async def test_fields_of_wrong_shape(target: Target, changes: dict[str, object]) -> None:
    key = new_key()
    request = join_pb2.JoinRequest(name="shaped", public_key=public_key(key))
    for field, value in changes.items():
        setattr(request, field, value)
    await refused(target, request, key)


async def test_fields_of_megabytes(target: Target) -> None:
    key = new_key()
    for field, value in (("name", "x" * MEGABYTES), ("mesh_id", "x" * MEGABYTES), ("public_key", bytes(MEGABYTES))):
        request = join_pb2.JoinRequest(name="large", public_key=public_key(key))
        setattr(request, field, value)
        await refused_or_ended(target, request, key, "b")


@pytest.mark.changes_state
async def test_three_strangers_that_join_and_never_speak(target: Target) -> None:
    """They become no voters and count for no health: the mesh stays HEALTHY and takes writes."""
    for name in SILENT:
        await admitted(target, "a", name, new_key())
    loop = asyncio.get_running_loop()
    until = loop.time() + 4.0
    while loop.time() < until:
        for gateway in target.gateways.values():
            status = await gateway.status()
            assert status.has_quorum
            assert status.view.status == view_pb2.MESH_STATUS_HEALTHY
            assert not [node.name for node in status.view.nodes if node.name in SILENT and node.is_voter]
        await asyncio.sleep(0.5)
    for name in SILENT:
        await target.gateways["b"].mesh.ForgetNode(mesh_pb2.ForgetNodeRequest(name=name), timeout=20)
