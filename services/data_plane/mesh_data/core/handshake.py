"""The lane handshake: agrees on a version, proves both nodes' keys and agrees on fresh ones, without any I/O of its own.

Messages (SIGMA-I without encryption): each side sends its hello at once, answers the other's hello with a proof, answers
the other's proof with Finished, and is done when it has checked the other's Finished. A side that is not content sends a
reject and closes. A hello shows the identity key and its delegation, the proof is signed by the delegated key. What is signed and what the keys are is written in `overlay/v1/lane.proto`. Both hellos are in the
transcript as they were sent, so both nonces, names, version ranges and ephemeral keys, and what later versions add.
Leaves out: the socket, and what happens to the lane afterwards. Source: architecture §5 "Lane"; Krawczyk, SIGMA (2003).

States: *waiting for hello* → *waiting for proof* → *waiting for Finished* → *established*; from each → *failed*.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Final

from google.protobuf.message import DecodeError

from mesh_data.core.frame_seal import FrameSeal
from mesh_data.core.key_agreement import ExchangeKey, derive
from mesh_data.core.view import PUBLIC_KEY_BYTES, View
from meshapi.common.v1 import error_pb2
from meshapi.overlay.v1 import lane_pb2
from meshcommon.delegation import DelegatedSigner, Delegation, Delegations, Grantor, Use
from meshcommon.errors import ErrorCode, MeshError, parse_code
from meshcommon.ids import NO_NODE, NodeId, check_node_name
from meshcommon.peer_text import printable, printable_details
from meshcommon.signed_parts import join_parts
from meshwire.errors import WireError
from meshwire.frame import decode_handshake, encode_handshake

VERSION_MIN: Final = 5
VERSION_MAX: Final = 5
"""5: the membership in the hello, and sealed frames (ADR 0022). 4 was delegated keys (ADR 0018), and encrypted packets."""
NONCE_BYTES: Final = 32
_DIGEST_BYTES: Final = 32
_CONTEXT: Final = b"mesh.v2 lane"
_PROOF_CONTEXT: Final = b"mesh.v2 lane proof"
_KEYS_CONTEXT: Final = b"mesh.v2 lane keys"
_FINISHED: Final = b"finished"
_FRAMES: Final = b"frames"
_NUMBER_MAX: Final = 2**63 - 1
"""Ids and epochs beyond do not fit the databases of the nodes."""
_MESH_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class Role(IntEnum):
    """Who opened the connection; the value is the role byte of the transcript."""

    DIALLER = 0
    LISTENER = 1


class Standing(Enum):
    """How what this node knows of the membership stands to what the other side knows, by what the two hellos say."""

    SAME = "same"
    BEHIND = "behind"
    """The other side knows a newer one."""
    AHEAD = "ahead"
    """This side does."""


@dataclass(frozen=True, slots=True)
class LocalNode:
    """Who this node is, and what signs for it; id 0 and an empty mesh id before it is a member.

    Two are equal when they are the same node with the same identity key, whatever it has delegated.
    """

    node_id: NodeId
    name: str
    signer: DelegatedSigner = field(compare=False, repr=False)
    mesh_id: str = ""
    mesh_epoch: int = 0
    public_key: bytes = field(init=False)
    """The node's identity key: Ed25519, 32 bytes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "public_key", self.signer.identity_key)


@dataclass(frozen=True, slots=True)
class Terms:
    """What this side accepts.

    Attributes:
        delegations: checks what the other side signs.
        view: members and their keys; None before this node is a member.
        expected_peer: the member that was dialled, 0 for whoever answers.
        join_refusal: why a node that is not yet a member is refused now, None when it is welcome.
        refusal: why everybody is refused now.
        certificate_shown: SHA-256 of the TLS certificate that this side shows on the connection, empty for none.
        certificate_seen: the same of the one that it was shown.
        membership_revision: MCG revision at which this side knows the membership, 0 before it is a member.
        membership_digest: of that membership, empty before it is a member.
        seals_frames: whether a proxy that ends TLS may stand in between: frames are sealed if the other side says so too.
    """

    delegations: Delegations
    view: View | None = None
    expected_peer: NodeId = NO_NODE
    join_refusal: MeshError | None = None
    refusal: MeshError | None = None
    certificate_shown: bytes = b""
    certificate_seen: bytes = b""
    membership_revision: int = 0
    membership_digest: bytes = b""
    seals_frames: bool = False


