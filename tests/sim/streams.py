"""The stream groups of a simulated node: the data plane's cores carried out on a simulated disk, without asyncio.

`ReplicaLife` says which replicas there are, `ReplicaCore` what each of them holds, `GroupLeader` what its leader does. Leaves
out: how a group gets its turns (`raft_host`), checkpoints on the node's own disk: a restart replays from the floor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import Any, Final

from mesh_control.core import confirmations
from mesh_control.core.model import Stream as Listed
from mesh_data.core.group_leader import Attest, Campaign, Duty, GroupLeader, Seal
from mesh_data.core.replica import REVISION, ReplicaCore
from mesh_data.core.replica_life import (
    Close,
    Create,
    Destroy,
    Distrust,
    Follow,
    Identify,
    LeaveAlone,
    OpenStored,
    ReplicaLife,
    Step,
)
from mesh_data.core.replica_report import ReplicaState, Report
from mesh_data.core.stream_snapshot import StreamConfig
from mesh_data.core.stream_state import FIRST_INDEX, Result, StreamState
from mesh_data.core.view import Stream, StreamPhase, View
from meshcommon.ids import NO_NODE, MemberId, NodeId, StreamId
from meshraft import (
    ENTRY_CONF_CHANGE,
    Backpressure,
    Committed,
    GroupConfig,
    GroupStatus,
    NotLeader,
    RaftError,
    RaftHost,
    Role,
)
from meshraft.configuration import ConfChange, Transfer
from meshraft.group import RaftGroup
from meshtest.checkers import Held
from meshwire.records import decode_records
from tests.sim.raft_host import SimulatedHost

RETAINED_BYTES: Final = 3_000
CHECKPOINT_BYTES: Final = 600
RAFT: Final = GroupConfig(election_ticks=12, heartbeat_ticks=2, quiesces=True)
LOOK_TICKS: Final = 3
_SAID: Final = {ReplicaState.OPEN: "open", ReplicaState.SEALED: "sealed", ReplicaState.DESTROYED: "destroyed"}
_READ_BYTES_MAX: Final = 1 << 30


def config_of(stream_id: StreamId) -> StreamConfig:
    """Two streams of three retain so little that their floors move within a run."""
    if stream_id % 3 == 0:
        return StreamConfig.of(stream_id, 0)
    return StreamConfig(stream_id, RETAINED_BYTES, CHECKPOINT_BYTES)


def identity_of(value: bytes) -> tuple[int, int]:
    """(producer, sequence) that a simulated record's value names."""
    producer, sequence, *_ = value.split(b":")
    return int(producer), int(sequence)


class SimReplica:
    """One open replica, rebuilt from the disk after each restart; the `Machine` of its group."""

    def __init__(self, owner: Streams, raft: RaftHost, stream: Stream, member_id: MemberId) -> None:
        self.stream = stream
        self.member_id = member_id
        self.group = int(stream.stream_id)
        self.core = ReplicaCore(config_of(stream.stream_id))
        self.leader = GroupLeader()
        self.leader_node = NO_NODE
        self.stopped_because = ""
        self._owner = owner
        self._raft = raft

    @property
    def state(self) -> StreamState:
        """The stream's state."""
        return self.core.state

    @property
    def is_formed(self) -> bool:
        """As of `OpenReplica`."""
        return self.core.is_formed

    @property
    def is_sealed(self) -> bool:
        """As of `OpenReplica`."""
        return self.core.state.is_sealed

    @property
    def members_out(self) -> tuple[MemberId, ...]:
        """As of `OpenReplica`."""
        return self.leader.members_out

    @property
    def applied_index(self) -> int:
        """Index of the last entry that was applied."""
        return self.core.state.applied_index

    def restore(self, index: int, data: bytes) -> None:
        """A snapshot: the first state, the stored one, or the leader's."""
        self.core.restore(data, index)
        self._owner.restored(self.group, index)

    def apply(self, entry: Committed) -> Result | None:
        """Applies one committed entry, and compacts the log when that moved the floor."""
        self._owner.are_reports_due |= not self.is_formed or self.stream.state is StreamPhase.DELETING
        result = self.core.apply(entry)
        if entry.kind == ENTRY_CONF_CHANGE:
            self.leader.look_again()
        if (compaction := self.core.take_compaction()) is not None:
            self._raft.compact(self.group, compaction.index, compaction.snapshot)
        self._owner.on_applied(self.group, entry.index, hashlib.sha256(self.core.state.snapshot()).hexdigest())
        return result

    def role_changed(self, role: Role) -> None:
        """Raft says who leads."""
        self.core.role_changed()
        self.leader.role_changed()
        self.leader_node = self.stream.node_of(MemberId(role.leader))
        self._owner.are_reports_due = True

    def read(self, offset: int) -> list[Held]:
        """Records from `offset` on, which is not below the floor, as the log has them now."""
        at = self.core.index.locate(offset)
        if at.index > self.applied_index:
            return []
        entries = self._raft.entries(self.group, at.index, self.applied_index + 1, _READ_BYTES_MAX)
        return [
            Held(found.base_offset + number, record.value, identity_of(record.value))
            for found, _ in self.core.batches(entries, at)
            if found is not None
            for number, record in enumerate(decode_records(found.batch))
            if found.base_offset + number >= offset
        ]


