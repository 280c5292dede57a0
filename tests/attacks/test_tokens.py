"""Join policies and tokens: what is spent, revoked, guessed, changed or of another mesh admits nobody, whoever relays it."""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mesh_control.core.join_tokens import JoinKey, confirm, encode_token, parse_token, prove, verifier_of
from meshapi.common.v1 import view_pb2
from meshapi.control.v1 import join_pb2
from meshapi.supervisor.v1 import mesh_pb2
from meshcommon.errors import ErrorCode
from meshtest.certificates import SelfSigned
from meshtest.waiting import eventually
from meshwire.request import ErrorResponse, OkResponse, Request, Response
from tests.attacks.lanes import lane, new_key, public_key, stranger
from tests.attacks.newcomer import FALSE_MESH_ID, Newcomer, false_member
from tests.attacks.target import Target
from tests.join_requests import join_request

OPEN, KEY_REQUIRED, CLOSED = (
    view_pb2.JOIN_POLICY_OPEN,
    view_pb2.JOIN_POLICY_KEY_REQUIRED,
    view_pb2.JOIN_POLICY_CLOSED,
)
ADMITTED = "admitted"
OTHER_SECRET = bytes(range(32))

pytestmark = pytest.mark.changes_state


async def ask(target: Target, name: str, token: str, source: str, site: str = "b") -> str:
    """The code of the refusal, or ADMITTED."""
    key = new_key()
    async with lane(target.port(site, "peer"), stranger(name, key), source=source) as found:
        answer = await found.join(join_request(name, public_key(key), token))
    return answer.code if isinstance(answer, ErrorResponse) else ADMITTED


async def ask_once(target: Target, token: str, source: str) -> list[str]:
    return [await ask(target, "holder", token, source)]


async def valid(target: Target, source: str) -> list[str]:
    return await ask_once(target, await target.issue_token(), source)


async def none_at_all(target: Target, source: str) -> list[str]:
    return await ask_once(target, "", source)


async def expired(target: Target, source: str) -> list[str]:
    token = await target.issue_token(ttl_s=1)
    await asyncio.sleep(1.2)
    return await ask_once(target, token, source)


async def used_twice_at_once(target: Target, source: str) -> list[str]:
    token = await target.issue_token()
    at_a, at_b = ask(target, "holder", token, source, "a"), ask(target, "second", token, source, "b")
    return list(await asyncio.gather(at_a, at_b))


async def of_another_mesh(target: Target, source: str) -> list[str]:
    return await ask_once(target, encode_token(JoinKey(FALSE_MESH_ID, (), OTHER_SECRET)), source)


async def revoked(target: Target, source: str) -> list[str]:
    token = await target.issue_token()
    tokens = (await target.gateways["a"].mesh.ListTokens(mesh_pb2.ListTokensRequest(), timeout=20)).tokens
    await target.gateways["c"].mesh.RevokeToken(mesh_pb2.RevokeTokenRequest(token_id=tokens[-1].token_id), timeout=20)
    await eventually("b knows that it was revoked", lambda: _is_unknown(target, tokens[-1].token_id))
    return await ask_once(target, token, source)


async def _is_unknown(target: Target, token_id: str) -> bool:
    known = (await target.gateways["b"].mesh.ListTokens(mesh_pb2.ListTokensRequest(), timeout=20)).tokens
    return token_id not in {token.token_id for token in known}


async def tampered(target: Target, source: str) -> list[str]:
    key = parse_token(await target.issue_token())
    changed = bytes((key.secret[0] ^ 1,)) + key.secret[1:]
    return await ask_once(target, encode_token(JoinKey(key.mesh_id, key.addresses, changed)), source)


CASES: list[tuple[Callable[[Target, str], Awaitable[list[str]]], list[str], list[str], list[str]]] = [
    (valid, [ADMITTED], [ADMITTED], ["JOIN_CLOSED"]),
    (none_at_all, [ADMITTED], ["TOKEN_REQUIRED"], ["JOIN_CLOSED"]),
    (expired, ["TOKEN_EXPIRED"], ["TOKEN_EXPIRED"], ["JOIN_CLOSED"]),
    (used_twice_at_once, [ADMITTED, "TOKEN_USED_UP"], [ADMITTED, "TOKEN_USED_UP"], ["JOIN_CLOSED"] * 2),
    (of_another_mesh, ["MESH_ID_MISMATCH"], ["MESH_ID_MISMATCH"], ["MESH_ID_MISMATCH"]),
    (revoked, ["TOKEN_UNKNOWN"], ["TOKEN_UNKNOWN"], ["TOKEN_UNKNOWN"]),
    (tampered, ["TOKEN_UNKNOWN"], ["TOKEN_UNKNOWN"], ["TOKEN_UNKNOWN"]),
]
"""What is tried, and what comes of it in an OPEN mesh, with KEY_REQUIRED, and in a CLOSED one."""


