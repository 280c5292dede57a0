"""Writes the golden files anew, for `make golden`. The diff is then reviewed: a changed byte breaks older nodes and logs."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.golden import hexfile
from tests.golden.samples import SAMPLES


def main() -> None:
    """Writes one file a sample and removes the files that have none."""
    hexfile.WIRE_DIRECTORY.mkdir(exist_ok=True)
    wanted = {hexfile.path_of(name) for name in SAMPLES}
    for path in set(hexfile.WIRE_DIRECTORY.glob("*.hex")) - wanted:
        path.unlink()
        print(f"removed {path.name}")
    for name, sample in SAMPLES.items():
        path = hexfile.path_of(name)
        text = hexfile.render(sample.encoded)
        if not path.exists() or path.read_text(encoding="ascii") != text:
            path.write_text(text, encoding="ascii")
            print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
