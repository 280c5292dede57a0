"""Settings of a service: defaults < `mesh.toml` (MESH_CONFIG_FILE) < environment. Source: architecture §12.

Every service has one settings class, made of a shared section `[node]` (`MESH_NODE_*`) and its own section (for example
`[data]`, `MESH_DATA_*`). An unknown key in the file, an unknown `MESH_*` variable of a known section, or an ill-typed
value ends the start with SETTING_UNKNOWN or SETTING_INVALID. What it leaves out: replicated configuration.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from meshcommon.address import UNIX_PATH_BYTES_MAX, check_endpoint, parse_peer_address, split
from meshcommon.admission import parse_host
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.ids import check_node_name
from meshcommon.store_urls import parse_postgres, parse_redis

SECTIONS: Final = ("node", "control", "routing", "data", "gateway")
_OUTSIDE_SECTIONS: Final = ("MESH_CONFIG_FILE", "MESH_INSECURE_DEV", "MESH_TOKEN")
_OTHER_TOOLS: Final = ("MESH_CTL_", "MESH_TEST_")


def _listen(value: str) -> str:
    try:
        split(value)
    except MeshError:
        raise ValueError("expected host:port, for example 127.0.0.1:7000 or 0.0.0.0:7000") from None
    return value


def _endpoint(value: str) -> str:
    try:
        return check_endpoint(value)
    except MeshError:
        text = f"expected host:port, or unix:/path with at most {UNIX_PATH_BYTES_MAX} of A-Z, a-z, 0-9 and ._-+@/"
        raise ValueError(text) from None


def _host_name(value: str) -> str:
    if parse_host(value) != (value.lower(), None):
        raise ValueError("expected a host name or an IP address without a port, for example mesh.example.com")
    return value.lower()


def _certificate_name(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        return _host_name(value)


def _name(value: str) -> str:
    try:
        return check_node_name(value)
    except MeshError as error:
        raise ValueError(error.message) from None


def _peer_address(value: str) -> str:
    try:
        return str(parse_peer_address(value)) if value else value
    except MeshError as error:
        raise ValueError(f"expected ws://host:port or wss://host:port: {error.message}") from None


def _store(parse: Callable[[str], object], *schemes: str) -> Callable[[str], str]:
    """Checks the address of a store here, so that a mistake ends the start with a sentence instead of a traceback."""

    def check(value: str) -> str:
        expected = " or ".join(f"{scheme}://…" for scheme in schemes)
        if value and not value.startswith(tuple(f"{scheme}://" for scheme in schemes)):
            raise ValueError(f"expected {expected}")
        try:
            _ = urlsplit(value).port
        except ValueError:
            raise ValueError(f"expected {expected} with a port between 0 and 65535") from None
        parse(value)
        return value

    return check


Listen = Annotated[str, AfterValidator(_listen)]
Endpoint = Annotated[str, AfterValidator(_endpoint)]
"""Where a service listens or is reached: `host:port`, or `unix:/path` within one machine."""
HostName = Annotated[str, AfterValidator(_host_name)]
"""A name under which browsers and scrapers reach a listener, without a port."""
CertificateName = Annotated[str, AfterValidator(_certificate_name)]
"""A DNS name or an IP address, without brackets and port."""
NodeName = Annotated[str, AfterValidator(_name)]
PeerAddress = Annotated[str, AfterValidator(_peer_address)]
PostgresUrl = Annotated[str, AfterValidator(_store(parse_postgres, "postgresql+asyncpg"))]
RedisUrl = Annotated[str, AfterValidator(_store(parse_redis, "redis", "rediss", "unix"))]


class Section(BaseModel):
    """Base of one section: frozen, nothing unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class NodeSettings(Section):
    """What all services of a site share. Section `[node]`, variables `MESH_NODE_*`."""

    name: NodeName = Field(description="Name of this node, unique in the mesh (a DNS label).")
    data_dir: Path = Field(description="Directory for everything that must survive a restart; a folder per service.")
    preset: Literal["lan", "wan", "test"] = Field(
        default="lan", description="Timing preset: election timeouts, heartbeats, detection."
    )
    postgres_url: PostgresUrl = Field(
        default="",
        description="Postgres of the site, `postgresql+asyncpg://…`, over TLS with `?sslmode=verify-full&sslrootcert=FILE`; "
        "empty: nothing is projected.",
    )
    redis_url: RedisUrl = Field(
        default="",
        description="Redis or Valkey of the site, `redis://…`, over TLS `rediss://…?ssl_ca_certs=FILE`; "
        "empty: nothing is cached.",
    )
    tls_dir: str = Field(
        default="",
        description="Folder with the certificates of this site's services, `SERVICE/{tls.crt,tls.key,ca.crt}`, which the "
        "control plane writes. With it gRPC between the services is mutual TLS on TCP, and listeners for users that "
        "others than this machine reach speak TLS. Empty: in clear, on loopback addresses and unix sockets only.",
    )
    admin_hosts: list[HostName] = Field(
        default_factory=list,
        description="Names under which scrapers reach the admin pages, besides loopback names and those that are listened on.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least level logged.")
    otlp_endpoint: str = Field(
        default="", description="OTLP gRPC endpoint for traces, `http://host:4317`; empty: none."
    )


SectionT = TypeVar("SectionT", bound=Section)


