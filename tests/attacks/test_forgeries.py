"""Kind 5: a packet is believed for who sealed it, not for the source that it names.

Mallory is a member and a direct neighbour of a and b, so it may relay. Everything here is sent on a lane of its own, with
its own right key, in packets that name another member as their source.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from mesh_data.core.handshake import LocalNode
from mesh_data.core.stream_frames import store_payload
from mesh_data.core.view import view_from_proto
from mesh_routing.core.lsa import Lsa, LsaLink, LsaMessage
from mesh_routing.core.lsa_codec import encode_message
from mesh_routing.core.lsa_signature import LsaSignatures
from meshapi.control.v1 import join_pb2, mcg_pb2
from meshapi.routing.v1 import routing_pb2
from meshapi.supervisor.v1 import mesh_pb2
from meshcommon.delegation import VALID_AFTER_S, VALID_BEFORE_S, DelegatedSigner, Delegations, Use
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NO_NODE, NodeId
from meshcommon.key_signer import KeySigner
from meshtest.delegated import delegated_signer
from meshtest.waiting import eventually
from meshwire import frame, packet, request, store_message
from meshwire.packet import Protocol
from tests.attacks.lanes import RawLane, lane, link_local, new_key, routed
from tests.attacks.mallory import NAME, Mallory, admitted
from tests.attacks.target import STREAM, Target
from tests.attacks.test_peers import PROPOSE_METHOD

STORE = b"\x02"
FLAG_SEALED = 4
SETTLE_S = 1.0


@asynccontextmanager
async def relay(mallory: Mallory, target: Target, to: str = "a") -> AsyncIterator[RawLane]:
    """A second lane of mallory, on which the test writes what it likes."""
    async with mallory.lane(target.port(to, "peer")) as found:
        yield found
        await asyncio.sleep(SETTLE_S)


async def forge(found: RawLane, mallory: Mallory, protocol: Protocol, payload: bytes, source: str, to: str) -> None:
    """A packet of `source` that mallory claims to relay to `to`: plain, and under seals that it cannot have made."""
    route = (mallory.ids[source], int(mallory.local.node_id), mallory.ids[to])
    await found.send_packets(routed(protocol, payload, route, 2))
    for suite in (1, 2, 0):
        for key_id in (0, 1, secrets.randbits(32)):
            header = bytes((suite, 0, 0, 0)) + key_id.to_bytes(4, "big") + secrets.randbits(40).to_bytes(8, "big")
            data = bytearray(packet.encode(routed(protocol, header + payload + secrets.token_bytes(16), route, 2)))
            data[3] |= FLAG_SEALED
            await found.send_frame(frame.encode_packets([bytes(data)]))


def request_payload(method: int, body: bytes) -> bytes:
    """A request as `meshcommon.requests` frames it."""
    return b"\x00" + secrets.token_bytes(8) + request.encode_request(request.Request(method, 10_000, body))


def proposal(command: mcg_pb2.Command) -> bytes:
    """A request to the control group."""
    body = join_pb2.ProposeRequest(command=command, proposal_id=secrets.randbits(62)).SerializeToString()
    return request_payload(PROPOSE_METHOD, body)


async def test_forged_proposals(mallory: Mallory, target: Target) -> None:
    """In the name of b: remove c, delete the stream of the honest."""
    remove = mcg_pb2.Command(remove_node=mcg_pb2.RemoveNode(node_id=mallory.ids["c"]))
    delete = mcg_pb2.Command(delete_stream=mcg_pb2.DeleteStream(stream_id=mallory.view.streams[0].stream_id))
    renew = mcg_pb2.Command()
    renew.renew_member.node_id = mallory.ids["b"]
    for to in ("a", "b"):
        source = "b" if to == "a" else "a"
        async with relay(mallory, target, to) as found:
            for command in (remove, delete, renew):
                await forge(found, mallory, Protocol.JOIN, proposal(command), source, to)


async def test_forged_store_refusals(mallory: Mallory, target: Target) -> None:
    """Told that it has forgotten something, a node renounces its whole store."""
    incarnation = store_message.Incarnation(secrets.randbits(62), 9_999)
    lineage = store_message.Lineage(secrets.randbits(62), (incarnation,))
    seen = store_message.Seen(secrets.randbits(62), secrets.randbits(62), 2**40)
    refusal = store_message.encode_store_message(store_message.Refusal(seen, lineage))
    hello = store_message.encode_store_message(store_message.Hello(lineage))
    for to, source in (("a", "b"), ("a", "c"), ("b", "c")):
        async with relay(mallory, target, to) as found:
            for message in (refusal, hello):
                await forge(found, mallory, Protocol.RAFT_MCG, STORE + message, source, to)
                await forge(found, mallory, Protocol.RAFT_DSG, store_payload(message), source, to)


def raft_frame(group: int, message: bytes) -> bytes:
    """A frame of meshraft: version, group, length, an eraftpb.Message."""
    return b"\x01" + group.to_bytes(8, "big") + len(message).to_bytes(4, "big") + message


def heartbeat(to: int, sender: int, term: int, commit: int) -> bytes:
    """An eraftpb.Message of type MsgHeartbeat (8), by field: 1 type, 2 to, 3 from, 4 term, 8 commit."""
    parts = [(0x08, 8), (0x10, to), (0x18, sender), (0x20, term), (0x40, commit)]
    return b"".join(bytes([tag]) + _varint(value) for tag, value in parts)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


async def test_forged_heartbeats_with_a_commit_beyond_the_log(mallory: Mallory, target: Target) -> None:
    """A member whose log ends before what its leader calls committed has lost something: it used to be renewed."""
    stream = next(item for item in mallory.view.streams if item.name == STREAM)
    members = {item.node_id: item.member_id for item in stream.members}
    nodes = {node.name: node.mcg_member for node in mallory.view.nodes}
    for to, source in (("a", "b"), ("b", "a"), ("a", "c"), ("b", "c")):
        async with relay(mallory, target, to) as found:
            for term in (1, 2, 3, 1_000):
                data = heartbeat(members[mallory.ids[to]], members[mallory.ids[source]], term, 2**40)
                await forge(found, mallory, Protocol.RAFT_DSG, raft_frame(stream.stream_id, data), source, to)
                control = heartbeat(nodes[to], nodes[source], term, 2**40)
                await forge(found, mallory, Protocol.RAFT_MCG, raft_frame(1, control), source, to)


async def test_forged_link_states(mallory: Mallory, target: Target) -> None:
    """In the name of b and c, far in the future of their own: they have no links any more."""
    delegation = link_state_signer(mallory).delegation.to_proto()
    lsas = [
        routing_pb2.Lsa(origin=mallory.ids[name], sequence=sequence, signature=signature, delegation=delegation)
        for name in ("a", "b", "c")
        for sequence in (2**20, 2**62)
        for signature in (b"", secrets.token_bytes(64))
    ]
    payload = routing_pb2.LsaMessage(lsas=lsas).SerializeToString()
    before = await target.gateways["a"].paths("a", "c")
    async with relay(mallory, target) as found:
        own = int(mallory.local.node_id)
        await found.send_packets(link_local(Protocol.LSA, payload, mallory.ids["a"], own))
        await found.send_packets(link_local(Protocol.LSA, payload, mallory.ids["a"], mallory.ids["b"]))
    mallory.overlay.send_link_local(Protocol.LSA, packet.TrafficClass.CONTROL, mallory.overlay_id("a"), payload)
    await asyncio.sleep(SETTLE_S)
    assert before
    assert await target.gateways["a"].paths("a", "c") == before
    assert await target.gateways["b"].path_in_use("c") == ["b", "c"]


def link_state_signer(mallory: Mallory, key: bytes = b"", **changes: Any) -> DelegatedSigner:
    """What signs link states for mallory; `changes` are those of `delegated_signer`."""
    place = {"use": Use.LINK_STATES, "mesh_epoch": mallory.view.mesh_epoch} | changes
    return delegated_signer(key or mallory.key, mallory.view.mesh_id, int(mallory.local.node_id), **place)


async def test_link_states_by_delegations_that_do_not_count(mallory: Mallory, target: Target) -> None:
    """Of mallory itself, which may say what it likes of its links: only while and as its identity key delegated that."""
    now_s, genuine = time.time(), link_state_signer(mallory)
    sequence = itertools.count(int(now_s * 1_000))
    signatures = LsaSignatures(mallory.view.mesh_id, mallory.view.mesh_epoch, Delegations(time.time))

    async def is_reached() -> bool:
        """Whether a has a path to mallory."""
        try:
            return bool(await target.gateways["a"].paths("a", mallory.local.name))
        except MeshError as error:
            if error.code is not ErrorCode.NO_PATH:
                raise
            return False

    def advertise(signer: DelegatedSigner, *peers: str, named: DelegatedSigner | None = None) -> None:
        links = tuple(LsaLink(NodeId(node), 1_000) for node in sorted(mallory.ids[name] for name in peers))
        lsa = signatures.sign(Lsa(mallory.local.node_id, next(sequence), links), signer)
        if named is not None:
            lsa = replace(lsa, delegation=named.delegation)
        payload = encode_message(LsaMessage((lsa,)))
        mallory.overlay.send_link_local(Protocol.LSA, packet.TrafficClass.CONTROL, mallory.overlay_id("a"), payload)

    async def advertise_in_vain(signer: DelegatedSigner, named: DelegatedSigner | None = None) -> None:
        advertise(signer, "a", "b", named=named)
        await asyncio.sleep(SETTLE_S)
        assert not await is_reached()

    async def advertise_to_effect(*peers: str) -> None:
        """Sends again, as a router does: a link state is lost with its lane, and one that comes too soon is dropped."""

        async def is_believed() -> bool:
            advertise(genuine, *peers)
            await asyncio.sleep(SETTLE_S)
            return await is_reached() == bool(peers)

        await eventually(f"a believes that mallory's links are {peers}", is_believed)

    await advertise_to_effect("a", "b")
    await advertise_to_effect()
    over = link_state_signer(mallory, now_s=now_s - VALID_AFTER_S - 1)
    forged = [
        over,
        link_state_signer(mallory, now_s=now_s + VALID_BEFORE_S + 60),
        link_state_signer(mallory, use=Use.LANES),
        link_state_signer(mallory, mesh_epoch=mallory.view.mesh_epoch + 1),
        link_state_signer(mallory, key=new_key()),
        replace(genuine, signer=KeySigner(mallory.key)),
        replace(genuine, delegation=replace(over.delegation, not_after_s=genuine.delegation.not_after_s)),
    ]
    for signer in forged:
        await advertise_in_vain(signer)
    await advertise_in_vain(over, named=genuine)
    await advertise_to_effect("a", "b")
    await advertise_to_effect()


@pytest.mark.parametrize(
    "how", ["over", "not-begun", "other-use", "other-node", "other-epoch", "tampered", "not-delegated"]
)
async def test_lanes_by_delegations_that_do_not_count(mallory: Mallory, target: Target, how: str) -> None:
    """`over` is what a thief of a data plane's key has when a day has passed: the right key, and nobody to renew it."""
    now_s, local, epoch = time.time(), mallory.local, mallory.view.mesh_epoch
    genuine = local.signer

    def signer(use: Use = Use.LANES, at_s: float = now_s, mesh_epoch: int = epoch) -> DelegatedSigner:
        return delegated_signer(
            mallory.key, mallory.view.mesh_id, int(local.node_id), use, mesh_epoch=mesh_epoch, now_s=at_s
        )

    c = next(node for node in mallory.view.nodes if node.name == "c")
    longer = replace(genuine.delegation, not_before_s=genuine.delegation.not_before_s + 1)
    forged = {
        "over": replace(local, signer=signer(at_s=now_s - VALID_AFTER_S - 1)),
        "not-begun": replace(local, signer=signer(at_s=now_s + VALID_BEFORE_S + 60)),
        "other-use": replace(local, signer=signer(Use.LINK_STATES)),
        # The identity key that the view names for c, and what mallory's delegates.
        "other-node": replace(local, node_id=NodeId(c.node_id), signer=replace(genuine, identity_key=c.public_key)),
        "other-epoch": replace(local, signer=signer(mesh_epoch=epoch + 1)),
        "tampered": replace(local, signer=replace(genuine, delegation=longer)),
        "not-delegated": replace(local, signer=replace(genuine, signer=KeySigner(mallory.key))),
    }[how]
    for to in ("a", "b"):
        with pytest.raises(MeshError) as caught:
            async with lane(target.port(to, "peer"), forged, view_from_proto(mallory.view)):
                pass
        expected = ErrorCode.CLOCK_SKEW if how in {"over", "not-begun"} else ErrorCode.KEY_MISMATCH
        assert caught.value.code is expected


