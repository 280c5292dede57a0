"""How much chance tries: `make test` tries a handful, `make nightly` sets MESH_TEST_EFFORT and tries that many times as much.

Leaves out what is fixed: the seeds of simulations, storms and hunts are those of the tests, and of `scripts/nightly`.
"""

from __future__ import annotations

import os
from typing import Final

EFFORT: Final = max(1, int(os.environ.get("MESH_TEST_EFFORT", "1")))
"""Factor; 1 unless told."""


def scaled(count: int) -> int:
    """So many examples, inputs or runs in `make test`, and EFFORT times as many at night."""
    return count * EFFORT