def load_sections(
    service: str, own: type[SectionT], environment: Mapping[str, str] | None = None
) -> tuple[NodeSettings, SectionT, bool]:
    """Loads `[node]` and the section named `service`.

    Args:
        service: One of `control`, `routing`, `data`, `gateway`.
        own: Class of the service's own section.
        environment: Defaults to the process environment.

    Returns:
        Shared settings, own settings, and whether MESH_INSECURE_DEV=1 is set.

    Raises:
        MeshError: SETTING_UNKNOWN or SETTING_INVALID, naming key, value (without credentials) and what is expected.
    """
    variables = os.environ if environment is None else environment
    table = _read_file(variables.get("MESH_CONFIG_FILE", ""))
    models: dict[str, type[Section]] = {"node": NodeSettings, service: own}
    _check_variables(variables, models)
    node = _section(NodeSettings, "node", table, variables)
    mine = _section(own, service, table, variables)
    return node, mine, variables.get("MESH_INSECURE_DEV", "") == "1"


def require_insecure_dev(is_insecure_dev: bool, what: str) -> None:
    """Refuses to run in clear unless the operator said so.

    Raises:
        MeshError: INSECURE_NOT_ALLOWED.
    """
    if not is_insecure_dev:
        raise MeshError(
            ErrorCode.INSECURE_NOT_ALLOWED,
            f"{what} is not encrypted: set MESH_INSECURE_DEV=1 to accept that on a network you trust.",
        )


def _read_file(path: str) -> dict[str, Any]:
    if not path:
        return {}
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise MeshError(
            ErrorCode.SETTING_INVALID, f"MESH_CONFIG_FILE {path} cannot be read ({error.strerror}): correct the path."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MeshError(ErrorCode.SETTING_INVALID, f"{path} is not valid TOML: {error}.") from error
    for section in table:
        if section not in SECTIONS:
            raise _unknown(f"[{section}] in {path}", section, SECTIONS)
    return table


def _unknown(where: str, key: str, known: tuple[str, ...] | list[str]) -> MeshError:
    near = difflib.get_close_matches(key, known, 1)
    hint = f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(sorted(known))}."
    return MeshError(ErrorCode.SETTING_UNKNOWN, f"Unknown setting {where}.{hint}", {"setting": key})


def _check_variables(variables: Mapping[str, str], models: dict[str, type[Section]]) -> None:
    for variable in variables:
        if not variable.startswith("MESH_") or variable in _OUTSIDE_SECTIONS or variable.startswith(_OTHER_TOOLS):
            continue
        section, _, key = variable[len("MESH_") :].lower().partition("_")
        if section not in SECTIONS:
            raise _unknown(variable, variable, [f"MESH_{name.upper()}_…" for name in SECTIONS])
        model = models.get(section)
        # Sections of the other services are theirs to check: one environment file may serve a whole site.
        if model is not None and key not in model.model_fields:
            raise _unknown(variable, key, list(model.model_fields))


def _section(model: type[SectionT], name: str, table: dict[str, Any], variables: Mapping[str, str]) -> SectionT:
    in_file = table.get(name, {})
    if not isinstance(in_file, dict):
        raise MeshError(ErrorCode.SETTING_INVALID, f"[{name}] in the settings file must be a table.")
    values = dict(in_file)
    for key in model.model_fields:
        variable = f"MESH_{name}_{key}".upper()
        if variable in variables:
            values[key] = _from_text(variable, variables[variable], model, key)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _explain(error, name, model) from None


def _from_text(variable: str, text: str, model: type[Section], key: str) -> Any:
    """Mappings are written as `a=ws://…,b=ws://…` in the environment; everything else pydantic parses itself."""
    annotation = str(model.model_fields[key].annotation)
    items = [item.strip() for item in text.split(",") if item.strip()]
    if annotation.startswith("dict["):
        pairs = [(left.strip(), mark, right.strip()) for left, mark, right in (item.partition("=") for item in items)]
        if not all(left and mark for left, mark, _ in pairs) or len({left for left, _, _ in pairs}) != len(pairs):
            raise MeshError(
                ErrorCode.SETTING_INVALID,
                f"Setting {variable} = {text!r} is not valid: expected name=value pairs, each name once, "
                "separated by commas.",
                {"setting": variable},
            )
        return {left: right for left, _, right in pairs}
    return items if annotation.startswith(("list[", "tuple[")) else text


def _explain(error: ValidationError, section: str, model: type[Section]) -> MeshError:
    first = error.errors()[0]
    key = str(first["loc"][0]) if first["loc"] else section
    variable = f"MESH_{section}_{key}".upper()
    if first["type"] == "extra_forbidden":
        return _unknown(f"[{section}] {key}", key, list(model.model_fields))
    if first["type"] == "missing":
        text = f"Setting {variable} is missing: {model.model_fields[key].description}"
    else:
        text = f"Setting {variable} = {_without_credentials(first['input'])!r} is not valid: {first['msg']}."
    return MeshError(ErrorCode.SETTING_INVALID, text, {"setting": variable})


def _without_credentials(value: object) -> object:
    """What may be logged of a value: all but what stands before the last @, however badly the address is written.

    Options of a URL are left out as well: a password may be one of them.
    """
    if isinstance(value, str) and "://" in value and "?" in value:
        value = f"{value.partition('?')[0]}?…" if value.rfind("@") < value.find("?") else value
    if not isinstance(value, str) or "@" not in value:
        return value
    before, _, host = value.rpartition("@")
    scheme, separator, _ = before.partition("://")
    return f"{scheme}://…@{host}" if separator else f"…@{host}"
