"""Bytes of the messages between routing neighbours: protobuf at the edge, values inside.

Everything from outside is checked here, once; what passes is well formed, though not yet proved (`lsa_signature`). What
goes on to other nodes is encoded anew from the values, so unknown fields go no further. Source: proto/meshapi/routing/v1.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Final

from google.protobuf.message import DecodeError

from mesh_routing.core.lsa import (
    LINKS_MAX,
    LOSS_PPM_MAX,
    NODE_ID_MAX,
    SEQUENCE_MAX,
    SIGNATURE_BYTES,
    UNKNOWN,
    UTILISATION_PERMILLE_MAX,
    Lsa,
    LsaKey,
    LsaLink,
    LsaMessage,
)
from meshapi.routing.v1 import routing_pb2
from meshcommon.delegation import Delegation
from meshcommon.ids import NodeId
from meshwire.errors import WireError

MESSAGE_BYTES_MAX: Final = 1024 * 1024
"""Longest message accepted."""
LSAS_MAX: Final = 1_024
"""Most advertisements in one message."""
KEYS_MAX: Final = 4_096
"""Most acknowledgements, and most versions of a digest, in one message."""
_U32_MAX: Final = 2**32 - 1


def encode_message(message: LsaMessage) -> bytes:
    """Bytes of `message`. Ages are rounded up: rounding down would let an advertisement grow younger by travelling."""
    encoded = routing_pb2.LsaMessage(
        lsas=[_to_proto(lsa) for lsa in message.lsas],
        acks=[routing_pb2.LsaKey(origin=key.origin, sequence=key.sequence) for key in message.acks],
        database=[routing_pb2.LsaKey(origin=key.origin, sequence=key.sequence) for key in message.database or ()],
        has_database=message.database is not None,
    )
    return encoded.SerializeToString()


def decode_message(payload: bytes) -> LsaMessage:
    """The message in `payload`.

    Raises:
        WireError: It is not a well-formed message; drop and count it.
    """
    if len(payload) > MESSAGE_BYTES_MAX:
        raise WireError(f"a routing message of {len(payload)} bytes exceeds {MESSAGE_BYTES_MAX}")
    try:
        encoded = routing_pb2.LsaMessage.FromString(payload)
    except DecodeError as error:
        raise WireError(f"a routing message cannot be parsed: {error}") from None
    if encoded.database and not encoded.has_database:
        raise WireError("a routing message carries a database that it does not announce")
    if len(encoded.lsas) > LSAS_MAX or max(len(encoded.acks), len(encoded.database)) > KEYS_MAX:
        raise WireError(
            f"a routing message of {len(encoded.lsas)} advertisements, {len(encoded.acks)} acknowledgements and "
            f"{len(encoded.database)} versions exceeds {LSAS_MAX}, {KEYS_MAX} and {KEYS_MAX}"
        )
    acks = tuple(_key(key) for key in encoded.acks)
    database = tuple(_key(key) for key in encoded.database)
    if any(left >= right for left, right in pairwise(acks)):
        raise WireError("the acknowledgements of a routing message are not strictly rising")
    if any(left.origin >= right.origin for left, right in pairwise(database)):
        raise WireError("the database of a routing message is not strictly rising by origin")
    lsas = tuple(_from_proto(lsa) for lsa in encoded.lsas)
    return LsaMessage(lsas, acks, database if encoded.has_database else None)


def _to_proto(lsa: Lsa) -> routing_pb2.Lsa:
    links = [
        routing_pb2.LsaLink(
            peer=link.peer,
            latency_us=link.latency_us,
            jitter_us=link.jitter_us,
            admin_cost=link.admin_cost,
            lost_ppm=link.loss_ppm,
            bandwidth_kbit=link.bandwidth_kbit,
            utilisation_permille=link.utilisation_permille,
        )
        for link in lsa.links
    ]
    return routing_pb2.Lsa(
        origin=lsa.origin,
        sequence=lsa.sequence,
        links=links,
        age_s=min(math.ceil(lsa.age_s), _U32_MAX),
        signature=lsa.signature,
        delegation=None if lsa.delegation is None else lsa.delegation.to_proto(),
    )


def _from_proto(lsa: routing_pb2.Lsa) -> Lsa:
    key = _key(lsa)
    if len(lsa.links) > LINKS_MAX:
        raise WireError(f"an advertisement of {len(lsa.links)} links exceeds {LINKS_MAX}")
    links = tuple(_link(key.origin, link) for link in lsa.links)
    peers = [link.peer for link in links]
    if any(left >= right for left, right in pairwise(peers)):
        raise WireError(f"the links of node {key.origin}'s advertisement are not strictly rising by peer")
    if 0 in peers or key.origin in peers:
        raise WireError(f"node {key.origin} advertises a link to itself or to node 0")
    if peers and peers[-1] > NODE_ID_MAX:
        raise WireError(f"node {key.origin} advertises a link to node {peers[-1]}, which is out of range")
    if len(lsa.signature) != SIGNATURE_BYTES:
        raise WireError(f"the advertisement of node {key.origin} has a signature of {len(lsa.signature)} bytes")
    delegation = Delegation.from_proto(lsa.delegation)
    if delegation is None:
        raise WireError(f"the advertisement of node {key.origin} has no well-formed delegation")
    return Lsa(key.origin, key.sequence, links, float(lsa.age_s), lsa.signature, delegation)


def _link(origin: NodeId, link: routing_pb2.LsaLink) -> LsaLink:
    loss = link.lost_ppm if link.HasField("lost_ppm") else None
    bandwidth = link.bandwidth_kbit if link.HasField("bandwidth_kbit") else None
    used = link.utilisation_permille if link.HasField("utilisation_permille") else None
    is_possible = (loss or 0) <= LOSS_PPM_MAX and (used or 0) <= UTILISATION_PERMILLE_MAX
    # 2^32-1 stands for an absent one in what is signed: the two must not be confused.
    if not is_possible or bandwidth in {0, UNKNOWN}:
        raise WireError(f"node {origin} advertises a loss, bandwidth or use that no link has")
    return LsaLink(NodeId(link.peer), link.latency_us, link.jitter_us, link.admin_cost, loss, bandwidth, used)


def _key(key: routing_pb2.LsaKey | routing_pb2.Lsa) -> LsaKey:
    if not 1 <= key.origin <= NODE_ID_MAX:
        raise WireError(f"an advertisement names node {key.origin} as its origin")
    if not 1 <= key.sequence <= SEQUENCE_MAX:
        raise WireError(f"sequence number {key.sequence} of node {key.origin} is out of range")
    return LsaKey(NodeId(key.origin), key.sequence)
