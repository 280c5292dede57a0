"""Kind 2: one strict parser for addresses, before anything is committed or dialled; and what a false member answers."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from meshapi.control.v1 import join_pb2
from meshcommon.errors import ErrorCode
from meshtest.processes import start
from meshwire.request import ErrorResponse, OkResponse
from tests.attacks.lanes import lane, new_key, public_key, stranger
from tests.attacks.newcomer import FALSE_MESH_ID, Newcomer, false_member, is_documented
from tests.attacks.target import Target
from tests.attacks.test_peers import assert_quotes_little

POISONED = (
    "ws://u@é:1",
    "ws://user:secret@127.0.0.1:1",
    "ws://127.0.0.1:99999",
    "ws://127.0.0.1:0",
    "ws://127.0.0.1:-1",
    "ws://127.0.0.1",
    "ws://:1",
    "ws://127.0.0.1:1/path",
    "ws://127.0.0.1:1?query",
    "ws://127.0.0.1:1#fragment",
    "http://127.0.0.1:1",
    "unix:///etc/passwd",
    "ws://[::1:1",
    "ws://[v1.x]:1",
    "ws://a..b:1",
    "ws://xn--\u00e9:1",
    "ws://\u2024.\u2024:1",
    "ws://" + "a" * 300 + ":1",
    "ws://" + ".".join(["é" * 45] * 5) + ":1",
    "ws://h\x00:1",
    "ws://h\r\nX: y:1",
    "ws://127.1:1",
    "ws://h:1 ",
    "WS:/h:1",
)


async def test_poisoned_addresses_of_joiners(target: Target) -> None:
    """One such address, once committed, ended every data plane of the mesh, and again at each start."""
    key = new_key()
    async with lane(target.port("a", "peer"), stranger("poisoned", key)) as found:
        for address in POISONED:
            request = join_pb2.JoinRequest(name="poisoned", public_key=public_key(key), peer_address=address)
            answer = await found.join(request)
            assert isinstance(answer, ErrorResponse), address
            assert answer.code == ErrorCode.INVALID_ARGUMENT, (address, answer)
            assert_quotes_little(answer)


async def test_poisoned_addresses_to_join(newcomer: Newcomer, target: Target) -> None:
    for address in POISONED:
        error = await newcomer.refuses(address)
        assert error.code is ErrorCode.INVALID_ARGUMENT, (address, error)
        assert error.message.isprintable()
    assert await newcomer.is_alone()


async def test_poisoned_settings_end_the_start_with_a_sentence(
    tmp_path: Path, newcomer: Newcomer, target: Target
) -> None:
    """Status 78 (configuration), the setting's name, and no traceback."""

    async def one(number: int, module: str, name: str, value: str) -> None:
        environment = {key: text for key, text in os.environ.items() if not key.startswith("MESH_")}
        environment |= newcomer.config.environment("", "")
        environment["MESH_NODE_DATA_DIR"] = str(tmp_path / f"data-{number}")
        environment[name] = value
        log = tmp_path / f"{number}.log"
        child = start([sys.executable, "-m", module], log=log, environment=environment)
        status = await asyncio.to_thread(child.wait, 60)
        assert status == 78, (name, value, child.log_tail())
        text = log.read_text()
        assert "Traceback" not in text, text
        assert name in text

    await asyncio.gather(
        one(1, "mesh_control", "MESH_CONTROL_PEER_ADDRESS", "ws://u@é:1"),
        one(2, "mesh_control", "MESH_CONTROL_PEER_ADDRESS", "ws://127.0.0.1:99999"),
        one(3, "mesh_data", "MESH_DATA_DIAL", "a=ws://u@é:1"),
    )


def view_answer(**changes: object) -> bytes:
    """A right answer to a newcomer but for the changes."""
    response = join_pb2.JoinResponse(node_id=2, mcg_member=2)
    response.view.mesh_id = FALSE_MESH_ID
    response.view.revision = 2
    response.view.nodes.add(node_id=2, name="newcomer", public_key=bytes(32), state=1, mcg_member=2)
    for name, value in changes.items():
        setattr(response.view if name in {"mesh_id", "revision"} else response, name, value)
    return response.SerializeToString()


@pytest.mark.parametrize(
    "mesh_id",
    ["../../../../tmp/evil", "/etc", "x\x00y", "", "a" * 70_000, "..", FALSE_MESH_ID.upper() + "\n"],
    ids=lambda text: ascii(text[:12]),
)
async def test_mesh_id_that_would_become_a_path(newcomer: Newcomer, target: Target, mesh_id: str) -> None:
    before = {path for path in newcomer.config.directory.rglob("*") if path.is_dir()}
    async with false_member(lambda _request: OkResponse(view_answer(mesh_id=mesh_id))) as address:
        error = await newcomer.refuses(address)
    assert is_documented(error), error
    assert await newcomer.is_alone()
    assert {path for path in newcomer.config.directory.rglob("*") if path.is_dir()} == before


async def test_answers_of_a_false_member_that_make_no_sense(newcomer: Newcomer, target: Target) -> None:
    answers = [
        OkResponse(b""),
        OkResponse(b"\xff" * 50),
        OkResponse(view_answer(node_id=0)),
        OkResponse(view_answer(node_id=2**64 - 1)),
        OkResponse(view_answer(mcg_member=0)),
        OkResponse(view_answer(revision=2**64 - 1)),
    ]
    for answer in answers:
        async with false_member(lambda _request, answer=answer: answer) as address:  # type: ignore[misc]
            error = await newcomer.refuses(address)
        assert is_documented(error), (answer, error)
        assert await newcomer.is_alone(), answer


async def test_refusal_with_a_leader_that_is_no_number(newcomer: Newcomer, target: Target) -> None:
    """Details of a refusal are a peer's words; a leader in them once had to be a number."""
    details = {"leader": "not-a-number", "\x1b[2J": "\x00" * 1_000} | {f"k{at}": "v" * 1_000 for at in range(60)}
    codes = ("NOT_LEADER", "NO_SUCH_CODE", "\x1b]0;x", "INTERNAL")
    for code in codes:
        refusal = ErrorResponse(code, "\x1b[31m" * 9_000, False, details)
        async with false_member(lambda _request, refusal=refusal: refusal) as address:  # type: ignore[misc]
            error = await newcomer.refuses(address)
        texts = [error.message, *error.details, *error.details.values()]
        assert all(text.isprintable() for text in texts), error
        assert sum(map(len, texts)) < 8_000
    assert await newcomer.is_alone()
