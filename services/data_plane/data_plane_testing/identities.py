"""Nodes with keys for tests of the overlay: node `n` is named `nN`, its keys are made of its number."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, TypedDict

from mesh_data.core.handshake import LocalNode
from mesh_data.core.membership_desk import membership_of
from mesh_data.core.view import Node, NodeState, View
from meshcommon.delegation import DelegatedSigner, Delegations, Use
from meshcommon.ids import NodeId
from meshcommon.key_signer import KeySigner
from meshtest.delegated import NOW_S, delegated_signer

MESH: Final = "0b8e1f0a-5c1d-4e0f-9a53-2f6f0e6d9c01"


def seed_of(node: int) -> bytes:
    """The node's private key: its identity."""
    return node.to_bytes(32, "big")


def public_key(node: int) -> bytes:
    """The key that belongs to it."""
    return KeySigner(seed_of(node)).public_key


def signer_of(
    node: int,
    use: Use = Use.LANES,
    now_s: float | None = NOW_S,
    *,
    mesh_id: str = MESH,
    mesh_epoch: int = 0,
    identity: bytes = b"",
) -> DelegatedSigner:
    """What signs for the node in one of its services; `identity` replaces its private key."""
    seed, number = identity or seed_of(node), node if mesh_id else 0
    return delegated_signer(seed, mesh_id, number, use, mesh_epoch=mesh_epoch, now_s=now_s)


def local_node(node: int, now_s: float | None = NOW_S, mesh_id: str = MESH) -> LocalNode:
    """The node as it knows itself, with a delegation of `now_s`; None: by the real clock."""
    return LocalNode(NodeId(node), f"n{node}", signer_of(node, now_s=now_s, mesh_id=mesh_id), mesh_id)


def delegations(now_s: float = NOW_S) -> Delegations:
    """Checks delegations when it is `now_s`."""
    return Delegations(lambda: now_s)


def view_of(*nodes: int, revision: int = 1) -> View:
    """A view with these members."""
    members = {NodeId(n): Node(NodeId(n), f"n{n}", public_key(n), "", NodeState.ACTIVE) for n in nodes}
    return View(revision, MESH, 0, members, {})


class Shown(TypedDict):
    """The fields of `Terms` that tell what a side knows of the membership."""

    membership_revision: int
    membership_digest: bytes


def shown(view: View) -> Shown:
    """What a node with that view shows in its hello."""
    return Shown(membership_revision=view.revision, membership_digest=membership_of(view).digest)


def entropy(seed: int) -> Callable[[int], bytes]:
    """Random bytes that are the same for the same seed."""
    return random.Random(seed).randbytes
