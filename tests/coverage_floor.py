"""Fails when a package of the product has fewer than FLOOR of its lines covered; `make test` runs it last.

Reads `build/coverage.json`, which pytest-cov writes. A figure over all packages would let a well-tested one hide another.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

FLOOR: Final = 0.8
"""Share of lines, of each package."""
FILE: Final = Path("build/coverage.json")


def shares(found: Mapping[str, Any]) -> dict[str, float]:
    """Share of covered lines by package, such as `libs/meshwire`. `found` is coverage.py's JSON report."""
    covered: Counter[str] = Counter()
    lines: Counter[str] = Counter()
    for path, file in found["files"].items():
        package = "/".join(Path(path).parts[:2])
        covered[package] += file["summary"]["covered_lines"]
        lines[package] += file["summary"]["num_statements"]
    return {package: covered[package] / lines[package] for package in sorted(lines) if lines[package]}


def main() -> int:
    """Prints the shares; exit status 1 when one is too small."""
    found = shares(json.loads(FILE.read_text()))
    print("coverage: " + ", ".join(f"{package} {share:.0%}" for package, share in found.items()))
    short = [package for package, share in found.items() if share < FLOOR]
    if short:
        print(f"coverage: below {FLOOR:.0%}: {', '.join(short)}", file=sys.stderr)
    return 1 if short or not found else 0


if __name__ == "__main__":
    sys.exit(main())
