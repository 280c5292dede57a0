"""Bodies of the REST API about the groups under streams: their members, leaders, replicas and audits."""

from __future__ import annotations

from pydantic import BaseModel, Field

from mesh_gateway.shell.models import Body, MemberProgress, StreamName


class ChangeMembersBody(Body):
    """A change of members. At least one list has a name."""

    add: list[str] = Field(
        default=[],
        description="Nodes that become members. The first takes the place of the first that is removed, and so on.",
        examples=[["d"]],
    )
    remove: list[str] = Field(default=[], description="Nodes that cease to be members.", examples=[["a"]])
    renew: list[str] = Field(
        default=[], description="Members whose data are not trusted: they drop them and fetch everything anew."
    )
    accept_risk: bool = Field(
        default=False, description="Accept that too few of the voters that remain are reachable to take writes."
    )


class LeaderBody(Body):
    """Who should lead."""

    node: str = Field(description="Name of the node.", min_length=1, examples=["b"])


class Leader(BaseModel):
    """Who leads now."""

    leader: str = Field(description="Name of the node.")
    term: int = Field(description="Raft term in which it leads.")


class Replica(BaseModel):
    """A replica of this node, as Raft sees it."""

    stream: StreamName
    stream_id: int = Field(description="Id of the stream, also of its Raft group.")
    member_id: int = Field(description="Id of this membership, never used again.")
    role: str = Field(description="`leader`, `follower`, `candidate`, `learner` or `failed`.")
    leader: str = Field(description="Name of the leader's node, empty when unknown.")
    term: int = Field(description="Raft term.")
    commit_index: int = Field(description="Commit index.")
    applied_index: int = Field(description="Applied index.")
    first_index: int = Field(description="First log index that is kept.")
    last_index: int = Field(description="Last log index.")
    voters: list[str] = Field(description="Nodes that vote.")
    learners: list[str] = Field(description="Nodes that learn.")
    retained_bytes: int = Field(description="Bytes of entries kept.")
    members: list[MemberProgress] = Field(description="What the leader sees of the members; empty elsewhere.")
    change: str = Field(description="What the leader does, or waits for, about the members.")
    reason: str = Field(description="Why the replica failed.")


class Replicas(BaseModel):
    """The replicas of this node."""

    node: str = Field(description="Name of the node.")
    log_bytes: int = Field(description="Bytes that the log of all groups takes on the disk.")
    replicas: list[Replica] = Field(description="By name of the stream.")


class MemberAudit(BaseModel):
    """What was found at one member."""

    node: str = Field(description="Name of the node.")
    problem: str = Field(description="Why it could not be asked, or what is wrong with it; empty when all is well.")
    is_damaged: bool = Field(description="Whether its log or its chain is wrong, rather than not available.")
    applied_index: int = Field(description="Index that it has applied.")
    chain: str = Field(description="Its hash chain at the compared index, hexadecimal; empty when it does not know it.")
    verified_entries: int = Field(description="Log entries that were read back and verified.")
    verified_bytes: int = Field(description="Bytes of them.")


class Audit(BaseModel):
    """What an audit found."""

    stream: StreamName
    compared_index: int = Field(description="Log index that was compared, 0 when no two members know a common one.")
    is_divergent: bool = Field(description="Whether members differ there.")
    members: list[MemberAudit] = Field(description="By name.")
