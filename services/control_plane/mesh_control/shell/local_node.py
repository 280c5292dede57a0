"""This node as its control plane holds it: key, place in the mesh, and the replica of the control group.

The one place that opens and closes the replica and writes `membership.bin`. Leaves out the order in which seeding,
joining and leaving go (`lifecycle`). Blocking file writes here are rare and small.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mesh_control.core.join_rules import policy_value
from mesh_control.core.mcg_state import McgState
from mesh_control.core.model import JoinPolicy, NodeState, Place
from mesh_control.core.timing import Timing
from mesh_control.core.versions import CA_VERSION, MESH_VERSION
from mesh_control.shell.ca_keys import WrapKey
from mesh_control.shell.changes import Changes
from mesh_control.shell.leadership import Leadership
from mesh_control.shell.mcg import Bootstrap, Mcg, SendFrame
from mesh_control.shell.mcg_store import McgStore
from mesh_control.shell.membership import MembershipFile
from meshapi.common.v1 import view_pb2
from meshapi.control.v1 import mcg_pb2
from meshapi.control.v1.membership_pb2 import Membership
from meshcommon.datadir import DataDir
from meshcommon.delegation import Grantor
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NO_NODE, MemberId, NodeId
from meshcommon.key_signer import KeySigner
from meshcommon.logging import get_logger
from meshraft import CLASS_CONTROL, RaftError, RaftHost

TRANSFER_S: Final = 0.5
FOUNDING_INDEX: Final = 1
_RAFT_DIR: Final = "raft"
_log = get_logger(__name__)


class LocalNode:
    """Identity, membership and replica of this node. One event loop only."""

    def __init__(
        self,
        name: str,
        peer_address: str,
        data_dir: DataDir,
        timing: Timing,
        send: SendFrame,
        now_ms: Callable[[], int],
        *,
        seed: int,
        supported: int = MESH_VERSION,
    ) -> None:
        """Opens what is on disk. `supported` is the highest mesh version that the software can apply.

        Raises:
            MeshError: DATA_DIR_FOREIGN, DATA_DIR_INCOMPLETE, DATA_DIR_UNWRITABLE, STORAGE_FAILED.
        """
        self.name = name
        self.peer_address = peer_address
        self.timing = timing
        self.supported = supported
        self.changed = Changes()
        self._data_dir = data_dir
        self._send = send
        self._now_ms = now_ms
        self.store = McgStore(
            data_dir.path / _RAFT_DIR, timing, lambda peer, payload: send(peer, CLASS_CONTROL, payload)
        )
        self._seed = seed
        self._file = MembershipFile(data_dir.path)
        self._membership = self._file.read()
        self._mcg: Mcg | None = None
        self._leadership: Leadership | None = None
        self._is_forgotten = False
        self._finish_leaving()
        self.identity = KeySigner.load_or_make(data_dir.path)
        self.wrap_key = WrapKey.load_or_make(data_dir.path)
        self._open()

    @property
    def membership(self) -> Membership | None:
        """What `membership.bin` says; None when the node is in no mesh."""
        return self._membership

    @property
    def node_id(self) -> NodeId:
        """Id of this node, 0 when it is in no mesh."""
        return NodeId(self._membership.node_id) if self._membership else NO_NODE

    @property
    def grantor(self) -> Grantor:
        """This node as it delegates keys now; without a mesh as long as it is in none."""
        view = self.view()
        if view is None:
            return Grantor(self.identity.public_key)
        return Grantor(self.identity.public_key, view.mesh_id, view.mesh_epoch, self.node_id)

    @property
    def now_s(self) -> float:
        """The wall clock, seconds since 1970."""
        return self._now_ms() / 1000

    @property
    def directory(self) -> Path:
        """Where the control plane keeps its files."""
        return self._data_dir.path

    def wrap_key_for(self, mesh_version: int) -> bytes:
        """This node's public wrap key as a mesh of that version takes it: none below the one that introduced it."""
        return self.wrap_key.public_key if mesh_version >= CA_VERSION else b""

    @property
    def is_leaving(self) -> bool:
        """Whether the node has left its mesh and only its own services remain to be told."""
        return self._membership is not None and self._membership.is_leaving

    @property
    def is_running(self) -> bool:
        """A member that was not stopped on purpose."""
        return self._membership is not None and self._membership.is_running

    @property
    def mcg(self) -> Mcg | None:
        """The replica, None when the node is in no mesh."""
        return self._mcg

    @property
    def revision(self) -> int:
        """Revision applied here, 0 before anything was."""
        return self._mcg.state.revision if self._mcg else 0

    @property
    def is_listed(self) -> bool:
        """Whether the state applied here contains this node."""
        return self._mcg is not None and self.node_id in self._mcg.state.nodes

    @property
    def is_received(self) -> bool:
        """Whether the state applied here says that this node was heard and counts."""
        mcg = self._mcg
        return mcg is not None and self.is_listed and mcg.state.nodes[self.node_id].state is not NodeState.JOINING

    @property
    def is_removed(self) -> bool:
        """Whether the state applied here, or a member that was asked, says that this node is no longer a member."""
        mcg, membership = self._mcg, self._membership
        if mcg is None or membership is None:
            return False
        if self._is_forgotten or not mcg.state.mesh_id:
            return self._is_forgotten
        return not self.is_listed and mcg.state.revision >= membership.first_view.revision

    def set_forgotten(self, is_forgotten: bool) -> None:
        """A member said that this node was forgotten; or the group is heard again."""
        if self._is_forgotten != is_forgotten:
            self._is_forgotten = is_forgotten
            self.changed.notify()

    @property
    def is_distrusted(self) -> bool:
        """Whether the log of the control group forgot what it confirmed, so that this node is silent in the group."""
        return self._mcg is not None and self.store.is_distrusted

    def known_peers(self) -> list[NodeId]:
        """The other nodes of the mesh, as far as known here: a founder that lost its log knows those that spoke to it."""
        view = self.view()
        listed = {NodeId(node.node_id) for node in view.nodes} if view else set()
        return sorted((listed | self.store.keeper.acquainted) - {self.node_id})

    def require_mcg(self) -> Mcg:
        """The replica, or NOT_A_MEMBER; UNAVAILABLE while it is replaced."""
        if self._mcg is None and self._membership is not None and not self._membership.is_leaving:
            raise MeshError(ErrorCode.UNAVAILABLE, "This node's replica of the control group is replaced: try again.")
        if self._mcg is None:
            raise MeshError(ErrorCode.NOT_A_MEMBER, "This node is in no mesh: seed one, or join one.")
        return self._mcg

    def require_leadership(self) -> Leadership:
        """The leader's duties, or NOT_A_MEMBER."""
        self.require_mcg()
        if self._leadership is None:
            raise MeshError(ErrorCode.NOT_A_MEMBER, "This node is in no mesh: seed one, or join one.")
        return self._leadership

    def view(self) -> view_pb2.MeshView | None:
        """The newest view known here; None when the node is in no mesh."""
        if self._membership is None or self._membership.is_leaving:
            return None
        first = self._membership.first_view
        if self._mcg is not None and self._mcg.state.mesh_id and self._mcg.state.revision >= first.revision:
            return self._mcg.state.view()
        return first

    def found(self, mesh_id: str, mesh_name: str, policy: JoinPolicy) -> None:
        """Becomes the first node of a new mesh. Raises ILLEGAL_NAME."""
        state = McgState()
        command = mcg_pb2.Command(stamp_ms=self._now_ms())
        command.found_mesh.mesh_id = mesh_id
        command.found_mesh.mesh_name = mesh_name
        command.found_mesh.join_policy = policy_value(policy)
        command.found_mesh.node.name = self.name
        command.found_mesh.node.public_key = self.identity.public_key
        command.found_mesh.node.peer_address = self.peer_address
        command.found_mesh.node.mesh_version = self.supported
        command.found_mesh.node.wrap_key = self.wrap_key_for(self.supported)
        refusal = state.apply(FOUNDING_INDEX, command).refusal
        if refusal is not None:
            raise refusal
        node = state.view().nodes[0]
        self.enter(
            Membership(
                mesh_id=mesh_id,
                node_id=node.node_id,
                mcg_member=node.mcg_member,
                is_running=True,
                is_founder=True,
                first_view=state.view(),
                founding_snapshot=state.snapshot(),
            )
        )

    def enter(self, membership: Membership) -> None:
        """Takes the place in a mesh, durably, and opens the replica."""
        self._write(membership)
        self._open()
        self.changed.notify()

    def set_running(self, is_running: bool) -> None:
        """Remembers, durably, whether the node should run."""
        if self._membership is None or self._membership.is_running == is_running:
            return
        updated = Membership()
        updated.CopyFrom(self._membership)
        updated.is_running = is_running
        self._write(updated)
        if self._mcg is not None:
            self._mcg.set_ticking(is_running)
        self.changed.notify()

    def mark_leaving(self) -> None:
        """Remembers, durably, that the removal is committed and only forgetting is left."""
        if self._membership is None:
            return
        updated = Membership()
        updated.CopyFrom(self._membership)
        updated.is_leaving = True
        updated.is_running = False
        self._write(updated)
        self.changed.notify()

    async def renew(self, member_id: MemberId) -> None:
        """Becomes another member of the control group, blank: the former one is over, and its log goes.

        Raises:
            MeshError: STORAGE_FAILED, DATA_DIR_UNWRITABLE.
        """
        if self._membership is None:
            return
        updated = Membership()
        updated.CopyFrom(self._membership)
        updated.mcg_member, updated.is_founder = member_id, False
        if (newest := self.view()) is not None:
            updated.first_view.CopyFrom(newest)
        await self._close()
        try:
            async with self.store.keeper.one_at_a_time:
                await asyncio.to_thread(self.store.forget_log)
        except OSError as error:
            raise MeshError(
                ErrorCode.STORAGE_FAILED, f"The log of the control group cannot be given up ({error}): check the disk."
            ) from error
        self._write(updated)
        self._open()
        self.changed.notify()

    async def _close(self) -> None:
        # Nobody may ask a replica that is closing.
        mcg, self._mcg, self._leadership = self._mcg, None, None
        if mcg is not None:
            await mcg.stop()
        self.store.keeper.close()

    async def forget(self) -> None:
        """Forgets the mesh: closes the replica, empties the data directory, makes a new key."""
        await self._close()
        self._clear()
        self._is_forgotten = False
        self.identity = KeySigner.load_or_make(self._data_dir.path)
        self.wrap_key = WrapKey.load_or_make(self._data_dir.path)
        self.changed.notify()

    def receive_raft(self, peer: NodeId, frame: bytes) -> None:
        """A Raft frame from a node; one that arrives before or after a membership is dropped."""
        if self._mcg is not None and self.store.takes(peer, frame):
            self._mcg.receive(peer, frame)

    async def transfer_leadership(self) -> None:
        """Gives the leadership away, if this node has it and another voter can take it, before the service stops."""
        mcg = self._mcg
        if mcg is None or not mcg.leader_view().is_leader:
            return
        configuration = mcg.configuration()
        heirs = sorted(configuration.voters & configuration.caught_up - {configuration.own})
        if heirs:
            mcg.transfer_leadership(heirs[0])
            await self.changed.wait_until(lambda: not mcg.leader_view().is_leader, TRANSFER_S)
        await self.store.keeper.farewell()

    async def run(self) -> None:
        """Drives the replica whenever there is one, and its store; until cancelled.

        Raises:
            MeshError: STORAGE_FAILED.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self.store.keeper.run(), name="mcg store")
            await self._run_replicas()

    async def _run_replicas(self) -> None:
        while True:
            mcg, leadership = self._mcg, self._leadership
            if mcg is None or leadership is None:
                await self.changed.wait()
                continue
            async with asyncio.TaskGroup() as group:
                duties = group.create_task(leadership.run(), name="mcg leadership")
                news = group.create_task(self._pass_on(mcg), name="mcg news")
                await mcg.run()
                duties.cancel()
                news.cancel()
            while self._mcg is mcg:
                await self.changed.wait()

    async def _pass_on(self, mcg: Mcg) -> None:
        while True:
            await mcg.changed.wait()
            self.store.keeper.written()
            self._follow(mcg)
            self._end_founding(mcg)
            self.changed.notify()

    def _follow(self, mcg: Mcg) -> None:
        if self._membership is not None:
            self.store.follow(self._membership.first_view, mcg.state, self.node_id)

    def _send_frame(self, peer: NodeId, frame_class: int, data: bytes) -> None:
        if self.store.may_send(peer):
            self._send(peer, frame_class, data)

    def _end_founding(self, mcg: Mcg) -> None:
        """The log holds more than the founding: if it is ever lost, the others have it, and founding anew would split the mesh."""
        if self._membership is None or not self._membership.is_founder or mcg.state.applied_index <= FOUNDING_INDEX:
            return
        updated = Membership()
        updated.CopyFrom(self._membership)
        updated.is_founder, updated.founding_snapshot = False, b""
        self._write(updated)

    def _finish_leaving(self) -> None:
        """Carries on from a crash in the middle of leaving: what is left of the old membership goes."""
        has_left = self._membership is None or self._membership.is_leaving
        is_bound = self._data_dir.marker.node_id != 0
        if has_left and (is_bound or (self._data_dir.path / _RAFT_DIR).exists()):
            _log.warning("leaving_finished", node_id=self._data_dir.marker.node_id)
            self._clear()

    def _clear(self) -> None:
        self._file.remove()
        self._data_dir.reset()
        self._membership = None

    def _write(self, membership: Membership) -> None:
        # The file first: a directory that is bound to a mesh without saying to which place could not be carried on from.
        self._file.write(membership)
        self._membership = membership
        self._data_dir.claim(membership.node_id, membership.mesh_id)

    def _open(self) -> None:
        membership = self._membership
        if membership is None:
            return
        self._data_dir.claim(membership.node_id, membership.mesh_id)
        first = membership.first_view
        place = Place(membership.mesh_id, NodeId(membership.node_id), MemberId(membership.mcg_member))
        host = _open_host(self._data_dir.path / _RAFT_DIR, self._seed)
        try:
            self.store.open(host.retirement() or "")
            host.forget_retirement()
        except (OSError, RaftError) as error:
            host.close()
            raise _not_opened(self._data_dir.path / _RAFT_DIR, error) from error
        bootstrap = Bootstrap(
            # A log that lost even the bootstrap of the mesh must not found it again.
            _founding_snapshot(membership) if membership.is_founder and not self.store.is_distrusted else b"",
            {node.mcg_member: node.node_id for node in first.nodes},
        )
        self._mcg = Mcg.open(
            host, place, bootstrap, self.timing, self._send_frame, self._now_ms, supported=self.supported
        )
        self._follow(self._mcg)
        self._mcg.set_ticking(membership.is_running)
        self._leadership = Leadership(self._mcg, self.timing)


def _open_host(path: Path, seed: int) -> RaftHost:
    try:
        path.mkdir(exist_ok=True)
        host = RaftHost.open(str(path), seed=seed)
    except (RaftError, OSError) as error:
        raise _not_opened(path, error) from error
    if damage := host.damage():
        _log.error("raft_log_damaged", damage=damage, effect="see docs/design/recovery.md")
    return host


def _not_opened(path: Path, error: Exception) -> MeshError:
    return MeshError(
        ErrorCode.STORAGE_FAILED,
        f"The log of the control group in {path} cannot be opened ({error}): check the disk; "
        "if the log is damaged, empty this service's data directory and join again.",
        {"path": str(path)},
    )


def _founding_snapshot(membership: Membership) -> bytes:
    """State of a mesh that has just been founded, as it is at index 1."""
    view = membership.first_view
    return (
        membership.founding_snapshot
        or mcg_pb2.McgSnapshot(
            applied_index=FOUNDING_INDEX,
            view=view,
            next_node_id=2,
            next_mcg_member=2,
            next_stream_id=1,
            next_member_id=1,
        ).SerializeToString()
    )
