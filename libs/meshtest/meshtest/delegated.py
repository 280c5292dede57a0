"""Delegated keys for tests: what signs for a node whose identity key the test has, without a control plane."""

from __future__ import annotations

import hashlib
import time
from typing import Final

from meshapi.common.v1 import view_pb2
from meshcommon.delegation import DelegatedSigner, Delegation, Grantor, Use
from meshcommon.ids import NodeId
from meshcommon.key_signer import KeySigner

NOW_S: Final = 1_800_000_000
"""The wall clock of tests that have none."""


def service_key(seed: bytes, use: Use) -> KeySigner:
    """The key of one service of the node with this identity seed."""
    return KeySigner(hashlib.sha256(use.to_bytes(1, "big") + seed).digest())


def delegated_signer(
    seed: bytes,
    mesh_id: str = "",
    node_id: int = 0,
    use: Use = Use.LANES,
    *,
    mesh_epoch: int = 0,
    now_s: float | None = None,
) -> DelegatedSigner:
    """What signs for a node, delegated at `now_s` (None: by the real clock) by its identity key."""
    identity, at_s = KeySigner(seed), time.time() if now_s is None else now_s
    grantor = Grantor(identity.public_key, mesh_id, mesh_epoch, NodeId(node_id))
    return DelegatedSigner.signed(identity, grantor, use, service_key(seed, use), at_s)


def local_identity(
    seed: bytes,
    service_public_key: bytes,
    name: str,
    mesh_id: str = "",
    node_id: int = 0,
    use: Use = Use.LANES,
    *,
    mesh_epoch: int = 0,
    clock_s: float = 0.0,
) -> view_pb2.LocalIdentity:
    """What a control plane whose clock is `clock_s` ahead tells the service that has `service_public_key`, now."""
    identity = KeySigner(seed)
    grantor = Grantor(identity.public_key, mesh_id, mesh_epoch, NodeId(node_id))
    delegation = Delegation.signed(identity, grantor, use, service_public_key, time.time() + clock_s)
    return view_pb2.LocalIdentity(
        node_id=node_id, name=name, public_key=identity.public_key, delegation=delegation.to_proto()
    )
