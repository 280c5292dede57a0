"""Delegations: what is accepted, for how long, what is remembered, and what a checker may cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from meshapi.common.v1 import delegation_pb2, view_pb2
from meshcommon import delegation as module
from meshcommon.delegation import (
    DELEGATION_BYTES,
    LIFE_MAX_S,
    NODES_REMEMBERED_MAX,
    PER_NODE_REMEMBERED_MAX,
    VALID_AFTER_S,
    VALID_BEFORE_S,
    DelegatedSigner,
    Delegation,
    Delegations,
    Grantor,
    Use,
)
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import NodeId
from meshcommon.key_signer import KeySigner

NOW_S = 1_800_000_000
IDENTITY, OTHER = KeySigner(b"i" * 32), KeySigner(b"o" * 32)
KEY = KeySigner(b"k" * 32)
GRANTOR = Grantor(IDENTITY.public_key, "mesh", 7, NodeId(3))
GRANTED = Delegation.signed(IDENTITY, GRANTOR, Use.LANES, KEY.public_key, NOW_S)
STATEMENT = b"statement"
SIGNATURE = KEY.sign(STATEMENT)


class Clock:
    """A wall clock that the test sets."""

    def __init__(self) -> None:
        self.now_s = float(NOW_S)

    def __call__(self) -> float:
        return self.now_s


def is_signed(
    delegation: Delegation = GRANTED, grantor: Grantor = GRANTOR, use: Use = Use.LANES, now_s: float = NOW_S
) -> bool:
    return Delegations(lambda: now_s).is_signed(grantor, delegation, use, STATEMENT, SIGNATURE)


def count_checks(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The statements whose signatures are checked from now on."""
    checked: list[bytes] = []
    honest = module._is_signed

    def count(key: Ed25519PublicKey, statement: bytes, signature: bytes) -> bool:
        checked.append(statement)
        return honest(key, statement, signature)

    monkeypatch.setattr(module, "_is_signed", count)
    return checked


def test_statement_is_laid_out_as_the_proto_says() -> None:
    """Golden bytes: nodes of every version must agree on them."""
    assert replace(GRANTED, public_key=b"\xee" * 32).statement(GRANTOR).hex() == (
        "00000012" + b"mesh.v1 delegation".hex() + "00000004" + b"mesh".hex()
        + "00000008" + "0000000000000007"
        + "00000008" + "0000000000000003"
        + "00000008" + "0000000000000001"
        + "00000008" + (NOW_S - VALID_BEFORE_S).to_bytes(8, "big").hex()
        + "00000008" + (NOW_S + VALID_AFTER_S).to_bytes(8, "big").hex()
        + "00000020" + "ee" * 32
    )  # fmt: skip
    assert IDENTITY.sign(GRANTED.statement(GRANTOR)) == GRANTED.signature


def test_delegated_key_signs_for_its_grantor() -> None:
    assert is_signed()
    assert not Delegations(lambda: NOW_S).is_signed(GRANTOR, GRANTED, Use.LANES, b"another", SIGNATURE)
    assert not Delegations(lambda: NOW_S).is_signed(GRANTOR, GRANTED, Use.LANES, STATEMENT, IDENTITY.sign(STATEMENT))
    assert not Delegations(lambda: NOW_S).is_signed(GRANTOR, GRANTED, Use.LANES, STATEMENT, b"")


@pytest.mark.parametrize(
    "grantor",
    [
        replace(GRANTOR, public_key=OTHER.public_key),
        replace(GRANTOR, public_key=b"short"),
        replace(GRANTOR, mesh_id="mesh2"),
        replace(GRANTOR, mesh_epoch=8),
        replace(GRANTOR, node_id=NodeId(4)),
        Grantor(IDENTITY.public_key),
    ],
)
def test_another_grantor_did_not_delegate_it(grantor: Grantor) -> None:
    """ID1, ID3: not even the same key in another mesh, epoch or place."""
    assert not is_signed(grantor=grantor)


@pytest.mark.parametrize(
    "altered",
    [
        replace(GRANTED, public_key=OTHER.public_key),
        replace(GRANTED, not_before_s=GRANTED.not_before_s - 1),
        replace(GRANTED, not_after_s=GRANTED.not_after_s + 1),
        replace(GRANTED, signature=bytes(64)),
        replace(GRANTED, signature=KEY.sign(GRANTED.statement(GRANTOR))),
    ],
)
def test_altered_delegation_is_refused(altered: Delegation) -> None:
    assert not is_signed(altered)


