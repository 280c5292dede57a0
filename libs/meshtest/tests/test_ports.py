"""Free ports."""

from __future__ import annotations

from meshtest.ports import FIRST, LAST, free_ports


def test_two_callers_never_get_the_same_port_while_nobody_listens_yet() -> None:
    asked = [port for _ in range(100) for port in free_ports(10)]
    assert len(set(asked)) == len(asked)
    assert all(FIRST <= port <= LAST for port in asked)
