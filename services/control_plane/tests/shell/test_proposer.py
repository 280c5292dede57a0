"""Proposer of peers, and answers to our own: nothing that a peer sends raises anything but a MeshError."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane_testing.mcg_commands import accept, activate, add, create, found
from mesh_control.core.limits import INTEGER_MAX
from mesh_control.core.mcg_state import McgState
from mesh_control.core.model import Member, Stream, StreamPhase
from mesh_control.core.peer_answers import check_proposer, read_propose_response
from mesh_control.shell.changes import Changes
from mesh_control.shell.mcg import LeaderView
from mesh_control.shell.peer_calls import Method
from mesh_control.shell.proposer import (
    PROPOSAL_BYTES_MAX,
    RETRY_S,
    Proposer,
    leader_hint,
    read_proposal,
)
from meshapi.common.v1 import view_pb2
from meshapi.control.v1 import join_pb2, mcg_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import MemberId, NodeId, StreamId
from meshcommon.overlay_calls import Caller
from meshtest.waiting import eventually

U64 = 2**64 - 1
COMMANDS = [
    mcg_pb2.Command(add_node=mcg_pb2.AddNode(name="b", public_key=bytes(32), peer_address="ws://b:1")),
    mcg_pb2.Command(create_stream=mcg_pb2.CreateStream(name="x/b", node_ids=[1, U64], retained_bytes_max=U64)),
    mcg_pb2.Command(change_members=mcg_pb2.ChangeMembers(stream_id=1, add_nodes=[U64], renew_members=[0, U64])),
    mcg_pb2.Command(renew_member=mcg_pb2.RenewMember(node_id=2)),
    mcg_pb2.Command(member_out=mcg_pb2.MemberOut(stream_id=U64, member_id=U64)),
    mcg_pb2.Command(replica_destroyed=mcg_pb2.ReplicaDestroyed(stream_id=1, node_id=U64, member_id=U64)),
    # A state that no version knows.
    mcg_pb2.Command.FromString(b"\x32\x04\x08\x01\x10\x63"),
]


class Situation:
    """A leader's Proposer over a state without a log; the peer is node 2."""

    def __init__(self) -> None:
        self.state = McgState()
        for command in (found(), add("b", 2), activate(2), create("x/a", [1, 2])):
            accept(self.state, command)
        self.attempts = 0
        self.leader_view = LeaderView(True, NodeId(1), 1, 1, True)
        self.answer: bytes | MeshError = b""
        self.changed = Changes()
        node: Any = SimpleNamespace(
            require_mcg=lambda: SimpleNamespace(
                state=self.state, leader_view=lambda: self.leader_view, check_proposable=lambda _command: None
            ),
            require_leadership=lambda: SimpleNamespace(propose=self._commit),
            is_running=True,
            is_removed=False,
            changed=self.changed,
            timing=SimpleNamespace(proposal_deadline_s=1.0),
        )
        handlers: dict[Method, Any] = {}
        calls: Any = SimpleNamespace(serve=handlers.__setitem__, call=self._call)
        self.proposer = Proposer(node, calls, random.Random(1))
        self.serve = handlers[Method.PROPOSE]

    async def _commit(self, command: mcg_pb2.Command) -> object:
        stored = mcg_pb2.Command.FromString(command.SerializeToString())
        return self.state.apply(self.state.applied_index + 1, stored)

    async def _call(self, *_: object, **__: object) -> bytes:
        self.attempts += 1
        if isinstance(self.answer, MeshError):
            raise self.answer
        return self.answer


def encoded(command: mcg_pb2.Command) -> bytes:
    return join_pb2.ProposeRequest(command=command, proposal_id=U64).SerializeToString()


async def served(body: bytes) -> ErrorCode | None:
    """The code of the refusal, None when it was committed; the state is still one that can be kept."""
    situation = Situation()
    code = None
    try:
        await situation.serve(Caller(NodeId(2)), body, 1.0)
    except MeshError as error:
        code = error.code
    restored = McgState()
    restored.restore(situation.state.snapshot())
    assert restored.digest() == situation.state.digest()
    return code


@pytest.mark.parametrize(
    "body",
    [
        b"\x0a\x05\x22\x10",
        b"\xff" * 40,
        encoded(COMMANDS[0])[:-12],
        encoded(mcg_pb2.Command()),
        encoded(mcg_pb2.Command(set_voters=mcg_pb2.SetVoters(node_ids=[2]))),
        encoded(mcg_pb2.Command(renew_member=mcg_pb2.RenewMember(node_id=1))),
        encoded(COMMANDS[-1]),
        # A kind that this version does not know, and a known one with an unknown field.
        b"\x0a\x04\xfa\x3f\x01x",
        b"\x0a\x0b\x22\x09\x0a\x01c\x9a\x06\x03big",
        b"\x0a\x03\x22\x01\xff",
        bytes(PROPOSAL_BYTES_MAX + 1),
    ],
    ids=str,
)
async def test_proposal_that_cannot_be_is_answered_with_invalid_argument(body: bytes) -> None:
    assert await served(body) is ErrorCode.INVALID_ARGUMENT