def test_each_key_signs_for_its_use_only() -> None:
    """ID4. Claiming another use does not help either: the use is signed."""
    assert not is_signed(use=Use.LINK_STATES)
    assert not is_signed(replace(GRANTED, use=Use.LINK_STATES), use=Use.LINK_STATES)


@pytest.mark.parametrize(
    ("now_s", "counts"),
    [
        (NOW_S - VALID_BEFORE_S - 0.001, False),
        (NOW_S - VALID_BEFORE_S, True),
        (NOW_S + VALID_AFTER_S - 0.001, True),
        (NOW_S + VALID_AFTER_S, False),
    ],
)
def test_times_are_those_of_the_checkers_wall_clock(now_s: float, counts: bool) -> None:
    assert is_signed(now_s=now_s) is counts


def test_clock_skew_names_both_clocks() -> None:
    error = GRANTED.clock_skew("n" * 63, NOW_S + VALID_AFTER_S)
    assert (error.code, error.retryable) == (ErrorCode.CLOCK_SKEW, True)
    # A peer is quoted with 200 characters at most.
    assert "2027-01-15 08:00:00 UTC" in error.message[:200]
    assert "2027-01-16 08:00:00 UTC" in error.message[:200]
    far = replace(GRANTED, not_before_s=2**63 - 2, not_after_s=2**63 - 1)
    assert str(2**63 - 2 + VALID_BEFORE_S) in far.clock_skew("n", 0.0).message


def test_checked_delegation_costs_nothing_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    checked, clock = count_checks(monkeypatch), Clock()
    known = Delegations(clock)
    for _ in range(3):
        assert known.is_signed(GRANTOR, GRANTED, Use.LANES, STATEMENT, SIGNATURE)
    assert checked == [GRANTED.statement(GRANTOR), STATEMENT, STATEMENT, STATEMENT]
    # What is remembered still expires, and still is for its use.
    assert not known.is_signed(GRANTOR, GRANTED, Use.LINK_STATES, STATEMENT, SIGNATURE)
    clock.now_s = NOW_S + VALID_AFTER_S
    assert not known.is_signed(GRANTOR, GRANTED, Use.LANES, STATEMENT, SIGNATURE)
    assert len(checked) == 4


def test_refused_delegation_costs_one_check_and_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = count_checks(monkeypatch)
    known, forged = Delegations(lambda: NOW_S), replace(GRANTED, signature=bytes(64))
    for _ in range(3):
        assert known.checks_needed(GRANTOR, forged) == 2
        assert not known.is_signed(GRANTOR, forged, Use.LANES, STATEMENT, SIGNATURE)
    assert len(checked) == 3
    assert known._known == {}


def test_stranger_is_checked_and_never_remembered() -> None:
    stranger = Grantor(IDENTITY.public_key)
    granted = Delegation.signed(IDENTITY, stranger, Use.LANES, KEY.public_key, NOW_S)
    known = Delegations(lambda: NOW_S)
    assert known.is_signed(stranger, granted, Use.LANES, STATEMENT, SIGNATURE)
    assert known.checks_needed(stranger, granted) == 2


def test_memory_is_bounded_and_a_member_makes_only_its_own_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_is_signed", lambda *_: True)
    known = Delegations(lambda: NOW_S)
    quiet = replace(GRANTOR, node_id=NodeId(1))
    assert known.is_signed(quiet, GRANTED, Use.LANES, STATEMENT, SIGNATURE)
    for step in range(5_000):
        assert known.is_signed(GRANTOR, replace(GRANTED, not_after_s=NOW_S + 1 + step), Use.LANES, b"", b"")
    assert known.checks_needed(quiet, GRANTED) == 1
    assert len(known._known[GRANTOR.node_id]) == PER_NODE_REMEMBERED_MAX
    for node in range(100, 100 + 2 * NODES_REMEMBERED_MAX):
        assert known.is_signed(replace(GRANTOR, node_id=NodeId(node)), GRANTED, Use.LANES, b"", b"")
    assert len(known._known) == NODES_REMEMBERED_MAX
    assert NODES_REMEMBERED_MAX * PER_NODE_REMEMBERED_MAX == 4_096


def test_another_identity_key_of_the_node_makes_its_delegations_worthless() -> None:
    known = Delegations(lambda: NOW_S)
    assert known.is_signed(GRANTOR, GRANTED, Use.LANES, STATEMENT, SIGNATURE)
    changed = replace(GRANTOR, public_key=OTHER.public_key)
    assert not known.is_signed(changed, GRANTED, Use.LANES, STATEMENT, SIGNATURE)


uses = st.sampled_from(list(Use))
seconds = st.integers(0, 2**63 - 1 - LIFE_MAX_S)


