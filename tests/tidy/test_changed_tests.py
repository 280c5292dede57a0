"""`make test-fast` runs what names the changed module, and nothing else."""

from __future__ import annotations

from tests.changed_tests import files_to_run


def test_a_changed_test_is_run_itself() -> None:
    path = "libs/meshwire/tests/test_packet.py"
    assert files_to_run([path]) == {path}


def test_tests_that_name_the_module_are_run() -> None:
    found = files_to_run(["services/data_plane/mesh_data/core/forwarder.py"])
    assert "services/data_plane/tests/core/test_forwarder.py" in found
    assert "libs/meshwire/tests/test_packet.py" not in found


def test_a_change_of_rust_runs_the_files_to_run_the_extension() -> None:
    found = files_to_run(["libs/meshraft/src/lib.rs"])
    assert found
    assert all(path.startswith("libs/meshraft/tests/") for path in found)


def test_pages_and_files_to_run_the_tree_run_nothing() -> None:
    assert files_to_run(["README.md", "tests/e2e/conftest.py", "libs/meshwire/tests/conftest.py"]) == set()
