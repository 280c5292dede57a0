"""Keeps the mesh's CA usable: seals its key for new voters, and says in warnings and metrics what ends or is missing.

One node seals: the first of those that can open the key and are heard (`ca_state.who_wraps`). That another one does it as well
changes nothing. Leaves out issuing (`node_certificates`) and operators' changes (`ca_desk`).
Source: docs/design/identity.md "Certificates".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from mesh_control.core import ca_state
from mesh_control.core.ca_checks import moment
from mesh_control.core.ca_state import CertificateAuthority
from mesh_control.core.mcg_state import McgState
from mesh_control.core.model import Node
from mesh_control.shell import metrics
from mesh_control.shell.ca_keys import seal
from mesh_control.shell.local_node import LocalNode
from mesh_control.shell.node_certificates import NODE_CERTIFICATE, NodeCertificates
from mesh_control.shell.proposer import Proposer
from meshapi.control.v1 import mcg_pb2
from meshapi.supervisor.v1 import ca_pb2
from meshcommon import mesh_certificates as certificates
from meshcommon.admin import Readiness
from meshcommon.barrier import barrier
from meshcommon.errors import MeshError
from meshcommon.ids import NodeId
from meshcommon.logging import get_logger

EVERY_S: Final = 1.0
ALARM_BELOW: Final = 1 / 3
"""Share of its life at which a certificate that was not renewed is an alarm."""
_EXPIRY: Final = "certificates"
_ROTATION: Final = "ca rotation"
_WRAP: Final = "ca wrap"

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Listed:
    """A certificate as it is listed: what it is for, and its file if there is one."""

    kind: str
    certificate: x509.Certificate
    file: str = ""


class CaWatch:
    """Looks at each change of the node, and at least every second."""

    def __init__(self, node: LocalNode, own: NodeCertificates, proposer: Proposer, readiness: Readiness) -> None:
        self._node = node
        self._own = own
        self._proposer = proposer
        self._readiness = readiness

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            with barrier("ca_watch"):
                self.look()
                await self._seal_for_voters()
            await self._node.changed.wait(EVERY_S)

    def look(self) -> None:
        """Brings warnings and metrics up to date."""
        now = moment(int(self._node.now_s * 1000))
        ending = []
        metrics.CERTIFICATE_END.clear()
        metrics.CERTIFICATE_LIFE_LEFT.clear()
        for item in self.listed():
            metrics.CERTIFICATE_END.labels(item.kind).set(item.certificate.not_valid_after_utc.timestamp())
            left = certificates.life_left(item.certificate, now)
            metrics.CERTIFICATE_LIFE_LEFT.labels(item.kind).set(left)
            if left < ALARM_BELOW:
                ending.append(f"{item.kind} on {item.certificate.not_valid_after_utc:%F %T} UTC")
        ca = self._ca()
        if ca is not None and not self._own.chain and self._own.refusal:
            ending.append(f"there is no node certificate: {self._own.refusal}")
        self._tell(_EXPIRY, f"Certificates end: {'; '.join(ending)}." if ending else "")
        is_due = ca is not None and ca.is_rotation_due
        metrics.CA_ROTATION_DUE.set(is_due)
        self._tell(
            _ROTATION,
            "Rotation of the CA is due: a node that was given its key is no member any more; run `meshctl ca rotate`."
            if is_due
            else "",
        )
        without = ca_state.voters_without_key(ca, self._nodes()) if ca else []
        metrics.CA_VOTERS_WITHOUT_KEY.set(len(without))
        is_lost = ca is not None and not ca.sealed.keys() & self._nodes().keys()
        self._tell(_WRAP, "The key of the CA is sealed for no node: run `meshctl ca rotate`." if is_lost else "")

    def listed(self) -> list[Listed]:
        """Certificates of the CA and of this node, the root first."""
        ca = self._ca()
        if ca is None:
            return []
        roots = [certificates.read_certificate(item) for item in ca.roots]
        listed = [Listed("root" if at == 0 else "former root", root) for at, root in enumerate(roots)]
        listed.append(Listed("intermediate", certificates.read_certificate(ca.intermediate)))
        if self._own.chain:
            listed.append(Listed("node", self._own.chain[0], str(self._node.directory / NODE_CERTIFICATE)))
        return listed

    def list_certificates(self) -> ca_pb2.ListCertificatesResponse:
        """The same, for an operator. Raises NOT_A_MEMBER."""
        self._node.require_mcg()
        now, answer = moment(int(self._node.now_s * 1000)), ca_pb2.ListCertificatesResponse()
        for item in self.listed():
            found = item.certificate
            answer.certificates.add(
                kind=item.kind,
                subject=", ".join(certificates.uris(found)) or found.subject.rfc4514_string(),
                issuer=found.issuer.rfc4514_string(),
                not_before_ms=int(found.not_valid_before_utc.timestamp() * 1000),
                not_after_ms=int(found.not_valid_after_utc.timestamp() * 1000),
                life_left=certificates.life_left(found, now),
                fingerprint=certificates.fingerprint(found).hex(),
                file=item.file,
            )
        return answer

    async def _seal_for_voters(self) -> None:
        mcg, ca = self._node.mcg, self._ca()
        if mcg is None or ca is None or not self._node.is_running or not mcg.leader_view().has_quorum:
            return
        without = [node for node in ca_state.voters_without_key(ca, mcg.state.nodes) if node.wrap_key]
        if not without or ca_state.who_wraps(ca, mcg.state.nodes) != self._node.node_id:
            return
        try:
            issuer = self._own.opened(ca, mcg.state)
            if issuer is not None and isinstance(issuer.key, ec.EllipticCurvePrivateKey):
                for node in without:
                    await self._seal_for(node, issuer.key, ca, mcg.state)
        except MeshError as error:
            _log.info("ca_key_not_sealed", code=error.code, reason=error.message)

    async def _seal_for(
        self, node: Node, key: ec.EllipticCurvePrivateKey, ca: CertificateAuthority, state: McgState
    ) -> None:
        sealed = mcg_pb2.SealedKey(
            node_id=node.node_id,
            wrap_key=node.wrap_key,
            sealed=seal(key, node.wrap_key, (state.mesh_id, node.node_id), ca.digest),
        )
        wrap = mcg_pb2.WrapCa(intermediate_digest=ca.digest, sealed=sealed)
        result = await self._proposer.propose(mcg_pb2.Command(wrap_ca=wrap))
        await self._proposer.wait_for_revision(result.revision, EVERY_S)
        _log.info("ca_key_sealed", node=node.node_id)

    def _ca(self) -> CertificateAuthority | None:
        return self._node.mcg.state.ca if self._node.mcg is not None else None

    def _nodes(self) -> dict[NodeId, Node]:
        return dict(self._node.mcg.state.nodes) if self._node.mcg is not None else {}

    def _tell(self, key: str, warning: str) -> None:
        if warning:
            self._readiness.warn(key, warning)
        else:
            self._readiness.clear(key)
