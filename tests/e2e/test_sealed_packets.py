"""Packets are sealed from end to end: what a relay keeps shows no payload, and no key and nonce ever seal twice.

Real data plane processes and the state that they keep; the relay between them is tapped (`tapped_relay`). The matrix of
tampered and replayed fields is in `services/data_plane/tests/core/test_sealed_matrix.py`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from meshapi.supervisor.v1 import data_pb2
from meshcommon.errors import MeshError
from meshtest.data_plane_client import DataPlane
from meshtest.waiting import eventually
from tests.bench.mesh_nodes import MeshNode
from tests.e2e.tapped_relay import Relayed, Sealed, end, running_ends, running_relay

STREAM = "sealed/one"
PIECE_BYTES = 16


def pieces(value: bytes) -> list[bytes]:
    """Every part of so many bytes, wherever it begins."""
    return [value[at : at + PIECE_BYTES] for at in range(len(value) - PIECE_BYTES + 1)]


def shown(found: bytes, markers: Iterable[bytes]) -> int:
    """How many pieces of the markers stand in what was found."""
    return sum(piece in found for marker in markers for piece in pieces(marker))


def log_of(directory: Path) -> bytes:
    """What a node's Raft log holds."""
    return b"".join(path.read_bytes() for path in (directory / "data" / "raft").rglob("*") if path.is_file())


async def test_relay_that_keeps_everything_holds_no_byte_of_what_is_published(tmp_path: Path) -> None:
    """Published at both ends: as Raft entries from the leader, and as a request to it from the other end."""
    markers = [os.urandom(512), os.urandom(512)]
    key = os.urandom(32).hex().encode()
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(running_relay())
        nodes = await stack.enter_async_context(running_ends(tmp_path))
        await relay.configure(nodes)
        await relay.linked()
        await relay.create(STREAM, nodes)
        for marker, number in zip(markers, nodes, strict=True):
            plane = await stack.enter_async_context(DataPlane(nodes[number].grpc))
            request = data_pb2.PublishRequest(stream=STREAM, wait=data_pb2.PUBLISH_WAIT_COMMITTED)
            request.records.add(value=marker, key=key)

            async def published(plane: DataPlane = plane, request: data_pb2.PublishRequest = request) -> bool:
                return (await plane.publish_request(request)).count == 1

            await eventually(f"node {number} publishes through the relay", published)
            assert marker in [record.value async for record in plane.read(STREAM)]
        logs = [log_of(tmp_path / f"n{number}") for number in nodes]
    kept = b"".join(relay.tap.frames)
    from_ends = [packet for packet in relay.tap.sealed() if packet.destination != 2]
    assert {(packet.source, packet.destination) for packet in from_ends} == {(1, 3), (3, 1)}
    assert sum(len(packet.ciphertext) for packet in from_ends) > sum(map(len, markers)), "the payload went another way"
    # The search finds it where it lies in clear: in the logs of both ends.
    assert [shown(log, [*markers, key]) for log in logs] == [shown(b"".join([*markers, key]), [*markers, key])] * 2
    assert shown(kept, [*markers, key, STREAM.encode().ljust(PIECE_BYTES, b"?")]) == 0
    assert STREAM.encode() not in kept


async def pinged(node: MeshNode, times: int) -> None:
    """The node sends so many sealed packets to the relay, and has their answers."""
    async with DataPlane(node.grpc) as plane:
        for _ in range(times):

            async def is_answered() -> bool:
                return (await plane.ping("n2")).rtt_us > 0

            await eventually("the relay answers", is_answered)


def seals_of_1(relay: Relayed) -> list[Sealed]:
    return [packet for packet in relay.tap.sealed() if packet.source == 1]


def assert_nothing_sealed_twice(packets: list[Sealed]) -> None:
    """A key id names a key here: it is derived from both boot keys, as the key is."""
    used = [(packet.key_id, packet.cls, packet.counter) for packet in packets]
    assert len(used) == len(set(used))


async def test_killed_node_seals_under_another_key_after_its_restart(tmp_path: Path) -> None:
    """Its counters begin anew, and its boot key lay in memory only."""
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(running_relay())
        (node,) = (await stack.enter_async_context(running_ends(tmp_path, [1]))).values()
        await relay.configure({1: node})
        for _ in range(3):
            await relay.linked([1])
            await pinged(node, 5)
            assert node.child is not None
            node.child.kill()
            node.child = None
            await node.start()
        await relay.linked([1])
        await pinged(node, 5)
    packets = seals_of_1(relay)
    assert_nothing_sealed_twice(packets)
    by_key = {
        packet.key_id: [other.counter for other in packets if other.key_id == packet.key_id] for packet in packets
    }
    assert len(by_key) == 4, "one key a boot"
    assert {min(counters) for counters in by_key.values()} == {1}, "no counter was taken from the disk"


async def test_node_and_its_clone_never_seal_with_the_same_key_and_nonce(tmp_path: Path) -> None:
    """A disk is copied after kill -9, and both run at once: the same identity, delegation and state, to the same peer."""
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(running_relay())
        (node,) = (await stack.enter_async_context(running_ends(tmp_path / "first", [1]))).values()
        await relay.configure({1: node})
        await relay.linked([1])
        await pinged(node, 3)
        assert node.child is not None
        node.child.kill()
        node.child = None
        shutil.copytree(tmp_path / "first", tmp_path / "clone")
        assert (tmp_path / "clone" / "n1" / "data" / "delegated.key").exists()
        clone = MeshNode(tmp_path / "clone", 1, is_tls=True)
        stack.push_async_callback(end, clone)
        await asyncio.gather(node.start(), clone.start())
        for found in (node, clone):
            # Each new lane of node 1 replaces the one before it, so they take turns.
            await eventually("the relay answers both", partial(_answered, found), timeout_s=60)
    packets = seals_of_1(relay)
    assert_nothing_sealed_twice(packets)
    counters = [
        {packet.counter for packet in packets if packet.key_id == key_id} for key_id in {p.key_id for p in packets}
    ]
    assert len(counters) == 3, "before, the node, and its clone"
    assert set.intersection(*counters), "they used the same counters, under other keys"


async def _answered(node: MeshNode) -> bool:
    try:
        await pinged(node, 1)
    except MeshError:
        return False
    return True
