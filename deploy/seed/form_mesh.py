"""The compose file's one-shot `seed` service: founds the mesh and lets the other nodes join, where that is still to do.

Repeatable: members are left alone, so that it may run at every start. A node that lost its volume is no member any more
although the mesh knows its name; it is refused and named here, never silently replaced. Leaves out everything after the
mesh has formed.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Self, TypeVar

import grpc
import grpc.aio

from meshapi.common.v1 import view_pb2
from meshapi.supervisor.v1 import mesh_pb2, mesh_pb2_grpc
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.grpc_client import mesh_error, open_channel
from meshcommon.logging import configure_logging, get_logger

DEADLINE_S: Final = 180.0
"""For everything together; a machine under load starts twelve services slowly."""
POLL_S: Final = 0.25
CALL_S: Final = 30.0

ResultT = TypeVar("ResultT")
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Target:
    """A node: its name, its gateway's gRPC address, and where peers can dial it (empty: nowhere)."""

    name: str
    gateway: str
    peer_address: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `NAME=GATEWAY[,ADDRESS]`. Raises ValueError."""
        name, equals, rest = text.partition("=")
        gateway, _, peer_address = rest.partition(",")
        if not (name and equals and gateway):
            raise ValueError(text)
        return cls(name, gateway, peer_address)


class Node:
    """Calls of one node's gateway; all raise MeshError."""

    def __init__(self, target: Target, channel: grpc.aio.Channel) -> None:
        self.target = target
        self._mesh: mesh_pb2_grpc.MeshServiceAsyncStub = mesh_pb2_grpc.MeshServiceStub(channel)

    async def status(self) -> mesh_pb2.GetStatusResponse:
        """What the node knows."""
        return await self._call(self._mesh.GetStatus(mesh_pb2.GetStatusRequest(), timeout=5))

    async def seed(self) -> mesh_pb2.SeedResponse:
        """Founds a mesh."""
        return await self._call(self._mesh.Seed(mesh_pb2.SeedRequest(), timeout=CALL_S))

    async def issue_token(self, name: str) -> str:
        """A join token for the node `name`."""
        request = mesh_pb2.IssueTokenRequest(name=name)
        return (await self._call(self._mesh.IssueToken(request, timeout=CALL_S))).token

    async def join(self, address: str, mesh_id: str, token: str) -> mesh_pb2.JoinResponse:
        """Joins the mesh `mesh_id` of the node at `address`, by a token of that mesh."""
        request = mesh_pb2.JoinRequest(address=address, mesh_id=mesh_id, token=token)
        return await self._call(self._mesh.Join(request, timeout=CALL_S))

    async def _call(self, call: Awaitable[ResultT]) -> ResultT:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise mesh_error(error, f"gateway of node {self.target.name}") from error


async def patiently(what: str, attempt: Callable[[], Awaitable[ResultT | None]]) -> ResultT:
    """Repeats `attempt` until it returns something; passes on a MeshError that no retry helps."""
    said = ""
    while True:
        try:
            result = await attempt()
            if result is not None:
                return result
        except MeshError as error:
            if not error.retryable:
                raise
            if error.message != said:
                said = error.message
                _log.info("waiting", what=what, reason=error.message)
        await asyncio.sleep(POLL_S)


async def form(nodes: Sequence[Node]) -> str:
    """Forms the mesh of `nodes`, the first being the founder if none is a member; returns the mesh id.

    Raises:
        MeshError: A node was refused for good, or two nodes are in different meshes.
    """
    memberships: dict[str, str] = {}
    for node in nodes:
        status = await patiently(f"node {node.target.name} answers", node.status)
        memberships[node.target.name] = status.view.mesh_id if status.node_id else ""
    meshes = {mesh_id for mesh_id in memberships.values() if mesh_id}
    if len(meshes) > 1:
        raise MeshError(
            ErrorCode.MESH_ID_MISMATCH,
            f"The nodes are in different meshes already: {memberships}. Let all but one leave (`meshctl leave`).",
        )
    if meshes:
        mesh_id = meshes.pop()
    else:
        mesh_id = (await nodes[0].seed()).mesh_id
        memberships[nodes[0].target.name] = mesh_id
        _log.info("mesh_founded", founder=nodes[0].target.name, mesh_id=mesh_id)
    for node in nodes:
        if not memberships[node.target.name]:
            await _join(node, [other for other in nodes if memberships[other.target.name]], mesh_id)
            memberships[node.target.name] = mesh_id
    for node in nodes:
        await patiently(f"node {node.target.name} sees a healthy mesh", partial(_healthy, node, len(nodes)))
    return mesh_id


