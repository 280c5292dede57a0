"""What nodes tell each other about their stores."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwire.errors import WireCode, WireError
from meshwire.store_message import (
    INCARNATIONS_MAX,
    RENOUNCED_MAX,
    Ask,
    Hello,
    Incarnation,
    Lineage,
    Refusal,
    Seen,
    StoreMessage,
    Welcome,
    decode_store_message,
    encode_store_message,
)

U64 = st.integers(0, 2**64 - 1)
STEPS = st.lists(st.tuples(U64, st.integers(1, 1000)), min_size=1, max_size=INCARNATIONS_MAX)
LIVES = STEPS.map(
    lambda steps: tuple(
        Incarnation(incarnation, boot)
        for (incarnation, _), boot in zip(steps, accumulate(step for _, step in steps), strict=True)
    )
)
LINEAGES = st.builds(Lineage, U64, LIVES, st.lists(U64, max_size=RENOUNCED_MAX).map(tuple))
SEEN = st.builds(Seen, U64, U64, U64, st.lists(U64, max_size=RENOUNCED_MAX).map(tuple))
OTHERS = st.lists(st.tuples(U64, SEEN), max_size=4).map(tuple)
MESSAGES: st.SearchStrategy[StoreMessage] = st.one_of(
    st.builds(Hello, LINEAGES, OTHERS), st.builds(Welcome, U64), st.builds(Refusal, SEEN, LINEAGES), st.just(Ask())
)


@given(MESSAGES)
def test_decode_gives_back_what_was_encoded(message: StoreMessage) -> None:
    assert decode_store_message(encode_store_message(message)) == message


@pytest.mark.parametrize(
    "lineage",
    [
        Lineage(1, ()),
        Lineage(1, tuple(Incarnation(at, at) for at in range(INCARNATIONS_MAX + 1))),
        Lineage(1, (Incarnation(1, 1),), tuple(range(RENOUNCED_MAX + 1))),
        Lineage(1, (Incarnation(1, 2), Incarnation(2, 2))),
        Lineage(2**64, (Incarnation(1, 1),)),
    ],
)
def test_lineages_that_cannot_be_are_not_encoded(lineage: Lineage) -> None:
    with pytest.raises(WireError) as caught:
        encode_store_message(Hello(lineage))
    assert caught.value.code is WireCode.BAD_FIELD


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", WireCode.TRUNCATED),
        (b"\x09", WireCode.BAD_FIELD),
        (b"\x04\x00", WireCode.BAD_FIELD),
        (b"\x02\x00\x00", WireCode.TRUNCATED),
        (b"\x01" + bytes(8) + b"\x00\x00", WireCode.BAD_FIELD),
        (b"\x01" + bytes(8) + b"\x01" + bytes(16) + b"\x00\x21" + bytes(2000), WireCode.BAD_FIELD),
        (b"\x03" + bytes(24) + b"\x11" + bytes(200), WireCode.BAD_FIELD),
        (b"\x01" + bytes(8) + b"\x02" + bytes(32) + b"\x00", WireCode.BAD_FIELD),
    ],
)
def test_malformed_messages_are_refused(data: bytes, code: WireCode) -> None:
    with pytest.raises(WireError) as caught:
        decode_store_message(data)
    assert caught.value.code is code