@dataclass(frozen=True, slots=True)
class PeerNode:
    """Who proved to be at the other end. Id 0: not a member.

    Attributes:
        standing: who knows the newer membership; SAME where one side is no member.
        membership_revision: MCG revision that the other side has shown.
        membership_digest: of the membership that it has shown.
    """

    node_id: NodeId
    name: str
    mesh_id: str
    public_key: bytes
    version: int
    standing: Standing = Standing.SAME
    membership_revision: int = 0
    membership_digest: bytes = b""


class Handshake:
    """One handshake on one lane; call `take_outgoing` after construction and after each `receive` and `tick`."""

    def __init__(
        self, role: Role, local: LocalNode, terms: Terms, nonce: bytes, ephemeral_seed: bytes, deadline: float
    ) -> None:
        """`nonce` and `ephemeral_seed` must be 32 fresh random bytes each; `deadline` is in seconds of `tick`'s `now`."""
        self._role = role
        self._local = local
        self._terms = terms
        self._deadline = deadline
        self._ephemeral = ExchangeKey(ephemeral_seed)
        hello = lane_pb2.LaneHello(
            version_min=VERSION_MIN,
            version_max=VERSION_MAX,
            mesh_id=local.mesh_id,
            mesh_epoch=local.mesh_epoch,
            node_id=local.node_id,
            name=local.name,
            public_key=local.public_key,
            nonce=nonce,
            ephemeral_key=self._ephemeral.public,
            certificate_shown=terms.certificate_shown,
            certificate_seen=terms.certificate_seen,
            delegation=local.signer.delegation.to_proto(),
            membership_revision=terms.membership_revision,
            membership_digest=terms.membership_digest,
            seals_frames=terms.seals_frames,
        )
        self._nonce = nonce
        self._own_hello = lane_pb2.LaneHandshake(hello=hello).SerializeToString()
        self._agreed: _Agreed | None = None
        self._proved: PeerNode | None = None
        self._outgoing = [encode_handshake(self._own_hello)]
        self.peer: PeerNode | None = None
        self.failure: MeshError | None = None
        self.is_rejected_by_peer = False
        self.seal: FrameSeal | None = None
        """Seals and opens every frame behind the handshake; None when they go as they are. Set together with `peer`."""

    @property
    def is_done(self) -> bool:
        """Whether it has ended either way: `peer` or `failure` is set."""
        return self.peer is not None or self.failure is not None

    def take_outgoing(self) -> list[bytes]:
        """Frames to send, in order."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def next_deadline(self) -> float:
        """When `tick` fails the handshake."""
        return self._deadline

    def tick(self, now: float) -> None:
        """Fails the handshake when its time is over."""
        if not self.is_done and now >= self._deadline:
            self.fail(
                MeshError(
                    ErrorCode.HANDSHAKE_FAILED,
                    "The other side did not finish the handshake in time: is it a mesh node, and is the path to it up?",
                )
            )

    def receive(self, frame: bytes | memoryview) -> None:
        """Takes a frame; one that breaks the rules fails the handshake and leaves a reject to send."""
        if self.is_done:
            return
        try:
            encoded = bytes(decode_handshake(frame))
            message = lane_pb2.LaneHandshake.FromString(encoded)
        except (WireError, DecodeError):
            self.fail(_wrong_protocol("A frame that is no lane handshake came first: is this a mesh node's peer port?"))
            return
        step, agreed, proved = message.WhichOneof("step"), self._agreed, self._proved
        try:
            if step == "reject":
                self._receive_reject(message.reject)
            elif step == "hello" and agreed is None:
                self._receive_hello(message.hello, encoded)
            elif step == "proof" and agreed is not None and proved is None:
                self._receive_proof(message.proof, encoded, agreed)
            elif step == "finished" and agreed is not None and proved is not None:
                self._receive_finished(message.finished, agreed, proved)
            else:
                raise _wrong_protocol("A handshake message came out of turn: the other side speaks another protocol.")
        except MeshError as error:
            self.fail(error)

    def fail(self, error: MeshError) -> None:
        """Ends the handshake with `error` and leaves a reject to send, unless it has ended already."""
        if self.is_done:
            return
        self.failure = error
        self._outgoing.append(encode_reject(error))

    def _receive_hello(self, hello: lane_pb2.LaneHello, encoded: bytes) -> None:
        if self._terms.refusal is not None:
            raise self._terms.refusal
        version = min(VERSION_MAX, hello.version_max)
        if version < max(VERSION_MIN, hello.version_min):
            # Before anything else: the other fields of a hello of another version may mean something else.
            raise MeshError(
                ErrorCode.VERSION_MISMATCH,
                f"Node {printable(hello.name, 63)!r} speaks versions {hello.version_min} to {hello.version_max}, "
                f"this one {VERSION_MIN} to {VERSION_MAX}: bring one of them to a version that both speak.",
            )
        delegation = _check_fields(hello)
        if hello.nonce == self._nonce or hello.ephemeral_key == self._ephemeral.public:
            raise MeshError(ErrorCode.HANDSHAKE_FAILED, "The other side returned this node's own hello: it is an echo.")
        self._check_certificates(hello)
        self._check_membership(hello)
        secret = self._ephemeral.secret(hello.ephemeral_key)
        if secret is None:
            raise _wrong_protocol("The hello's ephemeral key is not usable: no secret can be agreed on with it.")
        candidate = self._candidate(hello, version)
        grantor = Grantor(hello.public_key, hello.mesh_id, hello.mesh_epoch, candidate.node_id)
        hellos = (self._own_hello, encoded) if self._role is Role.DIALLER else (encoded, self._own_hello)
        transcript = hashlib.sha256(join_parts(_CONTEXT, *hellos)).digest()
        signature = self._local.signer.sign(_proof_content(self._role, transcript))
        proof = lane_pb2.LaneHandshake(proof=lane_pb2.LaneProof(signature=signature)).SerializeToString()
        is_sealing = self._terms.seals_frames and hello.seals_frames
        self._agreed = _Agreed(candidate, grantor, delegation, transcript, secret, {self._role: proof}, is_sealing)
        self._outgoing.append(encode_handshake(proof))

    def _candidate(self, hello: lane_pb2.LaneHello, version: int) -> PeerNode:
        """Who the other side says it is, and how its knowledge of the membership stands to this node's."""
        terms = self._terms
        revision, digest = hello.membership_revision, hello.membership_digest
        standing = Standing.SAME
        if hello.node_id and self._local.node_id and digest != terms.membership_digest:
            if revision == terms.membership_revision:
                # Both would be views of one log at one place of it.
                raise MeshError(
                    ErrorCode.MEMBERSHIP_OUTDATED,
                    f"Node {hello.name!r} shows other members than this node at the same revision {revision}: compare "
                    "`meshctl status` at both; one of them was restored from somewhere else.",
                    retryable=False,
                )
            standing = Standing.BEHIND if revision > terms.membership_revision else Standing.AHEAD
        return PeerNode(
            NodeId(hello.node_id), hello.name, hello.mesh_id, hello.public_key, version, standing, revision, digest
        )

    def _check_certificates(self, hello: lane_pb2.LaneHello) -> None:
        """Both ends must have seen what the other has shown: whoever ends TLS in between shows something else.

        Both hellos are in what both sides sign, so nobody on the way can make them agree, or say that frames are sealed.
        """
        if self._terms.seals_frames and hello.seals_frames:
            return
        shown, seen = self._terms.certificate_shown, self._terms.certificate_seen
        if (hello.certificate_seen, hello.certificate_shown) != (shown, seen):
            raise MeshError(
                ErrorCode.TLS_TERMINATED,
                f"TLS with node {hello.name!r} does not run from end to end: a proxy or somebody else in between ends it. "
                "Let it pass TLS through, dial the node directly, or mark it at both ends as behind a proxy.",
            )

    def _check_membership(self, hello: lane_pb2.LaneHello) -> None:
        if not hello.node_id:
            self._check_joiner(hello)
            return
        if not self._local.node_id:
            if self._role is Role.LISTENER:
                raise MeshError(
                    ErrorCode.HANDSHAKE_FAILED,
                    f"Node {self._local.name!r} is not a member of any mesh: seed it or let it join first.",
                )
            return
        if hello.mesh_id != self._local.mesh_id:
            raise MeshError(
                ErrorCode.MESH_ID_MISMATCH,
                f"Node {hello.name!r} belongs to mesh {hello.mesh_id}, this one to {self._local.mesh_id}: "
                "check the address.",
                {"mesh_id": hello.mesh_id},
            )
        if hello.mesh_epoch != self._local.mesh_epoch:
            raise MeshError(
                ErrorCode.HANDSHAKE_FAILED,
                f"Node {hello.name!r} is at mesh epoch {hello.mesh_epoch}, this one at {self._local.mesh_epoch}.",
            )
        self._check_member(hello)

    def _check_joiner(self, hello: lane_pb2.LaneHello) -> None:
        if not self._local.node_id or self._role is Role.DIALLER:
            raise MeshError(
                ErrorCode.HANDSHAKE_FAILED,
                f"Node {hello.name!r} is not a member of any mesh: seed it, or use the address of a member.",
            )
        if self._terms.join_refusal is not None:
            raise self._terms.join_refusal

    def _check_member(self, hello: lane_pb2.LaneHello) -> None:
        peer = NodeId(hello.node_id)
        view = self._terms.view
        node = view.nodes.get(peer) if view is not None else None
        if peer == self._local.node_id:
            raise MeshError(ErrorCode.HANDSHAKE_FAILED, "The address leads back to this node itself: correct it.")
        if self._terms.expected_peer not in {NO_NODE, peer}:
            raise MeshError(
                ErrorCode.HANDSHAKE_FAILED,
                f"The address of node {self._terms.expected_peer} leads to node {peer}: correct it.",
            )
        if node is None:
            raise MeshError(
                ErrorCode.HANDSHAKE_FAILED,
                f"Node {peer} is not in this node's view of the mesh: it left, or the view here is older; "
                "it is tried again.",
            )
        if node.public_key != hello.public_key:
            raise MeshError(
                ErrorCode.KEY_MISMATCH,
                f"Node {peer} shows another key than the mesh knows: its data directory was replaced, "
                "or somebody poses as it.",
            )

    def _receive_proof(self, proof: lane_pb2.LaneProof, encoded: bytes, agreed: _Agreed) -> None:
        other, delegations, name = _other(self._role), self._terms.delegations, agreed.candidate.name
        if not agreed.delegation.counts_at(delegations.now_s):
            raise agreed.delegation.clock_skew(name, delegations.now_s)
        statement = _proof_content(other, agreed.transcript)
        if not delegations.is_signed(agreed.grantor, agreed.delegation, Use.LANES, statement, proof.signature):
            raise MeshError(
                ErrorCode.KEY_MISMATCH,
                f"Node {name!r} could not prove that it holds its key, or one that its key delegated for lanes.",
            )
        agreed.proofs[other] = encoded
        self._proved = agreed.candidate
        finished = lane_pb2.LaneHandshake(finished=lane_pb2.LaneFinished(mac=agreed.finished_mac(self._role)))
        self._outgoing.append(encode_handshake(finished.SerializeToString()))

    def _receive_finished(self, finished: lane_pb2.LaneFinished, agreed: _Agreed, proved: PeerNode) -> None:
        if not hmac.compare_digest(finished.mac, agreed.finished_mac(_other(self._role))):
            raise MeshError(
                ErrorCode.KEY_MISMATCH,
                f"Node {proved.name!r} did not agree on the same keys: somebody on the way changes the handshake.",
            )
        if agreed.is_sealing:
            other = _other(self._role)
            self.seal = FrameSeal(agreed.key(_FRAMES, self._role), agreed.key(_FRAMES, other))
        self.peer = proved

    def _receive_reject(self, reject: lane_pb2.LaneReject) -> None:
        self.failure = rejection(reject)
        self.is_rejected_by_peer = True


