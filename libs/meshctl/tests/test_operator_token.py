"""`meshctl operator-token rotate` on a node, and the token that `meshctl` shows to a gateway."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from meshapi.supervisor.v1 import mesh_pb2
from meshcommon.operator_token import FILE_NAME, OperatorToken, is_token, new_token
from meshtest.fake_services import MESH_SERVICE, FakeServer
from tests.conftest import Program

NOWHERE = Program("127.0.0.1:1")


@pytest.fixture(autouse=True)
def no_token_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MESH_TOKEN", raising=False)


@asynccontextmanager
async def gateway() -> AsyncIterator[tuple[Program, FakeServer]]:
    async with FakeServer((MESH_SERVICE,)) as server:
        server.answer("GetStatus", mesh_pb2.GetStatusResponse(name="a"))
        yield Program(server.target), server


def accepts(directory: Path, token: str) -> bool:
    found = OperatorToken.of_settings("", directory, "MESH_TEST_FILE")
    assert found is not None
    return found._is_accepted(token)


async def test_a_token_is_printed_once_and_stored_as_its_hash(tmp_path: Path) -> None:
    result = await NOWHERE.run("operator-token", "rotate", "--data-dir", str(tmp_path))
    assert result.exit_code == 0, result.output
    token = result.output.strip()
    file = tmp_path / FILE_NAME
    assert is_token(token)
    assert token not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert accepts(tmp_path, token)


async def test_a_rotation_ends_the_old_token_unless_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_NODE_DATA_DIR", str(tmp_path))
    first = (await NOWHERE.run("operator-token", "rotate")).output.strip()
    second = json.loads((await NOWHERE.run("operator-token", "rotate", "--keep-old", "--json")).output)["token"]
    assert accepts(tmp_path, first)
    assert accepts(tmp_path, second)
    third = (await NOWHERE.run("operator-token", "rotate", "--keep-old")).output.strip()
    assert [accepts(tmp_path, one) for one in (first, second, third)] == [False, True, True]
    await NOWHERE.run("operator-token", "rotate")
    assert not accepts(tmp_path, third)


async def test_a_damaged_file_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("nonsense")
    result = await NOWHERE.run("operator-token", "rotate", "--keep-old", "--data-dir", str(tmp_path))
    assert result.exit_code == 1
    assert "INVALID_ARGUMENT" in result.output
    assert (await NOWHERE.run("operator-token", "rotate", "--data-dir", str(tmp_path))).exit_code == 0


async def test_a_gateway_is_shown_the_token_of_a_file_or_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = new_token(), new_token()
    (tmp_path / "token").write_text(first + "\n")
    monkeypatch.setenv("MESH_TOKEN", second)
    async with gateway() as (meshctl, server):
        assert (await meshctl.run("status", "--token-file", str(tmp_path / "token"))).exit_code == 0
        assert dict(server.asked[-1].metadata)["authorization"] == f"Bearer {first}"
        assert (await meshctl.run("status")).exit_code == 0
        assert dict(server.asked[-1].metadata)["authorization"] == f"Bearer {second}"


async def test_a_token_does_not_go_out_in_clear_nor_as_nonsense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("nonsense")
    for given, said in ((str(tmp_path / "token"), "no operator's token"), (str(tmp_path / "none"), "cannot be read")):
        result = await NOWHERE.run("status", "--token-file", given)
        assert result.exit_code == 1
        assert said in result.output
    token = new_token()
    monkeypatch.setenv("MESH_TOKEN", token)
    result = await Program("192.0.2.1:7002").run("status")
    assert result.exit_code == 1
    assert "in clear" in result.output
    assert token not in result.output


@pytest.mark.parametrize("target", ["::1:7002", "[fe80::1%lo]:7002", "[::1:7002", "[::1]"])
async def test_malformed_ipv6_gateways_are_refused(target: str) -> None:
    result = await NOWHERE.run("status", "--gateway", target)
    assert result.exit_code == 2
    assert "in brackets" in result.output