async def test_second_kind_replaces_the_first_as_in_every_reader_of_protobuf() -> None:
    first, second = COMMANDS[0].SerializeToString(), COMMANDS[3].SerializeToString()
    both = join_pb2.ProposeRequest(command=mcg_pb2.Command.FromString(first + second), proposal_id=7)
    command = read_proposal(both.SerializeToString())
    assert command.WhichOneof("kind") == "renew_member"
    assert not command.HasField("add_node")


@given(st.sampled_from(COMMANDS), st.integers(0, U64), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255))))
def test_damaged_proposals_are_refused_or_committed_and_nothing_else(
    command: mcg_pb2.Command, proposal_id: int, damage: list[tuple[int, int]]
) -> None:
    body = bytearray(join_pb2.ProposeRequest(command=command, proposal_id=proposal_id).SerializeToString())
    for position, value in damage:
        body[position % len(body)] = value
    asyncio.run(served(bytes(body)))


@pytest.mark.parametrize(
    "body",
    [
        b"\x08",
        b"\xff" * 9,
        join_pb2.ProposeResponse(revision=INTEGER_MAX + 1).SerializeToString(),
        join_pb2.ProposeResponse(revision=1, allocated_id=U64).SerializeToString(),
    ],
)
async def test_malformed_answer_of_the_leader_is_asked_for_again(body: bytes) -> None:
    with pytest.raises(MeshError) as caught:
        read_propose_response(body)
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.UNAVAILABLE, True)
    situation = Situation()
    situation.leader_view = LeaderView(False, NodeId(2), 1, 1, True)
    situation.answer = body
    proposing = asyncio.create_task(situation.proposer.propose(COMMANDS[0], 5.0))

    async def has_asked_again() -> bool:
        return situation.attempts >= 2

    await eventually("a second attempt", has_asked_again)
    situation.answer = join_pb2.ProposeResponse(revision=9, allocated_id=3).SerializeToString()
    assert (await proposing).allocated_id == 3


async def test_leader_that_says_at_once_that_it_does_not_lead_is_not_asked_in_a_loop() -> None:
    situation = Situation()
    situation.leader_view = LeaderView(False, NodeId(2), 1, 1, True)
    situation.answer = MeshError(ErrorCode.NOT_LEADER, "Ask node 2.", {"leader": "2"})
    started = asyncio.get_running_loop().time()
    proposing = asyncio.create_task(situation.proposer.propose(COMMANDS[0], 0.45))
    while not proposing.done():
        # Changes come all the time, for example one for each refusal of a busy group.
        situation.changed.notify()
        await asyncio.sleep(0.001)
    with pytest.raises(MeshError) as caught:
        await proposing
    assert caught.value.code is ErrorCode.NO_QUORUM
    assert 2 <= situation.attempts <= (asyncio.get_running_loop().time() - started) / RETRY_S + 1


@pytest.mark.parametrize(
    ("leader", "node"),
    [
        ("3", 3),
        ("", 0),
        ("x", 0),
        ("-1", 0),
        ("٣", 0),
        ("9" * 4_000, 0),
        (str(INTEGER_MAX), INTEGER_MAX),
        (str(INTEGER_MAX + 1), 0),
    ],
)
def test_leader_hint_is_a_node_id_or_nothing(leader: str, node: int) -> None:
    """`int()` once ended the service on a hint that is no number."""
    assert leader_hint(MeshError(ErrorCode.NOT_LEADER, "Ask.", {"leader": leader})) == node
    assert leader_hint(MeshError(ErrorCode.NO_QUORUM, "Ask.", {"leader": leader})) == 0
    assert leader_hint(MeshError(ErrorCode.NOT_LEADER, "Ask.")) == 0


@pytest.mark.parametrize(
    "command",
    [
        mcg_pb2.Command(set_node_state=mcg_pb2.SetNodeState(node_id=1, state=view_pb2.NODE_STATE_STOPPED)),
        mcg_pb2.Command(remove_node=mcg_pb2.RemoveNode(node_id=1)),
        mcg_pb2.Command(replica_destroyed=mcg_pb2.ReplicaDestroyed(stream_id=1, node_id=1)),
    ],
)
async def test_nobody_stops_removes_or_confirms_for_another_node(command: mcg_pb2.Command) -> None:
    assert await served(encoded(command)) is ErrorCode.INVALID_ARGUMENT


def test_only_members_of_a_stream_report_what_its_group_has_committed() -> None:
    stream = Stream(
        StreamId(5),
        "x/a",
        (Member(NodeId(1), MemberId(1), True), Member(NodeId(2), MemberId(2), True)),
        StreamPhase.FORMING,
        1,
        2**30,
        0,
    )
    streams = {stream.stream_id: stream}
    for command in (
        mcg_pb2.Command(stream_formed=mcg_pb2.StreamFormed(stream_id=5)),
        mcg_pb2.Command(stream_sealed=mcg_pb2.StreamSealed(stream_id=5)),
        mcg_pb2.Command(member_out=mcg_pb2.MemberOut(stream_id=5, member_id=2)),
    ):
        check_proposer(command, NodeId(2), streams)
        with pytest.raises(MeshError) as refused:
            check_proposer(command, NodeId(3), streams)
        assert refused.value.code is ErrorCode.INVALID_ARGUMENT
        # One that the leader does not know is for the state to refuse.
        check_proposer(command, NodeId(3), {})