async def test_stolen_key_of_a_data_plane_joins_nothing(mallory: Mallory, target: Target) -> None:
    """A thief can pose as the node for a day, not as its identity: a delegation for joining is another one."""
    thief = LocalNode(NO_NODE, NAME, mallory.local.signer)
    with pytest.raises(MeshError) as caught:
        async with lane(target.port("a", "peer"), thief):
            pass
    assert caught.value.code is ErrorCode.KEY_MISMATCH


@pytest.mark.changes_state
async def test_delegation_of_a_node_that_left(mallory: Mallory, target: Target) -> None:
    """It counts for hours yet, and opens nothing from the moment at which the view no longer names its node."""
    key = new_key()
    place = await admitted(target, "a", "leaver", key)
    signer = delegated_signer(key, place.view.mesh_id, place.node_id, mesh_epoch=place.view.mesh_epoch)
    local = LocalNode(NodeId(place.node_id), "leaver", signer, place.view.mesh_id, place.view.mesh_epoch)

    async def refusal() -> MeshError | None:
        try:
            async with lane(target.port("a", "peer"), local, view_from_proto(place.view)):
                return None
        except MeshError as error:
            return error

    async def is_let_in() -> bool:
        return await refusal() is None

    async def is_refused() -> bool:
        error = await refusal()
        return error is not None and error.code is ErrorCode.HANDSHAKE_FAILED

    await eventually("a lane of the node while it is a member", is_let_in)
    forget = mesh_pb2.ForgetNodeRequest(name="leaver")
    await target.gateways["a"].mesh.ForgetNode(forget, timeout=20)
    await eventually("a refusal of the node that was forgotten", is_refused)


