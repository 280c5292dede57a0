"""Join tokens: one text for each, proofs that cover what they must, confirmations over bytes."""

from __future__ import annotations

import base64
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control_plane_testing.mcg_commands import MESH_ID
from mesh_control.core.join_tokens import (
    ADDRESSES_MAX,
    TOKEN_CHARACTERS_MAX,
    JoinKey,
    confirm,
    confirmed,
    encode_token,
    is_proof,
    parse_token,
    proof_of,
    token_id_of,
    verifier_of,
)
from meshapi.control.v1 import join_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.wrong_proofs import HOSTS_MAX, REFUSED_S, WINDOW_S, WRONG_PROOFS_MAX, WrongProofs

SECRET: Final = bytes(range(32))
KEY: Final = JoinKey(MESH_ID, ("ws://a:1", "wss://[::1]:65535"), SECRET, "b", bytes(32))
VERIFIER: Final = verifier_of(SECRET)
LABEL: Final = st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}", fullmatch=True)
KEYS: Final = st.builds(
    JoinKey,
    st.uuids().map(str),
    st.lists(st.builds("ws://h{}:{}".format, st.integers(0, 99), st.integers(1, 65_535)), max_size=ADDRESSES_MAX).map(
        tuple
    ),
    st.binary(min_size=32, max_size=32),
    st.just("") | LABEL,
    st.just(b"") | st.binary(min_size=32, max_size=32),
)


def packed(data: bytes) -> str:
    return "mesh1." + base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unpacked(token: str) -> bytes:
    encoded = token.removeprefix("mesh1.")
    return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))


def test_what_a_verifier_and_an_id_are() -> None:
    """RFC 5869 with SHA-256, no salt, info "mesh.v1 join token": tokens must outlive versions of this software."""
    assert VERIFIER.hex() == "902ad28e2ac9b152d8a66a767614e0b2687b1e74337b6029f4322753bf8f5886"
    assert token_id_of(VERIFIER) == "8df60fb30079dca9"


def test_text_proof_and_confirmation_are_pinned() -> None:
    """Computed apart from this code, as the page on identity says: both sides may run different versions of it."""
    assert encode_token(KEY) == (
        "mesh1.bw1sUgAAQACAAAAAAAAAAQABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fIAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAAAAAAWICCHdzOi8vYToxEXdzczovL1s6OjFdOjY1NTM1"
    )
    assert proof_of(VERIFIER, request()).hex() == "cb8ded233e9596378bdcb4a0451e7c5853a6aa425ebab0864f5432b14b6cc1c0"
    assert confirm(VERIFIER, b"key", b"answer").hex() == (b"answer" + b"\x22\x20").hex() + (
        "a000fe8f6b90a44b8de89ef7dd8d1f3e884e8238226e691a2744e727e7d6a720"
    )


@given(KEYS)
def test_token_is_read_as_it_was_written(key: JoinKey) -> None:
    text = encode_token(key)
    assert parse_token(text) == key
    assert len(text) <= TOKEN_CHARACTERS_MAX
    assert key.secret.hex() not in repr(key)


def test_longest_token_is_within_the_bound() -> None:
    longest = tuple(f"ws://{n}{'a' * 57}.{'b' * 62}.{'c' * 62}.{'d' * 54}:65535" for n in range(ADDRESSES_MAX))
    assert parse_token(encode_token(JoinKey(MESH_ID, longest, SECRET, "n" * 63, bytes(32)))).addresses == longest


@given(KEYS, st.data())
def test_no_other_text_is_a_token(key: JoinKey, data: st.DataObject) -> None:
    """Cut, lengthened or changed: refused, or the text of another token; never the same token by another text."""
    text = encode_token(key)
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(
        st.sampled_from([text[:at], text + text[at], text[:at] + text[at + 1 :]])
        | st.characters(max_codepoint=0x2FF).map(lambda letter: text[:at] + letter + text[at + 1 :])
    )
    refusal, read = None, None
    try:
        read = parse_token(other)
    except MeshError as error:
        refusal = error
    if read is None:
        assert refusal is not None
        assert refusal.code is ErrorCode.INVALID_ARGUMENT
        assert text[6:] not in refusal.message
        return
    assert encode_token(read) == other
    assert (read == key) == (other == text)


