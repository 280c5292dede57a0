"""`scripts/images` where images can and cannot be pulled, and what it removes, with a Docker that only takes notes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
OFFICIAL: Final = ("debian:trixie-slim", "postgres:17", "redis:8", "prom/prometheus:v2.53.3")
FAKE_DOCKER: Final = r"""#!/usr/bin/env bash
# An engine whose images are lines of a file; pulls succeed for the images that $PULLABLE names.
here=$(dirname "$0")
echo "$*" >>"$here/asked"
case "$1 $2" in
  'version --format') echo 20.10 ;;
  'image inspect')
    image=${!#}
    grep -q "^$image " "$here/images" || exit 1
    case $4 in
      *stand-in*) sed -n "s|^$image ||p" "$here/images" ;;
      *Size*) echo 1000000 ;;
    esac ;;
  'pull --quiet')
    case " $PULLABLE " in *" $3 "*) echo "$3 official" >>"$here/images" ;; *) exit 1 ;; esac ;;
  'images --filter') sed -n 's|^\(mesh/[^ ]*\) .*|\1|p' "$here/images" ;;
  build*) while [ $# -gt 0 ]; do [ "$1" = --tag ] && echo "$2 ours" >>"$here/images"; shift; done ;;
  rmi*) shift; for image; do sed -i "\|^$image |d" "$here/images"; done ;;
esac
exit 0
"""
FAKE_STAND_IN: Final = '#!/usr/bin/env bash\necho "$1 1" >>"$FAKE/images"\n'


class Machine:
    """A copy of the script with a fake engine beside it."""

    def __init__(self, directory: Path) -> None:
        self.tree = directory / "tree"
        self.fake = directory / "bin"
        for folder in ("scripts", "deploy/base", "build"):
            (self.tree / folder).mkdir(parents=True)
        self.fake.mkdir()
        shutil.copy(ROOT / "scripts/images", self.tree / "scripts")
        programs = {
            self.fake / "docker": FAKE_DOCKER,
            self.fake / "debootstrap": "#!/bin/sh\n",
            self.fake / "sudo": '#!/bin/sh\nshift\nexec "$@"\n',
            self.tree / "deploy/base/stand-in": FAKE_STAND_IN,
            self.tree / "scripts/compose-secrets": "#!/bin/sh\n",
        }
        for path, text in programs.items():
            path.write_text(text, encoding="utf-8")
            path.chmod(0o755)
        (self.fake / "images").write_text("", encoding="utf-8")

    def run(self, *arguments: str, **variables: str) -> str:
        """What the script printed; it has to succeed."""
        environment = {
            "PATH": f"{self.fake}:{os.environ['PATH']}",
            "FAKE": str(self.fake),
            "PULLABLE": "",
            "HOME": str(self.tree),
            **variables,
        }
        done = subprocess.run(
            ["scripts/images", *arguments], cwd=self.tree, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def images(self) -> dict[str, str]:
        """Image → official, ours or 1 (the label of a stand-in)."""
        return dict(line.split() for line in (self.fake / "images").read_text(encoding="utf-8").splitlines())


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_official_images_are_pulled_where_that_works(machine: Machine) -> None:
    printed = machine.run(PULLABLE=" ".join(OFFICIAL))
    for image in OFFICIAL:
        assert f"{image}: the official image, pulled" in printed
        assert machine.images[image] == "official"
    assert "mesh/data-plane:dev" in machine.images


def test_only_what_cannot_be_pulled_gets_a_stand_in(machine: Machine) -> None:
    printed = machine.run(PULLABLE="redis:8")
    assert "redis:8: the official image, pulled" in printed
    assert "postgres:17: cannot be pulled; making a stand-in" in printed
    assert machine.images["postgres:17"] == "1"


def test_a_second_run_says_what_is_there_and_pulls_nothing(machine: Machine) -> None:
    machine.run(PULLABLE="redis:8")
    (machine.fake / "asked").unlink()
    printed = machine.run(PULLABLE="redis:8")
    assert "redis:8: the official image\n" in printed
    assert "postgres:17: the stand-in made earlier" in printed
    assert "pull" not in (machine.fake / "asked").read_text(encoding="utf-8")


def test_nothing_is_pulled_when_stand_ins_are_asked_for(machine: Machine) -> None:
    machine.run(PULLABLE=" ".join(OFFICIAL), MESH_STAND_INS="1")
    assert {machine.images[image] for image in OFFICIAL} == {"1"}


def test_remove_keeps_what_was_pulled(machine: Machine) -> None:
    machine.run(PULLABLE="redis:8", MESH_TAG="other")
    assert "mesh/routing:other" in machine.images
    machine.run("remove")
    assert machine.images == {"redis:8": "official"}