async def _join(node: Node, members: Sequence[Node], mesh_id: str) -> None:
    addresses = [member.target.peer_address for member in members if member.target.peer_address]
    if not addresses:
        raise MeshError(ErrorCode.ADDRESS_UNREACHABLE, "No member listens for peers, so that nobody can join.")

    token = await patiently("a member issues a token", partial(members[0].issue_token, node.target.name))

    async def attempt() -> mesh_pb2.JoinResponse | None:
        try:
            return await node.join(addresses[0], mesh_id, token)
        except MeshError as error:
            # The answer to an earlier attempt was lost.
            if error.code is ErrorCode.ALREADY_MEMBER:
                return mesh_pb2.JoinResponse()
            addresses.append(addresses.pop(0))
            raise

    try:
        await patiently(f"node {node.target.name} joins", attempt)
    except MeshError as error:
        raise MeshError(error.code, f"Node {node.target.name} cannot join: {error.message}") from error
    _log.info("node_joined", newcomer=node.target.name, mesh_id=mesh_id)


async def _healthy(node: Node, expected: int) -> mesh_pb2.GetStatusResponse | None:
    status = await node.status()
    is_healthy = status.view.status == view_pb2.MESH_STATUS_HEALTHY and len(status.view.nodes) >= expected
    return status if is_healthy else None


async def trust(name: str, authorities: Path | None) -> grpc.ChannelCredentials | None:
    """Credentials that trust the authority of node `name`, once its control plane has written it; None: in clear."""
    if authorities is None:
        return None
    path = authorities / name / "ca.crt"

    async def written() -> bytes | None:
        try:
            return await asyncio.to_thread(path.read_bytes)
        except OSError as error:
            raise MeshError(ErrorCode.UNAVAILABLE, f"{path} cannot be read yet ({error.strerror}).") from error

    return grpc.ssl_channel_credentials(await patiently(f"the control plane of {name} writes its authority", written))


def token_of(name: str, tokens: Path | None) -> str:
    """The operator's token of node `name`; empty without a folder. Raises SETTING_INVALID."""
    if tokens is None:
        return ""
    path = tokens / f"{name}-operator-token"
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        text = f"There is no secret at {path} that can be read: run scripts/compose-secrets, which makes missing ones."
        raise MeshError(ErrorCode.SETTING_INVALID, text) from None


async def run(targets: Sequence[Target], authorities: Path | None = None, tokens: Path | None = None) -> int:
    """The process: exit status 0 when the mesh has formed, 1 when it cannot, 3 when the time is up.

    Args:
        targets: The nodes, the founder first.
        authorities: Folder with `NAME/ca.crt` for each node; None: gateways are called in clear.
        tokens: Folder with `NAME-operator-token` for each node; None: gateways ask for none.
    """
    async with AsyncExitStack() as stack:
        nodes: list[Node] = []
        try:
            async with asyncio.timeout(DEADLINE_S):
                for target in targets:
                    credentials = await trust(target.name, authorities)
                    channel = open_channel(target.gateway, credentials, token_of(target.name, tokens))
                    nodes.append(Node(target, await stack.enter_async_context(channel)))
                mesh_id = await form(nodes)
        except MeshError as error:
            _log.error("mesh_not_formed", code=error.code, message=error.message)
            return 1
        except TimeoutError:
            _log.error("mesh_not_formed", message=f"not within {DEADLINE_S:.0f} s; see the last line that says waiting")
            return 3
    _log.info("mesh_formed", mesh_id=mesh_id, nodes=[target.name for target in targets])
    return 0


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m form_mesh", description=__doc__)
    parser.add_argument("nodes", nargs="+", type=Target.parse, metavar="NAME=GATEWAY[,ADDRESS]")
    parser.add_argument("--authorities", type=Path, metavar="FOLDER", help="holds NAME/ca.crt: gateways speak TLS")
    parser.add_argument("--tokens", type=Path, metavar="FOLDER", help="holds NAME-operator-token: gateways ask for it")
    given = parser.parse_args()
    configure_logging("mesh-seed", given.nodes[0].name, "info")
    sys.exit(asyncio.run(run(given.nodes, given.authorities, given.tokens)))


if __name__ == "__main__":
    main()