async def forget(target: Target, *names: str) -> None:
    """Those that were admitted go again."""
    members = {node.name for node in (await target.gateways["a"].status()).view.nodes}
    for name in members.intersection(names):
        await target.gateways["a"].mesh.ForgetNode(mesh_pb2.ForgetNodeRequest(name=name), timeout=20)


async def set_policy(target: Target, policy: view_pb2.JoinPolicy.ValueType) -> None:
    """Returns when every node that is asked here knows it."""
    await target.gateways["a"].mesh.SetJoinPolicy(mesh_pb2.SetJoinPolicyRequest(policy=policy), timeout=20)

    async def is_known() -> bool:
        return all([(await gateway.status()).join_policy == policy for gateway in target.gateways.values()])

    await eventually("every node knows the policy", is_known)


@pytest.mark.parametrize("column", [1, 2, 3], ids=["open", "key-required", "closed"])
async def test_each_policy_with_each_kind_of_token(target: Target, column: int) -> None:
    """Each case comes from a host of its own, so that wrong proofs of one do not count for another."""
    try:
        await set_policy(target, (OPEN, KEY_REQUIRED, CLOSED)[column - 1])
        for number, case in enumerate(CASES):
            expected = case[column]
            assert isinstance(expected, list)
            said = await case[0](target, f"127.0.{column}.{number + 1}")
            assert Counter(said) == Counter(expected), case[0].__name__
            await forget(target, "holder", "second")
    finally:
        await set_policy(target, KEY_REQUIRED)


async def test_recorded_request_admits_nobody_else(target: Target) -> None:
    """J1: relayed over another lane, or with a field changed, it is worth nothing; repeated it gives the same place."""
    key, own = new_key(), new_key()
    recorded = join_request("holder", public_key(key), await target.issue_token())
    async with lane(target.port("a", "peer"), stranger("relay", own)) as found:
        answer = await found.join(recorded)
        assert isinstance(answer, ErrorResponse)
        assert answer.code == ErrorCode.KEY_MISMATCH
    source = "127.0.4.1"
    changes: dict[str, object] = {"public_key": public_key(own), "name": "other", "peer_address": "ws://127.0.0.1:9"}
    changes |= {"mesh_version": recorded.mesh_version + 1, "wrap_key": bytes(range(32))}
    for field, value in changes.items():
        changed = join_pb2.JoinRequest()
        changed.CopyFrom(recorded)
        setattr(changed, field, value)
        local = stranger("relay", own if field == "public_key" else key)
        async with lane(target.port("a", "peer"), local, source=source) as found:
            answer = await found.join(changed)
        assert isinstance(answer, ErrorResponse)
        assert answer.code == ErrorCode.TOKEN_UNKNOWN, field
    places = []
    for site in ("a", "b"):
        async with lane(target.port(site, "peer"), stranger("holder", key)) as found:
            answer = await found.join(recorded)
        assert isinstance(answer, join_pb2.JoinResponse)
        places.append(answer.node_id)
    assert places[0] == places[1]
    await forget(target, "holder")


async def test_guessed_proofs_shut_their_host_out(target: Target) -> None:
    """J4: and no other host."""
    token = await target.issue_token()
    key, source = new_key(), "127.0.5.1"
    codes = []
    async with lane(target.port("a", "peer"), stranger("guesser", key), source=source) as found:
        for number in range(8):
            request = join_request("guesser", public_key(key), token)
            prove(request, verifier_of(bytes((number,)) * 32))
            answer = await found.join(request)
            assert isinstance(answer, ErrorResponse)
            codes.append(answer.code)
    assert codes == ["TOKEN_UNKNOWN"] * 5 + ["BACKPRESSURE"] * 3
    assert await ask(target, "guesser", token, source, "a") == "BACKPRESSURE"
    assert await ask(target, "holder", token, "127.0.5.2", "a") == ADMITTED
    await forget(target, "holder")