@st.composite
def delegations(draw: st.DrawFn) -> Delegation:
    begin = draw(seconds)
    end = begin + draw(st.integers(1, LIFE_MAX_S))
    key, signature = (draw(st.binary(min_size=size, max_size=size)) for size in (32, 64))
    return Delegation(key, draw(uses), begin, end, signature)


@given(delegations())
def test_both_encodings_lead_back(value: Delegation) -> None:
    assert len(value.pack()) == DELEGATION_BYTES
    assert Delegation.unpack(value.pack()) == value
    assert Delegation.from_proto(delegation_pb2.Delegation.FromString(value.to_proto().SerializeToString())) == value


@given(st.binary(max_size=2 * DELEGATION_BYTES))
def test_any_bytes_are_a_delegation_that_packs_alike_or_nothing(data: bytes) -> None:
    value = Delegation.unpack(data)
    assert value is None or value.pack() == data


@pytest.mark.parametrize(
    "fields",
    [
        {"public_key": bytes(31)},
        {"signature": bytes(65)},
        {"use": 0},
        {"use": 3},
        {"not_after_s": GRANTED.not_before_s},
        {"not_after_s": GRANTED.not_before_s + LIFE_MAX_S + 1},
        {"not_before_s": 2**64 - 2, "not_after_s": 2**64 - 1},
    ],
)
def test_ill_formed_is_refused_by_both_readers(fields: dict[str, int | bytes]) -> None:
    message = GRANTED.to_proto()
    for name, value in fields.items():
        setattr(message, name, value)
    assert Delegation.from_proto(message) is None
    if not {"public_key", "signature"} & fields.keys():
        packed = module._LAYOUT.pack(
            message.use, message.not_before_s, message.not_after_s, message.public_key, message.signature
        )
        assert Delegation.unpack(packed) is None


@given(st.integers(0, 8 * DELEGATION_BYTES - 1))
def test_any_flipped_bit_is_refused(bit: int) -> None:
    data = bytearray(GRANTED.pack())
    data[bit // 8] ^= 1 << bit % 8
    altered = Delegation.unpack(bytes(data))
    assert altered is None or not is_signed(altered)


def test_machine_that_lost_its_clock_can_delegate() -> None:
    granted = Delegation.signed(IDENTITY, GRANTOR, Use.LANES, KEY.public_key, 5.0)
    assert Delegation.unpack(granted.pack()) == granted
    assert is_signed(granted, now_s=5.0)


def told(**changes: object) -> view_pb2.LocalIdentity:
    message = view_pb2.LocalIdentity(node_id=3, name="c", public_key=IDENTITY.public_key, delegation=GRANTED.to_proto())
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def only(signer: KeySigner) -> Callable[[bytes], KeySigner | None]:
    """The keys of a service that has one."""
    return {signer.public_key: signer}.get


def test_service_takes_what_its_control_plane_says() -> None:
    signer = DelegatedSigner.from_proto(told(), only(KEY), Use.LANES, "mesh", 7)
    assert (signer.delegation, signer.identity_key) == (GRANTED, IDENTITY.public_key)
    assert is_signed(signer.delegation)
    assert signer.sign(STATEMENT) == SIGNATURE
    # One that is over as well: peers judge it, and it is renewed when the control plane comes back.
    over = Delegation.signed(IDENTITY, GRANTOR, Use.LANES, KEY.public_key, 0.0)
    message = told()
    message.delegation.CopyFrom(over.to_proto())
    assert DelegatedSigner.from_proto(message, only(KEY), Use.LANES, "mesh", 7).delegation == over


@pytest.mark.parametrize(
    ("message", "signer", "use", "mesh_id", "epoch"),
    [
        (told(), OTHER, Use.LANES, "mesh", 7),
        (told(), KEY, Use.LINK_STATES, "mesh", 7),
        (told(), KEY, Use.LANES, "mesh2", 7),
        (told(), KEY, Use.LANES, "mesh", 8),
        (told(node_id=4), KEY, Use.LANES, "mesh", 7),
        (told(public_key=OTHER.public_key), KEY, Use.LANES, "mesh", 7),
        (told(public_key=b"short"), KEY, Use.LANES, "mesh", 7),
        (view_pb2.LocalIdentity(node_id=3, name="c", public_key=IDENTITY.public_key), KEY, Use.LANES, "mesh", 7),
    ],
)
def test_service_refuses_what_is_not_for_it(
    message: view_pb2.LocalIdentity, signer: KeySigner, use: Use, mesh_id: str, epoch: int
) -> None:
    with pytest.raises(MeshError) as caught:
        DelegatedSigner.from_proto(message, only(signer), use, mesh_id, epoch)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
