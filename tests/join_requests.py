"""Requests to join as an honest newcomer would make them, for tests that speak the protocol themselves."""

from __future__ import annotations

from mesh_control.core.join_tokens import parse_token, prove, verifier_of
from mesh_control.core.versions import MESH_VERSION
from meshapi.control.v1 import join_pb2


def join_request(name: str, public_key: bytes, token: str = "", address: str = "") -> join_pb2.JoinRequest:
    """A request of this version; with a token it carries its proof."""
    request = join_pb2.JoinRequest(name=name, public_key=public_key, peer_address=address, mesh_version=MESH_VERSION)
    if token:
        key = parse_token(token)
        request.mesh_id = key.mesh_id
        prove(request, verifier_of(key.secret))
    return request
