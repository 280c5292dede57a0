"""Policies and tokens in the replicated state: bounds, refusals, versions, and a random history against a dumb oracle."""

from __future__ import annotations

from typing import Any, Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from control_plane_testing.mcg_commands import (
    MESH_ID,
    accept,
    activate,
    add,
    announce,
    apply,
    found,
    key,
    raise_version,
    refusal,
)
from mesh_control.core import join_rules, limits
from mesh_control.core.join_tokens import prove, token_id_of
from mesh_control.core.mcg_state import McgState
from mesh_control.core.model import JoinPolicy
from mesh_control.core.peer_answers import check_newcomer, read_join_request
from mesh_control.core.replica import Replica
from mesh_control.core.versions import FIRST_VERSION, JOIN_VERSION, MESH_VERSION, check_proposable, version_of
from meshapi.control.v1 import join_pb2, mcg_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshtest.effort import scaled

FOUNDED_MS: Final = 1_000


def founded(policy: int = JoinPolicy.KEY_REQUIRED, name: str = "plant") -> mcg_pb2.Command:
    command = found()
    command.found_mesh.mesh_name = name
    command.found_mesh.join_policy = policy  # type: ignore[assignment]
    command.found_mesh.node.mesh_version = MESH_VERSION
    return command


def newcomer(name: str, number: int, token_id: str = "", **fields: Any) -> mcg_pb2.Command:
    command = add(name, number, **fields)
    command.add_node.mesh_version, command.add_node.token_id = MESH_VERSION, token_id
    return command


def verifier(number: int) -> bytes:
    return number.to_bytes(32, "big")


def token_id(number: int) -> str:
    return token_id_of(verifier(number))


def issue(number: int, uses: int = 1, ttl_ms: int = 1_000, name: str = "", **fields: Any) -> mcg_pb2.Command:
    token = mcg_pb2.IssueToken(verifier=verifier(number), uses=uses, ttl_ms=ttl_ms, name=name)
    return mcg_pb2.Command(issue_token=token, **fields)


def revoke(number: int) -> mcg_pb2.Command:
    return mcg_pb2.Command(revoke_token=mcg_pb2.RevokeToken(token_id=token_id(number)))


def set_policy(policy: int) -> mcg_pb2.Command:
    command = mcg_pb2.Command()
    command.set_join_policy.join_policy = policy  # type: ignore[assignment]
    return command


@pytest.fixture
def state() -> McgState:
    """A mesh of a alone, with KEY_REQUIRED."""
    state = McgState()
    accept(state, founded())
    return state


def test_founding_with_a_policy_makes_a_mesh_of_the_version_that_knows_it(state: McgState) -> None:
    """Older software would pass over the policy and admit anybody: it must not read the first snapshot either."""
    assert (state.mesh_name, state.join_policy, state.mesh_version) == ("plant", JoinPolicy.KEY_REQUIRED, JOIN_VERSION)
    old = Replica(FIRST_VERSION)
    assert not old.restore(1, state.snapshot())


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (founded(name=""), ErrorCode.ILLEGAL_NAME),
        (founded(name="Not A Name"), ErrorCode.ILLEGAL_NAME),
        (founded(policy=0), ErrorCode.INVALID_ARGUMENT),
        (founded(policy=9), ErrorCode.INVALID_ARGUMENT),
    ],
    ids=range(4),
)
def test_founding_that_is_not_sound_changes_nothing(command: mcg_pb2.Command, code: ErrorCode) -> None:
    state = McgState()
    empty = state.snapshot()
    assert refusal(state, command).code is code
    state._now.applied_index = state._now.time_ms = 0
    assert state.snapshot() == empty


def test_mesh_of_version_one_is_open_and_replicas_of_both_versions_agree() -> None:
    log = [found(), announce(1, MESH_VERSION), add("b", 2), raise_version(MESH_VERSION)]
    old, new = Replica(FIRST_VERSION), Replica()
    for index, command in enumerate(log, 1):
        old.apply(index, command.SerializeToString())
        new.apply(index, command.SerializeToString())
        assert old.state.digest() == new.state.digest()
    assert (new.state.join_policy, new.state.mesh_name) == (JoinPolicy.OPEN, "")
    restored = McgState()
    restored.restore(new.state.snapshot())
    assert restored.join_policy is JoinPolicy.OPEN
    accept(restored, newcomer("c", 3))
    accept(restored, set_policy(JoinPolicy.KEY_REQUIRED))
    assert refusal(restored, newcomer("d", 4)).code is ErrorCode.TOKEN_REQUIRED


