"""Commands of the MCG in short, and applying them to a state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from mesh_control.core.mcg_state import McgState, Result
from meshapi.control.v1 import mcg_pb2
from meshcommon.errors import MeshError

MESH_ID: Final = "6f0d6c52-0000-4000-8000-000000000001"


def key(number: int) -> bytes:
    return bytes([number]) * 32


def found(name: str = "a") -> mcg_pb2.Command:
    command = mcg_pb2.Command(stamp_ms=1000)
    command.found_mesh.mesh_id = MESH_ID
    command.found_mesh.node.name = name
    command.found_mesh.node.public_key = key(1)
    return command


def renew(node_id: int, **fields: Any) -> mcg_pb2.Command:
    return mcg_pb2.Command(renew_member=mcg_pb2.RenewMember(node_id=node_id), **fields)


def add(name: str, number: int, address: str = "", **fields: Any) -> mcg_pb2.Command:
    node = mcg_pb2.AddNode(name=name, public_key=key(number), peer_address=address)
    return mcg_pb2.Command(add_node=node, **fields)


def activate(node_id: int) -> mcg_pb2.Command:
    return mcg_pb2.Command(activate_node=mcg_pb2.ActivateNode(node_id=node_id))


def expire(node_id: int, **fields: Any) -> mcg_pb2.Command:
    return mcg_pb2.Command(expire_node=mcg_pb2.ExpireNode(node_id=node_id), **fields)


def forget(node_id: int, *, risk: bool = False) -> mcg_pb2.Command:
    return mcg_pb2.Command(forget_node=mcg_pb2.ForgetNode(node_id=node_id, accept_risk=risk))


def announce(node_id: int, version: int) -> mcg_pb2.Command:
    return mcg_pb2.Command(announce_version=mcg_pb2.AnnounceVersion(node_id=node_id, mesh_version=version))


def raise_version(version: int) -> mcg_pb2.Command:
    return mcg_pb2.Command(raise_mesh_version=mcg_pb2.RaiseMeshVersion(mesh_version=version))


def remove(node_id: int) -> mcg_pb2.Command:
    return mcg_pb2.Command(remove_node=mcg_pb2.RemoveNode(node_id=node_id))


def reach(node_id: int, is_reachable: bool) -> mcg_pb2.Command:
    change = mcg_pb2.SetReachability(node_id=node_id, is_reachable=is_reachable)
    return mcg_pb2.Command(set_reachability=change)


def set_state(node_id: int, state: int) -> mcg_pb2.Command:
    command = mcg_pb2.Command()
    command.set_node_state.node_id = node_id
    command.set_node_state.state = state  # type: ignore[assignment]
    return command


def create(name: str, members: list[int], retained: int = 0, **fields: Any) -> mcg_pb2.Command:
    stream = mcg_pb2.CreateStream(name=name, node_ids=members, retained_bytes_max=retained)
    return mcg_pb2.Command(create_stream=stream, **fields)


def formed(stream_id: int) -> mcg_pb2.Command:
    return mcg_pb2.Command(stream_formed=mcg_pb2.StreamFormed(stream_id=stream_id))


def delete(stream_id: int) -> mcg_pb2.Command:
    return mcg_pb2.Command(delete_stream=mcg_pb2.DeleteStream(stream_id=stream_id))


def destroyed(stream_id: int, node_id: int, member_id: int = 0) -> mcg_pb2.Command:
    confirmed = mcg_pb2.ReplicaDestroyed(stream_id=stream_id, node_id=node_id, member_id=member_id)
    return mcg_pb2.Command(replica_destroyed=confirmed)


def sealed(stream_id: int) -> mcg_pb2.Command:
    return mcg_pb2.Command(stream_sealed=mcg_pb2.StreamSealed(stream_id=stream_id))


def out(stream_id: int, member_id: int) -> mcg_pb2.Command:
    return mcg_pb2.Command(member_out=mcg_pb2.MemberOut(stream_id=stream_id, member_id=member_id))


def change(
    stream_id: int,
    add: Sequence[int] = (),
    remove: Sequence[int] = (),
    renew: Sequence[int] = (),
    *,
    risk: bool = False,
) -> mcg_pb2.Command:
    members = mcg_pb2.ChangeMembers(
        stream_id=stream_id, add_nodes=add, remove_nodes=remove, renew_members=renew, accept_risk=risk
    )
    return mcg_pb2.Command(change_members=members)


def apply(state: McgState, command: mcg_pb2.Command) -> Result:
    return state.apply(state.applied_index + 1, command)


def accept(state: McgState, command: mcg_pb2.Command) -> int:
    result = apply(state, command)
    assert result.refusal is None, result.refusal
    return result.allocated_id


def grow(state: McgState, names: str, first_number: int = 2) -> list[int]:
    """Admits a node for each letter, and has it heard."""
    node_ids = [accept(state, add(name, number)) for number, name in enumerate(names, first_number)]
    for node_id in node_ids:
        accept(state, activate(node_id))
    return node_ids


def refusal(state: McgState, command: mcg_pb2.Command) -> MeshError:
    """The refusal, after which nothing but index and time may have changed."""
    before = state.view().SerializeToString(deterministic=True)
    result = apply(state, command)
    assert result.refusal is not None
    assert state.view().SerializeToString(deterministic=True) == before
    return result.refusal
