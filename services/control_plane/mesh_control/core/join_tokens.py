"""Join tokens: the secret's verifier, the newcomer's proof, the mesh's confirmation, and the token as one line of text.

The secret crosses no wire. The newcomer and the mesh share the verifier, which is derived from it: a proof binds it to the
newcomer's key, a confirmation binds it to one answer. Leaves out which tokens a mesh knows (`join_rules`).
Source: docs/design/identity.md "Joining"; RFC 5869 (HKDF), RFC 2104 (HMAC).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import uuid
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from meshapi.control.v1 import join_pb2
from meshcommon.address import parse_peer_address
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import check_mesh_id, check_node_name
from meshcommon.signed_parts import join_parts, number

SECRET_BYTES: Final = 32
VERIFIER_BYTES: Final = 32
FINGERPRINT_BYTES: Final = 32
"""SHA-256 of the mesh's root CA; absent while a mesh has none."""
ADDRESSES_MAX: Final = 8
TOKEN_CHARACTERS_MAX: Final = 4096
"""More than eight of the longest addresses need."""

_PREFIX: Final = "mesh1."
_ENCODED: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_TOKEN_ID: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)
_MAC_BYTES: Final = 32
_CONFIRMATION: Final = bytes((join_pb2.JoinResponse.CONFIRMATION_FIELD_NUMBER << 3 | 2, _MAC_BYTES))
"""Tag and length of JoinResponse.confirmation on the wire (Protocol Buffers encoding)."""


@dataclass(frozen=True, slots=True)
class JoinKey:
    """What a token's text says.

    Attributes:
        mesh_id: the mesh that issued it.
        addresses: peer addresses of members, canonical, at most ADDRESSES_MAX.
        secret: SECRET_BYTES random bytes; in no log and no error.
        name: node that it is for, empty for any.
        ca_fingerprint: of the mesh's root CA, empty while it has none.
    """

    mesh_id: str
    addresses: tuple[str, ...]
    secret: bytes = field(repr=False)
    name: str = ""
    ca_fingerprint: bytes = b""


def encode_token(key: JoinKey) -> str:
    """The one line that the newcomer's operator pastes; the only text of that key."""
    parts = [
        uuid.UUID(key.mesh_id).bytes,
        key.secret,
        _short(key.ca_fingerprint),
        _short(key.name.encode()),
        bytes((len(key.addresses),)),
        *(_short(address.encode()) for address in key.addresses),
    ]
    return _PREFIX + base64.urlsafe_b64encode(b"".join(parts)).rstrip(b"=").decode()


