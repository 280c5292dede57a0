"""What a member does for its stream's group: while it forms, for its members, at the end; over groups of the real driver."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mesh_data.core.group_leader import Attest, Campaign, Duty, GroupLeader, Seal
from mesh_data.core.stream_snapshot import StreamConfig
from mesh_data.core.stream_state import StreamState
from mesh_data.core.view import Member, Retiring, Stream, StreamPhase
from meshcommon.ids import MemberId, NodeId, StreamId
from meshraft import Entries, GroupConfig, RaftHost, Role, SimDisk
from meshraft.configuration import ConfChange
from meshraft.driver import RaftDriver
from meshraft.group import RaftGroup
from meshwire.entry import SealEntry, decode_entry

GROUP = 1
OWN = MemberId(11)
CONFIG = GroupConfig(election_ticks=10, heartbeat_ticks=2)
FORMING = Stream(
    StreamId(GROUP),
    "x/y",
    (Member(NodeId(1), OWN, is_voter=True),),
    StreamPhase.FORMING,
    revision=3,
    retained_bytes_max=0,
)
ACTIVE = replace(FORMING, state=StreamPhase.ACTIVE)
DELETING = replace(FORMING, state=StreamPhase.DELETING, revision=7)


class Lone:
    """A group of one voter, and its state."""

    def __init__(self) -> None:
        self.state = StreamState(StreamConfig.of(StreamId(GROUP), 0))
        self.leader = GroupLeader()
        self.disk = SimDisk()
        self.driver = RaftDriver(RaftHost.simulated(self.disk, seed=1), lambda _frame: None)
        self.group: RaftGroup[Any, None] = RaftGroup(
            self.driver, GROUP, self, CONFIG, overwritten=lambda: None, unknown=lambda _why: None
        )
        self.driver.host.create_group(
            GROUP, int(OWN), {int(OWN): 1}, voters=[int(OWN)], snapshot=self.state.snapshot(), config=CONFIG
        )
        self.group.join()

    @property
    def applied_index(self) -> int:
        return self.state.applied_index

    def install(self, _index: int, data: bytes) -> None:
        self.state = StreamState.restore(data)

    def apply_next(self, entries: Entries) -> None:
        entry = entries.take()
        self.state.skip(entry.index)
        self.group.applied(entry.index, entry.index, entry.term, None)

    def turn_ended(self) -> None:
        pass

    def role_changed(self, _role: Role) -> None:
        self.leader.role_changed()

    def closed(self, kind: str, reason: str) -> None:
        raise AssertionError((kind, reason))

    def settle(self) -> None:
        while self.driver.host.has_work() or self.disk.pending():
            self.driver.turn()
            self.disk.sync()

    def lead(self) -> None:
        self.driver.host.campaign(GROUP)
        self.settle()

    def look(self, stream: Stream) -> list[Duty]:
        return self.leader.look(stream, OWN, self.state, self.group, self.group.status())


def test_the_first_member_stands_at_birth_until_there_is_a_leader() -> None:
    lone = Lone()
    assert lone.look(FORMING) == [Campaign()]
    lone.lead()
    assert lone.look(FORMING) == []


def test_nobody_leads_a_group_that_has_formed_before_its_own_entry_is_applied() -> None:
    lone = Lone()
    assert lone.look(ACTIVE) == []
    assert not lone.leader.is_settled


def test_a_group_as_the_catalogue_wishes_is_settled_until_something_changes() -> None:
    lone = Lone()
    lone.lead()
    assert lone.look(ACTIVE) == []
    assert lone.leader.is_settled
    lone.leader.look_again()
    assert not lone.leader.is_settled


def test_a_newcomer_is_taken_in_and_the_change_witnessed() -> None:
    """G7: nothing is settled before an entry from after the change is committed."""
    lone = Lone()
    lone.lead()
    more = replace(ACTIVE, members=(*ACTIVE.members, Member(NodeId(2), MemberId(12), is_voter=False)))
    (step,) = lone.look(more)
    assert step == ConfChange("add_learner", 12, 2)
    assert lone.leader.change
    assert lone.group.take(step)
    lone.settle()
    assert lone.look(more) == [Attest()]
    assert not lone.leader.is_settled
    lone.group.propose_witness(lone.group.status())
    lone.settle()
    assert lone.look(more) == []
    assert lone.leader.is_settled


def test_who_is_out_is_told_only_with_the_revision_on_record() -> None:
    lone = Lone()
    lone.lead()
    goes = replace(ACTIVE, revision=5, retiring=(Retiring(NodeId(2), MemberId(12), 5, is_out=False),))
    assert lone.look(goes) == [ConfChange("remove", 12, 2)]
    assert not lone.leader.members_out
    lone.state.reconfigured(lone.state.applied_index, 5)
    assert lone.look(goes) == []
    assert lone.leader.members_out == (12,)
    lone.leader.role_changed()
    assert not lone.leader.members_out


def test_a_deleted_stream_is_sealed_once_in_a_leadership() -> None:
    lone = Lone()
    lone.lead()
    (duty,) = lone.look(DELETING)
    assert isinstance(duty, Seal)
    assert decode_entry(duty.entry) == SealEntry(7)
    assert lone.look(DELETING) == [duty]  # it was not appended: it is asked for again
    lone.leader.sealing()
    assert lone.look(DELETING) == []
    lone.leader.role_changed()
    assert lone.look(DELETING) == [duty]
    assert lone.look(replace(DELETING, is_sealed=True)) == []
