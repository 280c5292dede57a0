"""What the URLs of Postgres and Redis say about TLS, strictly: an option that is not understood must not be passed over.

| URL | option | meaning |
|---|---|---|
| `postgresql+asyncpg://…` | `sslmode` | `disable`, `require` (any certificate; with `sslrootcert` as `verify-ca`), `verify-ca`, `verify-full` |
| | `sslrootcert` | PEM file of the authorities to trust, or `system`; without it those of the system |
| | `sslcert`, `sslkey` | PEM files of the client's own certificate and key, both or neither |
| | `host`, `port` | of the server, as a socket's directory does not fit into the URL's own place |
| `rediss://…` | `ssl_ca_certs` | PEM file of the authorities to trust; without it those of the system |
| | `ssl_certfile`, `ssl_keyfile` | the client's own, both or neither |
| `redis://…`, `unix://…` | `db` | number of the database |

libpq's `allow` and `prefer` are refused: whoever is on the way turns TLS off by refusing it. redis-py's options that switch
checks off are refused, too. Reading the files is `tls_of`; connecting is `postgres` and redis-py.
Source: PostgreSQL 18, §32.19 "SSL Support"; redis-py `Redis.from_url`.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from meshcommon.errors import ErrorCode, MeshError
from meshcommon.peer_text import printable
from meshcommon.tls_contexts import fault_of

_MODES: Final = ("disable", "require", "verify-ca", "verify-full")
POSTGRES_TLS: Final = frozenset({"sslmode", "sslrootcert", "sslcert", "sslkey"})
_POSTGRES_OTHER: Final = frozenset({"host", "port", "prepared_statement_cache_size"})
_REDIS_TLS: Final = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})
_REDIS_OTHER: Final = frozenset({"db"})
_SYSTEM: Final = "system"


@dataclass(frozen=True, slots=True)
class StoreTls:
    """What a URL wants of TLS.

    Attributes:
        is_used: Whether the connection is encrypted.
        checks_authority: Whether an authority that is trusted has to have signed the server's certificate.
        checks_name: Whether the certificate has to be for the host of the URL.
        ca_file: PEM file of the authorities; empty: those of the system.
        certificate: PEM file of the client's own certificate; empty: none is shown.
        key: PEM file of its key.
    """

    is_used: bool
    checks_authority: bool = True
    checks_name: bool = True
    ca_file: str = ""
    certificate: str = ""
    key: str = ""


def parse_postgres(url: str) -> StoreTls | None:
    """What a URL of Postgres says about TLS; None when it says nothing.

    Raises:
        ValueError: what is wrong, as the end of a sentence, without a value that may be secret.
    """
    options = _options(url, POSTGRES_TLS | _POSTGRES_OTHER)
    given = POSTGRES_TLS & options.keys()
    if not given:
        return None
    mode = options.get("sslmode", "")
    if mode not in _MODES:
        hint = "its protection can be taken away on the way" if mode in {"allow", "prefer"} else "it has to be one"
        raise ValueError(f"expected sslmode to be one of {', '.join(_MODES)} ({hint})")
    if mode == "disable":
        if len(given) > 1:
            raise ValueError("expected no sslrootcert, sslcert or sslkey beside sslmode=disable")
        return StoreTls(is_used=False)
    if options.get("host", "").startswith("/"):
        raise ValueError("expected sslmode=disable, or none, for a unix socket: there is no TLS on it")
    root = options.get("sslrootcert", "")
    _both_or_neither(options, "sslcert", "sslkey")
    return StoreTls(
        is_used=True,
        checks_authority=mode != "require" or bool(root),
        checks_name=mode == "verify-full",
        ca_file="" if root == _SYSTEM else root,
        certificate=options.get("sslcert", ""),
        key=options.get("sslkey", ""),
    )


def parse_redis(url: str) -> StoreTls | None:
    """What a URL of Redis says about TLS; None without it.

    Raises:
        ValueError: what is wrong, as the end of a sentence, without a value that may be secret.
    """
    is_tls = url.startswith("rediss://")
    options = _options(url, _REDIS_OTHER | _REDIS_TLS if is_tls else _REDIS_OTHER)
    if not is_tls:
        return None
    _both_or_neither(options, "ssl_certfile", "ssl_keyfile")
    return StoreTls(
        is_used=True,
        ca_file=options.get("ssl_ca_certs", ""),
        certificate=options.get("ssl_certfile", ""),
        key=options.get("ssl_keyfile", ""),
    )


def tls_of(wanted: StoreTls, setting: str) -> ssl.SSLContext:
    """The context that carries out what the URL in `setting` wants; TLS 1.2 at least, as older servers have it.

    Raises:
        MeshError: SETTING_INVALID: a file cannot be read, or is not what it has to be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = wanted.checks_authority and wanted.checks_name
    context.verify_mode = ssl.CERT_REQUIRED if wanted.checks_authority else ssl.CERT_NONE
    file, what = wanted.ca_file, "certificate of an authority"
    try:
        if wanted.ca_file:
            context.load_verify_locations(cafile=wanted.ca_file)
        else:
            context.load_default_certs()
        if wanted.certificate:
            file, what = wanted.certificate, f"certificate whose key is in {wanted.key}"
            context.load_cert_chain(wanted.certificate, wanted.key)
    except ssl.SSLError:  # first, for it is an OSError as well
        raise _unusable(setting, f"{file} holds no {what}: name PEM files") from None
    except OSError as error:
        named = f"{file} (or {wanted.key})" if file == wanted.certificate else file
        raise _unusable(setting, f"{named} cannot be read ({error.strerror}): correct the path") from None
    return context


def fault_in(error: BaseException) -> str | None:
    """What went wrong with TLS to a store, as the end of a sentence; None when the error has nothing to do with TLS."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLError):
            said = seen.verify_message if isinstance(seen, ssl.SSLCertVerificationError) else str(seen.reason or seen)
            return f"{ErrorCode.TLS_FAILED}: {fault_of(said) or printable(said)}"
        seen = seen.__cause__ or seen.__context__
    return None


def _options(url: str, known: frozenset[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in parse_qsl(urlsplit(url).query, keep_blank_values=True):
        if name not in known:
            raise ValueError(f"unknown option {printable(name, 40)!r}, expected only {', '.join(sorted(known))}")
        if name in found:
            raise ValueError(f"expected the option {name} once")
        if not value:
            raise ValueError(f"expected the option {name} to have a value")
        found[name] = value
    return found


def _both_or_neither(options: dict[str, str], one: str, other: str) -> None:
    if (one in options) != (other in options):
        raise ValueError(f"expected both {one} and {other}, or neither")


def _unusable(setting: str, why: str) -> MeshError:
    return MeshError(ErrorCode.SETTING_INVALID, f"TLS of {setting}: {why}.", {"setting": setting})
