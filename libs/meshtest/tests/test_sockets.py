"""Directories of sockets: beside the data where they fit, short and always the same where they do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshcommon.address import unix_path
from meshtest.sockets import socket_directory


def test_a_short_path_is_taken_as_it_is() -> None:
    assert socket_directory(Path("/srv/mesh/a/run"), 13) == Path("/srv/mesh/a/run")


@pytest.mark.parametrize("wanted", ["/" + "a" * 95, "/srv/my mesh/run", "/srv/gr\u00fcn/run"])
def test_any_other_is_replaced_by_one_of_its_own(wanted: str) -> None:
    found = socket_directory(Path(wanted), 13)
    assert found == socket_directory(Path(wanted), 13) != socket_directory(Path(wanted + "x"), 13)
    assert unix_path(f"unix:{found}/control.sock")
