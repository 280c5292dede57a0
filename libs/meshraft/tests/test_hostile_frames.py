"""Frames that a peer makes up to overrun the decoder: refused, in a process that goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_NESTED = """
import struct, sys
from meshraft import InvalidFrame, RaftHost

host = RaftHost.open(sys.argv[1], seed=1)
body = bytes.fromhex(sys.argv[2]) * int(sys.argv[3])
try:
    host.step(2, struct.pack("!BQI", 1, 1, len(body)) + body)
except InvalidFrame:
    print("refused")
"""


# The tag of an unknown field 100 that begins a group, and that of field 1; entries, snapshot and context are length-delimited.
@pytest.mark.parametrize("tag", ["a306", "0b"])
def test_groups_within_groups_do_not_overrun_the_stack(tmp_path: Path, tag: str) -> None:
    """RUSTSEC-2024-0437: a decoder that descends into each would end the process, which no exception handler survives."""
    command = [sys.executable, "-c", _NESTED, str(tmp_path), tag, "400000"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (0, "refused\n"), ended.stderr
