"""The mesh's CA as the group keeps it: roots, intermediate, its key sealed to voters, and who was ever given that key.

Pure and deterministic: certificates are bytes of bounded length here. Whoever proposes checks what they say (`ca_checks`),
since what a parser takes differs between versions of a library, and replicas must not differ. No key is here in the clear.
Leaves out sealing and opening (shell). Source: docs/design/identity.md "Certificates".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from mesh_control.core.limits import (
    CA_CERTIFICATE_BYTES_MAX,
    CA_FORMER_MAX,
    CA_FORMER_MS,
    CA_ROOTS_MAX,
    CA_SEALED_MAX,
)
from mesh_control.core.model import Node
from meshapi.control.v1 import mcg_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId

SEALED_BYTES: Final = 80
"""HPKE: 32 bytes of encapsulated key, 32 of the private number, 16 of tag."""

Nodes = Mapping[NodeId, Node]


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """The CA.

    Attributes:
        generation: raised by each change of certificates.
        roots: DER, the present one first.
        intermediate: DER.
        sealed: the intermediate's key for each node that can open it.
        holders: nodes that were ever given it and are still members.
        is_rotation_due: one that was given it is no member any more.
        former: digests of intermediates before, with the state time until which they are accepted.
    """

    generation: int
    roots: tuple[bytes, ...]
    intermediate: bytes
    sealed: Mapping[NodeId, bytes] = field(repr=False)
    holders: frozenset[NodeId]
    is_rotation_due: bool = False
    former: tuple[tuple[bytes, int], ...] = ()

    @property
    def digest(self) -> bytes:
        """SHA-256 of the intermediate."""
        return hashlib.sha256(self.intermediate).digest()

    def accepts(self, intermediate: bytes, now_ms: int) -> bool:
        """Whether certificates of this intermediate (DER) are accepted at state time `now_ms`."""
        digest = hashlib.sha256(intermediate).digest()
        return digest == self.digest or any(known == digest and now_ms < until for known, until in self.former)


def replace_ca(
    ca: CertificateAuthority | None, command: mcg_pb2.SetCa, nodes: Nodes, now_ms: int
) -> CertificateAuthority:
    """The CA after a change; the same one when it has these certificates already.

    Raises:
        MeshError: CA_CHANGED, CA_EXISTS, INVALID_ARGUMENT.
    """
    roots = tuple(command.roots)
    if ca is not None and (ca.roots, ca.intermediate) == (roots, command.intermediate):
        return ca
    if command.generation != (ca.generation if ca else 0):
        raise _changed(ca, command.generation)
    _check_certificates(roots, command.intermediate)
    if ca is not None and ca.intermediate == command.intermediate:
        if command.sealed:
            raise _refused("a key is sealed anew for an intermediate that stays")
        return replace(ca, generation=ca.generation + 1, roots=roots)
    sealed = _read_sealed(command.sealed, nodes)
    former: tuple[tuple[bytes, int], ...] = ()
    if ca is not None:
        kept = tuple(item for item in ca.former if now_ms < item[1])
        former = (*kept, *(() if command.revoke else ((ca.digest, now_ms + CA_FORMER_MS),)))[-CA_FORMER_MAX:]
    return CertificateAuthority(
        command.generation + 1, roots, command.intermediate, sealed, frozenset(sealed), former=former
    )


def add_sealed(ca: CertificateAuthority | None, command: mcg_pb2.WrapCa, nodes: Nodes) -> CertificateAuthority | None:
    """The CA with the key for one more voter. What no longer fits is passed over: its proposer sees what is missing anew."""
    node = nodes.get(NodeId(command.sealed.node_id))
    if ca is None or ca.digest != command.intermediate_digest or node is None or not node.is_voter:
        return ca
    if node.node_id in ca.sealed or not _fits(command.sealed, nodes):
        return ca
    sealed = dict(ca.sealed) | {node.node_id: command.sealed.sealed}
    return pruned(replace(ca, sealed=sealed, holders=ca.holders | {node.node_id}), nodes)


def pruned(ca: CertificateAuthority | None, nodes: Nodes) -> CertificateAuthority | None:
    """Without the keys of those that vote no longer, once every voter can open its own: never is the last one dropped."""
    if ca is None:
        return None
    voters = {node.node_id for node in nodes.values() if node.is_voter}
    others = [node_id for node_id in sorted(ca.sealed) if node_id not in voters]
    if voters <= ca.sealed.keys():
        dropped = set(others)
    else:
        excess = len(ca.sealed) - CA_SEALED_MAX
        dropped = set(others[: max(excess, 0)])
    if not dropped or dropped >= ca.sealed.keys():
        return ca
    return replace(ca, sealed={node_id: key for node_id, key in ca.sealed.items() if node_id not in dropped})


def without_sealed(ca: CertificateAuthority | None, node_id: NodeId) -> CertificateAuthority | None:
    """Without the key that a node cannot open any more, because its wrap key is another one."""
    if ca is None or node_id not in ca.sealed:
        return ca
    return replace(ca, sealed={known: key for known, key in ca.sealed.items() if known != node_id})


def node_left(ca: CertificateAuthority | None, node_id: NodeId) -> CertificateAuthority | None:
    """A node is no member any more: if it was given the key of the intermediate, that has to be replaced."""
    if ca is None or node_id not in ca.holders:
        return ca
    left = without_sealed(ca, node_id) or ca
    return replace(left, holders=left.holders - {node_id}, is_rotation_due=True)


def voters_without_key(ca: CertificateAuthority, nodes: Nodes) -> list[Node]:
    """Voters that cannot open the intermediate's key, by id."""
    return [node for _, node in sorted(nodes.items()) if node.is_voter and node.node_id not in ca.sealed]