def test_commands_that_speak_of_joining_need_the_version_that_knows_them() -> None:
    commands = (issue(1), revoke(1), set_policy(JoinPolicy.OPEN), newcomer("b", 2, token_id(1)), founded())
    for command in commands:
        assert version_of(command) == JOIN_VERSION
        with pytest.raises(MeshError) as caught:
            check_proposable(command, FIRST_VERSION, MESH_VERSION)
        assert caught.value.code is ErrorCode.MESH_VERSION_TOO_LOW
    assert version_of(newcomer("b", 2)) == FIRST_VERSION, "a node joins a mesh of version 1 as ever"


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (issue(1, uses=0), ErrorCode.INVALID_ARGUMENT),
        (issue(1, uses=limits.TOKEN_USES_MAX + 1), ErrorCode.INVALID_ARGUMENT),
        (issue(1, ttl_ms=0), ErrorCode.INVALID_ARGUMENT),
        (issue(1, ttl_ms=limits.TOKEN_TTL_MS_MAX + 1), ErrorCode.INVALID_ARGUMENT),
        (issue(1, ttl_ms=2**64 - 1), ErrorCode.INVALID_ARGUMENT),
        (issue(1, name="No Name"), ErrorCode.ILLEGAL_NAME),
        (
            mcg_pb2.Command(issue_token=mcg_pb2.IssueToken(verifier=b"short", uses=1, ttl_ms=1)),
            ErrorCode.INVALID_ARGUMENT,
        ),
        (revoke(1), ErrorCode.TOKEN_UNKNOWN),
        (set_policy(0), ErrorCode.INVALID_ARGUMENT),
        (set_policy(7), ErrorCode.INVALID_ARGUMENT),
    ],
    ids=range(10),
)
def test_command_that_is_not_sound_is_refused(state: McgState, command: mcg_pb2.Command, code: ErrorCode) -> None:
    error = refusal(state, command)
    assert error.code is code
    assert not state.tokens


def test_token_is_issued_once(state: McgState) -> None:
    accept(state, issue(1, uses=3))
    accept(state, newcomer("b", 2, token_id(1)))
    assert refusal(state, issue(1, uses=3)).code is ErrorCode.INVALID_ARGUMENT
    assert state.tokens[token_id(1)].uses_left == 2


def test_tokens_are_bounded_and_the_next_one_drops_the_expired(state: McgState) -> None:
    for number in range(limits.TOKENS_MAX):
        accept(state, issue(number, ttl_ms=1_000 if number else 500, stamp_ms=FOUNDED_MS))
    assert refusal(state, issue(9_999)).code is ErrorCode.MESH_FULL
    accept(state, issue(9_999, stamp_ms=FOUNDED_MS + 500))
    assert len(state.tokens) == limits.TOKENS_MAX
    assert token_id(0) not in state.tokens


def test_snapshot_of_a_mesh_full_of_tokens_fits_into_a_packet(state: McgState) -> None:
    """A token takes less than the 150 bytes that test_admission reckons with for a mesh that is full in every respect."""
    before = len(state.snapshot())
    for number in range(limits.TOKENS_MAX):
        accept(state, issue(number, limits.TOKEN_USES_MAX, limits.TOKEN_TTL_MS_MAX, "n" * 63, stamp_ms=2**41))
    assert len(state.snapshot()) - before < limits.TOKENS_MAX * 150


def test_repeated_join_takes_no_second_use(state: McgState) -> None:
    """J1, also when the token is gone by now, and when the mesh is CLOSED."""
    accept(state, issue(1))
    place = accept(state, newcomer("b", 2, token_id(1)))
    assert accept(state, newcomer("b", 2, token_id(1))) == place
    assert state.tokens[token_id(1)].uses_left == 0
    accept(state, revoke(1))
    accept(state, set_policy(JoinPolicy.CLOSED))
    assert accept(state, newcomer("b", 2, token_id(1))) == place


def test_join_that_is_refused_for_another_reason_takes_no_use(state: McgState, monkeypatch: pytest.MonkeyPatch) -> None:
    """J2: a use is taken by the command that adds the node, or not at all."""
    accept(state, issue(1))
    assert refusal(state, newcomer("a", 2, token_id(1))).code is ErrorCode.NAME_TAKEN
    assert refusal(state, newcomer("b", 2, token_id(1), address="http://b")).code is ErrorCode.INVALID_ARGUMENT
    monkeypatch.setattr("mesh_control.core.rules.NODES_MAX", 1)
    assert refusal(state, newcomer("b", 2, token_id(1))).code is ErrorCode.MESH_FULL
    assert state.tokens[token_id(1)].uses_left == 1