class Streams:
    """All stream groups of one node, between two crashes."""

    def __init__(
        self,
        host: SimulatedHost,
        node: int,
        view: View | None,
        disowned: set[int],
        on_applied: Callable[[int, int, str], None],
        on_restored: Callable[[int, int], None],
        on_destroy: Callable[[int, int], None],
    ) -> None:
        """Opens what the node holds by its last `view`.

        Args:
            host: of the node's data disk.
            node: the node.
            view: the last one of the life before, which the data plane keeps on its disk.
            disowned: groups whose data on that disk are not counted on; kept there as well.
            on_applied: hears of every entry: group, index, hash of the state.
            on_restored: hears of every snapshot but the first state: group and index.
            on_destroy: hears of every open replica that is destroyed, before: group and member.
        """
        self.replicas: dict[int, SimReplica] = {}
        self.view = view
        self._host = host
        self._node = NodeId(node)
        self._disowned = disowned
        self._life = ReplicaLife()
        self.on_applied = on_applied
        self._on_restored = on_restored
        self._on_destroy = on_destroy
        self._ticks = 0
        self.are_reports_due = True
        """Whether something happened that a report may tell; the owner clears it."""
        if host.raft.retirement() is not None:
            # What is stored was damaged, and what should be stored may have been lost: the store is given up.
            held = view.streams.values() if view is not None else ()
            disowned |= {int(stream.stream_id) for stream in held if stream.is_held_by(self._node)}
            disowned |= set(host.raft.stored_groups())
            host.raft.forget_retirement()
        if view is not None:
            self.follow(view)

    # Catalogue

    def follow(self, view: View) -> None:
        """Carries out what the catalogue asks of this node; an older view than the last one is passed over."""
        if self.view is not None and view.revision < self.view.revision:
            return
        self.view = view
        stored = set(self._host.raft.stored_groups())
        distrust = Distrust(set(self._disowned), "the log was damaged before its last write")
        for step in self._life.follow(view.streams, self._node, stored, distrust):
            self._carry_out(step)
        self.are_reports_due = True

    def reports(self) -> tuple[Report, ...]:
        """What the node's control plane is told."""
        return self._life.reports({StreamId(group): replica for group, replica in self.replicas.items()})

    def _carry_out(self, step: Step) -> None:
        raft = self._host.raft
        match step:
            case Create() | OpenStored():
                self._open(step)
            case Identify(stream, former):
                for following in self._life.identified(step, identify(raft, int(stream.stream_id), former)):
                    self._carry_out(following)
            case Follow(stream):
                replica = self.replicas[int(stream.stream_id)]
                if stream != replica.stream:
                    raft.set_peers(replica.group, stream.homes())
                    replica.stream = stream
                    replica.leader.look_again()
            case Close(stream):
                self._host.close(int(stream.stream_id))
                del self.replicas[int(stream.stream_id)]
            case Destroy(stream, is_stored):
                group = int(stream.stream_id)
                if (former_replica := self.replicas.pop(group, None)) is not None:
                    self._on_destroy(group, int(former_replica.member_id))
                if is_stored:
                    self._host.destroy(group)
                self._disowned.discard(group)
            case LeaveAlone():
                pass

    def _open(self, step: Create | OpenStored) -> None:
        stream, member, raft = step.stream, int(step.member_id), self._host.raft
        replica = SimReplica(self, raft, stream, step.member_id)
        self.replicas[replica.group] = replica
        self._host.add(replica.group, replica, RAFT)
        peers = stream.homes()
        if isinstance(step, OpenStored):
            installed = raft.open_group(replica.group, member, peers, config=RAFT)
            if installed.index:
                replica.restore(installed.index, installed.data)
        elif step.is_blank:
            raft.create_group(replica.group, member, peers, voters=[], config=RAFT)
        else:
            first = first_state(config_of(stream.stream_id))
            raft.create_group(replica.group, member, peers, **founders(stream), snapshot=first, config=RAFT)
            replica.restore(FIRST_INDEX, first)

    # Turns

    def restored(self, group: int, index: int) -> None:
        """A replica took a snapshot."""
        self.are_reports_due = True
        if index > FIRST_INDEX:
            self._on_restored(group, index)

    def tick(self) -> None:
        """Looks after the groups that are led or born here."""
        self._ticks += 1
        for replica in list(self.replicas.values()):
            is_leading = self._host.is_leading(replica.group)
            if is_leading and (floor := replica.core.floor_entry()) is not None:
                index, entry = floor
                if self._host.propose(replica.group, entry, lambda _result: None):
                    replica.core.floor_was_proposed(index)
            is_due = replica.stream.state is StreamPhase.FORMING or (is_leading and not replica.leader.is_settled)
            if is_due and self._ticks % LOOK_TICKS == 0:
                self._look(replica)

    def _look(self, replica: SimReplica) -> None:
        leader, group = replica.leader, self._host.driver.groups[replica.group]
        before, status = leader.members_out, group.status()
        for duty in leader.look(replica.stream, replica.member_id, replica.state, group, status):
            if not isinstance(duty, Seal):
                take(group, status, duty, replica.stream.revision)
            elif self._host.propose(replica.group, duty.entry, lambda _result: None):
                leader.sealing()
        self.are_reports_due |= leader.members_out != before


