"""Prometheus metrics of the control plane, served on the admin port."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge

INVALID_FRAMES: Final = Counter("mesh_control_invalid_frames_total", "Raft frames from peers that were refused.")
DISTRUSTED_FRAMES: Final = Counter(
    "mesh_control_distrusted_frames_total",
    "Raft frames dropped because the log of the peer, or of this node, is not what it was.",
)
PACKETS_DROPPED: Final = Counter(
    "mesh_control_packets_dropped_total", "Packets dropped because the data plane is away or far behind."
)
ROLE_CHANGES: Final = Counter("mesh_control_role_changes_total", "Changes of role or term in the control group.")
PROPOSALS: Final = Counter("mesh_control_proposals_total", "Changes proposed here, by outcome.", ["outcome"])
PROJECTIONS: Final = Counter("mesh_control_projections_total", "Writes to Postgres, by kind.", ["kind"])
APPLIED_INDEX: Final = Gauge("mesh_control_applied_index", "Index of the control group's last applied entry.")
TERM: Final = Gauge("mesh_control_term", "Raft term of the control group.")
IS_LEADER: Final = Gauge("mesh_control_is_leader", "1 when this node leads the control group.")
NODES: Final = Gauge("mesh_control_nodes", "Nodes of the mesh.")
STREAMS: Final = Gauge("mesh_control_streams", "Streams of the catalogue, tombstones included.")
CERTIFICATE_END: Final = Gauge(
    "mesh_control_certificate_end_seconds", "When a certificate ends, seconds since 1970, by kind.", ["kind"]
)
CERTIFICATE_LIFE_LEFT: Final = Gauge(
    "mesh_control_certificate_life_left", "Share of a certificate's life that is left, 0 to 1, by kind.", ["kind"]
)
CA_ROTATION_DUE: Final = Gauge(
    "mesh_control_ca_rotation_due", "1 when a node that was given the CA's key is no member any more."
)
CA_VOTERS_WITHOUT_KEY: Final = Gauge(
    "mesh_control_ca_voters_without_key", "Voters for which the CA's key is not sealed."
)
