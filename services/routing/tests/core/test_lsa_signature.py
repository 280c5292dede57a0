"""Signatures of advertisements: what they bind, and what they leave to others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_routing.core.lsa import NODE_ID_MAX, SEQUENCE_MAX, Lsa, LsaLink
from mesh_routing.core.lsa_signature import LsaSignatures
from meshcommon.delegation import VALID_AFTER_S, VALID_BEFORE_S, DelegatedSigner, Delegations, Use
from meshcommon.ids import NodeId
from meshcommon.key_signer import KeySigner
from meshtest.delegated import NOW_S, delegated_signer

SEED = bytes(range(32))
A, B = NodeId(1), NodeId(2)
u32 = st.integers(0, 2**32 - 1)
ids = st.integers(1, NODE_ID_MAX).map(NodeId)


def signer(node: NodeId = A, now_s: float = NOW_S, use: Use = Use.LINK_STATES, **place: Any) -> DelegatedSigner:
    return delegated_signer(
        SEED, place.get("mesh_id", "mesh"), node, use, mesh_epoch=place.get("epoch", 1), now_s=now_s
    )


SIGNER = signer()


def signatures(mesh_id: str = "mesh", mesh_epoch: int = 1, now_s: float = NOW_S) -> LsaSignatures:
    made = LsaSignatures(mesh_id, mesh_epoch, Delegations(lambda: now_s))
    made.set_keys({A: SIGNER.identity_key, B: SIGNER.identity_key})
    return made


HONEST = signatures().sign(Lsa(A, 7, (LsaLink(B, 1, 2, 4, 3, 6, 7), LsaLink(NodeId(3), 5))), SIGNER)


def test_statement_is_laid_out_as_the_proto_says() -> None:
    """Golden bytes: nodes of every version must agree on them."""
    statement = signatures()._statement(HONEST, replace(SIGNER.delegation, signature=bytes(range(64))))
    assert statement.hex() == (
        "0000000b6d6573682e7633206c7361"
        "000000046d657368"
        + ("00000040" + bytes(range(64)).hex())
        + "0000000000000001"
        + "0000000000000001"
        + "0000000000000007"
        + "00000002"
        "0000000000000002" + "000000010000000200000004" + "000000030000000600000007"
        "0000000000000003" + "000000050000000000000000" + "ffffffffffffffffffffffff"
    )
    assert SIGNER.sign(signatures()._statement(HONEST, SIGNER.delegation)) == HONEST.signature


def test_age_may_change_on_the_way() -> None:
    assert signatures().is_valid(replace(HONEST, age_s=900.0))


@pytest.mark.parametrize(
    "altered",
    [
        replace(HONEST, origin=B),
        replace(HONEST, sequence=8),
        replace(HONEST, links=HONEST.links[:1]),
        replace(HONEST, links=HONEST.links[1:]),
        replace(HONEST, links=(replace(HONEST.links[0], latency_us=9), HONEST.links[1])),
        replace(HONEST, links=(replace(HONEST.links[0], jitter_us=9), HONEST.links[1])),
        replace(HONEST, links=(replace(HONEST.links[0], loss_ppm=9), HONEST.links[1])),
        replace(HONEST, links=(replace(HONEST.links[0], admin_cost=9), HONEST.links[1])),
        replace(HONEST, links=(replace(HONEST.links[0], bandwidth_kbit=9), HONEST.links[1])),
        replace(HONEST, links=(replace(HONEST.links[0], utilisation_permille=9), HONEST.links[1])),
        replace(HONEST, links=(HONEST.links[0], replace(HONEST.links[1], loss_ppm=0))),
        replace(HONEST, signature=b""),
        replace(HONEST, signature=HONEST.signature[:-1]),
        replace(HONEST, signature=bytes(64)),
        replace(HONEST, delegation=None),
        # A genuine one of the same node for the same key: a relay must not put one beside it that is nearly over.
        replace(HONEST, delegation=signer(now_s=NOW_S - 60).delegation),
        replace(HONEST, delegation=replace(SIGNER.delegation, not_after_s=SIGNER.delegation.not_after_s + 1)),
        *(
            signatures().sign(HONEST, forged)
            for forged in (
                signer(B),
                signer(use=Use.LANES),
                signer(epoch=2),
                signer(mesh_id="other"),
                signer(now_s=NOW_S - VALID_AFTER_S),
                signer(now_s=NOW_S + VALID_BEFORE_S + 1),
                replace(SIGNER, signer=KeySigner(SEED)),
                delegated_signer(bytes(32), "mesh", A, Use.LINK_STATES, mesh_epoch=1, now_s=NOW_S),
            )
        ),
    ],
)
def test_altered_is_refused(altered: Lsa) -> None:
    assert not signatures().is_valid(altered)


def test_another_mesh_epoch_or_key_is_refused() -> None:
    assert not signatures(mesh_id="mesh2").is_valid(HONEST)
    assert not signatures(mesh_epoch=2).is_valid(HONEST)
    made = signatures()
    made.set_keys({A: KeySigner(bytes(32)).public_key})
    assert not made.is_valid(HONEST)
    made.set_keys({A: b"short"})
    assert not made.is_valid(HONEST)
    made.set_keys({})
    assert not made.is_valid(HONEST)


@given(st.data())
def test_any_altered_bit_of_any_field_is_refused(data: st.DataObject) -> None:
    peers = sorted(data.draw(st.sets(ids, min_size=1, max_size=4)))
    links = tuple(LsaLink(peer, *data.draw(st.tuples(u32, u32, u32, u32))) for peer in peers)
    lsa = signatures().sign(Lsa(A, data.draw(st.integers(1, SEQUENCE_MAX)), links), SIGNER)
    assert signatures().is_valid(lsa)
    other = Lsa(
        data.draw(st.sampled_from([A, B])),
        lsa.sequence ^ data.draw(st.sampled_from([0, 1, 2**40])),
        (replace(links[0], latency_us=links[0].latency_us ^ data.draw(st.sampled_from([0, 1, 2**31]))), *links[1:]),
        signature=lsa.signature,
        delegation=lsa.delegation,
    )
    assert signatures().is_valid(other) == (other == lsa)


def test_delegation_counts_until_its_last_second_also_when_it_is_remembered() -> None:
    clock_s = NOW_S
    made = LsaSignatures("mesh", 1, Delegations(lambda: clock_s))
    made.set_keys({A: SIGNER.identity_key})
    assert (made.checks_needed(HONEST), made.is_valid(HONEST), made.checks_needed(HONEST)) == (2, True, 1)
    clock_s = NOW_S + VALID_AFTER_S - 1
    assert made.is_valid(HONEST)
    clock_s += 1
    assert not made.is_valid(HONEST)
