"""Bodies of the REST API. Field names are those of the protos; bytes that identify something are hexadecimal."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

StreamIdField = Annotated[
    int,
    Field(
        ge=0,
        lt=2**63,
        description="Id of the stream that is meant: another one of that name refuses (STREAM_REPLACED). 0: whichever there "
        "is now.",
    ),
]
StreamName = Annotated[str, Field(description="`namespace/name`.", examples=["demo/lines"])]


class Body(BaseModel):
    """A request body: nothing unknown, no silent conversion of types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Membership(BaseModel):
    """Where this node now belongs."""

    mesh_id: str = Field(description="Id of the mesh, a UUID.")
    node_id: int = Field(description="Id of this node in it.")


class Founded(Membership):
    """A mesh that this node has founded."""

    token: str | None = Field(
        description="With KEY_REQUIRED: a join token for one node, valid for 15 minutes; a secret."
    )
    ca_fingerprint: str = Field(description="SHA-256 of the mesh's root certificate, hexadecimal.")
    ca_root_key_file: str = Field(description="File of this node that holds the root's private key: move it away.")


JoinPolicy = Literal["OPEN", "KEY_REQUIRED", "CLOSED"]
TokenName = Annotated[str, Field(max_length=63, description="Name of the node that it is for; empty for any.")]


class SeedBody(Body):
    """The new mesh."""

    name: str = Field(default="mesh", max_length=63, description="Name of the mesh, a DNS label.", examples=["plant"])
    policy: JoinPolicy = Field(default="KEY_REQUIRED", description="Who may become a member.")


class JoinBody(Body):
    """Which mesh to join: by a token, or by an address of an OPEN mesh and the fingerprint of its root, or `trust_first`."""

    address: str = Field(
        default="",
        description="`wss://host:port` of any member that listens for peers; asked in place of the token's addresses.",
        examples=["wss://127.0.0.1:7400"],
    )
    mesh_id: str = Field(default="", description="Expected id of the mesh; empty accepts whichever answers.")
    token: str = Field(default="", max_length=4096, description="Join token, as a member issued it.")
    trust_first: bool = Field(
        default=False, description="Without a token: accept that nothing shows which mesh answers."
    )
    trust_fingerprint: str = Field(
        default="",
        max_length=95,
        description="Without a token: SHA-256 of the mesh's root certificate, hexadecimal, that the answer must chain to.",
    )


class IssueTokenBody(Body):
    """A new join token."""

    uses: int = Field(default=1, ge=1, le=1_000, description="How many nodes it admits.")
    ttl_s: int = Field(default=900, ge=1, le=2_592_000, description="How long it is valid, seconds.")
    name: TokenName = ""


class IssuedToken(BaseModel):
    """A join token. Its text is told here only."""

    token: str = Field(description="One line, to be given to the node that joins; a secret.")
    token_id: str = Field(description="Id, no secret.")


class Token(BaseModel):
    """A join token without its secret."""

    token_id: str = Field(description="Id.")
    uses_left: int = Field(description="Nodes that it can still admit.")
    expires_at_ms: int = Field(description="When it ends, milliseconds since 1970, by the mesh's time.")
    name: TokenName
    is_expired: bool = Field(description="Whether it admits nobody any more.")


class Tokens(BaseModel):
    """Join tokens that the mesh knows."""

    tokens: list[Token] = Field(description="The oldest first; expired ones stay until another is issued.")


class PolicyBody(Body):
    """The policy from now on."""

    policy: JoinPolicy = Field(description="Who may become a member.")


class ForgetBody(Body):
    """How far forgetting a node may go."""

    accept_risk: bool = Field(
        default=False,
        description="Accept that streams lose their quorum; those not formed, or whose last member it is, are deleted.",
    )


class Forgotten(BaseModel):
    """What a forgotten node held."""

    streams: list[str] = Field(description="Streams that it was a member of.")


