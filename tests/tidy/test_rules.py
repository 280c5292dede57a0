"""Every house rule finds what it is there for, and lets a tidy sample pass.

The samples are put together from pieces, so that the rules do not find them in this file.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.tidy import document_rules, file_maps, package_rules, text_rules

Rule = Callable[[str, str], list[str]]

PIN = "lib==1.0 \\\n    --hash=sha256:00\n"

# rule, path, text that breaks it, text that does not
SAMPLES: list[tuple[Rule, str, str, str]] = [
    (text_rules.long_file, "a.py", "x = 1\n" * 601, "x = 1\n" * 600),
    (text_rules.long_functions, "a.py", "def f():\n" + "    x = 1\n" * 70, "def f():\n" + "    x = 1\n" * 69),
    (text_rules.long_functions, "a.py", "async def f():\n" + "    x = 1\n" * 70, "class A:\n" + "    x = 1\n" * 99),
    (text_rules.missing_docstring, "a.py", "import os\n", '"""For samples."""\n'),
    (text_rules.unfinished, "a.py", "# TO" + "DO later\n", "# to do: nothing\n"),
    (text_rules.unfinished, "a.py", "# FIX" + "ME\n", "fixme = 1\n"),
    (text_rules.unfinished, "a.py", "raise NotImplemented" + "Error\n", "return NotImplemented\n"),
    (text_rules.unfinished, "a.rs", "todo" + "!()\n", "let todo = 1;\n"),
    (text_rules.unfinished, "a.py", "x = f()  # type: " + "ignore\n", "x = f()  # type: " + "ignore[misc]\n"),
    (text_rules.unfinished, "a.py", "x = f()  # no" + "qa\n", "x = f()  # no" + "qa: S101\n"),
    (text_rules.unfinished, "a.py", "except Exception: pa" + "ss\n", "except KeyError: pa" + "ss\n"),
    (text_rules.unfinished, "a.py", "except Exception as error:\n    pa" + "ss\n", "except OSError:\n    pa" + "ss\n"),
    (text_rules.unfinished, "a.py", "@pytest.mark.sk" + "ip\n", "@pytest.mark.sk" + 'ip(reason="no kernel module")\n'),
    (text_rules.blocking_sleep, "a.py", "time.sl" + "eep(1)\n", "await asyncio.sleep(1)\n"),
    (
        text_rules.machine_path,
        "a.md",
        "see /ro" + "ot/notes\n",
        "see `docs/` and https://example.org/" + "root/notes\n",
    ),
    (text_rules.machine_path, "a.md", '"/ho' + 'me/someone/x"\n', "var/lib/mesh\n"),
    (text_rules.registry_host, "a.md", "https://py" + "pi.org/simple\n", "https://example.org/simple\n"),
    (text_rules.registry_host, "make-tree", "http://d" + "eb.debian.org/debian\n", "https://www.debian.org\n"),
    (
        text_rules.registry_host,
        "libs/x/Cargo.lock",
        'name = "crates' + '.io"\n',
        'source = "registry+https://github.com/rust-lang/crates' + '.io-index"\n',
    ),
    (text_rules.unlocked_requirement, "a.txt", "lib==1.0\n", PIN),
    (text_rules.unlocked_requirement, "a.txt", "lib>=1.0 \\\n    --hash=sha256:00\n", PIN),
    (text_rules.unlocked_requirement, "a.txt", f"--index-url somewhere\n{PIN}", f"# a comment\n{PIN}"),
    (text_rules.unlocked_requirement, "a.txt", f"--find-links wheels\n{PIN}", PIN),
]


@pytest.mark.parametrize(("rule", "path", "bad", "good"), SAMPLES)
def test_text_rule_finds_the_bad_and_passes_the_good(rule: Rule, path: str, bad: str, good: str) -> None:
    assert rule(path, bad)
    assert rule(path, good) == []


@pytest.mark.parametrize("path", ["libs/x/utils.py", "services/a/helpers/b.py", "a/manager.rs", "services/x/common.py"])
def test_shapeless_name_is_found(path: str) -> None:
    assert text_rules.shapeless_name(path, "")


@pytest.mark.parametrize("path", ["libs/x/lane.py", "proto/meshapi/common/v1/view.py"])
def test_good_name_passes(path: str) -> None:
    assert text_rules.shapeless_name(path, "") == []


ADR = "# 0001 One thing\n\n## Context\n## Decision\n## Consequences\n## Alternatives\n"


def test_decision_record_needs_number_title_and_headings() -> None:
    assert document_rules.adr_form("0001-one-thing.md", ADR) == []
    assert document_rules.adr_form("one-thing.md", ADR)
    assert document_rules.adr_form("0002-one-thing.md", ADR)
    assert document_rules.adr_form("0001-one-thing.md", ADR.replace("## Alternatives\n", ""))


def test_decision_records_are_numbered_and_indexed() -> None:
    index = "[a](0001-a.md) [b](0002-b.md)"
    assert document_rules.adr_numbers(["0001-a.md", "0002-b.md"], index) == []
    assert document_rules.adr_numbers(["0001-a.md", "0003-b.md"], index.replace("0002", "0003"))
    assert document_rules.adr_numbers(["0001-a.md", "0001-b.md"], index.replace("0002", "0001"))
    assert document_rules.adr_numbers(["0001-a.md", "0002-b.md"], "[a](0001-a.md)")


def test_dependency_needs_a_complete_row() -> None:
    row = "| `lib` | parses | small | MIT |"
    assert document_rules.unexplained_dependencies(["lib"], row) == []
    assert document_rules.unexplained_dependencies(["lib", "other"], row)
    assert document_rules.unexplained_dependencies(["lib"], "| `lib` | parses | | MIT |")
    assert document_rules.forgotten_dependencies(["lib"], row) == []
    assert document_rules.forgotten_dependencies([], row)


def test_link_leads_to_a_tracked_file() -> None:
    tracked = frozenset({"docs/a.md", "README.md", "libs/x/y.py"})
    good = (
        "[a](a.md) [r](../README.md#top) [f](../libs/x) [w](https://example.org) [h](#here)\n```\n[no](gone.md)\n```\n"
    )
    assert document_rules.dead_links("docs/b.md", good, tracked) == []
    assert document_rules.dead_links("docs/b.md", "[a](gone.md)", tracked)
    assert document_rules.dead_links("docs/b.md", "[a](docs/a.md)", tracked)


def test_imports_are_mapped_to_distributions() -> None:
    source = (
        "import asyncio, grpc\nfrom opentelemetry import trace\nfrom opentelemetry.sdk.trace import TracerProvider\n"
        "from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorServer\nfrom google.protobuf import message\n"
        "from own.part import x\nfrom prometheus_client import Counter\n"
    )
    assert package_rules.imported_distributions([source], "own") == {
        "grpcio",
        "opentelemetry-api",
        "opentelemetry-sdk",
        "opentelemetry-instrumentation-grpc",
        "protobuf",
        "prometheus-client",
    }


PROJECT = {
    "name": "own",
    "version": "0.1.0",
    "description": "One",
    "requires-python": ">=3.11",
    "license": "Apache-2.0",
    "dependencies": ["grpcio", "sqlalchemy[asyncio]"],
}


def test_package_declares_exactly_what_it_imports() -> None:
    assert package_rules.undeclared("p", PROJECT, {"grpcio", "sqlalchemy"}) == []
    assert package_rules.undeclared("p", PROJECT, {"grpcio", "sqlalchemy", "redis"})
    assert package_rules.undeclared("p", PROJECT, {"grpcio"})


def test_package_form_is_complete_and_unpinned() -> None:
    assert package_rules.package_form("p", PROJECT) == []
    assert package_rules.package_form("p", {key: value for key, value in PROJECT.items() if key != "license"})
    assert package_rules.package_form("p", PROJECT | {"requires-python": ">=3.9"})
    assert package_rules.package_form("p", PROJECT | {"dependencies": ["grpcio>=1.7"]})


def test_runtime_dependency_is_declared_by_some_package() -> None:
    assert package_rules.unneeded(["grpcio"], [PROJECT]) == []
    assert package_rules.unneeded(["grpcio", "redis"], [PROJECT])


def test_a_map_of_files_replaces_the_one_before_and_keeps_the_code() -> None:
    text = '"""What it is.\n\nMore.\n\nFiles:\n\n    gone  Old\n"""\n\nfrom x import y\n'
    found = file_maps.with_map(text, {"one": "First", "second": "Long " * 30})
    assert found.startswith('"""What it is.\n\nMore.\n\nFiles:\n\n    one     First\n    second  Long Long')
    assert found.endswith('Long\n"""\n\nfrom x import y\n')
    assert "gone" not in found
    assert max(map(len, found.splitlines())) <= 120
    assert file_maps.with_map(found, {"one": "First", "second": "Long " * 30}) == found


def test_the_map_tells_the_first_sentence_of_a_module() -> None:
    assert (
        file_maps.first_sentence('"""One: two\nthree, v1.2 of it. More.\n\nAnd more."""\n')
        == "One: two three, v1.2 of it"
    )
    assert file_maps.first_sentence("") == ""
    with pytest.raises(ValueError, match="no docstring"):
        file_maps.with_map("x = 1\n", {"one": "First"})


def test_long_prose_is_found_and_tables_and_drawings_are_left_alone() -> None:
    long = "word " * 30
    assert len(document_rules.long_lines("a.md", f"short\n{long}\n- {long}\n")) == 2
    assert document_rules.long_lines("a.md", f"| {long} |\n\n```\n{long}\n```\n") == []
