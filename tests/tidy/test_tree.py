"""The tree follows the house rules that no other tool checks. test_rules shows that each rule can fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.tidy import document_rules, file_maps, package_rules, text_rules, tree

Rule = Callable[[str, str], list[str]]

PYTHON_RULES: tuple[Rule, ...] = (text_rules.long_functions, text_rules.missing_docstring)
SOURCE_RULES: tuple[Rule, ...] = (
    text_rules.long_file,
    text_rules.shapeless_name,
    text_rules.unfinished,
    text_rules.blocking_sleep,
)
TEXT_RULES: tuple[Rule, ...] = (text_rules.machine_path, text_rules.registry_host)


def _expect_none(findings: list[str]) -> None:
    """Fails with one finding a line, which reads better than a difference of lists."""
    __tracebackhide__ = True
    if findings:
        pytest.fail("\n".join(findings), pytrace=False)


def _findings(rule: Rule, paths: list[str]) -> list[str]:
    return [finding for path in paths for finding in rule(path, tree.read(path))]


@pytest.mark.parametrize("rule", PYTHON_RULES)
def test_python_file(rule: Rule) -> None:
    _expect_none(_findings(rule, tree.written_by_hand(".py")))


@pytest.mark.parametrize("rule", SOURCE_RULES)
def test_source_file(rule: Rule) -> None:
    _expect_none(_findings(rule, tree.written_by_hand(".py", ".pyi", ".rs")))


@pytest.mark.parametrize("rule", TEXT_RULES)
def test_text_file(rule: Rule) -> None:
    _expect_none(_findings(rule, tree.texts()))


def test_maps_of_files_are_true() -> None:
    _expect_none(file_maps.untrue())


def test_allowed_sleeps_still_exist() -> None:
    assert set(text_rules.BLOCKING_SLEEP_ALLOWED) <= set(tree.tracked_files())


def test_locks_pin_with_hashes_and_name_no_address() -> None:
    locks = [path for path in tree.tracked_files() if path.startswith("requirements/") and path.endswith(".txt")]
    assert len(locks) == 2
    _expect_none(_findings(text_rules.unlocked_requirement, locks))


def test_every_direct_dependency_is_explained() -> None:
    direct = {package_rules.normalised(name) for name in tree.direct_dependencies()}
    document = tree.read("docs/dependencies.md")
    _expect_none(document_rules.unexplained_dependencies(direct, document))
    _expect_none(document_rules.forgotten_dependencies(direct, document))


def test_runtime_dependencies_are_needed() -> None:
    locked = {package_rules.normalised(line) for line in tree.requirements("requirements/runtime.in")}
    _expect_none(package_rules.unneeded(locked, tree.package_projects().values()))


def test_decision_records_have_one_form() -> None:
    records = {
        path.removeprefix("docs/adr/"): tree.read(path)
        for path in tree.tracked_files()
        if path.startswith("docs/adr/") and not path.endswith("/README.md")
    }
    findings = [finding for name, text in records.items() for finding in document_rules.adr_form(name, text)]
    findings += document_rules.adr_numbers(records, tree.read("docs/adr/README.md"))
    assert records
    _expect_none(findings)


def test_prose_is_wrapped() -> None:
    _expect_none(_findings(document_rules.long_lines, [path for path in tree.tracked_files() if path.endswith(".md")]))


def test_links_between_documents_lead_somewhere() -> None:
    tracked = frozenset(tree.tracked_files())
    documents = [path for path in tracked if path.endswith(".md")]
    _expect_none([f for path in documents for f in document_rules.dead_links(path, tree.read(path), tracked)])


@pytest.mark.parametrize("path", sorted(tree.package_projects()))
def test_package_declares_what_it_imports(path: str) -> None:
    project = tree.package_projects()[path]
    folder = path.removesuffix("pyproject.toml")
    own = str(project["name"]).replace("-", "_")
    sources = [
        name
        for name in tree.tracked_files()
        if name.startswith((f"{folder}{own}/", f"{folder}python/{own}/")) and name.endswith(".py")
    ]
    imported = package_rules.imported_distributions([tree.read(name) for name in sources], own)
    _expect_none(package_rules.package_form(path, project))
    _expect_none(package_rules.undeclared(path, project, imported))
