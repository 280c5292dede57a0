"""Runs one fuzz target under atheris: `python tests/fuzz/guided.py TARGET [libFuzzer options]`. `run.py` calls it."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]  # optional: run.py falls back without it

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

with atheris.instrument_imports(include=["meshwire"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Fuzzes until libFuzzer's own limits end the process."""
    program, name, *options = sys.argv
    atheris.Setup([program, *options], TARGETS[name].run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
