"""Commands about the mesh's certificate authority and the certificates of the node.

A root key that is given as a file stays in this program: it signs here, and only the certificate is sent.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from meshapi.supervisor.v1 import ca_pb2
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.mesh_certificates import Authority, pem, read_pem, sign_request
from meshctl.connection import Connection, run
from meshctl.options import MeshGroup, Options
from meshctl.output import as_json, print_json, print_table, yes

_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_REVOKE: Final = click.option(
    "--revoke", is_flag=True, help="Accept certificates of the intermediate before no longer: its key is stolen."
)


@click.group(cls=MeshGroup)
def ca() -> None:
    """Show, make or exchange the mesh's certificate authority."""


@ca.command()
@click.pass_obj
def show(options: Options) -> None:
    """Show roots, intermediate, and who can issue certificates."""
    _print_ca(options, run(options, lambda it: it.call(it.ca.ShowCa, ca_pb2.ShowCaRequest())))


@ca.command()
@click.pass_obj
def init(options: Options) -> None:
    """Make root and intermediate, in a mesh that was founded without them. The root's key is kept at this node."""
    answer = run(options, lambda it: it.call(it.ca.InitCa, ca_pb2.InitCaRequest()))
    if options.is_json:
        print_json(as_json(answer))
        return
    click.echo(f"fingerprint of the mesh's root: {answer.ca_fingerprint}")
    if answer.root_key_file:
        click.echo(f"the root's key is in {answer.root_key_file}: move it to a safe place, the mesh works without it")


@ca.command()
@click.option("--new-root", is_flag=True, help="Exchange the root too. The one before is trusted until --finish.")
@click.option("--finish", is_flag=True, help="End an exchange of roots: only the present one is trusted.")
@click.option("--root-key", type=_FILE, help="Key of the root, PEM, read by this program only.  [default: at the node]")
@click.option("--root-cert", type=_FILE, help="Certificate of the root, PEM.")
@_REVOKE
@click.pass_obj
def rotate(
    options: Options,
    *,
    new_root: bool,
    finish: bool,
    root_key: Path | None,
    root_cert: Path | None,
    revoke: bool,
) -> None:
    """Make another intermediate: when a node that was given its key has gone, when it ends, or when it is stolen."""
    if new_root + finish + (root_key is not None) > 1 or (root_key is None) != (root_cert is None):
        raise click.UsageError("Give --new-root, or --finish, or --root-key together with --root-cert.")
    if root_key is not None and root_cert is not None:
        root = _read_root(root_key, root_cert)
        _print_ca(options, run(options, lambda it: _sign(it, root, revoke=revoke)))
        return
    rotation = ca_pb2.CA_ROTATION_INTERMEDIATE
    if new_root or finish:
        rotation = ca_pb2.CA_ROTATION_NEW_ROOT if new_root else ca_pb2.CA_ROTATION_FINISH
    request = ca_pb2.RotateCaRequest(rotation=rotation, revoke=revoke)
    _print_ca(options, run(options, lambda it: it.call(it.ca.RotateCa, request)).ca)


@ca.command()
@click.pass_obj
def csr(options: Options) -> None:
    """Print a request for an intermediate, to be signed by a root of your own. Then run `meshctl ca install` here."""
    answer = run(options, lambda it: it.call(it.ca.RequestCa, ca_pb2.RequestCaRequest()))
    if options.is_json:
        print_json(as_json(answer))
    else:
        click.echo(answer.csr_pem, nl=False)


@ca.command()
@click.argument("certificate", metavar="CERT", type=_FILE)
@click.option("--root", required=True, type=_FILE, help="Certificate of the root that has signed CERT, PEM.")
@_REVOKE
@click.pass_obj
def install(options: Options, certificate: Path, root: Path, revoke: bool) -> None:
    """Put the intermediate CERT in force that your own root has signed for the last `meshctl ca csr` of this node."""
    request = ca_pb2.InstallCaRequest(certificate_pem=_text(certificate), root_pem=_text(root), revoke=revoke)
    _print_ca(options, run(options, lambda it: it.call(it.ca.InstallCa, request)).ca)