class Node(BaseModel):
    """A member of the mesh."""

    node_id: int = Field(description="Id, never used again.")
    name: str = Field(description="Name, unique in the mesh.", examples=["a"])
    public_key: str = Field(description="Ed25519 public key, hexadecimal.")
    peer_address: str = Field(description="Address at which peers can dial it; empty when it only dials.")
    state: Literal["UNSPECIFIED", "ACTIVE", "STOPPED", "JOINING"] = Field(
        description="STOPPED: stopped on purpose. JOINING: admitted, and not heard yet."
    )
    is_reachable: bool = Field(description="Whether the leader of the mesh control group reaches it.")
    is_voter: bool = Field(description="Whether it votes in the mesh control group.")


class MeshStatus(BaseModel):
    """What this node knows of the mesh and of itself. The mesh's fields are null while the node is in no mesh."""

    node_id: int = Field(description="Id of this node, 0 while it is in no mesh.")
    name: str = Field(description="Name of this node.")
    is_running: bool = Field(description="False: stopped on purpose, or in no mesh.")
    has_quorum: bool = Field(description="Whether it is in touch with a leader that has a quorum.")
    mesh_id: str | None = Field(description="Id of the mesh.")
    mesh_name: str | None = Field(description="Name of the mesh; empty when it was founded without one.")
    join_policy: JoinPolicy | None = Field(description="Who may become a member; null while not known yet.")
    mesh_epoch: int | None = Field(description="Raised only by attested recovery.")
    status: Literal["UNSPECIFIED", "HEALTHY", "DEGRADED", "CRITICAL"] | None = Field(description="Health of the mesh.")
    revision: int | None = Field(description="Raised by every committed change of the mesh.")
    nodes: list[Node] = Field(description="Members by id.")
    stream_count: int = Field(description="Streams in the catalogue.")
    mcg_leader: str | None = Field(description="Name of the leader of the mesh control group, null if unknown.")
    mcg_term: int = Field(description="Raft term of the mesh control group.")
    mcg_applied: int = Field(description="Log index that this node has applied.")
    warnings: list[str] = Field(description="What is not as it should be, in sentences.")


class Nodes(BaseModel):
    """Members of the mesh."""

    nodes: list[Node] = Field(description="By id; empty while this node is in no mesh.")


class Ping(BaseModel):
    """A node answered."""

    rtt_us: int = Field(description="Round trip, microseconds.")
    path: list[str] = Field(description="Names along the path there, both ends included.")


class Lane(BaseModel):
    """One lane that is up."""

    peer: str = Field(description="Neighbour.")
    is_dialled: bool = Field(description="Whether this node dialled it.")
    rtt_us: int = Field(description="Smoothed round trip, microseconds.")
    up_s: float = Field(description="Time since it came up, seconds.")


class Route(BaseModel):
    """How packets to one node travel."""

    destination: str = Field(description="Node.")
    path: list[str] = Field(description="Path in use, both ends included; empty when none works.")
    backup: list[str] = Field(description="Path that would be taken if it broke.")


class FailedDial(BaseModel):
    """A node to which this one wants a lane, and whose last dial failed."""

    peer: str = Field(description="Node.")
    code: str = Field(description="Stable code of the failure, such as CLOCK_SKEW.")
    reason: str = Field(description="What was said of it, for people.")


class Forwarding(BaseModel):
    """Lanes and routes of this node."""

    lanes: list[Lane] = Field(description="Lanes that are up.")
    routes: list[Route] = Field(description="Routes to every other node.")
    route_version: int = Field(description="Version of the route table.")
    failed_dials: list[FailedDial] = Field(description="Nodes that are dialled in vain, with the last failure of each.")


class CreateStreamBody(Body):
    """A new stream."""

    name: StreamName
    members: list[str] = Field(
        description="Names of the member nodes, 2 to 10; the first is the preferred leader.", examples=[["a", "b", "c"]]
    )
    retained_bytes_max: int = Field(
        default=0, ge=0, le=2**63 - 1, description="Bytes that each member retains; 0 for 8 GiB, at least 64 MiB."
    )