async def test_forged_path_errors(mallory: Mallory, target: Target) -> None:
    """In the name of b: the link from a to b is down."""
    ids = mallory.ids
    links = [
        struct.pack("!QQQQ", ids[destination], ids[near], ids[far], secrets.randbits(62))
        for destination, near, far in (("b", "a", "b"), ("c", "a", "c"), ("c", "b", "c"), ("b", "c", "b"))
    ]
    # Of the forms without a signature and without a delegation, with a signature that nobody made, and with mallory's own.
    own, signature = mallory.local.signer, secrets.token_bytes(64)
    errors = [link[:24] for link in links] + [link + signature for link in links]
    errors += [link + own.delegation.pack() + made for link in links for made in (signature, own.sign(link))]
    async with relay(mallory, target) as found:
        for error in errors:
            for source in ("b", "c"):
                await forge(found, mallory, Protocol.PATH_ERROR, error, source, "a")
        for _ in range(10):
            assert await target.gateways["a"].path_in_use("b") == ["a", "b"]
            assert await target.gateways["a"].path_in_use("c") == ["a", "c"]
            await asyncio.sleep(0.02)


async def test_packets_of_another_source_on_the_link(mallory: Mallory, target: Target) -> None:
    """Without a route: the neighbour is who the lane proved, whatever the packet says."""
    delete = mcg_pb2.Command(delete_stream=mcg_pb2.DeleteStream(stream_id=mallory.view.streams[0].stream_id))
    async with relay(mallory, target) as found:
        for source in (mallory.ids["b"], mallory.ids["a"], 0, 2**64 - 1):
            for protocol in (Protocol.JOIN, Protocol.RAFT_MCG, Protocol.LANE):
                await found.send_packets(link_local(protocol, proposal(delete), mallory.ids["a"], source))


