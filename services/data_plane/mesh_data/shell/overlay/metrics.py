"""Prometheus metrics of the overlay, read from the cores at each scrape: the hot path only counts in plain integers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mesh_data.shell.overlay.listener import PeerListener
from mesh_data.shell.overlay.overlay import Overlay
from meshwire.packet import TrafficClass


class OverlayCollector(Collector):
    """Register it once per process."""

    def __init__(self, overlay: Overlay, listener: PeerListener | None) -> None:
        self._overlay = overlay
        self._listener = listener

    def describe(self) -> Iterable[Metric]:
        """Nothing is collected at registration: the overlay may not be running yet."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The present values."""
        yield from self._packets()
        yield from self._links()
        refused = CounterMetricFamily(
            "mesh_lanes_refused", "Lanes that did not come up, by error code.", labels=["code"]
        )
        for code, count in self._overlay.refusals.items():
            refused.add_metric([code], count)
        yield refused
        if self._listener is not None:
            yield CounterMetricFamily(
                "mesh_connections_refused",
                "Connections refused before the lane handshake.",
                value=self._listener.refused,
            )

    def _packets(self) -> Iterator[Metric]:
        counters = self._overlay.core.forwarder.counters
        yield CounterMetricFamily("mesh_packets_sent", "Packets that this node sent of its own.", value=counters.sent)
        yield CounterMetricFamily(
            "mesh_packets_forwarded", "Packets passed on for others.", value=counters.forwarded + counters.repaired
        )
        yield CounterMetricFamily(
            "mesh_forwarded_bytes", "Bytes of packets passed on for others.", value=counters.forwarded_bytes
        )
        yield CounterMetricFamily("mesh_packets_delivered", "Packets for this node.", value=counters.delivered)
        yield CounterMetricFamily("mesh_packets_repaired", "Packets put on another path here.", value=counters.repaired)
        yield CounterMetricFamily(
            "mesh_path_errors_sent", "Path errors sent to the sources of lost packets.", value=counters.path_errors_sent
        )
        yield CounterMetricFamily(
            "mesh_path_errors_received", "Path errors taken into account.", value=counters.path_errors_received
        )
        dropped = CounterMetricFamily("mesh_packets_dropped", "Packets dropped here, by reason.", labels=["reason"])
        for reason, count in counters.dropped.items():
            dropped.add_metric([reason], count)
        yield dropped

    def _links(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("mesh_link_up", "1 while a lane to the neighbour is up.", labels=["peer"])
        rtt = GaugeMetricFamily("mesh_link_rtt_seconds", "Smoothed round trip to the neighbour.", labels=["peer"])
        sent = GaugeMetricFamily("mesh_link_sent_bytes", "Bytes sent since the link came up.", labels=["peer"])
        received = GaugeMetricFamily(
            "mesh_link_received_bytes", "Bytes received since the link came up.", labels=["peer"]
        )
        queued = GaugeMetricFamily("mesh_link_queued_bytes", "Bytes waiting for the link.", labels=["peer", "class"])
        view = self._overlay.view()
        for link in self._overlay.core.links():
            name = view.name_of(link.peer) if view is not None else str(link.peer)
            lane = self._overlay.core.control_lane(link.peer)
            up.add_metric([name], link.is_up)
            sent.add_metric([name], link.bytes_sent)
            received.add_metric([name], link.bytes_received)
            if lane is not None and lane.srtt_s is not None:
                rtt.add_metric([name], lane.srtt_s)
            for cls in TrafficClass:
                queued.add_metric([name, cls.name.lower()], link.queued_bytes(cls))
        yield from (up, rtt, sent, received, queued)
