"""The bytes on the wire and in the log are those of the golden files; `make golden` rewrites them on purpose."""

from __future__ import annotations

import pytest

from tests.golden import hexfile
from tests.golden.samples import SAMPLES


@pytest.mark.parametrize("name", SAMPLES)
def test_encoding_is_byte_for_byte_the_golden_file(name: str) -> None:
    assert hexfile.render(SAMPLES[name].encoded) == hexfile.path_of(name).read_text(encoding="ascii")


@pytest.mark.parametrize("name", SAMPLES)
def test_golden_file_decodes_to_the_sample(name: str) -> None:
    assert SAMPLES[name].decode(hexfile.read(name)) == SAMPLES[name].value


def test_every_golden_file_belongs_to_a_sample() -> None:
    assert {path.stem for path in hexfile.WIRE_DIRECTORY.glob("*.hex")} == set(SAMPLES)