def parse_token(text: str) -> JoinKey:
    """What `encode_token` wrote, and nothing else.

    Raises:
        MeshError: INVALID_ARGUMENT; the text is not quoted, since most of a damaged token is still a secret.
    """
    encoded = text.removeprefix(_PREFIX)
    if len(text) > TOKEN_CHARACTERS_MAX or not text.startswith(_PREFIX) or not _ENCODED.fullmatch(encoded):
        raise _unreadable()
    try:
        key = _read(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
        is_canonical = encode_token(key) == text
    except (binascii.Error, ValueError, MeshError):
        raise _unreadable() from None
    if not is_canonical:
        raise _unreadable()
    return key


def is_token(text: str) -> bool:
    """Whether `text` is meant as a token rather than as an address."""
    return text.startswith(_PREFIX)


def check_token_id(token_id: str) -> str:
    """Returns `token_id` if it has the form of one, else raises INVALID_ARGUMENT."""
    if not _TOKEN_ID.fullmatch(token_id):
        raise MeshError(
            ErrorCode.INVALID_ARGUMENT, "The id of a join token has 16 hexadecimal digits: see `meshctl token ls`."
        )
    return token_id


def verifier_of(secret: bytes) -> bytes:
    """What the mesh keeps of a secret: enough to check proofs, not enough to write the token again."""
    return HKDF(SHA256(), VERIFIER_BYTES, None, b"mesh.v1 join token").derive(secret)


def token_id_of(verifier: bytes) -> str:
    """The id of a token, no secret."""
    return hashlib.sha256(verifier).digest()[:8].hex()


def proof_of(verifier: bytes, request: join_pb2.JoinRequest) -> bytes:
    """The proof that belongs to `request`: for its public key, which the lane proves, and for no other request."""
    parts = join_parts(
        b"mesh.v1 join",
        request.mesh_id.encode(),
        request.name.encode(),
        request.public_key,
        request.peer_address.encode(),
        number(request.mesh_version),
        request.wrap_key,
    )
    return hmac.digest(verifier, parts, "sha256")


def prove(request: join_pb2.JoinRequest, verifier: bytes) -> None:
    """Adds the token's id and the proof that belongs to the request as it is now."""
    request.token_id = token_id_of(verifier)
    request.proof = proof_of(verifier, request)


def is_proof(verifier: bytes, request: join_pb2.JoinRequest) -> bool:
    """Whether the request's proof is right, compared in constant time."""
    return hmac.compare_digest(proof_of(verifier, request), request.proof)


def confirm(verifier: bytes, public_key: bytes, response: bytes) -> bytes:
    """`response`, an encoded JoinResponse, with its confirmation behind it.

    The confirmation covers bytes, not values: an encoding that differs between versions of protobuf cannot break it.
    """
    return response + _CONFIRMATION + _confirmation(verifier, public_key, response)


def confirmed(verifier: bytes, public_key: bytes, body: bytes) -> bytes:
    """The part of an answer that its confirmation covers.

    Raises:
        MeshError: KEY_MISMATCH; the answer does not come from the mesh that issued the token, or was changed on the way.
    """
    response, tag, given = body[: -_MAC_BYTES - 2], body[-_MAC_BYTES - 2 : -_MAC_BYTES], body[-_MAC_BYTES:]
    if tag != _CONFIRMATION or not hmac.compare_digest(_confirmation(verifier, public_key, response), given):
        raise MeshError(
            ErrorCode.KEY_MISMATCH,
            "The node that answered does not know the join token, so it does not speak for the mesh that issued it: check the "
            "address, and who can read and change what passes between here and there.",
        )
    return response


def _confirmation(verifier: bytes, public_key: bytes, response: bytes) -> bytes:
    return hmac.digest(verifier, join_parts(b"mesh.v1 admitted", public_key, response), "sha256")


def _short(part: bytes) -> bytes:
    return bytes((len(part),)) + part


def _read(data: bytes) -> JoinKey:
    reader = _Reader(data)
    mesh_id = check_mesh_id(str(uuid.UUID(bytes=reader.take(16))))
    secret = reader.take(SECRET_BYTES)
    fingerprint = reader.take_short()
    name = reader.take_short().decode("ascii")
    addresses = tuple(reader.take_short().decode("ascii") for _ in range(reader.take(1)[0]))
    if reader.left or len(addresses) > ADDRESSES_MAX or len(fingerprint) not in {0, FINGERPRINT_BYTES}:
        raise _unreadable()
    if name:
        check_node_name(name)
    if any(str(parse_peer_address(address)) != address for address in addresses):
        raise _unreadable()
    return JoinKey(mesh_id, addresses, secret, name, fingerprint)


class _Reader:
    """Bytes from the front; raises INVALID_ARGUMENT at the end."""

    def __init__(self, data: bytes) -> None:
        self.left = data

    def take(self, count: int) -> bytes:
        if len(self.left) < count:
            raise _unreadable()
        taken, self.left = self.left[:count], self.left[count:]
        return taken

    def take_short(self) -> bytes:
        return self.take(self.take(1)[0])


def _unreadable() -> MeshError:
    return MeshError(
        ErrorCode.INVALID_ARGUMENT,
        "The join token cannot be read: copy the whole line that `meshctl token issue` printed, which begins with mesh1.",
    )
