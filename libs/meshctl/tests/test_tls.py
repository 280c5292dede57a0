"""`meshctl` to a gateway that speaks TLS: what it trusts, and what it says is wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from meshapi.supervisor.v1 import mesh_pb2
from meshcommon.tls_files import TlsFiles
from meshtest.certificates import Authority
from meshtest.fake_services import MESH_SERVICE, FakeServer
from tests.conftest import Program

if TYPE_CHECKING:
    from click.testing import Result


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@asynccontextmanager
async def gateway(tls: TlsFiles | None) -> AsyncIterator[Program]:
    async with FakeServer((MESH_SERVICE,), tls=tls) as server:
        server.answer("GetStatus", mesh_pb2.GetStatusResponse(name="a"))
        yield Program(server.target)


def failure(result: Result) -> str:
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    return result.output


async def test_an_authority_is_named_before_or_after_the_command(authority: Authority) -> None:
    async with gateway(authority.issue("good").files()) as meshctl:
        for arguments in (["--tls-ca", str(authority.file), "status"], ["status", "--tls-ca", str(authority.file)]):
            result = await meshctl.run(*arguments)
            assert result.exit_code == 0, result.output


async def test_an_authority_is_named_by_the_environment(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_CTL_TLS_CA", str(authority.file))
    async with gateway(authority.issue("good").files()) as meshctl:
        result = await meshctl.run("status")
        assert result.exit_code == 0, result.output


async def test_what_is_wrong_with_a_certificate_is_named(tmp_path: Path, authority: Authority) -> None:
    other = Authority(tmp_path, "other")
    elsewhere = authority.issue("elsewhere", hosts=("mesh.example",))
    expired = authority.issue("expired", ends_in=-timedelta(minutes=1))
    for files, options, said in (
        (authority.issue("good").files(), ["--tls-ca", str(other.file)], "unknown authority"),
        (authority.issue("good").files(), ["--tls"], "unknown authority"),
        (elsewhere.files(), ["--tls-ca", str(authority.file)], "another name"),
        (expired.files(-timedelta(minutes=3)), ["--tls-ca", str(authority.file)], "expired"),
        (None, ["--tls-ca", str(authority.file)], "speaks no TLS"),
    ):
        async with gateway(files) as meshctl:
            output = failure(await meshctl.run("status", *options))
            assert "TLS_FAILED" in output
            assert said in output


@pytest.mark.parametrize("command", ["publish", "subscribe"])
async def test_streams_name_it_as_well(tmp_path: Path, authority: Authority, command: str) -> None:
    other = Authority(tmp_path, "other")
    async with gateway(authority.issue("good").files()) as meshctl:
        options = ["--tls-ca", str(other.file), "--timeout", "3"]
        output = failure(await meshctl.run(command, "demo/lines", *options, given=b"one\n"))
        assert "unknown authority" in output


async def test_clear_text_to_a_gateway_that_speaks_tls_says_which_option_to_add(authority: Authority) -> None:
    async with gateway(authority.issue("good").files()) as meshctl:
        result = await meshctl.run("status")
        assert result.exit_code == 3, "a gateway that restarts looks the same"
        assert "--tls-ca" in result.output


@pytest.mark.parametrize("content", [None, "hello"])
async def test_a_file_without_certificates_is_refused(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    output = failure(await Program("127.0.0.1:1").run("status", "--tls-ca", str(file)))
    assert "INVALID_ARGUMENT" in output
    assert str(file) in output
