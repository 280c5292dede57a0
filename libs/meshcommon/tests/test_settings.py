"""Settings: precedence, and a useful sentence for everything that can be wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import Field

from meshcommon.errors import ErrorCode, MeshError
from meshcommon.settings import Listen, NodeSettings, PeerAddress, Section, load_sections, require_insecure_dev

NODE = {"MESH_NODE_NAME": "a", "MESH_NODE_DATA_DIR": "/var/lib/mesh"}


class DataSettings(Section):
    """Has a setting of every kind there is."""

    listen: Listen = Field(default="127.0.0.1:7301", description="An address.")
    peer_listen: PeerAddress = Field(default="", description="A WebSocket address.")
    dial: dict[str, PeerAddress] = Field(default_factory=dict, description="A mapping.")
    names: list[str] = Field(default_factory=list, description="A list.")
    bytes_max: int = Field(default=10, ge=1, le=100, description="A bounded number.")
    is_loud: bool = Field(default=False, description="A switch.")


def load(**variables: str) -> tuple[NodeSettings, DataSettings]:
    node, own, _ = load_sections("data", DataSettings, NODE | variables)
    return node, own


def refusal(**variables: str) -> MeshError:
    with pytest.raises(MeshError) as caught:
        load(**variables)
    return caught.value


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., str]:
    """Writes a settings file with the given lines and returns its path."""

    def write(*lines: str) -> str:
        path = tmp_path / "mesh.toml"
        path.write_text("\n".join(lines), encoding="utf-8")
        return str(path)

    return write


def test_defaults() -> None:
    node, own = load()
    assert (node.name, node.data_dir, node.preset, node.log_level) == ("a", Path("/var/lib/mesh"), "lan", "info")
    assert own == DataSettings()


def test_addresses_of_stores_are_taken_as_they_are() -> None:
    for postgres in ("", "postgresql+asyncpg://u:p@[::1]:5432/db", "postgresql+asyncpg://u@/db?host=/run/pg"):
        node, _ = load(MESH_NODE_POSTGRES_URL=postgres, MESH_NODE_REDIS_URL="unix:///run/valkey.sock")
        assert node.postgres_url == postgres


def test_environment_comes_before_file_before_default(file: Callable[..., str]) -> None:
    _, own = load(
        MESH_CONFIG_FILE=file("[data]", "bytes_max = 20", 'listen = "127.0.0.1:1"'), MESH_DATA_LISTEN="127.0.0.1:2"
    )
    assert (own.listen, own.bytes_max, own.is_loud) == ("127.0.0.1:2", 20, False)


def test_values_in_the_environment_are_converted() -> None:
    _, own = load(
        MESH_DATA_BYTES_MAX="42",
        MESH_DATA_IS_LOUD="true",
        MESH_DATA_DIAL=" b = ws://10.0.0.2:80, c=wss://c.example:443,",
        MESH_DATA_NAMES="x, y",
    )
    assert (own.bytes_max, own.is_loud, own.names) == (42, True, ["x", "y"])
    assert own.dial == {"b": "ws://10.0.0.2:80", "c": "wss://c.example:443"}


def test_mapping_in_the_file_is_a_table(file: Callable[..., str]) -> None:
    _, own = load(MESH_CONFIG_FILE=file("[data.dial]", 'b = "ws://10.0.0.2:80"'))
    assert own.dial == {"b": "ws://10.0.0.2:80"}


def test_unknown_key_in_the_file_gets_a_hint(file: Callable[..., str]) -> None:
    error = refusal(MESH_CONFIG_FILE=file("[data]", "byte_max = 20"))
    assert error.code is ErrorCode.SETTING_UNKNOWN
    assert "[data] byte_max" in error.message
    assert "Did you mean 'bytes_max'?" in error.message
    assert error.details == {"setting": "byte_max"}


def test_unknown_section_in_the_file(file: Callable[..., str]) -> None:
    error = refusal(MESH_CONFIG_FILE=file("[dta]"))
    assert error.code is ErrorCode.SETTING_UNKNOWN
    assert "Did you mean 'data'?" in error.message


def test_unknown_variable_gets_a_hint() -> None:
    error = refusal(MESH_DATA_LISTN="127.0.0.1:1")
    assert error.code is ErrorCode.SETTING_UNKNOWN
    assert "MESH_DATA_LISTN" in error.message
    assert "Did you mean 'listen'?" in error.message


@pytest.mark.parametrize("variable", ["MESH_DTA_LISTEN", "MESH_", "MESH_NODE", "MESH_DATA_"])
def test_variable_of_no_section_or_without_key(variable: str) -> None:
    assert refusal(**{variable: "1"}).code is ErrorCode.SETTING_UNKNOWN


def test_unknown_key_far_from_any_lists_the_known_ones() -> None:
    assert "Known: bytes_max, dial, is_loud, listen, names, peer_listen." in refusal(MESH_DATA_QQQ="1").message


def test_one_environment_and_one_file_serve_the_whole_site(file: Callable[..., str]) -> None:
    """Each service checks only its own section, because it does not know the others' classes."""
    load(
        MESH_CONFIG_FILE=file("[control]", 'whatever = "the control plane checks it"'),
        MESH_GATEWAY_HTTP_LISTEN="127.0.0.1:7001",
        MESH_CTL_GATEWAY="of the command line",
        MESH_TEST_SEED="of the tests",
        MESHES="of something else",
        PATH="/bin",
    )


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MESH_DATA_BYTES_MAX", "many"),
        ("MESH_DATA_BYTES_MAX", "101"),
        ("MESH_DATA_IS_LOUD", "rather"),
        ("MESH_DATA_LISTEN", "7301"),
        ("MESH_DATA_LISTEN", ":7301"),
        ("MESH_DATA_LISTEN", "h:70000"),
        ("MESH_DATA_LISTEN", "h:²"),
        ("MESH_DATA_PEER_LISTEN", "http://h:1"),
        ("MESH_DATA_DIAL", "b=http://h:1"),
        ("MESH_DATA_DIAL", "b=ws://u@h:1"),
        ("MESH_DATA_DIAL", "b=ws://h:1/path"),
        ("MESH_DATA_DIAL", "b=ws://h"),
        ("MESH_DATA_DIAL", "b=ws://h:99999"),
        ("MESH_DATA_DIAL", "b"),
        ("MESH_DATA_DIAL", "=ws://h:1"),
        ("MESH_DATA_DIAL", "b=ws://h:1,b=ws://h:2"),
        ("MESH_NODE_NAME", "Not A Name"),
        ("MESH_NODE_PRESET", "moon"),
        ("MESH_NODE_LOG_LEVEL", "INFO"),
        ("MESH_NODE_POSTGRES_URL", "postgresql://h/db"),
        ("MESH_NODE_POSTGRES_URL", "postgresql+asyncpg://h:many/db"),
        ("MESH_NODE_REDIS_URL", "h:6379"),
    ],
)
def test_ill_typed_variable(variable: str, value: str) -> None:
    error = refusal(**{variable: value})
    assert error.code is ErrorCode.SETTING_INVALID
    assert error.details == {"setting": variable}
    assert variable in error.message
    assert value.rpartition("=")[2] in error.message


