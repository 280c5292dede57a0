"""One member of the group whose members change, as a state machine for the product's driver.

Leaves out: who is a member and when (`membership`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mesh_data.core.group_leader import GroupLeader
from mesh_data.core.replica import ReplicaCore
from mesh_data.core.stream_snapshot import StreamConfig
from mesh_data.core.stream_state import StreamState
from meshcommon.ids import NO_NODE, MemberId
from meshraft import ENTRY_CONF_CHANGE, Entries, GroupConfig, Role
from meshraft.driver import RaftDriver
from meshraft.group import RaftGroup

GROUP: Final = 1
RAFT: Final = GroupConfig(election_ticks=10, heartbeat_ticks=2, quiesces=True)
CAUGHT_UP_ENTRIES: Final = 8
"""Fewer than in life, so that short runs meet members that lag."""


class Member:
    """A `StateMachine` that tells the run what it sees, and an `OpenReplica`."""

    def __init__(
        self,
        driver: RaftDriver,
        member: MemberId,
        config: StreamConfig,
        applied: Callable[[int, tuple[int, int, bytes], bytes], None],
        closed: Callable[[str, str], None],
    ) -> None:
        """The group is not open yet.

        Args:
            driver: the node's.
            member: its Raft id.
            config: of its stream.
            applied: told of each entry: its index, its term, kind and data, and the hash chain after it.
            closed: told why the host dropped the group.
        """
        self.member_id = member
        self.core = ReplicaCore(config)
        self.leader = GroupLeader()
        self.leader_node = NO_NODE
        self.stopped_because = ""
        self._applied = applied
        self._closed = closed
        self.group: RaftGroup[bytes, None] = RaftGroup(
            driver,
            GROUP,
            self,
            RAFT,
            overwritten=lambda: None,
            unknown=lambda _why: None,
            caught_up_entries=CAUGHT_UP_ENTRIES,
        )

    @property
    def state(self) -> StreamState:
        """The stream's state."""
        return self.core.state

    @property
    def is_formed(self) -> bool:
        """As of `OpenReplica`, like the next two."""
        return self.core.is_formed

    @property
    def is_sealed(self) -> bool:
        return self.core.state.is_sealed

    @property
    def members_out(self) -> tuple[MemberId, ...]:
        return self.leader.members_out

    @property
    def applied_index(self) -> int:
        """As of `StateMachine`, like all that follows."""
        return self.core.state.applied_index

    def install(self, index: int, data: bytes) -> None:
        self.core.restore(data, index)

    def apply_next(self, entries: Entries) -> None:
        entry = entries.take()
        self.core.apply(entry)
        if entry.kind == ENTRY_CONF_CHANGE:
            self.leader.look_again()
        self._applied(entry.index, (entry.term, entry.kind, bytes(entry.data)), self.state.chain)
        self.group.applied(entry.index, entry.index, entry.term, bytes(entry.data))

    def turn_ended(self) -> None:
        pass

    def role_changed(self, role: Role) -> None:
        self.core.role_changed()
        self.leader.role_changed()

    def closed(self, kind: str, reason: str) -> None:
        self._closed(kind, reason)


class Acknowledged:
    """Waits for one entry, and notes that its publisher was told."""

    def __init__(self, acknowledged: dict[int, bytes]) -> None:
        self._acknowledged = acknowledged

    def committed(self, index: int, _count: int, data: bytes) -> None:
        self._acknowledged[index] = data

    def failed(self, _count: int, _error: None) -> None:
        pass