def who_wraps(ca: CertificateAuthority, nodes: Nodes) -> NodeId | None:
    """The one node that seals the key for voters that lack it: of those that can open it, the first that is heard."""
    able = [node for node_id in sorted(ca.sealed) if (node := nodes.get(node_id)) is not None]
    heard = [node.node_id for node in able if node.is_reachable]
    return heard[0] if heard else None


def write(ca: CertificateAuthority) -> mcg_pb2.CaState:
    """For a snapshot: in id order."""
    return mcg_pb2.CaState(
        generation=ca.generation,
        roots=ca.roots,
        intermediate=ca.intermediate,
        sealed=[mcg_pb2.SealedKey(node_id=node_id, sealed=ca.sealed[node_id]) for node_id in sorted(ca.sealed)],
        holders=sorted(ca.holders),
        is_rotation_due=ca.is_rotation_due,
        former=[mcg_pb2.FormerIntermediate(digest=digest, until_ms=until) for digest, until in ca.former],
    )


def read(message: mcg_pb2.CaState) -> CertificateAuthority:
    """Back from a snapshot."""
    return CertificateAuthority(
        message.generation,
        tuple(message.roots),
        message.intermediate,
        {NodeId(item.node_id): item.sealed for item in message.sealed},
        frozenset(map(NodeId, message.holders)),
        message.is_rotation_due,
        tuple((item.digest, item.until_ms) for item in message.former),
    )


def missing() -> MeshError:
    """The mesh has no CA."""
    return MeshError(
        ErrorCode.CA_MISSING, "This mesh has no certificate authority yet: `meshctl ca init` at its founder makes one."
    )


def _read_sealed(items: Iterable[mcg_pb2.SealedKey], nodes: Nodes) -> dict[NodeId, bytes]:
    listed = list(items)
    sealed = {NodeId(item.node_id): item.sealed for item in listed}
    if not sealed or len(listed) != len(sealed) or len(sealed) > CA_SEALED_MAX:
        raise _refused("the key of the intermediate has to be sealed once for each voter")
    if not all(_fits(item, nodes) for item in listed):
        raise MeshError(
            ErrorCode.CA_CHANGED, "A voter came, went or has another key since this change was made: make it again."
        )
    return sealed


def _fits(item: mcg_pb2.SealedKey, nodes: Nodes) -> bool:
    node = nodes.get(NodeId(item.node_id))
    is_key = bool(item.wrap_key) and node is not None and node.wrap_key == item.wrap_key
    return is_key and len(item.sealed) == SEALED_BYTES


def _check_certificates(roots: tuple[bytes, ...], intermediate: bytes) -> None:
    if not 1 <= len(roots) <= CA_ROOTS_MAX or len(set(roots)) != len(roots):
        raise _refused(f"a CA has 1 to {CA_ROOTS_MAX} different roots")
    if not all(1 <= len(item) <= CA_CERTIFICATE_BYTES_MAX for item in (*roots, intermediate)):
        raise _refused(f"a certificate has 1 to {CA_CERTIFICATE_BYTES_MAX} bytes")


def _changed(ca: CertificateAuthority | None, generation: int) -> MeshError:
    if not generation:
        return MeshError(
            ErrorCode.CA_EXISTS,
            "The mesh has a certificate authority already: see `meshctl ca show`, or replace it by `meshctl ca rotate`.",
        )
    return MeshError(
        ErrorCode.CA_CHANGED,
        "The certificate authority was changed by somebody else meanwhile: look at `meshctl ca show`, then try again.",
        {"generation": str(ca.generation if ca else 0)},
    )


def _refused(why: str) -> MeshError:
    return MeshError(ErrorCode.INVALID_ARGUMENT, f"The change of the certificate authority is refused: {why}.")