class StreamMember(BaseModel):
    """A node that holds a stream."""

    node: str = Field(description="Name of the node; empty while this node does not know it.")
    node_id: int = Field(description="Id of the node.")
    is_voter: bool = Field(description="Whether it votes in the stream's group.")


class RetiringMember(BaseModel):
    """A former member whose removal or whose data are not gone yet."""

    node: str = Field(description="Name of the node; empty while this node does not know it.")
    node_id: int = Field(description="Id of the node.")
    is_out: bool = Field(description="Whether the group runs without it: only its data are left.")


class Stream(BaseModel):
    """A stream of the catalogue."""

    stream_id: int = Field(description="Id, never used again.")
    name: StreamName
    state: Literal["UNSPECIFIED", "FORMING", "ACTIVE", "DELETING"] = Field(description="Where it is in its life.")
    members: list[StreamMember] = Field(
        description="Who should hold it, the preferred leader first; the group follows step by step."
    )
    retiring: list[RetiringMember] = Field(description="Former members that are on their way out.")
    revision: int = Field(description="Revision of the mesh at which this entry last changed.")
    retained_bytes_max: int = Field(description="Bytes that each member retains.")
    created_at_ms: int = Field(description="Time of creation, milliseconds since 1970.")


class CreatedStream(Stream):
    """A stream that was created and has formed."""

    warnings: list[str] = Field(description="What to know about it, in sentences.")


class Streams(BaseModel):
    """Streams of the catalogue."""

    streams: list[Stream] = Field(description="By name.")


class MemberProgress(BaseModel):
    """A member as the group's leader sees it."""

    node: str = Field(description="Name of the node.")
    is_voter: bool = Field(description="Whether it votes.")
    matched_index: int = Field(description="Log index up to which it is known to hold the log.")
    quiet_ms: int = Field(description="Time since it was last heard, milliseconds.")


class StreamLive(BaseModel):
    """Live state of a stream, from its group's leader."""

    floor_offset: int = Field(description="First retained offset.")
    next_offset: int = Field(description="Offset that the next record will get.")
    leader: str = Field(description="Name of the leader node.")
    term: int = Field(description="Raft term.")
    applied_index: int = Field(description="Applied log index.")
    state_hash: str = Field(description="Hash chain over the batches at `applied_index`, hexadecimal.")
    members: list[MemberProgress] = Field(description="Members by name.")
    retained_bytes: int = Field(description="Bytes retained at the leader.")
    change: str = Field(
        description="What the leader does, or waits for, to bring the group to its members; empty when nothing is left."
    )
    reason: str = Field(
        description="Why the replica that answers applies nothing more until its node is updated; empty while it does."
    )


class StreamInfo(Stream):
    """A stream of the catalogue with its live state."""

    live: StreamLive | None = Field(description="Null when the stream's group cannot be asked right now.")
    warnings: list[str] = Field(description="Why `live` is null, in a sentence.")


class InitProducerBody(Body):
    """Who publishes."""

    producer_name: str = Field(
        default="",
        max_length=255,
        description="Stable name: the same name gets the same id with a higher epoch. Empty for an anonymous producer.",
    )
    stream_id: StreamIdField = 0


class Producer(BaseModel):
    """A producer's identity and where it stood."""

    producer_id: int = Field(description="Id.")
    producer_epoch: int = Field(description="Epoch, from 1.")
    next_sequence: int = Field(description="Sequence that its next record must have.")
    last_offset_next: int = Field(description="Offset of its last committed record plus one, 0 when it has none.")
    stream_id: int = Field(
        description="Id of the stream that gave it out: send it with every publish of this producer."
    )


class HeaderBody(Body):
    """One header of a record: exactly one of `value` and `value_base64`."""

    name: str = Field(min_length=1, max_length=255, description="Name, once in a record.", examples=["traceparent"])
    value: str | None = Field(default=None, description="Value as text.")
    value_base64: str | None = Field(default=None, description="Value as base64.")