@pytest.mark.parametrize("line", ["bytes_max = 'many'", "bytes_max = 1.5", "dial = 3", "names = 'x'", "listen = 7301"])
def test_ill_typed_key_in_the_file(file: Callable[..., str], line: str) -> None:
    error = refusal(MESH_CONFIG_FILE=file("[data]", line))
    assert error.code is ErrorCode.SETTING_INVALID
    assert error.details == {"setting": f"MESH_DATA_{line.partition(' ')[0].upper()}"}


def test_section_that_is_no_table(file: Callable[..., str]) -> None:
    assert refusal(MESH_CONFIG_FILE=file("data = 3")).code is ErrorCode.SETTING_INVALID


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgres://mesh:hunter2@db:5432/mesh", "postgres://…@db:5432/mesh"),
        ("postgresql+asyncpg://mesh:hunter2@db:99999/mesh", "postgresql+asyncpg://…@db:99999/mesh"),
        ("postgresql+asyncpg//mesh:hun@ter2@db/mesh", "…@db/mesh"),
    ],
)
def test_password_in_the_address_of_a_store_is_not_shown(url: str, shown: str) -> None:
    message = refusal(MESH_NODE_POSTGRES_URL=url).message
    assert shown in message
    assert "ter2" not in message


def test_missing_setting_says_what_it_is_for() -> None:
    with pytest.raises(MeshError) as caught:
        load_sections("data", DataSettings, {"MESH_NODE_NAME": "a"})
    assert caught.value.code is ErrorCode.SETTING_INVALID
    assert "MESH_NODE_DATA_DIR is missing: Directory" in caught.value.message


def test_file_that_is_not_there() -> None:
    error = refusal(MESH_CONFIG_FILE="/no/such/mesh.toml")
    assert error.code is ErrorCode.SETTING_INVALID
    assert "/no/such/mesh.toml" in error.message
    assert "No such file" in error.message


@pytest.mark.parametrize("content", [b"[data", b"[data]\nlisten = \xff", b"[data]\na = 1\na = 2"])
def test_file_that_is_no_toml(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mesh.toml").write_bytes(content)
    error = refusal(MESH_CONFIG_FILE=str(tmp_path / "mesh.toml"))
    assert error.code is ErrorCode.SETTING_INVALID
    assert "not valid TOML" in error.message


def test_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in NODE.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.delenv("MESH_CONFIG_FILE", raising=False)
    node, _, _ = load_sections("data", DataSettings)
    assert node.name == "a"


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("0", False), ("yes", False), ("", False)])
def test_running_in_clear_has_to_be_asked_for_exactly(value: str, expected: bool) -> None:
    _, _, is_insecure_dev = load_sections("data", DataSettings, NODE | {"MESH_INSECURE_DEV": value})
    assert is_insecure_dev is expected


def test_refusal_to_run_in_clear_names_the_variable() -> None:
    require_insecure_dev(True, "A lane")
    with pytest.raises(MeshError) as caught:
        require_insecure_dev(False, "A lane")
    assert caught.value.code is ErrorCode.INSECURE_NOT_ALLOWED
    assert "A lane" in caught.value.message
    assert "MESH_INSECURE_DEV=1" in caught.value.message
