"""The files that the control plane hands out: what they hold, who may read them, and when they are written anew."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from mesh_control.shell import certificate_files
from mesh_control.shell.certificate_files import CertificateFiles
from mesh_control.shell.site_issuer import SiteIssuer
from meshcommon.admin import Readiness
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.service_certificates import LIFE, UNJOINED, Service, ServiceIdentity, check
from meshcommon.site_files import AUTHORITY, CERTIFICATE, KEY, SiteFiles
from meshtest.waiting import eventually

MESH = "4a1c1e0e-0000-4000-8000-000000000000"


class Site:
    """An issuer with its files, whose clock and mesh a test sets."""

    def __init__(self, directory: Path) -> None:
        self.now = datetime(2026, 11, 29, 12, tzinfo=UTC)
        self.mesh = UNJOINED
        self.directory = directory
        self.issuer = SiteIssuer(ec.generate_private_key(ec.SECP256R1()), "a")
        self.files = CertificateFiles(
            self.issuer, directory, ["gateway.example.com"], LIFE, lambda: self.mesh, now=lambda: self.now
        )

    def shown(self, service: Service) -> list[x509.Certificate]:
        """The certificates in the file of `service`, its own first."""
        return x509.load_pem_x509_certificates((self.directory / service.value / CERTIFICATE).read_bytes())

    def identity(self, service: Service) -> ServiceIdentity:
        return check(self.shown(service)[0], self.now)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "tls")


async def test_each_service_gets_a_pair_of_its_own(site: Site) -> None:
    site.files.write()
    keys = set()
    for service in Service:
        files = SiteFiles(site.directory, "a", service, now=lambda: site.now)
        await files.wait(Readiness(), 0)
        assert files.pair is not None
        assert site.identity(service) == ServiceIdentity(UNJOINED, "a", service)
        keys.add(files.pair.key)
        names = site.shown(service)[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        is_for_users = "gateway.example.com" in names.get_values_for_type(x509.DNSName)
        assert is_for_users is (service in {Service.GATEWAY, Service.DATA})
    assert len(keys) == len(Service)
    ca = ssl.create_default_context(cafile=site.directory / "ca" / AUTHORITY)
    assert len(ca.get_ca_certs()) == 1


def test_files_are_private_unless_their_folder_was_given_to_a_group(site: Site) -> None:
    shared = site.directory / "data"
    shared.mkdir(parents=True)
    shared.chmod(0o750)
    os.chown(shared, -1, os.getegid())
    before = os.umask(0o077)  # as every service has
    try:
        site.files.write()
    finally:
        os.umask(before)
    modes = {path.relative_to(site.directory): path.stat().st_mode & 0o777 for path in site.directory.rglob("*")}
    assert modes[Path("control")] == 0o700
    assert {modes[Path("control") / name] for name in (KEY, CERTIFICATE, AUTHORITY)} == {0o600}
    assert {modes[Path("data") / name] for name in (KEY, CERTIFICATE, AUTHORITY)} == {0o640}
    assert modes[Path("ca") / AUTHORITY] == 0o644


def half_a_life_passes(site: Site) -> None:
    site.now += LIFE / 2


def the_clock_is_set_back(site: Site) -> None:
    site.now -= timedelta(hours=1)


def the_node_joins(site: Site) -> None:
    site.mesh = MESH


@pytest.mark.parametrize("happens", [half_a_life_passes, the_clock_is_set_back, the_node_joins])
async def test_files_are_written_anew_when_they_are_not_right_any_more(
    site: Site, monkeypatch: pytest.MonkeyPatch, happens: Callable[[Site], None]
) -> None:
    monkeypatch.setattr(certificate_files, "LOOK_EVERY_S", 0.01)
    site.files.write()
    first = [site.shown(service)[0] for service in Service]
    running = asyncio.create_task(site.files.run(Readiness()))
    await asyncio.sleep(0.1)
    assert [site.shown(service)[0] for service in Service] == first, "nothing was due"
    happens(site)

    async def all_new() -> bool:
        return all(site.shown(service)[0] != old for service, old in zip(Service, first, strict=True))

    await eventually("all certificates are new", all_new)
    running.cancel()
    assert {site.identity(service).mesh for service in Service} == {site.mesh}


async def test_a_folder_that_cannot_be_written_is_named_and_tried_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate_files, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(certificate_files, "RETRY_S", 0.01)
    site.directory.write_bytes(b"a file stands where the folder should be")
    with pytest.raises(MeshError) as caught:
        site.files.write()
    assert caught.value.code is ErrorCode.DATA_DIR_UNWRITABLE
    readiness = Readiness()
    running = asyncio.create_task(site.files.run(readiness))

    async def warned() -> bool:
        return any(str(site.directory) in text for text in readiness.warnings())

    await eventually("it warns", warned)
    site.directory.unlink()

    async def written() -> bool:
        return not readiness.warnings() and site.identity(Service.DATA).node == "a"

    await eventually("it has written", written)
    running.cancel()