GOOD: Final = unpacked(encode_token(KEY))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mesh1.",
        "mesh2." + encode_token(KEY)[6:],
        encode_token(KEY) + "=",
        encode_token(KEY) + "\n",
        " " + encode_token(KEY),
        "mesh1." + "A" * TOKEN_CHARACTERS_MAX,
        packed(GOOD[:-1]),
        packed(GOOD + b"\0"),
        packed(GOOD[:48] + b"\x01" + GOOD[49:]),
        packed(unpacked(encode_token(JoinKey(MESH_ID, (), SECRET)))[:-1] + b"\x09" + b"\x08ws://a:1" * 9),
        encode_token(JoinKey(MESH_ID, ("ws://A:01",), SECRET)),
        encode_token(JoinKey(MESH_ID, ("http://a:1",), SECRET)),
        encode_token(JoinKey(MESH_ID, (), SECRET, "No Name")),
        encode_token(JoinKey(MESH_ID, (), SECRET, "", bytes(31))),
        packed(unpacked(encode_token(JoinKey(MESH_ID, ("ws://a:1",), SECRET)))[:-8] + "ws://é:".encode() + b"1"),
    ],
    ids=range(16),
)
def test_what_is_no_token_is_refused_and_not_quoted(text: str) -> None:
    with pytest.raises(MeshError) as caught:
        parse_token(text)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert caught.value.message.endswith("which begins with mesh1.")


def request(**fields: Any) -> join_pb2.JoinRequest:
    known: dict[str, Any] = {
        "mesh_id": MESH_ID,
        "name": "b",
        "public_key": bytes(32),
        "peer_address": "ws://b:1",
        "mesh_version": 2,
    }
    return join_pb2.JoinRequest(**(known | fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"mesh_id": ""},
        {"name": "c"},
        {"public_key": b"k" * 32},
        {"peer_address": ""},
        {"mesh_version": 3},
        {"wrap_key": b"w"},
    ],
    ids=str,
)
def test_proof_covers_each_field(fields: dict[str, Any]) -> None:
    proof = proof_of(VERIFIER, request())
    assert is_proof(VERIFIER, request(proof=proof))
    assert not is_proof(VERIFIER, request(proof=proof, **fields))
    assert not is_proof(verifier_of(bytes(32)), request(proof=proof))


@pytest.mark.parametrize("proof", [b"", bytes(32), bytes(33)])
def test_what_is_no_proof_is_wrong(proof: bytes) -> None:
    assert not is_proof(VERIFIER, request(proof=proof))


def test_parts_cannot_be_shifted() -> None:
    assert proof_of(VERIFIER, request(name="bc", public_key=b"d")) != proof_of(
        VERIFIER, request(name="b", public_key=b"cd")
    )


@given(st.binary(max_size=200), st.integers(0, 300), st.integers(1, 255))
def test_confirmation_covers_every_byte(answer: bytes, at: int, change: int) -> None:
    body = confirm(VERIFIER, b"key", answer)
    assert confirmed(VERIFIER, b"key", body) == answer
    changed = bytearray(body)
    changed[at % len(body)] ^= change
    for wrong, key, verifier in (
        (bytes(changed), b"key", VERIFIER),
        (body[:-1], b"key", VERIFIER),
        (body + b"\0", b"key", VERIFIER),
        (body, b"yek", VERIFIER),
        (body, b"key", bytes(32)),
        (answer, b"key", VERIFIER),
    ):
        with pytest.raises(MeshError) as caught:
            confirmed(verifier, key, wrong)
        assert caught.value.code is ErrorCode.KEY_MISMATCH


def test_confirmed_answer_is_one_message() -> None:
    """Newcomers without a token read it as they always did."""
    answer = join_pb2.JoinResponse(node_id=7).SerializeToString()
    read = join_pb2.JoinResponse.FromString(confirm(VERIFIER, b"key", answer))
    assert (read.node_id, len(read.confirmation)) == (7, 32)


def is_refused(wrong: WrongProofs, host: str, now: float) -> bool:
    try:
        wrong.check(host, now)
    except MeshError as error:
        return (error.code, error.retryable) == (ErrorCode.BACKPRESSURE, True)
    return False


def test_wrong_proofs_shut_a_host_out_for_a_minute() -> None:
    """J4."""
    wrong = WrongProofs()
    for _ in range(WRONG_PROOFS_MAX):
        assert not is_refused(wrong, "h", 10.0)
        wrong.note("h", 10.0)
    assert is_refused(wrong, "h", 10.0 + REFUSED_S - 0.1)
    assert not is_refused(wrong, "other", 10.0)
    assert not is_refused(wrong, "h", 10.0 + REFUSED_S)


def test_few_wrong_proofs_are_forgotten() -> None:
    wrong = WrongProofs()
    for number in range(3 * WRONG_PROOFS_MAX):
        wrong.note("h", number * WINDOW_S / (WRONG_PROOFS_MAX - 1))
        assert not is_refused(wrong, "h", number * WINDOW_S / (WRONG_PROOFS_MAX - 1))


def test_table_of_hosts_is_bounded() -> None:
    wrong = WrongProofs()
    for number in range(2 * HOSTS_MAX):
        wrong.note(str(number), 1.0)
    assert len(wrong._hosts) == HOSTS_MAX
