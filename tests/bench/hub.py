"""One data plane process and fifty members that only dial it, as branch offices dial a site that listens.

The members' keys follow from their numbers, so that every process of a bench knows them. Nobody but the hub advertises an
address, so the members have no lanes between them. Leaves out control planes: what one would tell the hub is told here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from mesh_data.core.handshake import LocalNode
from mesh_data.core.view import View, view_from_proto
from meshapi.common.v1 import view_pb2
from meshapi.data.v1 import data_pb2
from meshcommon.delegation import DelegatedSigner, Grantor, Use
from meshcommon.ids import NodeId
from meshcommon.key_signer import KeySigner
from meshtest.delegated import delegated_signer, local_identity
from tests.bench.mesh_nodes import MeshNode

HUB: Final = NodeId(1)
PEERS: Final = tuple(NodeId(number) for number in range(2, 52))
MESH_ID: Final = "00000000-0000-4000-8000-00000000be7d"


def seed_of(node: NodeId) -> bytes:
    """Seed of a member's identity key."""
    return bytes((node,)) * 32


def view(hub_address: str) -> view_pb2.MeshView:
    """The mesh of the hub and its peers, all of them active."""
    made = view_pb2.MeshView(revision=1, mesh_id=MESH_ID, status=view_pb2.MESH_STATUS_HEALTHY)
    for node in (HUB, *PEERS):
        made.nodes.add(
            node_id=node,
            name=f"n{node}",
            public_key=KeySigner(seed_of(node)).public_key,
            peer_address=hub_address if node == HUB else "",
            state=view_pb2.NODE_STATE_ACTIVE,
        )
    return made


def member(node: NodeId, signer: DelegatedSigner | None = None) -> LocalNode:
    """A member as its data plane knows itself."""
    return LocalNode(node, f"n{node}", signer or delegated_signer(seed_of(node), MESH_ID, node), MESH_ID)


def with_new_delegation(node: NodeId, key: KeySigner, made_at_s: float) -> DelegatedSigner:
    """What signs for a member by a delegated key that nobody has seen yet."""
    identity = KeySigner(seed_of(node))
    return DelegatedSigner.signed(identity, Grantor(identity.public_key, MESH_ID, 0, node), Use.LANES, key, made_at_s)


def view_of(hub_address: str) -> View:
    """The same view as members use it."""
    return view_from_proto(view(hub_address))


async def configure(hub: MeshNode) -> None:
    """Tells the hub who it is and who its peers are, as its control plane would; it keeps that on its disk."""
    key = (await hub.data.GetDelegatedKey(data_pb2.GetDelegatedKeyRequest(), timeout=10)).public_key
    identity = local_identity(seed_of(HUB), key, f"n{HUB}", MESH_ID, HUB)
    request = data_pb2.ConfigureRequest(identity=identity, view=view(hub.peer), is_running=True)
    await hub.data.Configure(request, timeout=10)


@asynccontextmanager
async def running_hub(directory: Path) -> AsyncIterator[MeshNode]:
    """The hub, started and configured; ended afterwards."""
    hub = MeshNode(directory, HUB, is_tls=True)
    try:
        await hub.start()
        await configure(hub)
        yield hub
    finally:
        await hub.channel.close(None)
        await hub.stop()
