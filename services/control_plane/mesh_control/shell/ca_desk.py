"""The mesh's CA as an operator of a member handles it: made, shown, exchanged, or signed by a root of the operator's own.

Keys are made here. The root's goes into a file of this node, an intermediate's is sealed for each voter before it leaves this
module; the group is told certificates and sealed keys. Of two changes at once one is refused (the generation that each
replaces). Each step can be repeated after a crash. Source: docs/design/identity.md "Certificates".
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from mesh_control.core import ca_state
from mesh_control.core.ca_checks import check_change, moment
from mesh_control.core.ca_state import CertificateAuthority
from mesh_control.core.mcg_state import McgState
from mesh_control.core.versions import CA_VERSION, check_proposable
from mesh_control.shell.ca_files import NEXT_ROOT, CaFiles
from mesh_control.shell.ca_keys import seal
from mesh_control.shell.local_node import LocalNode
from mesh_control.shell.proposer import Proposer
from meshapi.control.v1 import mcg_pb2
from meshapi.supervisor.v1 import ca_pb2
from meshcommon import mesh_certificates as certificates
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.mesh_certificates import Authority

KNOWN_WITHIN_S: Final = 2.0
"""How long an answer waits for this node to know what was committed, so that it is seen by the next question."""


class CaDesk:
    """Changes of the CA through the control group."""

    def __init__(self, node: LocalNode, proposer: Proposer) -> None:
        self._node = node
        self._proposer = proposer

    @property
    def files(self) -> CaFiles:
        """The CA's files of this node."""
        return CaFiles(self._node.directory)

    def show(self) -> ca_pb2.ShowCaResponse:
        """The CA as applied here. Raises NOT_A_MEMBER."""
        state = self._node.require_mcg().state
        answer = ca_pb2.ShowCaResponse(root_key_file=self.files.root_key_file)
        if (ca := state.ca) is None:
            return answer
        roots = [certificates.read_certificate(item) for item in ca.roots]
        answer.exists, answer.generation = True, ca.generation
        answer.root_fingerprints.extend(certificates.fingerprint(root).hex() for root in roots)
        answer.roots_pem = "".join(map(certificates.pem, roots))
        answer.intermediate_fingerprint = ca.digest.hex()
        answer.intermediate_pem = certificates.pem(certificates.read_certificate(ca.intermediate))
        answer.issuers.extend(node.name for _, node in sorted(state.nodes.items()) if node.node_id in ca.sealed)
        answer.voters_without_key.extend(node.name for node in ca_state.voters_without_key(ca, state.nodes))
        answer.is_rotation_due = ca.is_rotation_due
        return answer

    async def init(self) -> str:
        """Makes root and intermediate where there are none; returns the root's fingerprint.

        Raises:
            MeshError: NOT_A_MEMBER, CA_EXISTS, MESH_VERSION_TOO_LOW, MESH_CRITICAL, NO_QUORUM, DATA_DIR_UNWRITABLE.
        """
        state = self._require_version()
        # After a restart the log may not be applied yet.
        await self._node.require_mcg().catch_up(KNOWN_WITHIN_S)
        root = self.files.root(state.mesh_id)
        if state.ca is not None:
            if root is None or certificates.der(root.certificate) not in state.ca.roots:
                raise _exists()
        else:
            root = root or self.files.make_root(state.mesh_id, moment(self._now_ms()))
            await self._make_intermediate(root, [], revoke=False)
        return certificates.fingerprint(root.certificate).hex()

    async def ensure(self) -> str:
        """As `init`, for a seed that may be repeated: the root's fingerprint, empty in a mesh that is too old for a CA.

        Raises:
            MeshError: as `init`, without CA_EXISTS and MESH_VERSION_TOO_LOW.
        """
        mcg = self._node.require_mcg()
        await mcg.catch_up(KNOWN_WITHIN_S)
        if mcg.state.ca is not None:
            return hashlib.sha256(mcg.state.ca.roots[0]).hexdigest()
        return await self.init() if mcg.state.mesh_version >= CA_VERSION else ""

    async def rotate_intermediate(self, *, revoke: bool) -> None:
        """Makes another intermediate under the present root, whose key must be here.

        Raises:
            MeshError: NOT_A_MEMBER, CA_MISSING, ROOT_KEY_MISSING, CA_CHANGED, MESH_CRITICAL, NO_QUORUM.
        """
        state, ca = self._require_ca()
        await self._make_intermediate(self._root(state, ca), ca.roots[1:], revoke=revoke)

    async def rotate_root(self, *, revoke: bool) -> None:
        """Makes another root here, and an intermediate under it; the root before stays in the bundle until `finish`.

        Needs no key of the root before, so it is also the way on when that was lost. While an exchange is under way it changes
        nothing.

        Raises:
            MeshError: as `rotate_intermediate`, without ROOT_KEY_MISSING.
        """
        state, ca = self._require_ca()
        files, following = self.files, self.files.root(state.mesh_id, NEXT_ROOT)
        if len(ca.roots) == 1 and (following is None or certificates.der(following.certificate) != ca.roots[0]):
            following = following or files.make_root(state.mesh_id, moment(self._now_ms()), NEXT_ROOT)
            await self._make_intermediate(following, ca.roots[:1], revoke=revoke)
        files.take_next_root()

    async def finish(self) -> None:
        """Ends the exchange of roots: only the present one is trusted. Repeatable. Raises as `rotate_root`."""
        _state, ca = self._require_ca()
        if len(ca.roots) > 1:
            await self._commit(
                mcg_pb2.SetCa(generation=ca.generation, roots=ca.roots[:1], intermediate=ca.intermediate)
            )

    def request(self) -> str:
        """A request (PEM) for an intermediate's certificate; its key is kept here until `install`. Raises NOT_A_MEMBER."""
        state = self._require_version()
        request = certificates.make_request(state.mesh_id, self.files.make_pending_key())
        return request.public_bytes(Encoding.PEM).decode()

    async def install(self, certificate_pem: str, root_pem: str, *, revoke: bool) -> None:
        """Commits the certificate that an operator's root has signed for the last `request`. Repeatable.

        Raises:
            MeshError: NOT_A_MEMBER, CERTIFICATE_INVALID, CLOCK_SKEW, CA_CHANGED, MESH_CRITICAL, NO_QUORUM.
        """
        state = self._require_version()
        certificate, root = certificates.read_pem(certificate_pem), certificates.read_pem(root_pem)
        ca = state.ca
        if ca is not None and ca.intermediate == certificates.der(certificate):
            self.files.drop_pending_key()
            return
        key = self.files.pending_key()
        if key is None or certificate.public_key() != key.public_key():
            raise certificates.invalid(
                "it is not for the key of this node's last request (`meshctl ca csr`), which lies at the node that made it"
            )
        others = [item for item in (ca.roots if ca else ()) if item != certificates.der(root)][:1]
        await self._commit_intermediate(certificate, key, [certificates.der(root), *others], revoke=revoke)
        self.files.drop_pending_key()

    async def _make_intermediate(self, root: Authority, others: Sequence[bytes], *, revoke: bool) -> None:
        mesh_id, now = self._node.require_mcg().state.mesh_id, moment(self._now_ms())
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = certificates.make_intermediate(mesh_id, root, key.public_key(), now)
        await self._commit_intermediate(certificate, key, [certificates.der(root.certificate), *others], revoke=revoke)

    async def _commit_intermediate(
        self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, roots: Sequence[bytes], *, revoke: bool
    ) -> None:
        state, digest = self._node.require_mcg().state, certificates.fingerprint(certificate)
        change = mcg_pb2.SetCa(
            generation=state.ca.generation if state.ca else 0,
            roots=roots,
            intermediate=certificates.der(certificate),
            revoke=revoke,
        )
        for node in state.nodes.values():
            if node.is_voter and node.wrap_key:
                sealed = seal(key, node.wrap_key, (state.mesh_id, node.node_id), digest)
                change.sealed.add(node_id=node.node_id, wrap_key=node.wrap_key, sealed=sealed)
        if not change.sealed:
            raise MeshError(
                ErrorCode.UNAVAILABLE, "No voter has told the mesh its wrap key yet: try again.", retryable=True
            )
        await self._commit(change)

    async def _commit(self, change: mcg_pb2.SetCa) -> None:
        check_change(change, self._node.require_mcg().state.mesh_id, self._now_ms())
        result = await self._proposer.propose(mcg_pb2.Command(set_ca=change))
        await self._proposer.wait_for_revision(result.revision, KNOWN_WITHIN_S)

    def _root(self, state: McgState, ca: CertificateAuthority) -> Authority:
        root = self.files.root(state.mesh_id)
        if root is None or certificates.der(root.certificate) != ca.roots[0]:
            raise MeshError(
                ErrorCode.ROOT_KEY_MISSING,
                f"The root's key is not in {self.files.path('root.key').parent} of this node: run this where it is, or "
                "`meshctl ca rotate --root-key FILE --root-cert FILE`; if it is lost, `meshctl ca rotate --new-root`.",
            )
        return root

    def _require_ca(self) -> tuple[McgState, CertificateAuthority]:
        state = self._require_version()
        if state.ca is None:
            raise ca_state.missing()
        return state, state.ca

    def _require_version(self) -> McgState:
        """Before any file is made: the mesh must be able to commit it."""
        mcg = self._node.require_mcg()
        if mcg.state.mesh_id:
            check_proposable(mcg_pb2.Command(set_ca=mcg_pb2.SetCa()), mcg.state.mesh_version, mcg.supported)
        return mcg.state

    def _now_ms(self) -> int:
        return int(self._node.now_s * 1000)


def _exists() -> MeshError:
    return MeshError(
        ErrorCode.CA_EXISTS,
        "The mesh has a certificate authority already: see `meshctl ca show`, or replace it by `meshctl ca rotate`.",
    )
