"""Certificate and key of an operator: what is refused at the start, and what happens when the files change."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshcommon import tls_files
from meshcommon.admin import Readiness
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.tls_contexts import trusting
from meshcommon.tls_files import FILE_BYTES_MAX, TlsFiles
from meshtest.certificates import Authority, CertificateFiles
from meshtest.waiting import eventually

SETTINGS = "MESH_TEST_TLS"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def pair(authority: Authority) -> CertificateFiles:
    return authority.issue("node", ends_in=timedelta(days=30))


def shown(files: TlsFiles, authority: Authority) -> int:
    """Serial number of the certificate that a client is shown, which trusts only this authority."""
    client_in, client_out = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting(authority.file).wrap_bio(client_in, client_out, server_hostname="127.0.0.1")
    server_in, server_out = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = files.context.wrap_bio(server_in, server_out, server_side=True)
    for _ in range(3):
        for end in (client, server):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
            server_in.write(client_out.read())
            client_in.write(server_out.read())
    certificate = client.getpeercert()
    assert certificate is not None
    assert client.version() == "TLSv1.3"
    return int(str(certificate["serialNumber"]), 16)


def missing(pair: CertificateFiles) -> None:
    pair.certificate.unlink()


def no_certificate(pair: CertificateFiles) -> None:
    pair.certificate.write_text("hello")


def huge(pair: CertificateFiles) -> None:
    pair.certificate.write_bytes(b"x" * (FILE_BYTES_MAX + 1))


def no_key(pair: CertificateFiles) -> None:
    pair.key.write_bytes(pair.certificate.read_bytes())


def _key(
    pair: CertificateFiles,
    encryption: serialization.KeySerializationEncryption,
    key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey,
) -> None:
    pair.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))


def other_key(pair: CertificateFiles) -> None:
    _key(pair, serialization.NoEncryption(), ec.generate_private_key(ec.SECP256R1()))


def locked_key(pair: CertificateFiles) -> None:
    _key(pair, serialization.BestAvailableEncryption(b"secret"), ec.generate_private_key(ec.SECP256R1()))


def rare_key(pair: CertificateFiles) -> None:
    _key(pair, serialization.NoEncryption(), Ed25519PrivateKey.generate())


@pytest.mark.parametrize(
    ("spoil", "setting", "said"),
    [
        (missing, "CERTIFICATE", "No such file"),
        (no_certificate, "CERTIFICATE", "holds no certificate"),
        (huge, "CERTIFICATE", "bytes"),
        (no_key, "KEY", "holds no key"),
        (other_key, "KEY", "is not the key of the certificate"),
        (locked_key, "KEY", "passphrase"),
        (rare_key, "KEY", "clients do not take"),
    ],
)
async def test_files_that_are_no_pair_are_refused_at_the_start_and_change_nothing_later(
    pair: CertificateFiles,
    authority: Authority,
    spoil: Callable[[CertificateFiles], None],
    setting: str,
    said: str,
) -> None:
    running = pair.files()
    before = shown(running, authority)
    spoil(pair)
    with pytest.raises(MeshError, match=said) as refusal:
        pair.files()
    path = pair.certificate if setting == "CERTIFICATE" else pair.key
    assert (refusal.value.code, refusal.value.details) == (
        ErrorCode.SETTING_INVALID,
        {"setting": f"{SETTINGS}_{setting}", "path": str(path)},
    )
    assert str(path) in refusal.value.message
    assert said in await running.look()
    assert shown(running, authority) == before
    authority.issue("node", ends_in=timedelta(days=30))
    assert await running.look() == ""
    assert shown(running, authority) != before, "a good pair is shown as soon as it is there"


async def test_damaged_certificate_never_ends_a_running_service(pair: CertificateFiles) -> None:
    """Whatever a byte of it is changed to: a warning, or a certificate that the libraries still take."""
    files = pair.files()
    good = ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())
    warned = 0
    for place in range(0, len(good), 3):
        damaged = bytearray(good)
        damaged[place] ^= 0x15
        pair.certificate.write_text(ssl.DER_cert_to_PEM_cert(bytes(damaged)))
        warned += "Until then" in await files.look()
    assert warned


@pytest.mark.parametrize("after", [timedelta(days=31), timedelta(days=-1)], ids=["expired", "not valid yet"])
def test_certificate_out_of_its_time_is_refused_at_the_start(pair: CertificateFiles, after: timedelta) -> None:
    with pytest.raises(MeshError, match="is valid from") as refusal:
        pair.files(after)
    assert refusal.value.code is ErrorCode.SETTING_INVALID


async def test_certificate_that_is_about_to_end_warns(pair: CertificateFiles) -> None:
    assert await pair.files(timedelta(days=22)).look() == ""
    assert "ends on" in await pair.files(timedelta(days=24)).look()


@pytest.mark.parametrize(("certificate", "key"), [("a.pem", ""), ("", "a.key")])
def test_one_of_the_two_settings_is_refused(certificate: str, key: str) -> None:
    with pytest.raises(MeshError, match="set both") as refusal:
        TlsFiles.of_settings(certificate, key, SETTINGS)
    assert refusal.value.code is ErrorCode.SETTING_INVALID


def test_without_settings_there_is_no_tls() -> None:
    assert TlsFiles.of_settings("", "", SETTINGS) is None


async def test_a_bad_file_is_a_warning_until_a_good_one_is_there(
    pair: CertificateFiles, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_files, "LOOK_EVERY_S", 0.02)
    files, readiness = pair.files(), Readiness()
    looking = asyncio.create_task(files.run(readiness))

    async def warns() -> bool:
        return any("holds no certificate" in warning for warning in readiness.warnings())

    async def is_well() -> bool:
        return not readiness.warnings()

    before = shown(files, authority)
    no_certificate(pair)
    await eventually("it warns", warns, timeout_s=10, poll_s=0.01)
    assert shown(files, authority) == before
    authority.issue("node", ends_in=timedelta(days=30))
    await eventually("the warning is gone", is_well, timeout_s=10, poll_s=0.01)
    assert shown(files, authority) != before
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)


@pytest.mark.parametrize(("content", "said"), [(None, "cannot be read"), ("hello", "holds no certificate")])
def test_file_of_authorities_that_holds_none_is_refused(tmp_path: Path, content: str | None, said: str) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(MeshError, match=said) as refusal:
        trusting(file)
    assert refusal.value.code is ErrorCode.INVALID_ARGUMENT
