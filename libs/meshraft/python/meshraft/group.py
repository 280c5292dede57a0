"""One member of one group, as its node drives it: role, terms, proposals, read points, steps of the configuration.

A state machine makes something of the entries; this is everything about a group that does not depend on what that is. Leaves out:
the order of a turn (`driver`), opening and closing the group, which step is the next. Source: architecture §7.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

from meshraft import Entries, GroupConfig, GroupStatus, Installed, Role
from meshraft.configuration import CAUGHT_UP_ENTRIES, ConfChange, Configuration, Transfer, Witness, configuration_of
from meshraft.driver import RaftDriver
from meshraft.proposals import Key, Proposals, Waiter
from meshraft.read_points import ReadAnswer, ReadPoints

R = TypeVar("R")
E = TypeVar("E")

HEARTBEATS_TO_LEARN: Final = 3
"""A member that does not know of its vote yet ignores that it should lead, which would block the group for a while."""


class StateMachine(Protocol):
    """What a group replicates, at this node. The driver calls it, in the order of `RaftDriver.turn`."""

    @property
    def applied_index(self) -> int:
        """Index of the last entry that it has applied."""

    def install(self, index: int, data: bytes) -> None:
        """A snapshot of the leader's, which stands for everything up to `index`, replaces the state."""

    def apply_next(self, entries: Entries) -> None:
        """Takes at least one of the entries at the front, all of this group; tells `RaftGroup.applied` of them."""

    def turn_ended(self) -> None:
        """After the last entry of a turn that had some for this group."""

    def role_changed(self, role: Role) -> None:
        """Leadership or term changed; the group knows already."""

    def closed(self, kind: str, reason: str) -> None:
        """The host dropped the group; `kind` is one of `Pump.closed`."""


class RaftGroup(Generic[R, E]):
    """A group of one host. `R` is what the state machine makes of entries, `E` what a waiter is told instead."""

    def __init__(
        self,
        driver: RaftDriver,
        group: int,
        machine: StateMachine,
        config: GroupConfig,
        *,
        overwritten: Callable[[], E],
        unknown: Callable[[str], E],
        caught_up_entries: int = CAUGHT_UP_ENTRIES,
    ) -> None:
        """The group need not be open yet: see `join`.

        Args:
            driver: the driver of its host.
            group: its id.
            machine: what the group replicates.
            config: how the group is opened; `config` of `create_group` and `open_group`.
            overwritten: as of `Proposals`.
            unknown: as of `Proposals`.
            caught_up_entries: how far behind the commit index a member may be that counts as caught up.
        """
        self.driver = driver
        self.host = driver.host
        self.group = group
        self.machine = machine
        self.config = config
        self.proposals: Proposals[R, E] = Proposals(overwritten, unknown)
        self.read_points = ReadPoints(driver.host, group)
        self.role = "follower"
        self.term = 0
        """Of the last change of role; 0 before the first."""
        self.leader = 0
        """Member that leads; 0 if unknown."""
        self.applied_term = 0
        """Term of the last entry that was applied here since the group was opened."""
        self.term_begins_at = 0
        """Index of the first entry of that term."""
        self.witness = Witness()
        """Of the last change of members, where this member leads."""
        self._caught_up_entries = caught_up_entries
        self._transfer_at_ticks = 0

    @property
    def is_leading(self) -> bool:
        """Whether this member leads, as far as it knows."""
        return self.role == "leader"

    def status(self) -> GroupStatus:
        """The group now. Raises RaftError."""
        return self.host.status(self.group)

    # For the driver

    def installed(self, snapshot: Installed) -> None:
        """The leader's snapshot replaces the state; what was proposed before may be in it or not."""
        self.machine.install(snapshot.index, snapshot.data)
        if self.proposals:
            self.proposals.jumped_over()

    def role_changed(self, role: Role) -> None:
        """Raft says who leads."""
        self.role, self.term, self.leader = role.role, role.term, role.leader
        self.machine.role_changed(role)

    def join(self) -> None:
        """The group is open, or about to be: the driver's turns are for it too."""
        self.driver.groups[self.group] = self

    def close(self, error: E) -> None:
        """The group is closed, here or by the host: nothing more comes, and everybody who waits is told."""
        if self.driver.groups.get(self.group) is self:
            del self.driver.groups[self.group]
        self.role, self.leader = "follower", 0
        self.proposals.fail(error)
        self.read_points.close()

    # For the state machine

    def applied(self, first: int, last: int, term: int, result: R) -> None:
        """The entries from `first` to `last`, all of `term`, were applied and came to `result`."""
        if term != self.applied_term:
            self.applied_term, self.term_begins_at = term, first
        if self.proposals:
            self.proposals.decide(first, last, term, result)

    # Proposing

    def propose(self, data: bytes, waiter: Waiter[R, E], key: Key | None = None) -> None:
        """Appends an entry here; the waiter is told later. Raises RaftError, as `RaftHost.propose`."""
        term, index = self.host.propose(self.group, data)
        self.proposed(term, index, len(data), waiter, 1, key)

    def proposed(
        self, term: int, index: int, size_bytes: int, waiter: Waiter[R, E], count: int = 1, key: Key | None = None
    ) -> None:
        """The host took `count` entries, the first at `index`; the waiter is told what becomes of them."""
        self.driver.wake()
        self.proposals.add(term, index, size_bytes, waiter, count, key)

    def ask_read_point(self, now: float, answer: ReadAnswer) -> int:
        """As `ReadPoints.ask`. Raises RaftError."""
        token = self.read_points.ask(now, answer)
        self.driver.wake()
        return token

    # Members

    def configuration(self, status: GroupStatus) -> Configuration:
        """The configuration as this member, which leads, sees it."""
        begins_at = self.term_begins_at if self.applied_term == status.term else None
        return configuration_of(status, begins_at, self.witness, self.config.election_ticks, self._caught_up_entries)

    def take(self, step: ConfChange | Transfer, context: bytes = b"") -> bool:
        """Proposes a change, or asks a voter to lead; false when it is too early for the latter.

        Raises:
            Backpressure: another change is under way.
            NotLeader: this member does not lead, or gives the leadership away already.
        """
        if isinstance(step, Transfer):
            if self.driver.ticks < self._transfer_at_ticks:
                return False
            self.transfer(step.member)
        else:
            self.host.propose_conf_change(self.group, step.change, step.member, step.node, context)
            self._transfer_at_ticks = self.driver.ticks + HEARTBEATS_TO_LEARN * self.config.heartbeat_ticks
            self.driver.wake()
        return True

    def transfer(self, member: int) -> None:
        """Asks a voter to lead, at once. Raises NotLeader; ValueError when it has no vote."""
        self.host.transfer_leader(self.group, member)
        # Not again before an election could be over: meanwhile the group takes no proposals.
        self._transfer_at_ticks = self.driver.ticks + 2 * self.config.election_ticks
        self.driver.wake()

    def propose_witness(self, status: GroupStatus) -> None:
        """Proposes the witness of the last change where this leadership has not done so. Raises NotLeader, Backpressure."""
        if self.witness.is_for(status.term, status.conf_index):
            return
        term, index = self.host.propose(self.group, b"")
        self.witness = Witness(term, status.conf_index, index)
        self.driver.wake()
