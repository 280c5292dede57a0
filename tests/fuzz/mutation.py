"""Seeded mutation of inputs: the fuzzer that needs nothing installed and gives the same inputs every time.

Purpose: a bounded fuzz run inside the test suite, and the fallback of the fuzz runner. Leaves out coverage feedback, which
atheris brings. The mutations are the usual ones of AFL's havoc stage.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Final

_INTERESTING_BYTES: Final = (0x00, 0x01, 0x02, 0x10, 0x11, 0x7F, 0x80, 0xFE, 0xFF)
_INTERESTING_WORDS: Final = tuple(
    value.to_bytes(width, "big")
    for width in (2, 4, 8)
    for value in (0, 1, (1 << (8 * width - 1)) - 1, 1 << (8 * width - 1), (1 << (8 * width)) - 1)
)


class TargetFailedError(AssertionError):
    """An input on which a target failed; the message holds all that is needed to run it again."""


def neighbours(sample: bytes, *, is_exhaustive: bool = True) -> Iterator[bytes]:
    """Every truncation of a sample, the sample with a byte more, and changes of each single byte.

    Exhaustive means to every other value; else to those that differ by one bit or by one, and to the interesting ones.
    """
    for length in range(len(sample)):
        yield sample[:length]
    yield sample + b"\x00"
    for at, original in enumerate(sample):
        near = {original ^ 1 << bit for bit in range(8)} | {(original + step) % 256 for step in (-1, 1)}
        for value in range(256) if is_exhaustive else sorted(near.union(_INTERESTING_BYTES)):
            if value != original:
                yield sample[:at] + bytes((value,)) + sample[at + 1 :]


def mutations(seeds: tuple[bytes, ...], rng: random.Random) -> Iterator[bytes]:
    """Endless inputs: mostly seeds with a few changes, sometimes pure noise."""
    while True:
        if rng.random() < 0.05:
            yield rng.randbytes(rng.randrange(200))
            continue
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 6)):
            _change(data, seeds, rng)
        yield bytes(data)


def run_each(name: str, run: Callable[[bytes], None], inputs: Iterator[bytes]) -> None:
    """Runs a target on every input.

    Raises:
        TargetFailedError: at the first input on which the target raised anything.
    """
    for data in inputs:
        try:
            run(data)
        except Exception as error:
            raise TargetFailedError(f"target {name} failed with {error!r} on input {data.hex()}") from error


def _change(data: bytearray, seeds: tuple[bytes, ...], rng: random.Random) -> None:
    """One random change in place."""
    at = rng.randrange(len(data) + 1)
    match rng.randrange(8):
        case 0 if at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        case 1 if at < len(data):
            data[at] = rng.choice(_INTERESTING_BYTES)
        case 2:
            word = rng.choice(_INTERESTING_WORDS)
            data[at : at + len(word)] = word
        case 3:
            del data[at:]
        case 4:
            del data[at : at + rng.randint(1, 8)]
        case 5:
            data[at:at] = rng.randbytes(rng.randint(1, 8))
        case 6:
            data[at:at] = data[at : at + rng.randint(1, 32)]
        case _:
            other = rng.choice(seeds)
            data[at:] = other[rng.randrange(len(other) + 1) :]
