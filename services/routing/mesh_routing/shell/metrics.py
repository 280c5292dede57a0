"""Prometheus metrics of routing."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from mesh_routing.core.router import Router


class RoutingMetrics:
    """Counters and gauges; one instance a process, or one a registry in tests."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.messages_in = Counter("mesh_routing_messages_in", "Routing messages received.", registry=registry)
        self.messages_out = Counter("mesh_routing_messages_out", "Routing messages sent.", registry=registry)
        self.messages_dropped = Counter(
            "mesh_routing_messages_dropped", "Messages not handed to the data plane: away or full.", registry=registry
        )
        self.messages_malformed = Counter(
            "mesh_routing_messages_malformed", "Messages refused, by reason.", ["code"], registry=registry
        )
        self.turn_seconds = Histogram(
            "mesh_routing_turn_seconds",
            "Time that one input took, computation included.",
            buckets=(0.0001, 0.0005, 0.001, 0.005, 0.02, 0.1, 0.5, 2.0),
            registry=registry,
        )
        self.computations = Gauge("mesh_routing_computations", "Route computations since the start.", registry=registry)
        self.retransmissions = Gauge(
            "mesh_routing_retransmissions", "Advertisements and digests sent again.", registry=registry
        )
        self.bad_signatures = Gauge(
            "mesh_routing_lsa_bad_signatures",
            "Advertisements dropped because their origin did not sign them.",
            registry=registry,
        )
        self.over_limit = Gauge(
            "mesh_routing_lsa_over_limit",
            "Advertisements dropped unread because their sender or origin exceeds its budget; they come again.",
            registry=registry,
        )
        self.lsas = Gauge("mesh_routing_lsas", "Advertisements in the database.", registry=registry)
        self.neighbours = Gauge("mesh_routing_neighbours", "Links that are up.", registry=registry)
        self.routes = Gauge("mesh_routing_routes", "Destinations with a route.", registry=registry)
        self.pairs_protected = Gauge(
            "mesh_routing_pairs_protected_ratio",
            "Share of the pairs of nodes between which two paths lead that share no link.",
            registry=registry,
        )
        self.pairs_connected = Gauge(
            "mesh_routing_pairs_connected_ratio", "Share of the pairs of nodes with a path.", registry=registry
        )
        self.path_cache_hits = Gauge(
            "mesh_routing_path_cache_hits", "Questions for k paths that the cache answered.", registry=registry
        )
        self.path_cache_misses = Gauge(
            "mesh_routing_path_cache_misses", "Questions for k paths that were computed.", registry=registry
        )
        self.topology_version = Gauge("mesh_routing_topology_version", "Version of the database.", registry=registry)
        self.route_version = Gauge("mesh_routing_route_version", "Version of the route table.", registry=registry)
        self.pushes = Counter("mesh_routing_pushes", "Route pushes, by kind.", ["kind"], registry=registry)
        self.push_failures = Counter("mesh_routing_push_failures", "Route pushes that failed.", registry=registry)
        self.mirror_failures = Counter(
            "mesh_routing_mirror_failures", "Writes of the mirror that failed, by store.", ["store"], registry=registry
        )

    def observe(self, router: Router) -> None:
        """Takes over the router's own figures."""
        self.computations.set(router.computations)
        self.lsas.set(router.lsdb.count)
        self.routes.set(len(router.table.routes))
        self.topology_version.set(router.lsdb.version)
        counts = router.protection
        self.pairs_protected.set(counts.ratio)
        self.pairs_connected.set(counts.connected / counts.pairs if counts.pairs else 1.0)
        hits, misses = router.cache_hits
        self.path_cache_hits.set(hits)
        self.path_cache_misses.set(misses)
        self.route_version.set(router.table.version)
        flooding = router.flooding
        self.neighbours.set(0 if flooding is None else len(flooding.neighbours))
        self.retransmissions.set(0 if flooding is None else flooding.counters.retransmissions)
        self.observe_refusals(router)

    def observe_refusals(self, router: Router) -> None:
        """Takes over what was dropped; no change of the database tells of it."""
        flooding = router.flooding
        self.bad_signatures.set(0 if flooding is None else flooding.counters.bad_signatures)
        self.over_limit.set(0 if flooding is None else flooding.counters.over_limit)