def answered(change: Callable[[bytes, bytes], bytes]) -> Callable[[Request], Response]:
    """A false member's answer: sound in form, its confirmation made by `change` of the public key and the answer."""

    def answer(request: Request) -> Response:
        asked = join_pb2.JoinRequest.FromString(bytes(request.body))
        response = join_pb2.JoinResponse(node_id=2, mcg_member=2)
        response.view.revision, response.view.mesh_id, response.view.mesh_epoch = 1, FALSE_MESH_ID, 1
        response.view.nodes.add(node_id=1, name="false", public_key=bytes(32), state=view_pb2.NODE_STATE_ACTIVE)
        response.view.nodes.add(
            node_id=2,
            name=asked.name,
            public_key=asked.public_key,
            mcg_member=2,
            state=view_pb2.NODE_STATE_JOINING,
        )
        return OkResponse(change(asked.public_key, response.SerializeToString()))

    return answer


@pytest.mark.parametrize(
    "change",
    [
        lambda _key, answer: answer,
        lambda key, answer: confirm(verifier_of(bytes(32)), key, answer),
        lambda _key, answer: confirm(verifier_of(OTHER_SECRET), bytes(32), answer),
        lambda key, answer: confirm(verifier_of(OTHER_SECRET), key, answer) + b"\x08\x03",
        lambda key, answer: b"\x08\x03" + confirm(verifier_of(OTHER_SECRET), key, answer),
    ],
    ids=["none", "another token's", "another key's", "a field behind", "a field before"],
)
async def test_false_member_cannot_confirm(
    newcomer: Newcomer, target: Target, change: Callable[[bytes, bytes], bytes]
) -> None:
    """J3: the newcomer holds a token of that mesh; who answers does not know it, or changes what was said."""
    async with false_member(answered(change)) as address:
        error = await newcomer.refuses(address, encode_token(JoinKey(FALSE_MESH_ID, (address,), OTHER_SECRET)))
    assert error.code is ErrorCode.KEY_MISMATCH
    assert await newcomer.is_alone()


@asynccontextmanager
async def relaying(address: str, identity: SelfSigned, old: bytes, new: bytes) -> AsyncIterator[tuple[str, list[int]]]:
    """A man in the middle that relays every byte, but for `old`, which becomes `new` on the way back; and how often.

    Where lanes run in TLS it ends that on both sides, with a certificate of its own.
    """
    swapped: list[int] = []
    scheme, _, endpoint = address.partition("://")
    port = int(endpoint.rpartition(":")[2])
    dials = ssl.create_default_context()
    dials.check_hostname, dials.verify_mode = False, ssl.CERT_NONE

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, swaps: bool) -> None:
        try:
            while data := await reader.read(65_536):
                if swaps and old in data:
                    swapped.append(data.count(old))
                    data = data.replace(old, new)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection("127.0.0.1", port, ssl=dials if scheme == "wss" else None)
        await asyncio.gather(pass_on(reader, forth, swaps=False), pass_on(back, writer, swaps=True))

    server = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=identity.server() if scheme == "wss" else None)
    try:
        yield f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}", swapped
    finally:
        server.close()


async def test_man_in_the_middle_swaps_a_key_of_the_view(newcomer: Newcomer, target: Target, tmp_path: Path) -> None:
    """J3: it relays the handshake of the real mesh, and changes b's key in the answer, or is found out before that."""
    view = (await target.gateways["a"].status()).view
    key_of_b = next(node.public_key for node in view.nodes if node.name == "b")
    token = await target.issue_token()
    identity = SelfSigned.make(tmp_path, "mallory")
    own_key = public_key(new_key())
    async with relaying(target.peer_address("a"), identity, key_of_b, own_key) as (address, swapped):
        error = await newcomer.refuses(address, token)
    if address.startswith("wss:"):
        assert str(error.code) == "TLS_TERMINATED", "the handshake is bound to the certificates of both ends"
    else:
        assert swapped, "the key did not pass: the attack was none"
        assert error.code is ErrorCode.KEY_MISMATCH
    assert await newcomer.is_alone()
    await forget(target, newcomer.config.name)