def test_policies(state: McgState) -> None:
    assert refusal(state, newcomer("b", 2)).code is ErrorCode.TOKEN_REQUIRED
    accept(state, issue(1, uses=5))
    accept(state, set_policy(JoinPolicy.CLOSED))
    for token in ("", token_id(1), token_id(2)):
        assert refusal(state, newcomer("b", 2, token)).code is ErrorCode.JOIN_CLOSED
    accept(state, set_policy(JoinPolicy.OPEN))
    accept(state, newcomer("b", 2))
    assert refusal(state, newcomer("c", 3, token_id(2))).code is ErrorCode.TOKEN_UNKNOWN, "a token that is shown counts"
    accept(state, newcomer("c", 3, token_id(1)))
    assert state.tokens[token_id(1)].uses_left == 4
    revision = state.revision
    accept(state, set_policy(JoinPolicy.OPEN))
    assert state.revision == revision


def test_token_for_a_name_admits_only_that(state: McgState) -> None:
    accept(state, issue(1, name="b"))
    assert refusal(state, newcomer("c", 2, token_id(1))).code is ErrorCode.TOKEN_FOR_ANOTHER_NAME
    accept(state, newcomer("b", 2, token_id(1)))


def test_expiry_is_by_state_time_and_never_both(state: McgState) -> None:
    accept(state, issue(1, uses=2, ttl_ms=1_000, stamp_ms=5_000))
    accept(state, newcomer("b", 2, token_id(1), stamp_ms=5_999))
    assert refusal(state, newcomer("c", 3, token_id(1), stamp_ms=6_000)).code is ErrorCode.TOKEN_EXPIRED
    assert refusal(state, newcomer("c", 3, token_id(1), stamp_ms=5_000)).code is ErrorCode.TOKEN_EXPIRED


def asking(name: str, number: int, token: int = 0) -> join_pb2.JoinRequest:
    request = join_pb2.JoinRequest(mesh_id=MESH_ID, name=name, public_key=key(number), mesh_version=MESH_VERSION)
    if token:
        prove(request, verifier(token))
    return request


def test_newcomer_is_checked_before_it_costs_an_entry(state: McgState) -> None:
    """At the neighbour, by the state applied there; the verifier is what the answer is confirmed with."""
    accept(state, issue(1, uses=2, name="b"))
    assert check_newcomer(state, asking("b", 2, token=1)) == verifier(1)
    wrong = asking("b", 2, token=1)
    wrong.peer_address = "ws://elsewhere:1"
    for request, code in (
        (asking("b", 2), ErrorCode.TOKEN_REQUIRED),
        (asking("b", 2, token=2), ErrorCode.TOKEN_UNKNOWN),
        (wrong, ErrorCode.TOKEN_UNKNOWN),
        (asking("c", 2, token=1), ErrorCode.TOKEN_FOR_ANOTHER_NAME),
    ):
        with pytest.raises(MeshError) as caught:
            check_newcomer(state, request)
        assert caught.value.code is code
    accept(state, newcomer("b", 2, token_id(1)))
    accept(state, set_policy(JoinPolicy.CLOSED))
    assert check_newcomer(state, asking("b", 2)) == b"", "it has its place already"
    assert check_newcomer(state, asking("b", 2, token=1)) == verifier(1)
    with pytest.raises(MeshError) as caught:
        check_newcomer(state, asking("b", 3, token=2))
    assert caught.value.code is ErrorCode.TOKEN_UNKNOWN


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"name": "No Name"}, ErrorCode.ILLEGAL_NAME),
        ({"public_key": b"k"}, ErrorCode.INVALID_ARGUMENT),
        ({"public_key": key(3)}, ErrorCode.KEY_MISMATCH),
        ({"peer_address": "http://b:1"}, ErrorCode.INVALID_ARGUMENT),
        ({"token_id": "0123456789ABCDEF"}, ErrorCode.INVALID_ARGUMENT),
        ({"token_id": "0" * 17}, ErrorCode.INVALID_ARGUMENT),
        ({"proof": bytes(4096)}, ErrorCode.INVALID_ARGUMENT),
    ],
    ids=range(7),
)
def test_request_to_join_is_read_strictly(changes: dict[str, Any], code: ErrorCode) -> None:
    request = asking("b", 2, token=1)
    assert read_join_request(request.SerializeToString(), key(2)) == request
    for field, value in changes.items():
        setattr(request, field, value)
    for body, expected in ((request.SerializeToString(), code), (b"\xff", ErrorCode.INVALID_ARGUMENT)):
        with pytest.raises(MeshError) as caught:
            read_join_request(body, key(2))
        assert caught.value.code is expected


def test_damaged_snapshot_is_refused(state: McgState) -> None:
    message = mcg_pb2.McgSnapshot.FromString(state.snapshot())
    message.join_policy = 9  # type: ignore[assignment]
    before = state.digest()
    with pytest.raises(MeshError) as caught:
        state.restore(message.SerializeToString())
    assert caught.value.code is ErrorCode.STORAGE_FAILED
    assert state.digest() == before


