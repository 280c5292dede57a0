"""`.ci/run`: its exit status covers the gates, the tests and the containers, and its last line is the test runner's."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
CLOSING: Final = "===== 3 passed in 1.00s ====="
FAKE_MAKE: Final = f"""#!/bin/sh
case "$*" in
  *e2e-docker*) echo "[1.0 s] all steps passed"; exit $CONTAINERS ;;
  *) echo '{CLOSING}'; echo 'make: a word after it'; exit $TESTS ;;
esac
"""


@pytest.mark.parametrize(("tests", "containers", "passes"), [(0, 0, True), (2, 0, False), (0, 2, False), (2, 2, False)])
def test_every_failure_counts_and_the_runner_has_the_last_line(
    tmp_path: Path, tests: int, containers: int, passes: bool
) -> None:
    programs = {"scripts/install-system-packages": "#!/bin/sh\n", "bin/make": FAKE_MAKE}
    for name, text in programs.items():
        path = tmp_path / name
        path.parent.mkdir()
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci")
    environment = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "TESTS": str(tests), "CONTAINERS": str(containers)}
    done = subprocess.run([".ci/run"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) is passes
    assert done.stdout.splitlines()[-1] == CLOSING
    assert ("e2e-docker: FAILED" in done.stdout) == (containers != 0)
