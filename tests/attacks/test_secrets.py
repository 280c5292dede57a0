"""Runs last: no private key, password, join token or operator's token stands in any log, answer or error that these tests caused to be written."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mesh_control.core.join_tokens import parse_token, verifier_of
from tests.attacks.raw_socket import captured
from tests.attacks.target import PASSWORD, Target


def spellings(secret: bytes) -> set[bytes]:
    """How a secret could be written: raw, hex, base64 of each kind, and as Python or JSON would print bytes."""
    found = {secret, secret.hex().encode(), secret.hex().upper().encode(), repr(secret)[2:-1].encode()}
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        found |= {encode(secret), encode(secret).rstrip(b"=")}
    return found


def secret_findings(secrets: Mapping[str, bytes], logs: Iterable[Path], answers: Sequence[bytes]) -> list[str]:
    """Where a secret stands."""
    wanted = {name: spellings(secret) for name, secret in secrets.items()}
    findings = []
    for log in logs:
        text = log.read_bytes()
        findings += [f"{name} stands in {log}" for name, found in wanted.items() if any(one in text for one in found)]
    together = b"\n".join(answers)
    findings += [
        f"{name} stands in an answer" for name, found in wanted.items() if any(one in together for one in found)
    ]
    return findings


def files_with(secret: bytes, directory: Path) -> list[Path]:
    """Files below the directory in which the secret stands. A file that a running process replaces meanwhile is passed over."""
    found = []
    for path in sorted(directory.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and secret in path.read_bytes():
                found.append(path)
    return found


def test_a_secret_in_a_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "view.bin").write_bytes(b"before" + b"s" * 32 + b"behind")
    (tmp_path / "other").write_bytes(b"s" * 31)
    assert files_with(b"s" * 32, tmp_path) == [tmp_path / "data" / "view.bin"]


async def test_private_keys_lie_in_no_other_file(target: Target) -> None:
    """ID2: the seed of the identity key never leaves the control plane, nor those of the other keys their services."""
    for site in target.sites.values():
        (identity,) = site.config.directory.rglob("identity.key")
        keys = [identity, *site.config.directory.rglob("delegated.key")]
        assert sorted(key.parent.name for key in keys) == ["control", "data", "routing"]
        for key in keys:
            assert files_with(key.read_bytes()[-32:], identity.parent.parent) == [key]
        (issuer,) = site.config.directory.rglob("issuer.key")
        assert files_with(issuer.read_bytes().splitlines()[2], identity.parent.parent) == [issuer]


async def test_no_secret_was_told(target: Target) -> None:
    secrets = {"the password of Postgres": PASSWORD.encode()}
    for number, token in enumerate(target.tokens):
        secrets[f"token {number}"] = token.removeprefix("mesh1.").encode()
        secrets[f"the secret of token {number}"] = parse_token(token).secret
        secrets[f"the verifier of token {number}"] = verifier_of(parse_token(token).secret)
    for number, token in enumerate(target.operator_tokens):
        secrets[f"operator's token {number}"] = token.encode()
    logs: list[Path] = []
    for name, site in target.sites.items():
        key_files = list(site.config.directory.rglob("identity.key"))
        assert len(key_files) == 1, key_files
        for key_file in (*key_files, *site.config.directory.rglob("delegated.key")):
            secrets[f"the key of the {key_file.parent.name} of {name}"] = key_file.read_bytes()[-32:]
        for issuer in site.config.directory.rglob("issuer.key"):
            for number, line in enumerate(issuer.read_bytes().splitlines()[1:-1]):
                secrets[f"line {number} of the key of the issuer of {name}"] = line
        logs += sorted((site.config.directory / "log").glob("*.log"))
    assert len(logs) >= 3 * 6
    assert captured, "the tests kept no answers"
    assert secret_findings(secrets, logs, captured) == []
