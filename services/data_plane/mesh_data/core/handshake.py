"""The lane handshake: agrees on a version and proves both nodes' keys, without any input or output of its own.

Messages: each side sends its hello at once, answers the other's hello with a proof, and is done when it has checked the
other's proof. A side that is not content sends a reject and closes. The proof signs both hellos, so both nonces: one that
was recorded elsewhere fits nothing. "Hello" in the transcript is the encoded `LaneHandshake` exactly as it was sent.
Leaves out: the socket, and what happens to the lane afterwards. Source: architecture §5 "Lane"; `overlay/v1/lane.proto`.

States: *waiting for hello* → *waiting for proof* → *established*; from each → *failed*.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from google.protobuf.message import DecodeError

from mesh_data.core.view import PUBLIC_KEY_BYTES, View
from meshapi.common.v1 import error_pb2
from meshapi.overlay.v1 import lane_pb2
from meshcommon.errors import ErrorCode, MeshError, parse_code
from meshcommon.ids import NO_NODE, NodeId
from meshwire.errors import WireError
from meshwire.frame import decode_handshake, encode_handshake

VERSION_MIN: Final = 1
VERSION_MAX: Final = 1
NONCE_BYTES: Final = 32
_CONTEXT: Final = b"mesh.v1 lane"


class Role(IntEnum):
    """Who opened the connection; the value is the role byte of the transcript."""

    DIALLER = 0
    LISTENER = 1


@dataclass(frozen=True, slots=True)
class LocalNode:
    """Who this node is. `private_key` is the Ed25519 seed; id 0 and an empty mesh id before it is a member."""

    node_id: NodeId
    name: str
    private_key: bytes
    mesh_id: str = ""
    mesh_epoch: int = 0

    @property
    def public_key(self) -> bytes:
        """The Ed25519 public key, 32 bytes."""
        return Ed25519PrivateKey.from_private_bytes(self.private_key).public_key().public_bytes_raw()


@dataclass(frozen=True, slots=True)
class Terms:
    """What this side accepts.

    Attributes:
        view: members and their keys; None before this node is a member.
        expected_peer: the member that was dialled, 0 for whoever answers.
        join_refusal: why a node that is not yet a member is refused now, None when it is welcome.
        refusal: why everybody is refused now.
    """

    view: View | None = None
    expected_peer: NodeId = NO_NODE
    join_refusal: MeshError | None = None
    refusal: MeshError | None = None


@dataclass(frozen=True, slots=True)
class PeerNode:
    """Who proved to be at the other end. Id 0: not a member."""

    node_id: NodeId
    name: str
    mesh_id: str
    public_key: bytes
    version: int


class Handshake:
    """One handshake on one lane; call `take_outgoing` after construction and after each `receive` and `tick`."""

    def __init__(self, role: Role, local: LocalNode, terms: Terms, nonce: bytes, deadline: float) -> None:
        """`nonce` must be 32 fresh random bytes; `deadline` is in the seconds of `tick`'s `now`."""
        self._role = role
        self._local = local
        self._terms = terms
        self._deadline = deadline
        hello = lane_pb2.LaneHello(
            version_min=VERSION_MIN,
            version_max=VERSION_MAX,
            mesh_id=local.mesh_id,
            mesh_epoch=local.mesh_epoch,
            node_id=local.node_id,
            name=local.name,
            public_key=local.public_key,
            nonce=nonce,
        )
        self._nonce = nonce
        self._own_hello = lane_pb2.LaneHandshake(hello=hello).SerializeToString()
        self._peer_hello = b""
        self._candidate: PeerNode | None = None
        self._outgoing = [encode_handshake(self._own_hello)]
        self.peer: PeerNode | None = None
        self.failure: MeshError | None = None
        self.is_rejected_by_peer = False

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
            message = lane_pb2.LaneHandshake.FromString(bytes(decode_handshake(frame)))
        except (WireError, DecodeError):
            self.fail(_wrong_protocol("A frame that is no lane handshake came first: is this a mesh node's peer port?"))
            return
        step = message.WhichOneof("step")
        try:
            if step == "hello" and self._candidate is None:
                self._receive_hello(message.hello, bytes(decode_handshake(frame)))
            elif step == "proof" and self._candidate is not None:
                self._receive_proof(message.proof)
            elif step == "reject":
                self._receive_reject(message.reject)
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
            raise MeshError(
                ErrorCode.VERSION_MISMATCH,
                f"Node {hello.name!r} speaks versions {hello.version_min} to {hello.version_max}, this one {VERSION_MIN} "
                f"to {VERSION_MAX}: bring one of them to a version that both speak.",
            )
        if len(hello.public_key) != PUBLIC_KEY_BYTES or len(hello.nonce) != NONCE_BYTES:
            raise _wrong_protocol(
                "The hello's key or nonce has the wrong length: the other side speaks another protocol."
            )
        if hello.nonce == self._nonce:
            raise MeshError(ErrorCode.HANDSHAKE_FAILED, "The other side returned this node's own hello: it is an echo.")
        self._check_membership(hello)
        self._candidate = PeerNode(NodeId(hello.node_id), hello.name, hello.mesh_id, hello.public_key, version)
        self._peer_hello = encoded
        key = Ed25519PrivateKey.from_private_bytes(self._local.private_key)
        signature = key.sign(_transcript(self._role, self._own_hello, encoded))
        proof = lane_pb2.LaneHandshake(proof=lane_pb2.LaneProof(signature=signature))
        self._outgoing.append(encode_handshake(proof.SerializeToString()))

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

    def _receive_proof(self, proof: lane_pb2.LaneProof) -> None:
        candidate = self._candidate
        if candidate is None:
            raise _wrong_protocol("A proof came before the hello.")
        other = Role.LISTENER if self._role is Role.DIALLER else Role.DIALLER
        try:
            Ed25519PublicKey.from_public_bytes(candidate.public_key).verify(
                proof.signature, _transcript(other, self._peer_hello, self._own_hello)
            )
        except (InvalidSignature, ValueError):
            raise MeshError(
                ErrorCode.KEY_MISMATCH, f"Node {candidate.name!r} could not prove that it holds its key."
            ) from None
        self.peer = candidate

    def _receive_reject(self, reject: lane_pb2.LaneReject) -> None:
        self.failure = rejection(reject)
        self.is_rejected_by_peer = True


def encode_reject(error: MeshError) -> bytes:
    """The frame that tells the other side why the lane is being closed."""
    detail = error_pb2.ErrorDetail(
        code=str(error.code), message=error.message, retryable=error.retryable, details=error.details
    )
    message = lane_pb2.LaneHandshake(reject=lane_pb2.LaneReject(error=detail))
    return encode_handshake(message.SerializeToString())


def rejection(reject: lane_pb2.LaneReject) -> MeshError:
    """The error in a reject."""
    detail = reject.error
    return MeshError(
        parse_code(detail.code),
        detail.message or "The other side refused the lane without saying why.",
        dict(detail.details),
        retryable=detail.retryable,
    )


def _wrong_protocol(message: str) -> MeshError:
    return MeshError(ErrorCode.WRONG_PROTOCOL, message)


def _transcript(signer: Role, signer_hello: bytes, other_hello: bytes) -> bytes:
    return b"".join((_CONTEXT, bytes((signer,)), signer_hello, other_hello))