@dataclass(slots=True)
class _Agreed:
    """What both sides have in common once the hellos are exchanged. `proofs` are whole messages as sent, by signer."""

    candidate: PeerNode
    grantor: Grantor
    delegation: Delegation
    transcript: bytes
    secret: bytes
    proofs: dict[Role, bytes]
    is_sealing: bool

    def finished_mac(self, sender: Role) -> bytes:
        """The MAC in the Finished that `sender` sends; both proofs must be there."""
        covered = join_parts(self.transcript, self.proofs[Role.DIALLER], self.proofs[Role.LISTENER])
        return hmac.digest(self.key(_FINISHED, sender), covered, "sha256")

    def key(self, purpose: bytes, sender: Role) -> bytes:
        """The key that `sender` uses for `purpose`."""
        return derive(self.secret, self.transcript, join_parts(_KEYS_CONTEXT, purpose, bytes((sender,))))


def encode_reject(error: MeshError) -> bytes:
    """The frame that tells the other side why the lane is being closed; never larger than a handshake frame may be."""
    detail = error_pb2.ErrorDetail(
        code=str(error.code),
        message=printable(error.message),
        retryable=error.retryable,
        details=printable_details(error.details),
    )
    message = lane_pb2.LaneHandshake(reject=lane_pb2.LaneReject(error=detail))
    return encode_handshake(message.SerializeToString())


