"""Fuzzes the parsers for a given time: `python tests/fuzz/run.py --seconds 60 [target ...]`, or `make fuzz SECONDS=60`.

With atheris installed each target runs in a process of its own under coverage feedback, from the corpus that earlier runs
left in `build/fuzz/`; without it, seeded mutation does what it can and says so. Exit status 1 when a target fails; the
input is printed or left beside the corpus.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.fuzz.mutation import TargetFailedError, mutations, run_each
from tests.fuzz.targets import TARGETS, Target

_OUTPUT: Final = Path(__file__).resolve().parents[2] / "build" / "fuzz"
# A mutant of a few hundred bytes reaches every branch; longer ones only slow the search.
_INPUT_BYTES_MAX: Final = 4096


def main(arguments: Sequence[str]) -> int:
    """Runs the chosen targets one after the other and returns the exit status."""
    parser = argparse.ArgumentParser(description="Fuzz the parsers of bytes from outside.")
    parser.add_argument("--seconds", type=int, default=60, help="time for all chosen targets together (default 60)")
    parser.add_argument("--seed", type=int, default=None, help="seed of the random choices (default: a new one)")
    parser.add_argument("targets", nargs="*", metavar="target", help=f"any of: {', '.join(TARGETS)} (default: all)")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.targets) - set(TARGETS))
    if unknown:
        parser.error(f"no such target: {', '.join(unknown)}; the targets are {', '.join(TARGETS)}")
    chosen = [TARGETS[name] for name in options.targets or TARGETS]
    seconds_each = max(1, options.seconds // len(chosen))
    seed = random.SystemRandom().getrandbits(31) if options.seed is None else options.seed
    guided = importlib.util.find_spec("atheris") is not None
    if not guided:
        print("atheris is not installed: fuzzing by seeded mutation, without coverage feedback")
    print(f"SEED={seed}", flush=True)
    run = _run_guided if guided else _run_mutations
    results = [run(target, seconds_each, seed) for target in chosen]
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
