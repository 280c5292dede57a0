"""The cheap histogram says to Prometheus what the library's own would."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from mesh_data.shell.latency_histogram import LatencyHistogram

BOUNDS_S = (0.001, 0.5, 1, 2.5)


def samples(registry: CollectorRegistry) -> list[str]:
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if "_created" not in line]


def test_it_is_exported_like_the_librarys_histogram() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    cheap = LatencyHistogram("publish_seconds", "How long.", BOUNDS_S, ours)
    plain = Histogram("publish_seconds", "How long.", buckets=BOUNDS_S, registry=theirs)
    for seconds in (0.0, 0.001, 0.0011, 0.75, 1.0, 99.0):
        cheap.observe(seconds)
        plain.observe(seconds)
    assert samples(ours) == samples(theirs)