def rejection(reject: lane_pb2.LaneReject) -> MeshError:
    """The error in a reject; its text is safe to log."""
    detail = reject.error
    return MeshError(
        parse_code(detail.code),
        printable(detail.message) or "The other side refused the lane without saying why.",
        printable_details(detail.details),
        retryable=detail.retryable,
    )


def _check_fields(hello: lane_pb2.LaneHello) -> Delegation:
    """Refuses what no node of this version sends, before any of it is used, kept or quoted."""
    if (
        len(hello.public_key) != PUBLIC_KEY_BYTES
        or len(hello.nonce) != NONCE_BYTES
        or len(hello.ephemeral_key) != PUBLIC_KEY_BYTES
        or not {len(hello.certificate_shown), len(hello.certificate_seen)} <= {0, _DIGEST_BYTES}
        or len(hello.membership_digest) not in {0, _DIGEST_BYTES}
    ):
        raise _wrong_protocol(
            "The hello's keys, nonce or digests have the wrong length: the other side speaks another protocol."
        )
    if max(hello.node_id, hello.mesh_epoch, hello.membership_revision) > _NUMBER_MAX:
        raise _wrong_protocol("A number of the hello is out of range: the other side is no mesh node.")
    if hello.mesh_id and not _MESH_ID.fullmatch(hello.mesh_id):
        raise _wrong_protocol("The hello's mesh id is no UUID: the other side is no mesh node.")
    if bool(hello.mesh_id) != bool(hello.node_id):
        raise _wrong_protocol("The hello names a node without a mesh, or a mesh without a node.")
    try:
        if hello.name:
            check_node_name(hello.name)
    except MeshError:
        raise _wrong_protocol(
            f"The hello's name {printable(hello.name, 63)!r} is no node name: use 1 to 63 of a-z, 0-9 and '-'."
        ) from None
    delegation = Delegation.from_proto(hello.delegation)
    if delegation is None:
        raise _wrong_protocol("The hello's delegation is not well formed: the other side speaks another protocol.")
    return delegation


def _wrong_protocol(message: str) -> MeshError:
    return MeshError(ErrorCode.WRONG_PROTOCOL, message)


def _other(role: Role) -> Role:
    return Role.LISTENER if role is Role.DIALLER else Role.DIALLER


def _proof_content(signer: Role, transcript: bytes) -> bytes:
    """What a proof signs."""
    return join_parts(_PROOF_CONTEXT, bytes((signer,)), transcript)