@ca.command("root")
@click.pass_obj
def root_(options: Options) -> None:
    """Print the root certificates, PEM: with them anybody can verify the gateway of every site."""
    answer = run(options, lambda it: it.call(it.ca.ShowCa, ca_pb2.ShowCaRequest()))
    if not answer.exists:
        raise MeshError(
            ErrorCode.CA_MISSING, "This mesh has no certificate authority yet: `meshctl ca init` makes one."
        )
    if options.is_json:
        print_json({"roots_pem": answer.roots_pem})
    else:
        click.echo(answer.roots_pem, nl=False)


@click.group(cls=MeshGroup)
def cert() -> None:
    """Look at certificates."""


@cert.command()
@click.pass_obj
def ls(options: Options) -> None:
    """List the certificates of the mesh's CA and of this node."""
    answer = run(options, lambda it: it.call(it.ca.ListCertificates, ca_pb2.ListCertificatesRequest()))
    if options.is_json:
        print_json(as_json(answer))
        return
    print_table(
        ["KIND", "SUBJECT", "ISSUER", "FROM", "UNTIL", ">LEFT", "FILE"],
        [
            [
                item.kind,
                item.subject,
                item.issuer,
                _time(item.not_before_ms),
                _time(item.not_after_ms),
                f"{item.life_left:.0%}",
                item.file or "-",
            ]
            for item in answer.certificates
        ],
        "no certificates: `meshctl ca init` makes the mesh's authority",
    )


async def _sign(it: Connection, root: Authority, *, revoke: bool) -> ca_pb2.ShowCaResponse:
    request = await it.call(it.ca.RequestCa, ca_pb2.RequestCaRequest())
    signed = sign_request(request.csr_pem, root, datetime.now(UTC))
    install_it = ca_pb2.InstallCaRequest(certificate_pem=pem(signed), root_pem=pem(root.certificate), revoke=revoke)
    return (await it.call(it.ca.InstallCa, install_it)).ca


def _read_root(key_file: Path, certificate_file: Path) -> Authority:
    certificate = read_pem(_text(certificate_file))
    try:
        key = load_pem_private_key(key_file.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise MeshError(
            ErrorCode.INVALID_ARGUMENT, f"{key_file} holds no ECDSA or RSA key in PEM without a passphrase: check it."
        )
    if key.public_key() != certificate.public_key():
        raise MeshError(ErrorCode.INVALID_ARGUMENT, f"{key_file} and {certificate_file} do not belong together.")
    return Authority(certificate, key)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            # More than any certificate in PEM takes: the rest would be refused anyway.
            return file.read(64 * 1024).decode("ascii", errors="replace")
    except OSError as error:
        raise MeshError(ErrorCode.INVALID_ARGUMENT, f"{path} cannot be read ({error.strerror}).") from error


def _print_ca(options: Options, answer: ca_pb2.ShowCaResponse) -> None:
    if options.is_json:
        print_json(as_json(answer))
        return
    if not answer.exists:
        click.echo("this mesh has no certificate authority: `meshctl ca init` at its founder makes one")
        return
    first, *others = answer.root_fingerprints
    click.echo(f"root          {first}")
    for fingerprint in others:
        click.echo(f"also trusted  {fingerprint} (until `meshctl ca rotate --finish`)")
    click.echo(f"intermediate  {answer.intermediate_fingerprint} (generation {answer.generation})")
    click.echo(f"issuers       {', '.join(answer.issuers) or 'none: run `meshctl ca rotate`'}")
    if answer.voters_without_key:
        click.echo(f"without key   {', '.join(answer.voters_without_key)}")
    click.echo(f"rotation due  {yes(answer.is_rotation_due)}")
    if answer.root_key_file:
        click.echo(f"the root's key is in {answer.root_key_file}: move it to a safe place")


def _time(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


COMMANDS: tuple[click.Command, ...] = (ca, cert)
