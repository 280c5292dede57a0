"""This node's certificate: asked of a member that can open the intermediate, renewed at half its life, and issued to others.

A certificate is no change of the state. What counts is the identity key that the committed view names, never a certificate
from before, so that a node that was away for a month gets its next one as any other does. The file `node.crt` spares a
restarted node the wait for its mesh. Leaves out what is signed and checked (`ca_checks`, `mesh_certificates`) and the
certificates of services (`site_issuer`). Source: docs/design/identity.md "Certificates".
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Final, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from mesh_control.core import ca_checks, ca_state
from mesh_control.core.ca_checks import Asker, moment
from mesh_control.core.ca_state import CertificateAuthority
from mesh_control.core.limits import NODES_MAX
from mesh_control.core.mcg_state import McgState
from mesh_control.shell.local_node import LocalNode
from mesh_control.shell.mcg import Mcg
from mesh_control.shell.peer_calls import Method, PeerCalls
from meshapi.control.v1 import join_pb2
from meshcommon import mesh_certificates as certificates
from meshcommon.barrier import barrier
from meshcommon.durable import write_durably
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshcommon.logging import get_logger
from meshcommon.mesh_certificates import Authority
from meshcommon.overlay_calls import Caller
from meshcommon.token_bucket import TokenBucket

NODE_CERTIFICATE: Final = "node.crt"
LOOK_EVERY_S: Final = 1.0
RETRY_S: Final = 5.0
ASK_S: Final = 3.0
RENEW_BELOW: Final = 0.5
"""Share of its life at which a certificate is renewed."""
ISSUED_PER_S: Final = 0.1
"""Certificates that this node signs in a second for one other node, and ISSUED_BURST at once: one asks twice a day."""
ISSUED_BURST: Final = 10.0

_log = get_logger(__name__)


class Issuer(Protocol):
    """The site issuer as far as the mesh CA needs it."""

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        """What is certified."""

    def set_chain(self, chain: Sequence[x509.Certificate]) -> None:
        """Node certificate and intermediate; empty for none."""

    def sign(self, statement: bytes) -> bytes:
        """ECDSA over SHA-256, DER."""


class NodeCertificates:
    """Gets this node's certificate and issues those of others. One event loop only."""

    def __init__(self, node: LocalNode, calls: PeerCalls, issuer: Issuer, rng: random.Random) -> None:
        self._node = node
        self._calls = calls
        self._issuer = issuer
        self._rng = rng
        self._chain: tuple[x509.Certificate, ...] = ()
        self._next_try_at = 0.0
        self._budgets: dict[NodeId, TokenBucket] = {}
        self.refusal = ""
        """Why the last attempt failed, empty after one that did not."""
        calls.serve(Method.CERTIFY, self._serve)

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """Node certificate and intermediate, empty while there are none."""
        return self._chain

    @property
    def public_key(self) -> bytes:
        """The key that is certified, DER."""
        return certificates.public_der(self._issuer.public_key)

    async def run(self) -> None:
        """Until cancelled."""
        with barrier("node_certificate_file"):
            self._load()
        while True:
            with barrier("node_certificate"):
                await self.look()
            await self._node.changed.wait(LOOK_EVERY_S)

    async def look(self) -> None:
        """Drops a chain that counts no longer, and asks for another when that is due."""
        mcg = self._node.mcg
        ca = mcg.state.ca if mcg is not None else None
        if mcg is None or ca is None or self._node.is_removed:
            # A replica that has just been opened knows less than before the restart, and a CA never ceases to be.
            if self._node.membership is None or self._node.is_removed:
                self._drop()
            return
        if self._chain and (not self._is_own(mcg.state) or await self._is_dropped_by(mcg)):
            self._drop()
            ca = mcg.state.ca or ca
        loop = asyncio.get_running_loop()
        if not self._is_due(ca) or not self._node.is_running or loop.time() < self._next_try_at:
            return
        self._next_try_at = loop.time() + RETRY_S
        try:
            self._take(await self._ask(ca, mcg.state))
            self.refusal = ""
        except MeshError as error:
            self.refusal = error.message
            _log.info("node_certificate_postponed", code=error.code, reason=error.message)

    def certify_answer(self, response: bytes, public_key: bytes) -> bytes:
        """An encoded JoinResponse, signed for a newcomer that trusts the root's fingerprint.

        Raises:
            MeshError: CA_MISSING while this node has no certificate.
        """
        self.require_chain()
        return ca_checks.certify_answer(response, self._issuer.sign(ca_checks.admitted_statement(public_key, response)))

    def require_chain(self) -> None:
        """Raises CA_MISSING while this node has no certificate."""
        if not self._chain:
            raise MeshError(
                ErrorCode.CA_MISSING,
                "The member that was asked has no certificate of the mesh's CA yet: ask another one, or later.",
                retryable=True,
            )

    def opened(self, ca: CertificateAuthority, state: McgState) -> Authority | None:
        """The intermediate with its key, if that is sealed for this node; the caller forgets it after use.

        Raises:
            MeshError: CA_MISSING; what is sealed for this node cannot be opened.
        """
        sealed = ca.sealed.get(self._node.node_id)
        if sealed is None:
            return None
        certificate = certificates.read_certificate(ca.intermediate)
        public_key = certificate.public_key()
        if not isinstance(public_key, ec.EllipticCurvePublicKey):
            raise certificates.invalid("the intermediate is for a key that is not P-256")
        place = (state.mesh_id, self._node.node_id)
        return Authority(certificate, self._node.wrap_key.open(sealed, place, ca.digest, public_key))

    def _is_own(self, state: McgState) -> bool:
        """Whether the certificate is this node's in this mesh, and has not ended."""
        certificate = self._chain[0]
        return (
            certificates.uris(certificate) == [certificates.node_uri(state.mesh_id, self._node.name)]
            and certificate.public_key() == self._issuer.public_key
            and certificate.not_valid_after_utc > moment(self._now_ms())
        )

    async def _is_dropped_by(self, mcg: Mcg) -> bool:
        """Whether the mesh accepts the intermediate no longer; what a replica that is behind says of it is no reason."""

        def is_accepted() -> bool:
            ca, now_ms = mcg.state.ca, max(self._now_ms(), mcg.state.time_ms)
            return ca is None or ca.accepts(certificates.der(self._chain[1]), now_ms)

        return not is_accepted() and await mcg.catch_up(ASK_S) and not is_accepted()

    def _is_due(self, ca: CertificateAuthority) -> bool:
        if not self._chain:
            return True
        certificate, intermediate = self._chain
        is_old = certificates.life_left(certificate, moment(self._now_ms())) < RENEW_BELOW
        return is_old or certificates.der(intermediate) != ca.intermediate

    async def _ask(self, ca: CertificateAuthority, state: McgState) -> tuple[x509.Certificate, x509.Certificate]:
        """From this node itself if it can, else from the members that can, in any order.

        Raises:
            MeshError: what the last one said; CA_MISSING when nobody can.
        """
        node_id, place = self._node.node_id, (state.mesh_id, self._node.name)
        request = self._request(state)
        refusal = MeshError(
            ErrorCode.CA_MISSING, "No member can issue certificates: the key of the intermediate is sealed for none."
        )
        others = sorted(ca.sealed.keys() - {node_id})
        self._rng.shuffle(others)
        for peer in ([node_id] if node_id in ca.sealed else []) + others:
            try:
                if peer == node_id:
                    body = self._issue(request, node_id)
                else:
                    body = await self._calls.call(Method.CERTIFY, request, ASK_S, peer=peer)
                return ca_checks.read_answer(body, ca, place, self.public_key, self._now_ms())
            except MeshError as error:
                refusal = error
        raise refusal

    def _request(self, state: McgState) -> bytes:
        time_ms = self._now_ms()
        asker = Asker(state.mesh_id, state.mesh_epoch, self._node.node_id)
        statement = ca_checks.request_statement(asker, self.public_key, time_ms)
        return join_pb2.CertifyRequest(
            issuer_key=self.public_key, time_ms=time_ms, signature=self._node.identity.sign(statement)
        ).SerializeToString()

    async def _serve(self, caller: Caller, body: bytes, _timeout_s: float) -> bytes:
        """A member asks. What it asks repeatedly gets another certificate of the same content."""
        state, now = self._node.require_mcg().state, asyncio.get_running_loop().time()
        if caller.node not in state.nodes:
            raise MeshError(ErrorCode.NOT_A_MEMBER, "Only members get certificates: join first.")
        if len(self._budgets) > NODES_MAX:
            self._budgets.clear()
        budget = self._budgets.setdefault(caller.node, TokenBucket(ISSUED_PER_S, ISSUED_BURST, now))
        if not budget.take(now):
            raise MeshError(ErrorCode.BACKPRESSURE, "Too many certificates are asked of this node: try again.")
        return self._issue(body, caller.node)

    def _issue(self, body: bytes, caller: NodeId) -> bytes:
        state, now_ms = self._node.require_mcg().state, self._now_ms()
        asking, public_key = ca_checks.read_request(body, caller, state, now_ms)
        ca = state.ca
        if ca is None:
            raise ca_state.missing()
        issuer = self.opened(ca, state)
        if issuer is None:
            raise MeshError(
                ErrorCode.CA_MISSING, "This node cannot issue certificates: ask one that votes.", retryable=True
            )
        certificate = certificates.make_node_certificate(state.mesh_id, asking.name, issuer, public_key, moment(now_ms))
        _log.info("node_certificate_issued", node=asking.node_id, serial=f"{certificate.serial_number:x}")
        return join_pb2.CertifyResponse(
            certificate=certificates.der(certificate), intermediate=ca.intermediate
        ).SerializeToString()

    def _take(self, chain: tuple[x509.Certificate, x509.Certificate]) -> None:
        self._issuer.set_chain(chain)
        self._chain = chain
        _log.info("node_certificate_renewed", until=chain[0].not_valid_after_utc.isoformat())
        path = self._node.directory / NODE_CERTIFICATE
        try:
            write_durably(path, "".join(map(certificates.pem, chain)).encode())
        except OSError as error:
            _log.warning("node_certificate_not_kept", error=str(error))

    def _drop(self) -> None:
        if self._chain:
            self._issuer.set_chain(())
            self._chain = ()
            (self._node.directory / NODE_CERTIFICATE).unlink(missing_ok=True)

    def _load(self) -> None:
        """What was in force before the restart; `look` checks it against the committed state before it renews."""
        try:
            chain = x509.load_pem_x509_certificates((self._node.directory / NODE_CERTIFICATE).read_bytes())
            certificate, intermediate = chain
            uris = certificates.uris(certificate)
            certificates.check_node_certificate(
                certificate, intermediate, uris[0] if uris else "", self.public_key, moment(self._now_ms())
            )
            self._issuer.set_chain(chain)
        except FileNotFoundError:
            return
        except (*certificates.UNREADABLE, MeshError) as error:
            _log.info("node_certificate_not_taken", reason=str(error))
            return
        self._chain = (certificate, intermediate)

    def _now_ms(self) -> int:
        return int(self._node.now_s * 1000)
