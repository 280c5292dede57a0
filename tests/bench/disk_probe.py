"""What the disk itself gives: three processes append to a file each and fdatasync after every megabyte, at once.

The figure is each writer's rate (the slowest counts), because a stream's quorum waits for one disk write per node; on one
machine the three share the disk, as the three nodes under test do.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

WRITERS: Final = 3
_BLOCK: Final = os.urandom(1024 * 1024)


def probe(directory: Path, seconds: float = 2.0) -> float:
    """MB/s of the slowest of three writers."""
    directory.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.bench.disk_probe"]
    writers = [
        subprocess.Popen(
            [*command, str(directory / f"probe-{number}"), str(seconds)], stdout=subprocess.PIPE, text=True
        )
        for number in range(WRITERS)
    ]
    return min(float(writer.communicate()[0]) for writer in writers)


def write_for(path: Path, seconds: float) -> float:
    """Appends for so long; returns MB/s. The file is removed."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    written = 0
    started = time.monotonic()
    try:
        while time.monotonic() - started < seconds:
            written += os.write(descriptor, _BLOCK)
            os.fdatasync(descriptor)
        return written / 1e6 / (time.monotonic() - started)
    finally:
        os.close(descriptor)
        path.unlink()


def main() -> None:
    """One writer, in its own process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("seconds", type=float)
    given = parser.parse_args()
    print(write_for(given.path, given.seconds))


if __name__ == "__main__":
    main()
