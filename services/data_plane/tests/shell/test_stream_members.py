"""Members of a stream come, go and are renewed while it works; leaderships move; the end is sealed; audits find damage."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from data_plane_testing.stream_cluster import (
    NAME,
    STREAM,
    A,
    B,
    C,
    Cluster,
    D,
    cluster,
    make_view,
    numbered,
    publish_values,
    read,
    request,
    until,
)
from mesh_data.core.chain_audit import ChainAt
from mesh_data.core.replica_report import ReplicaState
from mesh_data.core.view import Member, Retiring, StreamPhase, View
from mesh_data.shell.groups.replica import Replica
from mesh_data.shell.streams import raft_serving
from mesh_data.shell.streams.raft_serving import chain_marks
from meshapi.data.v1 import data_pb2 as plane_pb2
from meshapi.supervisor.v1 import data_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import MemberId, NodeId

ACTIVE = StreamPhase.ACTIVE


def retire(node: NodeId, revision: int, *, is_out: bool = False) -> Retiring:
    return Retiring(node, MemberId(10 + node), revision, is_out)


def voters(four: Cluster, node: NodeId) -> set[int]:
    return set(four.sites[node].replica.status().voters)


def with_members(view: View, members: dict[NodeId, int]) -> View:
    """The same view with other member ids."""
    stream = view.streams[STREAM]
    listed = tuple(Member(node, MemberId(member), is_voter=True) for node, member in members.items())
    return replace(view, streams={STREAM: replace(stream, members=listed)})


async def members_out(four: Cluster, *expected: int) -> None:
    await until(
        lambda: any(
            set(expected) <= set(report.members_out) for site in four.sites.values() for report in site.groups.reports()
        )
    )


async def test_a_node_is_added_catches_up_and_votes(tmp_path: Path) -> None:
    async with cluster(tmp_path, nodes=(A, B, C)) as four:
        await four.formed()
        await publish_values(four.sites[A], numbered(20))
        four.start(D, make_view(2, ACTIVE))
        four.set_view(make_view(3, ACTIVE, (A, B, C, D)))
        await until(lambda: voters(four, A) == {11, 12, 13, 14})
        await until(lambda: four.sites[D].groups.reports()[0].state is ReplicaState.OPEN)
        assert await read(four.sites[D]) == numbered(20)
        assert four.sites[A].replica.state.members_revision == 3


async def test_the_leader_is_replaced_by_another_node_while_records_are_written(tmp_path: Path) -> None:
    """I1, I3: not a record is lost or doubled when the node that leads is taken out."""
    async with cluster(tmp_path, nodes=(A, B, C)) as four:
        await four.formed()
        four.start(D, make_view(2, ACTIVE))
        ready = await four.sites[B].api.InitProducer(data_pb2.InitProducerRequest(stream=NAME), None)
        values = numbered(120)
        done = asyncio.Event()

        async def write() -> None:
            for at, value in enumerate(values):
                batch = request([value], (ready.producer_id, ready.producer_epoch, at))

                async def only(one: data_pb2.PublishBatchRequest = batch):  # type: ignore[no-untyped-def]
                    yield one

                async for answer in four.sites[B].api.PublishBatch(only(), None):
                    assert answer.error.code == ""
                    assert answer.base_offset == at
            done.set()

        writing = asyncio.create_task(write())
        four.set_view(make_view(3, ACTIVE, (D, B, C), retiring=[retire(A, 3)]))
        await members_out(four, 11)
        assert four.leaders() != [A]
        four.set_view(make_view(4, ACTIVE, (D, B, C), retiring=[retire(A, 3, is_out=True)]))
        await until(lambda: four.sites[A].groups.reports()[0].state is ReplicaState.DESTROYED)
        await writing
        assert done.is_set()
        assert await read(four.sites[D]) == values
        assert await read(four.sites[A]) == values  # asked of the others
        assert voters(four, await four.leader()) == {12, 13, 14}


async def test_a_change_goes_on_under_the_next_leader_and_across_a_partition(tmp_path: Path) -> None:
    """I11: the cut-off leader commits no step; the majority makes them all."""
    async with cluster(tmp_path, nodes=(A, B, C)) as four:
        await four.formed()
        await publish_values(four.sites[A], numbered(5))
        four.start(D, make_view(2, ACTIVE))
        four.network.isolate(A)
        four.set_view(make_view(3, ACTIVE, (B, C, D), retiring=[retire(A, 3)]))
        await until(lambda: any(node != A for node in four.leaders()))
        leader = next(node for node in four.leaders() if node != A)
        await until(lambda: voters(four, leader) == {12, 13, 14})
        assert 11 in voters(four, A)
        four.network.heal()
        await until(lambda: A not in four.leaders())
        await publish_values(four.sites[D], [b"after"])
        assert await read(four.sites[C]) == [*numbered(5), b"after"]
        await members_out(four, 11)


async def test_a_leader_with_an_older_catalogue_undoes_nothing(tmp_path: Path) -> None:
    async with cluster(tmp_path, nodes=(A, B, C)) as four:
        await four.formed()
        newer = make_view(3, ACTIVE, (A, B), retiring=[retire(C, 3)])
        four.sites[A].overlay.set_view(newer)
        await until(lambda: voters(four, A) == {11, 12})
        # B still has revision 2, where C is a member; it takes over and must leave the group as it is.
        await four.sites[A].raft_api.TransferLeader(data_pb2.TransferLeaderRequest(stream=NAME, node="n2"), None)
        await until(lambda: "older" in four.sites[B].replica.leader.change)
        assert voters(four, B) == {11, 12}
        four.sites[B].overlay.set_view(newer)
        await until(lambda: four.sites[B].replica.members_out == (13,))


async def test_no_step_leaves_the_group_without_a_quorum_in_touch(tmp_path: Path) -> None:
    async with cluster(tmp_path, nodes=(A, B, C)) as four:
        await four.formed()
        await four.stop(C)
        status = four.sites[A].replica.status
        await until(lambda: max(item.quiet_ticks for item in status().progress if item.member == 13) > 10)
        four.set_view(make_view(3, ACTIVE, (A, C), retiring=[retire(B, 3)]))
        await until(lambda: "2 voters would need 2 in touch" in four.sites[A].replica.leader.change)
        assert voters(four, A) == {11, 12, 13}
        four.start(C, make_view(3, ACTIVE, (A, C), retiring=[retire(B, 3)]))
        await until(lambda: voters(four, A) == {11, 13})


async def test_a_silent_voter_is_removed_before_its_successor_votes(tmp_path: Path) -> None:
    async with cluster(tmp_path, nodes=(A, B, C)) as four:
        await four.formed()
        await four.stop(C)
        four.start(D, make_view(2, ACTIVE))
        four.set_view(make_view(3, ACTIVE, (A, B, D), retiring=[retire(C, 3)]))
        await until(lambda: voters(four, A) == {11, 12, 14})


async def test_a_wiped_voter_is_reported_and_gets_a_new_membership_on_its_node(tmp_path: Path) -> None:
    """A disk that lost what it confirmed is recognised; the node comes back as another member (architecture §7)."""
    async with cluster(tmp_path, nodes=(A, B, C)) as four:
        await four.formed()
        await publish_values(four.sites[A], numbered(10))
        await four.converged()
        await four.stop(C)
        for file in sorted((tmp_path / "3").rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        wiped = four.start(C, make_view(2, ACTIVE))
        await until(lambda: bool(wiped.groups.reports()) and wiped.groups.reports()[0].is_distrusted)
        assert wiped.groups.reports()[0].member_id == 13
        four.set_view(with_members(make_view(3, ACTIVE, retiring=[retire(C, 3)]), {A: 11, B: 12, C: 21}))
        await members_out(four, 13)
        assert wiped.groups.reports()[0].state is ReplicaState.FAILED  # nothing goes before the group has removed it
        four.set_view(with_members(make_view(4, ACTIVE, retiring=[retire(C, 3, is_out=True)]), {A: 11, B: 12, C: 21}))
        await until(lambda: voters(four, A) == {11, 12, 21})
        await until(lambda: wiped.groups.reports()[0].state is ReplicaState.OPEN)
        assert wiped.groups.reports()[0].member_id == 21
        assert await read(wiped) == numbered(10)


async def test_a_voter_whose_disk_was_rolled_back_is_recognised_by_its_leader(tmp_path: Path) -> None:
    """Restoring an older copy of a disk takes back what the member had confirmed since."""
    async with cluster(tmp_path, nodes=(A, B, C)) as four:
        await four.formed()
        await publish_values(four.sites[A], numbered(3))
        await four.converged()
        await four.stop(C)
        shutil.copytree(tmp_path / "3", tmp_path / "older")
        four.start(C, make_view(2, ACTIVE))
        await publish_values(four.sites[A], numbered(50))
        await four.converged()
        await four.stop(C)
        shutil.rmtree(tmp_path / "3")
        (tmp_path / "older").rename(tmp_path / "3")
        rolled_back = four.start(C, make_view(2, ACTIVE))
        await until(lambda: bool(rolled_back.groups.reports()) and rolled_back.groups.reports()[0].is_distrusted)
        assert four.leaders() == [A]


async def test_a_member_whose_term_ended_while_it_was_away_starts_as_its_successor(tmp_path: Path) -> None:
    async with cluster(tmp_path, nodes=(A, B, C)) as four:
        await four.formed()
        await publish_values(four.sites[A], numbered(3))
        await four.converged()
        await four.stop(C)
        four.set_view(with_members(make_view(3, ACTIVE, retiring=[retire(C, 3)]), {A: 11, B: 12, C: 21}))
        await members_out(four, 13)
        after = with_members(make_view(4, ACTIVE, retiring=[retire(C, 3, is_out=True)]), {A: 11, B: 12, C: 21})
        four.set_view(after)
        back = four.start(C, after)
        await until(lambda: voters(four, A) == {11, 12, 21})
        assert back.replica.member_id == 21
        await four.stop(C)
        again = four.start(C, after)  # and is told apart from the former member at the next start
        await until(lambda: four.sites[C].groups.replica(STREAM) is not None and not again.replica.is_blank)
        assert await read(again) == numbered(3)


async def test_a_successor_that_retires_keeps_its_data_while_its_predecessor_is_not_confirmed(tmp_path: Path) -> None:
    """G3: of two memberships of a node that end, only the one that is out may go."""
    async with cluster(tmp_path, nodes=(A, B, C)) as four:
        await four.formed()
        await publish_values(four.sites[A], numbered(3))
        four.set_view(with_members(make_view(3, ACTIVE, retiring=[retire(C, 3)]), {A: 11, B: 12, C: 21}))
        await members_out(four, 13)
        gone = retire(C, 3, is_out=True)
        four.set_view(with_members(make_view(4, ACTIVE, retiring=[gone]), {A: 11, B: 12, C: 21}))
        # Also at C: a member that began blank has no vote before it has applied an entry of its leader's term.
        await until(lambda: voters(four, A) == voters(four, C) == {11, 12, 21})
        await four.stop(C)
        # That the data of 13 are gone has not reached the catalogue; 21 retires as well, and nobody is there to remove it.
        await four.stop(A)
        both = with_members(make_view(5, ACTIVE, retiring=[gone, Retiring(C, MemberId(21), 5, False)]), {A: 11, B: 12})
        back = four.start(C, both)
        await until(lambda: four.sites[C].groups.replica(STREAM) is not None)
        assert back.replica.member_id == 21
        four.sites[B].overlay.set_view(both)
        await four.leader()  # B or C: for either the vote of 21 is needed
        four.start(A, both)
        await members_out(four, 21)


async def test_leadership_goes_to_the_node_that_is_named(tmp_path: Path) -> None:
    async with cluster(tmp_path, nodes=(A, B, C, D)) as four:
        await until(lambda: four.leaders() == [A])
        four.set_view(make_view(2, ACTIVE))
        call = four.sites[D].raft_api.TransferLeader  # asked at a node that holds no replica
        before = four.sites[A].replica.status().term
        answer = await call(data_pb2.TransferLeaderRequest(stream=NAME, node="n3"), None)
        assert answer.term > before
        assert four.leaders() == [C]
        again = await call(data_pb2.TransferLeaderRequest(stream=NAME, node="n3"), None)
        assert again.term == answer.term
        for node, code in (("n4", ErrorCode.UNKNOWN_NODE), ("zz", ErrorCode.UNKNOWN_NODE)):
            with pytest.raises(MeshError) as refused:
                await call(data_pb2.TransferLeaderRequest(stream=NAME, node=node), None)
            assert refused.value.code is code


async def test_nothing_is_acknowledged_after_the_seal(tmp_path: Path) -> None:
    async with cluster(tmp_path, nodes=(A, B, C)) as four:
        await four.formed()
        await publish_values(four.sites[A], numbered(2))
        # A hears of the deletion; B does not yet and goes on sending.
        four.sites[A].overlay.set_view(make_view(3, StreamPhase.DELETING))
        await until(lambda: four.sites[B].replica.state.is_sealed)
        (refused,) = await publish_values(four.sites[B], [b"late"])
        assert refused.error.code == ErrorCode.STREAM_NOT_FOUND
        assert four.sites[B].replica.next_offset == 2


async def test_a_deleted_stream_that_cannot_be_sealed_keeps_its_replicas(tmp_path: Path) -> None:
    async with cluster(tmp_path, nodes=(A, B, C)) as four:
        await four.formed()
        await four.stop(B)
        await four.stop(C)
        four.set_view(make_view(3, StreamPhase.DELETING))
        await asyncio.sleep(0.3)
        assert four.sites[A].groups.replica(STREAM) is not None
        four.start(B, make_view(3, StreamPhase.DELETING))
        await until(lambda: four.sites[A].groups.reports()[0].state is ReplicaState.SEALED)


async def test_replicas_are_listed_with_what_raft_knows(tmp_path: Path) -> None:
    async with cluster(tmp_path, nodes=(A, B, C)) as four:
        await four.formed()
        await publish_values(four.sites[A], numbered(4))
        listed = await four.sites[A].raft_api.ListReplicas(data_pb2.ListReplicasRequest(), None)
        assert (listed.node, len(listed.replicas)) == ("n1", 1)
        assert listed.log_bytes > 0
        (info,) = listed.replicas
        assert (info.stream, info.role, info.leader, info.member_id) == (NAME, "leader", "n1", 11)
        assert list(info.voters) == ["n1", "n2", "n3"]
        assert info.last_index >= info.commit_index >= info.applied_index > 4
        assert [member.node for member in info.members] == ["n1", "n2", "n3"]


async def test_audit_finds_nothing_where_nothing_is_wrong(tmp_path: Path) -> None:
    async with cluster(tmp_path, nodes=(A, B, C, D)) as four:
        await until(lambda: four.leaders() == [A])
        four.set_view(make_view(2, ACTIVE))
        await publish_values(four.sites[A], numbered(200))
        await four.converged()
        found = await four.sites[D].raft_api.AuditStream(data_pb2.AuditStreamRequest(stream=NAME), None)
        assert not found.is_divergent
        assert found.compared_index == four.sites[A].replica.state.applied_index
        assert [(member.node, member.problem, member.is_damaged) for member in found.members] == [
            ("n1", "", False),
            ("n2", "", False),
            ("n3", "", False),
        ]
        assert all(member.verified_entries >= 200 for member in found.members)


async def test_audit_compares_while_records_are_written(tmp_path: Path) -> None:
    async with cluster(tmp_path, nodes=(A, B, C)) as four:
        await four.formed()
        four.network.isolate(C)
        await publish_values(four.sites[A], numbered(300))
        four.network.heal()
        found = await four.sites[A].raft_api.AuditStream(data_pb2.AuditStreamRequest(stream=NAME), None)
        assert not found.is_divergent
        assert not any(member.is_damaged for member in found.members)
        assert found.compared_index > 0


async def test_audit_names_the_member_that_diverged(tmp_path: Path) -> None:
    """I4, and the checker can fail: one member's state is made wrong by hand."""
    async with cluster(tmp_path, nodes=(A, B, C)) as four:
        await four.formed()
        await publish_values(four.sites[A], numbered(5))
        await four.converged()
        four.sites[B].replica.state.chain = bytes(32)
        found = await four.sites[C].raft_api.AuditStream(data_pb2.AuditStreamRequest(stream=NAME), None)
        assert found.is_divergent
        assert [member.node for member in found.members if member.is_damaged] == ["n2"]


