"""Prometheus metrics of stream groups, publishing and reading. Labels are streams and codes, never record contents."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge

from mesh_data.shell.latency_histogram import LatencyHistogram

_LATENCY_BUCKETS_S: Final = (
    0.0005,
    0.001,
    0.002,
    0.004,
    0.008,
    0.016,
    0.032,
    0.064,
    0.128,
    0.256,
    0.512,
    1,
    2.5,
    5,
    10,
)

PUBLISHED_RECORDS: Final = Counter("mesh_publish_records_total", "Records committed through this node.", ["stream"])
PUBLISHED_BYTES: Final = Counter(
    "mesh_publish_bytes_total", "Bytes of batches committed through this node.", ["stream"]
)
PUBLISH_DUPLICATES: Final = Counter(
    "mesh_publish_duplicates_total", "Batches that had been committed before.", ["stream"]
)
PUBLISH_ERRORS: Final = Counter("mesh_publish_errors_total", "Batches that were answered with an error.", ["code"])
PUBLISH_RETRIES: Final = Counter("mesh_publish_retries_total", "Batches sent again by this node.", ["code"])
PUBLISH_SECONDS: Final = LatencyHistogram(
    "mesh_publish_seconds", "From the arrival of a batch to its answer.", _LATENCY_BUCKETS_S
)
READ_RECORDS: Final = Counter("mesh_read_records_total", "Records delivered to readers by this node.", ["stream"])
GROUPS: Final = Gauge("mesh_stream_groups", "Local replicas by state.", ["state"])
LEADER_CHANGES: Final = Counter("mesh_stream_leader_changes_total", "New leaders seen by local replicas.", ["stream"])
IS_LEADER: Final = Gauge("mesh_stream_is_leader", "1 where the local replica leads.", ["stream"])
APPLIED_INDEX: Final = Gauge("mesh_stream_applied_index", "Log index applied by the local replica.", ["stream"])
COMMIT_LAG: Final = Gauge(
    "mesh_stream_commit_lag_entries", "Entries appended but not applied at the replica.", ["stream"]
)
RETAINED_BYTES: Final = Gauge("mesh_stream_retained_bytes", "Bytes of entries above the floor.", ["stream"])
PROPOSED_BYTES: Final = Gauge("mesh_stream_proposed_bytes", "Bytes proposed here and not yet committed.", ["stream"])
CHECKPOINT_BYTES: Final = Counter(
    "mesh_stream_checkpoint_bytes_total", "Bytes written as checkpoints of local replicas."
)
CHECKPOINTS_FAILED: Final = Counter(
    "mesh_stream_checkpoints_failed_total", "Checkpoints that the disk refused; a restart replays more instead."
)
FRAMES_UNKNOWN: Final = Counter("mesh_raft_frames_unknown_group_total", "Messages for groups that are not open here.")
FRAMES_INVALID: Final = Counter("mesh_raft_frames_invalid_total", "Raft frames from peers that were refused.")
FRAMES_DROPPED: Final = Counter("mesh_raft_frames_unsent_total", "Raft frames that the overlay did not take.")
FRAMES_WITHHELD: Final = Counter(
    "mesh_raft_frames_withheld_total", "Raft frames not sent to peers that have not noted this node's store yet."
)
FRAMES_DISTRUSTED: Final = Counter(
    "mesh_raft_frames_distrusted_total", "Raft frames dropped because the store of the peer is unknown or refused."
)
STORES_REFUSED: Final = Counter(
    "mesh_raft_stores_refused_total", "Times that the store of a peer did not go on from what was seen of it."
)
STORE_DISTRUSTED: Final = Gauge(
    "mesh_raft_memberships_distrusted",
    "Memberships of this node that are replaced because its log was lost or set back.",
)
FEED_BYTES: Final = Gauge(
    "mesh_raft_unconfirmed_bytes",
    "Bytes of entries sent to a node by the leaders here and not confirmed yet.",
    ["peer"],
)
FEED_WAITING: Final = Gauge(
    "mesh_raft_catching_up",
    "Replicas on a node that wait for their turn to be sent old entries by the leaders here.",
    ["peer"],
)
HOST_FAILED: Final = Gauge("mesh_raft_host_failed", "1 when the log could not be written and every group is closed.")
DISK_FREE_BYTES: Final = Gauge("mesh_disk_free_bytes", "Bytes free on the file system of this node's log.")
DISK_IS_SHORT: Final = Gauge("mesh_disk_is_short", "1 while the streams of this node take no records for want of room.")
CLIENT_CONNECTIONS: Final = Gauge("mesh_client_connections", "Open connections of applications to the client listener.")
CLIENT_REFUSALS: Final = Counter("mesh_client_refusals_total", "Requests refused at the client listener.", ["reason"])


def export_feeding(figures: list[tuple[int, int, int, int]]) -> None:
    """Sets the gauges of what goes to other nodes, from `RaftHost.log_transfers`."""
    for gauge in (FEED_BYTES, FEED_WAITING):
        gauge.clear()
    for peer, sent_bytes, _tickets, waiting in figures:
        FEED_BYTES.labels(str(peer)).set(sent_bytes)
        FEED_WAITING.labels(str(peer)).set(waiting)
