"""A node's replicas under any order of catalogue changes, late views, crashes and failures: L1 to L5 of docs/design/groups.md."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

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
from mesh_data.core.replica_report import ReplicaState
from mesh_data.core.view import Member, Retiring, Stream, StreamPhase
from meshcommon.ids import NO_NODE, MemberId, NodeId, StreamId
from meshtest.effort import scaled

HERE, ELSEWHERE = NodeId(1), NodeId(2)
IDS = (StreamId(1), StreamId(2))
UNKNOWN = 9
"""A group that is stored and that no catalogue names."""


def stream(
    *members: tuple[NodeId, int],
    state: StreamPhase = StreamPhase.ACTIVE,
    retiring: tuple[Retiring, ...] = (),
    is_sealed: bool = False,
    stream_id: StreamId = IDS[0],
) -> Stream:
    listed = tuple(Member(node, MemberId(member), is_voter=True) for node, member in members)
    return Stream(stream_id, f"x/{stream_id}", listed, state, 1, 0, retiring, is_sealed)


def follow(life: ReplicaLife, one: Stream, *stored: int, distrusted: bool = False) -> list[Step]:
    distrust = Distrust([int(one.stream_id)] if distrusted else [], "rolled back")
    return life.follow({one.stream_id: one}, HERE, set(stored), distrust)


@dataclass
class Speaker:
    """An open replica, as the reports want it."""

    member_id: MemberId
    is_formed: bool = True
    is_sealed: bool = False
    leader_node: NodeId = NO_NODE
    members_out: tuple[MemberId, ...] = ()
    stopped_because: str = ""


def test_a_new_stream_begins_with_its_first_state_and_a_formed_one_blank() -> None:
    forming = stream((HERE, 11), state=StreamPhase.FORMING)
    assert follow(ReplicaLife(), forming) == [Create(forming, MemberId(11), is_blank=False)]
    formed = stream((HERE, 11))
    assert follow(ReplicaLife(), formed) == [Create(formed, MemberId(11), is_blank=True)]


def test_a_stored_group_is_opened_and_then_follows_the_catalogue() -> None:
    life, one = ReplicaLife(), stream((HERE, 11))
    assert follow(life, one, 1) == [OpenStored(one, MemberId(11))]
    assert follow(life, one, 1) == [Follow(one)]


def test_data_that_the_view_does_not_name_are_left_alone() -> None:
    """L3."""
    life, elsewhere = ReplicaLife(), stream((ELSEWHERE, 12))
    steps = follow(life, elsewhere, 1, UNKNOWN)
    assert [type(step) for step in steps] == [LeaveAlone, LeaveAlone]
    assert life.reports({}) == ()


def test_a_deleted_stream_waits_for_its_seal_and_is_confirmed_until_the_tombstone_goes() -> None:
    life, one = ReplicaLife(), stream((HERE, 11))
    follow(life, one)
    deleting = replace(one, state=StreamPhase.DELETING)
    assert follow(life, deleting, 1) == [Follow(deleting)]
    sealed = replace(deleting, is_sealed=True)
    assert follow(life, sealed, 1) == [Destroy(sealed, is_stored=True)]
    assert follow(life, sealed) == []
    assert [report.state for report in life.reports({})] == [ReplicaState.DESTROYED]
    life.follow({}, HERE, set(), Distrust())
    assert life.reports({}) == ()


def test_a_membership_that_retires_before_it_began_here_does_not_begin() -> None:
    retires = Retiring(HERE, MemberId(11), 2, is_out=False)
    steps = follow(ReplicaLife(), stream((ELSEWHERE, 12), retiring=(retires,)))
    assert [type(step) for step in steps] == [LeaveAlone]


def test_a_successor_begins_when_its_predecessor_is_out_and_gone() -> None:
    life, one = ReplicaLife(), stream((HERE, 11))
    follow(life, one)
    waiting = stream((HERE, 21), retiring=(Retiring(HERE, MemberId(11), 2, is_out=False),))
    assert follow(life, waiting, 1) == [Follow(waiting)]
    out = stream((HERE, 21), retiring=(Retiring(HERE, MemberId(11), 2, is_out=True),))
    assert follow(life, out, 1) == [Destroy(out, is_stored=True), Create(out, MemberId(21), is_blank=True)]
    assert follow(life, out, 1) == [Follow(out)]
    assert [it.member_id for it in life.reports({IDS[0]: Speaker(MemberId(21))})] == [21]


def test_after_a_restart_it_is_found_out_whose_data_are_stored() -> None:
    out = stream((HERE, 21), retiring=(Retiring(HERE, MemberId(11), 2, is_out=True),))
    for owner, steps in (
        (MemberId(11), [Destroy(out, is_stored=True), Create(out, MemberId(21), is_blank=True)]),
        (None, [OpenStored(out, MemberId(21))]),
    ):
        life = ReplicaLife()
        asked = Identify(out, frozenset({MemberId(11)}))
        assert follow(life, out, 1) == [asked]
        assert life.identified(asked, owner) == steps


def test_a_distrusted_replica_closes_and_says_so() -> None:
    """L5."""
    life, one = ReplicaLife(), stream((HERE, 11))
    follow(life, one)
    steps = follow(life, one, 1, distrusted=True)
    assert [type(step) for step in steps] == [Close, LeaveAlone]
    report = life.reports({IDS[0]: Speaker(MemberId(11))})[0]
    assert (report.state, report.is_distrusted, report.member_id) == (ReplicaState.FAILED, True, 11)
    out = stream((HERE, 21), retiring=(Retiring(HERE, MemberId(11), 2, is_out=True),))
    steps = follow(life, out, 1, distrusted=True)  # the successor on this disk is a good one
    assert steps == [Destroy(out, is_stored=True), Create(out, MemberId(21), is_blank=True)]


def test_a_failed_replica_stays_closed_until_the_log_is_opened_again() -> None:
    life, one = ReplicaLife(), stream((HERE, 11))
    follow(life, one)
    life.fail(IDS[0], "bad sector")
    assert follow(life, one, 1) == [LeaveAlone(IDS[0], "bad sector")]
    life.close_all()
    assert follow(life, one, 1) == [OpenStored(one, MemberId(11))]


def test_when_the_log_fails_nothing_is_distrusted_for_it() -> None:
    life = ReplicaLife()
    life.follow({it: stream((HERE, 10 + it), stream_id=it) for it in IDS}, HERE, set(), Distrust())
    life.fail(IDS[0], "lost what it had confirmed", is_distrusted=True)
    life.fail_all("EIO")
    assert {(it.state, it.reason, it.is_distrusted) for it in life.reports({})} == {(ReplicaState.FAILED, "EIO", False)}


@dataclass
class Catalogue:
    """The truth: what the control group has committed."""

    streams: dict[StreamId, Stream] = field(default_factory=dict)
    next_member: int = 10

    def member(self) -> MemberId:
        self.next_member += 1
        return MemberId(self.next_member)


class Life(RuleBasedStateMachine):
    """One node, its disk, and the catalogue; views come late but never go back."""

    def __init__(self) -> None:
        super().__init__()
        self.catalogue = Catalogue()
        self.view: dict[StreamId, Stream] = {}
        self.disk: dict[int, MemberId] = {UNKNOWN: MemberId(5)}
        self.life = ReplicaLife()
        self.running: dict[int, MemberId] = {}
        self.distrusted: set[int] = set()
        self.out_or_sealed: set[MemberId] = set()

    ids = st.sampled_from(IDS)

    def change(self, stream_id: StreamId, **changes: object) -> None:
        self.catalogue.streams[stream_id] = replace(self.catalogue.streams[stream_id], **changes)  # type: ignore[arg-type]

    @rule(stream_id=ids)
    def create(self, stream_id: StreamId) -> None:
        if stream_id not in self.catalogue.streams and int(stream_id) not in self.disk:
            members = (HERE, self.catalogue.member()), (ELSEWHERE, self.catalogue.member())
            self.catalogue.streams[stream_id] = stream(*members, state=StreamPhase.FORMING, stream_id=stream_id)

    @rule(stream_id=ids)
    def form(self, stream_id: StreamId) -> None:
        one = self.catalogue.streams.get(stream_id)
        if one is not None and one.state is StreamPhase.FORMING:
            self.change(stream_id, state=StreamPhase.ACTIVE)

    @rule(stream_id=ids, is_wished=st.booleans())
    def change_members(self, stream_id: StreamId, is_wished: bool) -> None:
        """Retires what is here, if something is; wishes a new membership or none."""
        one = self.catalogue.streams.get(stream_id)
        if one is None or one.state is not StreamPhase.ACTIVE or any(it.node_id == HERE for it in one.retiring):
            return
        here, others = one.member_at(HERE), tuple(it for it in one.members if it.node_id != HERE)
        retiring = (Retiring(HERE, here.member_id, 2, is_out=False),) if here is not None else ()
        wished = (Member(HERE, self.catalogue.member(), is_voter=True),) if is_wished else ()
        self.change(stream_id, members=wished + others, retiring=retiring)

    @rule(stream_id=ids)
    def commit_removal(self, stream_id: StreamId) -> None:
        one = self.catalogue.streams.get(stream_id)
        if one is not None:
            self.change(stream_id, retiring=tuple(replace(it, is_out=True) for it in one.retiring))
            self.out_or_sealed |= {it.member_id for it in one.retiring}

    @rule(stream_id=ids)
    def delete(self, stream_id: StreamId) -> None:
        if stream_id in self.catalogue.streams:
            self.change(stream_id, state=StreamPhase.DELETING)

    @rule(stream_id=ids)
    def seal(self, stream_id: StreamId) -> None:
        one = self.catalogue.streams.get(stream_id)
        if one is not None and one.state is StreamPhase.DELETING:
            self.change(stream_id, is_sealed=True)
            self.out_or_sealed |= {it.member_id for it in one.members} | {it.member_id for it in one.retiring}

    @rule()
    def push_view(self) -> None:
        """The node sees the catalogue, acts, and reports."""
        self.view = dict(self.catalogue.streams)
        distrust = Distrust(set(self.distrusted), "set back")
        for step in self.life.follow(self.view, HERE, set(self.disk), distrust):
            self.carry_out(step)

    def carry_out(self, step: Step) -> None:
        match step:
            case Create(one, member, is_blank):
                group = int(one.stream_id)
                assert group not in self.disk
                assert group not in self.running
                assert is_blank == (one.state is not StreamPhase.FORMING)
                self.disk[group] = self.running[group] = member
            case OpenStored(one, member):
                group = int(one.stream_id)
                assert group in self.disk
                assert group not in self.running
                if self.disk[group] == member:
                    self.running[group] = member
                else:
                    self.life.fail(one.stream_id, "another member's", is_distrusted=True)
            case Identify(one, former):
                owner = self.disk[int(one.stream_id)]
                for following in self.life.identified(step, owner if owner in former else None):
                    self.carry_out(following)
            case Follow(one):
                assert int(one.stream_id) in self.running
            case Close(one):
                del self.running[int(one.stream_id)]
            case Destroy(one, is_stored):
                group = int(one.stream_id)
                assert is_stored == (group in self.disk)
                if is_stored:
                    assert self.disk.pop(group) in self.out_or_sealed, "L1"
                self.running.pop(group, None)
                self.distrusted.discard(group)
            case LeaveAlone():
                pass

    @rule()
    def confirm(self) -> None:
        """The control plane commits what is reported."""
        speakers = {StreamId(group): Speaker(member) for group, member in self.running.items()}
        for report in self.life.reports(speakers):
            one = self.catalogue.streams.get(report.stream_id)
            if one is None:
                continue
            is_gone = report.state is ReplicaState.DESTROYED
            if is_gone and one.state is StreamPhase.DELETING and one.is_sealed:
                del self.catalogue.streams[report.stream_id]
                continue
            left = tuple(
                it for it in one.retiring if not it.is_out or not (is_gone or report.member_id not in (0, it.member_id))
            )
            self.change(report.stream_id, retiring=left)

    @rule()
    def restart(self) -> None:
        self.life, self.running = ReplicaLife(), {}

    @rule()
    def close(self) -> None:
        """The node is stopped on purpose."""
        self.life.close_all()
        self.running.clear()

    @rule(stream_id=ids, is_distrusted=st.booleans())
    def fail(self, stream_id: StreamId, is_distrusted: bool) -> None:
        if self.running.pop(int(stream_id), None) is not None:
            self.life.fail(stream_id, "bad sector", is_distrusted=is_distrusted)

    @rule()
    @precondition(lambda self: not self.distrusted)
    def set_back(self) -> None:
        """The store is given up: all that is stored is distrusted."""
        self.distrusted = set(self.disk) - {UNKNOWN}

    @invariant()
    def unknown_data_are_there(self) -> None:
        assert self.disk[UNKNOWN] == 5, "L3"

    @invariant()
    def what_runs_is_what_is_stored(self) -> None:
        assert all(self.disk[group] == member for group, member in self.running.items()), "L2"

    @rule()
    def rest(self) -> None:
        """L4: the disk is good, removals and seals are committed, views and reports arrive: every wish is reached."""
        self.distrusted.clear()
        self.restart()
        for _ in range(3):
            for stream_id in list(self.catalogue.streams):
                self.commit_removal_now(stream_id)
            self.push_view()
            self.confirm()
        self.push_view()
        for stream_id, one in self.catalogue.streams.items():
            assert not one.retiring
            assert one.state is not StreamPhase.DELETING
            here = one.member_at(HERE)
            assert self.running.get(int(stream_id)) == (here.member_id if here is not None else None), "L4"
            assert (int(stream_id) in self.disk) == (here is not None), "L4"

    def commit_removal_now(self, stream_id: StreamId) -> None:
        one = self.catalogue.streams[stream_id]
        self.change(stream_id, retiring=tuple(replace(it, is_out=True) for it in one.retiring))
        self.out_or_sealed |= {it.member_id for it in one.retiring}
        if one.state is StreamPhase.DELETING:
            self.change(stream_id, is_sealed=True)
            self.out_or_sealed |= {it.member_id for it in one.members} | {it.member_id for it in one.retiring}


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=scaled(80), stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
