"""Fuzz targets of whole entry points: bytes go in where a stranger's would, and only documented errors may come out.

The parsers' targets (`targets`) are functions of bytes. These hold a running piece of a service, in this process, over
loopback sockets or an overlay in memory. An attempt returns quietly whether the input was taken or refused; an exception
is a finding: an undocumented error, INTERNAL, a failure that a barrier had to catch, an entry point that answers no more.
Inputs that once failed are kept in `corpus/NAME/`.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final, TypeAlias

from meshcommon.barrier import UNEXPECTED_ERRORS
from meshcommon.errors import ErrorCode
from tests.fuzz.mutation import TargetFailedError, mutations

CORPUS: Final = Path(__file__).with_name("corpus")
Attempt: TypeAlias = Callable[[bytes], Awaitable[None]]
Opening: TypeAlias = Callable[[Path], AbstractAsyncContextManager[Attempt]]


@dataclass(frozen=True, slots=True)
class ShellTarget:
    """An entry point: how to start it in a directory of its own, and inputs to begin with."""

    name: str
    open: Opening
    seeds: tuple[bytes, ...]

    def corpus(self) -> tuple[bytes, ...]:
        """Inputs that are kept, by file name."""
        return tuple(path.read_bytes() for path in sorted((CORPUS / self.name).glob("*.bin")))

    async def run(self, seconds: float, seed: int) -> int:
        """Fuzzes for a while: the seeds, the corpus, then mutants of both; returns how many inputs.

        Raises:
            TargetFailedError: an input after which anything unexpected happened.
        """
        known = self.seeds + self.corpus()
        endless = mutations(known, random.Random(f"{seed}-{self.name}"))
        failure: TargetFailedError | None = None
        count = 0
        with tempfile.TemporaryDirectory(prefix="mesh-fuzz-") as directory:
            try:
                async with self.open(Path(directory)) as attempt:
                    try:
                        count = await self._attempts(attempt, chain(known, endless), len(known), seconds)
                    except TargetFailedError as error:
                        failure = error
            except Exception as error:
                # What has ended within tells why when it is closed; the input that ended it says more.
                raise failure or TargetFailedError(f"target {self.name} ended with {error!r}") from error
        if failure is not None:
            raise failure
        return count

    async def _attempts(self, attempt: Attempt, inputs: Iterable[bytes], at_least: int, seconds: float) -> int:
        deadline = time.monotonic() + seconds
        count = 0
        for data in inputs:
            if count >= at_least and time.monotonic() > deadline:
                break
            before = surprises()
            try:
                await attempt(data)
                assert surprises() == before, "a barrier had to catch a failure"
            except Exception as error:
                raise TargetFailedError(f"target {self.name} failed with {error!r} on input {data.hex()}") from error
            count += 1
        return count


def surprises() -> float:
    """Failures that barriers of this process have caught so far."""
    return sum(
        sample.value
        for metric in UNEXPECTED_ERRORS.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    )


def check_code(code: str, message: str) -> None:
    """Fails unless an error is one that its reader can act on."""
    assert code in set(ErrorCode), f"{code} is documented nowhere"
    assert code != ErrorCode.INTERNAL, f"INTERNAL: {message}"
    assert len(message) <= 4_000, f"an error of {len(message)} characters"
