"""Fuzzes for a given time: `python tests/fuzz/run.py --seconds 60 [target ...]`, or `make fuzz TARGET=name SECONDS=60`.

With atheris installed each target runs in a process of its own under coverage feedback, from the corpus that earlier runs
left in `build/fuzz/`; without it, seeded mutation does what it can and says so. Exit status 1 when a target fails; the
input is printed or left beside the corpus. Entry points (`shell_registry`, and `rest`) are run by seeded mutation, one
after the other, when they are named or when `all` is.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from structlog.testing import capture_logs

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.fuzz import shell_rest
from tests.fuzz.mutation import TargetFailedError, mutations, run_each
from tests.fuzz.shell_registry import SHELL_TARGETS
from tests.fuzz.targets import TARGETS, Target

_OUTPUT: Final = Path(__file__).resolve().parents[2] / "build" / "fuzz"
# A mutant of a few hundred bytes reaches every branch; longer ones only slow the search.
_INPUT_BYTES_MAX: Final = 4096
_ALL: Final = "all"


def main(arguments: Sequence[str]) -> int:
    """Runs the chosen targets one after the other and returns the exit status."""
    entry_points = (*SHELL_TARGETS, shell_rest.NAME)
    names = (*TARGETS, *entry_points, _ALL)
    parser = argparse.ArgumentParser(description="Fuzz the parsers of bytes from outside, and the entry points.")
    parser.add_argument("--seconds", type=int, default=60, help="time for all chosen targets together (default 60)")
    parser.add_argument("--seed", type=int, default=None, help="seed of the random choices (default: a new one)")
    parser.add_argument(
        "targets", nargs="*", metavar="target", help=f"any of: {', '.join(names)} (default: every parser)"
    )
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.targets) - set(names))
    if unknown:
        parser.error(f"no such target: {', '.join(unknown)}; the targets are {', '.join(names)}")
    wanted = names[:-1] if _ALL in options.targets else options.targets or TARGETS
    chosen = [TARGETS[name] for name in wanted if name in TARGETS]
    shells = [name for name in wanted if name in entry_points]
    seconds_each = max(1, options.seconds // (len(chosen) + len(shells)))
    seed = random.SystemRandom().getrandbits(31) if options.seed is None else options.seed
    guided = bool(chosen) and importlib.util.find_spec("atheris") is not None
    if chosen and not guided:
        print("atheris is not installed: fuzzing by seeded mutation, without coverage feedback")
    print(f"SEED={seed}", flush=True)
    run = _run_guided if guided else _run_mutations
    results = [run(target, seconds_each, seed) for target in chosen]
    results += [_run_shell(name, seconds_each, seed) for name in shells]
    return 0 if all(results) else 1


def _run_guided(target: Target, seconds: int, seed: int) -> bool:
    """Runs a target under atheris in a child process, because libFuzzer ends the process that it runs in."""
    corpus = _OUTPUT / target.name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, sample in enumerate(target.seeds):
        (corpus / f"sample-{number}").write_bytes(sample)
    command = [
        sys.executable,
        str(Path(__file__).with_name("guided.py")),
        target.name,
        f"-max_total_time={seconds}",
        f"-seed={seed}",
        f"-max_len={_INPUT_BYTES_MAX}",
        "-print_final_stats=1",
        f"-artifact_prefix={_OUTPUT / target.name}-",
        str(corpus),
    ]
    log = _OUTPUT / f"{target.name}.log"
    with log.open("wb") as output:
        status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    runs = [line.split()[-1] for line in log.read_text(errors="replace").splitlines() if "number_of_executed" in line]
    print(f"{target.name}: {'ok' if status == 0 else 'FAILED'}, {runs[-1] if runs else 'unknown'} inputs, see {log}")
    return status == 0


def _run_shell(name: str, seconds: int, seed: int) -> bool:
    """Runs an entry point in this process; what its services log is left out."""
    try:
        with capture_logs():
            if name == shell_rest.NAME:
                count = shell_rest.run(seconds, seed)
            else:
                count = asyncio.run(SHELL_TARGETS[name].run(seconds, seed))
    except TargetFailedError as failure:
        print(f"{name}: FAILED: {failure}", flush=True)
        return False
    print(f"{name}: ok, {count} inputs", flush=True)
    return True


def _run_mutations(target: Target, seconds: int, seed: int) -> bool:
    """Runs a target on seeded mutants in this process."""
    counter = _Counted(mutations(target.seeds, random.Random(f"{seed}-{target.name}")), time.monotonic() + seconds)
    try:
        run_each(target.name, target.run, counter)
    except TargetFailedError as failure:
        print(f"{target.name}: FAILED after {counter.count} inputs: {failure}", flush=True)
        return False
    print(f"{target.name}: ok, {counter.count} inputs", flush=True)
    return True


class _Counted(Iterator[bytes]):
    """Inputs until a deadline, counted."""

    def __init__(self, inputs: Iterator[bytes], deadline: float) -> None:
        self._inputs = inputs
        self._deadline = deadline
        self.count = 0

    def __next__(self) -> bytes:
        if time.monotonic() >= self._deadline:
            raise StopIteration
        self.count += 1
        return next(self._inputs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
