"""Each gRPC service that a backend serves has a rule of who may call it, else a site on TCP refuses everybody."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAINS = {"control_plane": "mesh_control", "data_plane": "mesh_data", "routing": "mesh_routing"}


def unruled(source: str) -> set[str]:
    """Names of the services that a wiring adds to its server and `CALLERS` does not name."""
    added = set(re.findall(r"add_(\w+)Servicer_to_server", source))
    rules = source.partition("CALLERS")[2].partition("\n}")[0]
    return added - set(re.findall(r'"[\w.]+\.(\w+)": ', rules))


@pytest.mark.parametrize("service", MAINS)
def test_every_service_of_a_backend_has_its_callers(service: str) -> None:
    source = (ROOT / "services" / service / MAINS[service] / "main.py").read_text()
    assert re.search(r"add_\w+Servicer_to_server", source), "the wiring moved: look there"
    assert unruled(source) == set()


def test_service_without_a_rule_is_found() -> None:
    source = 'CALLERS: Final = {\n    "a.v1.OneService": x,\n    "a.v1.TwoService/Call": x,\n}\n'
    assert unruled(source + "add_OneServiceServicer_to_server\nadd_TwoServiceServicer_to_server") == {"TwoService"}