async def test_audit_names_the_member_whose_log_does_not_give_its_chain(tmp_path: Path) -> None:
    async with cluster(tmp_path, nodes=(A, B, C)) as four:
        await four.formed()
        await publish_values(four.sites[A], numbered(5))
        await four.converged()
        replica = four.sites[C].replica
        replica.chains.base = ChainAt(replica.chains.base.index, bytes(32))
        found = await four.sites[A].raft_api.AuditStream(data_pb2.AuditStreamRequest(stream=NAME), None)
        assert not found.is_divergent
        assert [member.node for member in found.members if member.is_damaged] == ["n3"]
        quick = data_pb2.AuditStreamRequest(stream=NAME, skip_logs=True)
        assert not any(member.is_damaged for member in (await four.sites[A].raft_api.AuditStream(quick, None)).members)


async def test_audit_does_not_blame_a_member_that_restarts_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its restart it has not yet applied again what it told before: nothing is wrong with its log."""
    async with cluster(tmp_path, nodes=(A, B, C)) as four:
        await four.formed()
        await publish_values(four.sites[A], numbered(5))
        await four.converged()
        restarting = four.sites[C].replica

        def marks_and_restart(replica: Replica) -> plane_pb2.ChainMarks:
            marks = chain_marks(replica)
            if replica is restarting:
                replica.state.applied_index -= 1
            return marks

        monkeypatch.setattr(raft_serving, "chain_marks", marks_and_restart)
        found = await four.sites[A].raft_api.AuditStream(data_pb2.AuditStreamRequest(stream=NAME), None)
        assert not any(member.is_damaged for member in found.members)
        assert "try again" in next(member.problem for member in found.members if member.node == "n3")


async def test_audit_goes_on_without_a_member_that_is_away(tmp_path: Path) -> None:
    async with cluster(tmp_path, nodes=(A, B, C)) as four:
        await four.formed()
        await publish_values(four.sites[A], numbered(5))
        await four.converged()
        await four.stop(C)
        found = await four.sites[A].raft_api.AuditStream(data_pb2.AuditStreamRequest(stream=NAME), None)
        assert not found.is_divergent
        away = next(member for member in found.members if member.node == "n3")
        assert away.problem
        assert not away.is_damaged


async def test_audit_names_the_member_whose_disk_flipped_a_bit(tmp_path: Path) -> None:
    """Checksums are read from the disk, not from what is in memory."""
    async with cluster(tmp_path, nodes=(A, B, C)) as four:
        await four.formed()
        value = b"the record whose bit flips " * 40
        await publish_values(four.sites[A], [*numbered(3), value, *numbered(3)])
        await four.converged()
        flipped = 0
        for file in (item for item in (tmp_path / "3").rglob("*") if item.is_file()):
            at = file.read_bytes().find(value)
            if at >= 0:
                with file.open("r+b") as log:
                    log.seek(at + 100)
                    byte = log.read(1)
                    log.seek(at + 100)
                    log.write(bytes([byte[0] ^ 1]))
                flipped += 1
        assert flipped == 1
        found = await four.sites[B].raft_api.AuditStream(data_pb2.AuditStreamRequest(stream=NAME), None)
        assert not found.is_divergent, "its state is that of the others"
        assert [(member.node, member.is_damaged) for member in found.members] == [
            ("n1", False),
            ("n2", False),
            ("n3", True),
        ]
        assert found.members[2].problem
