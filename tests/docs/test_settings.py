"""The settings page is what the classes say, and the example file is one that every service takes."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import AfterValidator, Field

from meshcommon.errors import ErrorCode, MeshError
from meshcommon.settings import Listen, PeerAddress, Section, load_sections
from tests.docs import settings_page

EXAMPLE = settings_page.ROOT / "docs" / "mesh.example.toml"


def test_page_is_current() -> None:
    found = settings_page.differences()
    if found:
        pytest.fail(f"run scripts/settings-page and commit docs/settings.md\n{found}", pytrace=False)


def test_stale_page_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = tmp_path / "settings.md"
    monkeypatch.setattr(settings_page, "PAGE", stale)
    assert settings_page.differences()
    stale.write_text(settings_page.page().replace("`127.0.0.1:7001`", "`127.0.0.1:7009`"), encoding="utf-8")
    assert "-| `MESH_GATEWAY_HTTP_LISTEN`" in settings_page.differences()
    stale.write_text(settings_page.page(), encoding="utf-8")
    assert not settings_page.differences()


def test_every_setting_has_a_row() -> None:
    page = settings_page.page()
    for section, (_, model) in settings_page.SECTIONS.items():
        for key in model.model_fields:
            assert f"| `MESH_{section}_{key}`".upper() + f" | `{key}` |" in page


def test_page_names_no_folder_of_this_machine() -> None:
    assert str(settings_page.ROOT) not in settings_page.page()


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (Listen, "`host:port`"),
        (Listen | Literal[""], "`host:port` or empty"),
        (Literal["lan", "wan"], "`lan`, `wan`"),
        (dict[str, PeerAddress], "table of name = `ws://` or `wss://` address"),
        (list[int], "list, each a whole number"),
    ],
)
def test_types_in_words(hint: Any, words: str) -> None:
    assert settings_page.kind_of(hint) == words


def test_type_without_words_is_refused_rather_than_shown_raw() -> None:
    with pytest.raises(TypeError, match="no words"):
        settings_page.kind_of(Annotated[bytes, AfterValidator(bytes)])


def test_row_shows_bounds_default_and_escapes_the_table() -> None:
    class Sample(Section):
        """One setting of each form."""

        share: float = Field(default=0.0, ge=0, lt=1, description="A | B.")
        is_on: bool = Field(default=False, description="A switch.")
        path: Path = Field(default=settings_page.ROOT / "docs", description="A path.")
        name: str = Field(description="A name.")

    by_key = {row.key: row for row in settings_page.rows("data", Sample)}
    assert by_key["`share`"][2:] == ("number, ≥ 0, < 1", "`0.0`", "A | B.")
    assert by_key["`is_on`"].default == "`false`"
    assert by_key["`path`"].default == "`docs` of the source tree"
    assert by_key["`name`"].default == "must be set"
    assert by_key["`name`"].variable == "`MESH_DATA_NAME`"


def test_setting_without_description_is_refused() -> None:
    class Silent(Section):
        """Says nothing."""

        key: int = 3

    with pytest.raises(ValueError, match="no description"):
        list(settings_page.rows("data", Silent))


@pytest.mark.parametrize("service", settings_page.SERVICES)
def test_every_service_takes_the_example(service: str) -> None:
    node, own, is_insecure_dev = load_sections(
        service, settings_page.SERVICES[service], {"MESH_CONFIG_FILE": str(EXAMPLE)}
    )
    assert node.name == "berlin"
    assert isinstance(own, settings_page.SERVICES[service])
    assert not is_insecure_dev


@pytest.mark.parametrize("service", settings_page.SERVICES)
def test_an_example_with_a_slip_would_be_noticed(service: str, tmp_path: Path) -> None:
    broken = tmp_path / "mesh.toml"
    text = EXAMPLE.read_text(encoding="utf-8")
    broken.write_text(text.replace(f"[{service}]\n", f"[{service}]\nadmin_listn = 1\n"), encoding="utf-8")
    with pytest.raises(MeshError) as caught:
        load_sections(service, settings_page.SERVICES[service], {"MESH_CONFIG_FILE": str(broken)})
    assert caught.value.code is ErrorCode.SETTING_UNKNOWN


def test_what_the_example_shows_as_usual_is_the_default() -> None:
    """The ports that the services of a site call each other at must not drift apart from the defaults."""
    example = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))
    for service, model in settings_page.SERVICES.items():
        for key, value in example[service].items():
            if key.endswith(("_listen", "_target")) and key != "peer_listen":
                assert value == model.model_fields[key].default, f"[{service}] {key}"