NUMBERS: Final = st.integers(1, 4)
NAMES: Final = st.sampled_from("bcdefgh")
STAMPS: Final = st.integers(0, 5_000)


class Joining(RuleBasedStateMachine):
    """Two replicas, one of which is restored from snapshots, against counts that a child could keep."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.other = McgState(), McgState()
        self.time_ms = FOUNDED_MS
        self.policy = JoinPolicy.KEY_REQUIRED
        self.uses: dict[int, int] = {}
        self.ends_ms: dict[int, int] = {}
        self.admitted: dict[tuple[str, int], int] = {}
        self.admitted_by: dict[int, int] = {}
        self.granted: dict[int, int] = {}

    @initialize()
    def found(self) -> None:
        self.run(founded())

    def run(self, command: mcg_pb2.Command) -> tuple[ErrorCode | None, int]:
        results = [apply(state, command) for state in (self.state, self.other)]
        codes = [result.refusal.code if result.refusal else None for result in results]
        assert codes[0] == codes[1]
        self.time_ms = max(self.time_ms, command.stamp_ms)
        return codes[0], results[0].allocated_id

    def is_valid(self, number: int) -> bool:
        return self.uses.get(number, 0) > 0 and self.time_ms < self.ends_ms[number]

    @rule(number=NUMBERS, uses=st.integers(0, 3), ttl_ms=st.integers(0, 2_000), stamp_ms=STAMPS)
    def issue(self, number: int, uses: int, ttl_ms: int, stamp_ms: int) -> None:
        code, _ = self.run(issue(number, uses, ttl_ms, stamp_ms=stamp_ms))
        assert (code is None) == (uses > 0 and ttl_ms > 0 and number not in self.uses)
        if code is None:
            self.uses = {known: left for known, left in self.uses.items() if self.time_ms < self.ends_ms[known]}
            self.uses[number], self.ends_ms[number] = uses, self.time_ms + ttl_ms
            self.granted[number] = self.granted.get(number, 0) + uses

    @rule(number=NUMBERS)
    def revoke(self, number: int) -> None:
        code, _ = self.run(revoke(number))
        assert (code is None) == (number in self.uses)
        self.uses.pop(number, None)

    @rule(policy=st.sampled_from([JoinPolicy.OPEN, JoinPolicy.KEY_REQUIRED, JoinPolicy.CLOSED]))
    def set_policy(self, policy: JoinPolicy) -> None:
        assert self.run(set_policy(policy)) == (None, 0)
        self.policy = policy

    @rule(name=NAMES, number=st.integers(2, 8), token=st.just(0) | NUMBERS, stamp_ms=STAMPS)
    def join(self, name: str, number: int, token: int, stamp_ms: int) -> None:
        code, node_id = self.run(newcomer(name, number, token_id(token) if token else "", stamp_ms=stamp_ms))
        if (name, number) in self.admitted:
            assert (code, node_id) == (None, self.admitted[name, number])
            return
        is_free = not any(name == known or number == held for known, held in self.admitted)
        may_join = self.policy is JoinPolicy.OPEN or (self.policy is JoinPolicy.KEY_REQUIRED and token > 0)
        assert (code is None) == (is_free and may_join and (not token or self.is_valid(token)))
        if code is None:
            self.admitted[name, number] = node_id
            self.run(activate(node_id))
            if token:
                self.uses[token] -= 1
                self.admitted_by[token] = self.admitted_by.get(token, 0) + 1

    @rule()
    def restore(self) -> None:
        self.other = McgState()
        self.other.restore(self.state.snapshot())

    @invariant()
    def replicas_agree(self) -> None:
        assert self.state.digest() == self.other.digest()

    @invariant()
    def uses_are_what_is_left(self) -> None:
        left = {token.token_id: token.uses_left for token in self.state.tokens.values()}
        assert left == {token_id(number): uses for number, uses in self.uses.items()}
        assert all(uses >= 0 for uses in left.values())

    @invariant()
    def no_two_nodes_for_one_use(self) -> None:
        for number, count in self.admitted_by.items():
            assert count <= self.granted[number]


TestJoining = Joining.TestCase
TestJoining.settings = settings(max_examples=scaled(30), stateful_step_count=30, deadline=None)


def test_state_that_took_no_use_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checker above can fail."""
    monkeypatch.setattr(join_rules, "take_use", lambda tokens, _token_id: dict(tokens))
    machine = Joining()
    machine.found()
    machine.issue(1, 1, 1_000, 0)
    machine.join("b", 2, 1, 0)
    with pytest.raises(AssertionError):
        machine.uses_are_what_is_left()
    assert machine.state.mesh_id == MESH_ID
    assert key(2) in {node.public_key for node in machine.state.nodes.values()}
