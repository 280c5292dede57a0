"""Checks of the streams: their leaders, their copies on other nodes, and the replicas of this node. See `checks`.

What this node holds itself is told by its own replicas, in one answer however many there are. What only others hold is
asked for stream by stream, and bounded. Free space of a disk is not among the answers of a gateway: `streams.disk`
compares what the streams keep with what they may keep.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from meshapi.common.v1 import view_pb2
from meshapi.supervisor.v1 import data_pb2, mesh_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshctl.checks import (
    CONTROL_PLANE,
    DATA_PLANE,
    Answers,
    Check,
    Finding,
    count,
    failed,
    ok,
    skipped,
    some,
    told,
    warning,
)

_RUNNING: Final = ("gateway.reachable", "node.member", "node.running")
_NO_LEADER: Final = frozenset(
    {ErrorCode.STREAM_UNAVAILABLE, ErrorCode.NO_QUORUM, ErrorCode.NOT_LEADER, ErrorCode.DEADLINE_EXCEEDED}
)
_FAILED_ROLE: Final = "failed"
_KEPT_FACTOR_MAX: Final = 1.25
"""The floor moves in steps, to checkpoints: a stream keeps a little more than its limit now and then."""
_MIB: Final = 1 << 20


def remote_streams(status: mesh_pb2.GetStatusResponse, replicas: data_pb2.ListReplicasResponse) -> list[str]:
    """Names of the formed streams that the node holds no replica of: to be asked about one by one."""
    own = {replica.stream_id for replica in replicas.replicas}
    return sorted(
        stream.name
        for stream in status.view.streams
        if stream.state == view_pb2.STREAM_STATE_ACTIVE and stream.stream_id not in own
    )


def _leaders(answers: Answers) -> Finding:
    replicas = told(answers.replicas, DATA_PLANE).replicas
    open_here = [replica for replica in replicas if replica.role != _FAILED_ROLE]
    leaderless = [replica.stream for replica in open_here if not replica.leader]
    unknown: list[str] = []
    for name, answer in answers.remote.items():
        if isinstance(answer, MeshError):
            if answer.code in _NO_LEADER:
                leaderless.append(name)
            elif answer.code is not ErrorCode.STREAM_NOT_FOUND:
                unknown.append(name)
        elif not answer.leader:
            leaderless.append(name)
    looked_at = len(open_here) + len(answers.remote) - len(unknown)
    if leaderless:
        return failed(
            f"{len(leaderless)} of {count(looked_at, 'stream')} without a leader: {some(sorted(leaderless))}",
            "start their members; `meshctl raft ls` there says what they wait for; only if members are lost for good: "
            "`meshctl raft recover`",
            leaderless=sorted(leaderless),
        )
    rest = len(unknown) + answers.not_asked
    if rest:
        return skipped(
            f"{count(looked_at, 'stream')} with a leader, {rest} not looked at",
            "run it at the nodes that hold the others",
            unknown=unknown,
        )
    return ok(f"{count(looked_at, 'stream')}, each with a leader" if looked_at else "there are no streams")


def _copies(answers: Answers) -> Finding:
    view = told(answers.status, CONTROL_PLANE).view
    alive = {node.node_id for node in view.nodes if node.state == view_pb2.NODE_STATE_ACTIVE and node.is_reachable}
    streams = [stream for stream in view.streams if stream.state != view_pb2.STREAM_STATE_DELETING]
    short = {
        f"{stream.name} ({up} of {len(stream.members)})": stream.name
        for stream in streams
        if (up := sum(member.node_id in alive for member in stream.members)) < len(stream.members)
    }
    pairs = [stream.name for stream in streams if len(stream.members) == 2]
    forming = [stream.name for stream in streams if stream.state == view_pb2.STREAM_STATE_FORMING]
    details = {"short": list(short.values()), "two_members": pairs, "forming": forming}
    if short:
        return warning(
            f"{count(len(short), 'stream')} with fewer reachable copies than members: {some(short)}",
            "start the nodes that hold them, or give the streams other members: `meshctl stream members replace`",
            **details,
        )
    if forming:
        return warning(
            f"{count(len(forming), 'stream')} not formed yet: {some(forming)}",
            "check the links between its members",
            **details,
        )
    if pairs:
        return warning(
            f"{count(len(pairs), 'stream')} with two members: the loss of either stops writes ({some(pairs)})",
            "`meshctl stream members add NAME NODE` gives it a third",
            **details,
        )
    if not streams:
        return ok("there are no streams", **details)
    return ok(f"every copy of {count(len(streams), 'stream')} is on a reachable node", **details)


def _replicas(answers: Answers) -> Finding:
    replicas = told(answers.replicas, DATA_PLANE).replicas
    broken = {replica.stream: replica.reason for replica in replicas if replica.role == _FAILED_ROLE}
    waiting = {
        it.stream: it.reason or it.change for it in replicas if it.role != _FAILED_ROLE and (it.reason or it.change)
    }
    late = sorted(_late(replicas))
    if broken:
        name, reason = next(iter(broken.items()))
        return failed(
            f"{count(len(broken), 'replica')} of this node failed: {some(broken)} ({reason})",
            f"repair the cause; if the data here are lost: `meshctl stream members renew {name} NODE`",
            failed=broken,
            waiting=waiting,
        )
    if waiting:
        name, reason = next(iter(waiting.items()))
        return warning(
            f"{count(len(waiting), 'replica')} not settled: {name}: {reason}",
            "`meshctl raft ls` shows all; a change goes on by itself, an outdated node waits for its update",
            waiting=waiting,
            late=late,
        )
    if late:
        return warning(
            f"so far behind that the log is sent anew as a snapshot: {some(late)}",
            "wait; if it does not catch up, look at the log of that node",
            late=late,
        )
    return ok(
        f"{count(len(replicas), 'replica')} on this node, none failed" if replicas else "this node holds no stream"
    )


def _late(replicas: Iterable[data_pb2.ReplicaInfo]) -> Iterator[str]:
    """`node of stream` for members whose next entry the leader here no longer keeps; only a leader knows."""
    for replica in replicas:
        for member in replica.members:
            # 0: the leader has not heard it in this term, so that nothing is known of its log.
            if member.matched_index and member.matched_index + 1 < replica.first_index:
                yield f"{member.node} of {replica.stream}"


def _disk(answers: Answers) -> Finding:
    answer = told(answers.replicas, DATA_PLANE)
    limits = {
        stream.stream_id: stream.retained_bytes_max for stream in told(answers.status, CONTROL_PLANE).view.streams
    }
    kept = sum(replica.retained_bytes for replica in answer.replicas)
    details = {"log_bytes": answer.log_bytes, "retained_bytes": kept}
    over = sorted(
        replica.stream
        for replica in answer.replicas
        if (limit := limits.get(replica.stream_id, 0)) and replica.retained_bytes > _KEPT_FACTOR_MAX * limit
    )
    if over:
        return warning(
            f"{count(len(over), 'stream')} above the limit of bytes kept: {some(over)}",
            "a member that is away or an unfinished upload holds the records: `meshctl raft show STREAM`",
            over=over,
            **details,
        )
    return ok(
        f"{kept // _MIB} MiB kept, {answer.log_bytes // _MIB} MiB on the disk, no stream above its limit", **details
    )


STREAM_CHECKS: Final = (
    Check("streams.leaders", _leaders, _RUNNING),
    Check("streams.copies", _copies, (*_RUNNING, "mesh.quorum")),
    Check("streams.replicas", _replicas, _RUNNING),
    Check("streams.disk", _disk, _RUNNING),
)