async def test_routes_that_cannot_be(mallory: Mallory, target: Target) -> None:
    """Loops, routes that do not lead here, positions beyond the end, hop limits of 0: dropped and counted."""
    own, a, b, c = int(mallory.local.node_id), *(mallory.ids[name] for name in "abc")
    payload = request_payload(1, b"x")
    whole = packet.encode(routed(Protocol.REQUEST, payload, (own, a, c), 1))
    mutants = []
    for at, value in ((0, 9), (1, 7), (2, 200), (3, 0xFF), (4, 0), (45, 200), (46, 9), (46, 0)):
        data = bytearray(whole)
        data[at] = value
        mutants.append(bytes(data))
    routes = [(own, b, c), (b, a, own), (own, a, a, c), (c, a), (own, a, 2**64 - 1)]
    for route in routes:
        data = bytearray(whole[: packet.PREFIX_BYTES])
        data[45] = len(route)
        mutants.append(bytes(data) + b"".join(node.to_bytes(8, "big") for node in route) + payload)
    async with relay(mallory, target) as found:
        for mutant in mutants:
            await found.send_frame(frame.encode_packets([mutant] * 20))


async def test_member_removes_others_in_its_own_name(mallory: Mallory, target: Target) -> None:
    """Rightly sealed, and still not mallory's to say: renewing another member, founding, voters, reachability."""
    commands = []
    for kind in ("found_mesh", "set_voters", "set_reachability"):
        command = mcg_pb2.Command()
        getattr(command, kind).SetInParent()
        commands.append(command)
    renew = mcg_pb2.Command()
    renew.renew_member.node_id = mallory.ids["b"]
    for command in (*commands, renew):
        body = join_pb2.ProposeRequest(command=command, proposal_id=secrets.randbits(62)).SerializeToString()
        for node in ("a", "b"):
            answer = await mallory.ask_control_plane(node, PROPOSE_METHOD, body)
            assert isinstance(answer, request.ErrorResponse), command