def take(group: RaftGroup[Any, Any], status: GroupStatus, duty: Duty, revision: int) -> bool:
    """Carries out a duty but a seal; false when it cannot be now."""
    try:
        match duty:
            case ConfChange() | Transfer():
                return group.take(duty, REVISION.pack(revision))
            case Attest():
                group.propose_witness(status)
            case Campaign():
                group.host.campaign(group.group)
    except (Backpressure, NotLeader):
        return False
    return True


def first_state(config: StreamConfig) -> bytes:
    """What all initial members of a group start from."""
    return StreamState(config).snapshot()


def founders(stream: Stream) -> dict[str, list[int]]:
    """Those members, as `create_group` wants them."""
    voters = [int(item.member_id) for item in stream.members if item.is_voter]
    return {"voters": voters, "learners": [int(item.member_id) for item in stream.members if not item.is_voter]}


def identify(raft: RaftHost, group: int, former: AbstractSet[MemberId]) -> MemberId | None:
    """As the data plane's `group_opening.identify`."""
    for member in sorted(former):
        with suppress(RaftError):
            raft.open_group(group, int(member), {}, config=RAFT)
            return member
    return None


def said(report: Report) -> confirmations.Report:
    """A report as it reaches the node's control plane."""
    return confirmations.Report(
        _SAID.get(report.state, "other"),
        report.leader_node,
        report.reason,
        report.member_id,
        report.members_out,
        report.is_distrusted,
    )


def is_needed(stream: Listed | None, member: int) -> bool:
    """Whether the data of a member must not go: by the catalogue its group has neither removed it nor sealed itself (G3)."""
    if stream is None or stream.is_sealed:
        return False
    ending = {it.member_id for it in stream.retiring if not it.is_out}
    return member in ending | {it.member_id for it in stream.members}