class RecordBody(Body):
    """One record: exactly one of `value` and `value_base64`, at most one of `key` and `key_base64`."""

    value: str | None = Field(
        default=None, description="Value as text; its UTF-8 bytes are stored.", examples=["hello"]
    )
    value_base64: str | None = Field(default=None, description="Value as base64.")
    key: str | None = Field(default=None, description="Key as text.")
    key_base64: str | None = Field(default=None, description="Key as base64.")
    headers: list[HeaderBody] = Field(
        default=[],
        max_length=64,
        description="At most 16 KiB in all. `traceparent`, `tracestate` and `correlation-id` of the request are added where "
        "they are missing.",
    )


class ProducerRef(Body):
    """Makes the publish exactly-once: a repeat with the same numbers is recognised."""

    id: int = Field(ge=1, lt=2**64, description="`producer_id`.")
    epoch: int = Field(ge=1, lt=2**32, description="`producer_epoch`.")
    base_sequence: int = Field(ge=0, lt=2**64, description="Sequence of the first record.")


class PublishBody(Body):
    """Records to publish as one batch."""

    wait: Literal["committed"] = Field(
        description="When the publish is complete: `committed` is fsynced on a quorum of the stream's voters."
    )
    records: list[RecordBody] = Field(description="Records, together at most 1 MiB.")
    producer: ProducerRef | None = Field(
        default=None, description="Without it the publish is at-least-once: a retry may double the records."
    )
    stream_id: StreamIdField = 0


class Published(BaseModel):
    """A committed batch."""

    base_offset: int = Field(description="Offset of its first record.")
    count: int = Field(description="Records in it.")
    is_duplicate: bool = Field(
        description="True when it had been committed before: the offset is that of the first time."
    )
    stream_id: int = Field(description="Id of the stream that has it.")


class Header(BaseModel):
    """A header: exactly one of `value` and `value_base64`."""

    name: str = Field(description="Name.")
    value: str | None = Field(default=None, description="Value, if it is valid UTF-8.")
    value_base64: str | None = Field(default=None, description="Value, if it is not.")


class ReadRecord(BaseModel):
    """A record: exactly one of `value` and `value_base64`; at most one of `key` and `key_base64`."""

    offset: int = Field(description="Offset.")
    timestamp_ms: int = Field(description="Clock of the group's leader at the append, milliseconds since 1970.")
    value: str | None = Field(default=None, description="Value, if it is valid UTF-8.")
    value_base64: str | None = Field(default=None, description="Value, if it is not.")
    key: str | None = Field(default=None, description="Key, if it is valid UTF-8.")
    key_base64: str | None = Field(default=None, description="Key, if it is not.")
    headers: list[Header] | None = Field(default=None, description="Headers, if it has any.")


class ReplicaView(BaseModel):
    """How new a replica's view of its stream is."""

    applied_index: int = Field(description="Log index of the last entry that it had applied.")
    age_ms_max: int | None = Field(
        None,
        description="Every record acknowledged so many milliseconds before, or earlier, is in it; absent when not known.",
    )


class Records(BaseModel):
    """A page of records."""

    records: list[ReadRecord] = Field(description="In order of offset.")
    next_offset: int = Field(
        description="Offset that the stream's next new record will get, as known where it was read."
    )
    continue_from: int = Field(description="`from` of the next page.")
    stream_id: int = Field(description="`stream_id` of the next page: the offset belongs to this stream.")
    view: ReplicaView | None = Field(None, description="With `consistency=stale_ok`: what was read.")


class ProblemBody(BaseModel):
    """An error (RFC 9457); docs/errors.md lists the codes."""

    type: str = Field(description="`urn:mesh:error:CODE`.", examples=["urn:mesh:error:STREAM_NOT_FOUND"])
    title: str = Field(description="What the code means.")
    status: int = Field(description="HTTP status.", examples=[404])
    detail: str = Field(description="What happened, and what to do next.")
    code: str = Field(description="Stable code.", examples=["STREAM_NOT_FOUND"])
    retryable: bool = Field(description="Whether the same request may succeed later without any change.")
    details: dict[str, str] = Field(description="Values that the text speaks of.")
    correlation_id: str = Field(description="Id under which the logs of this node tell of the request.")
