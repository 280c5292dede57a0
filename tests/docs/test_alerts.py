"""Alert rules speak of metrics that there are, and of headings that the pages have."""

from __future__ import annotations

import re
from typing import Final

from prometheus_client import REGISTRY

from mesh_control.shell import metrics
from tests.docs.settings_page import ROOT

RULES: Final = (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text(encoding="utf-8")
_METRIC: Final = re.compile(r"mesh_control_[a-z_]+")


def test_every_metric_of_a_rule_exists() -> None:
    assert metrics.CERTIFICATE_END is not None
    known = {metric.name for metric in REGISTRY.collect()}
    named = set(_METRIC.findall(RULES))
    assert named
    assert named <= known


def test_every_rule_says_what_to_do() -> None:
    assert RULES.count("- alert:") == RULES.count("action:") == RULES.count("summary:") > 0
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    for heading in ("Certificates of the mesh", "A voter was removed"):
        assert heading in RULES
        assert heading in page


def test_runbooks_name_tests_that_exist() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    tests = (ROOT / "services/control_plane/tests/shell/test_mesh_ca.py").read_text(encoding="utf-8")
    named = re.findall(r"`(test_runbook_[a-z_]+|test_root_of_the_operator[a-z_]+)`", page)
    assert len(named) == 5
    assert all(f"async def {name}(" in tests for name in named)


def test_prometheus_loads_the_rules() -> None:
    assert "rule_files:\n  - alerts.yml\n" in (ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8")
    assert "./deploy/prometheus/alerts.yml:/etc/prometheus/alerts.yml:ro" in (ROOT / "compose.yaml").read_text(
        encoding="utf-8"
    )
