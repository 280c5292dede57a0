"""Tables of the projection, as the migrations make them: revision 0001.

They are for queries; nothing reads them back to decide anything. Source: architecture §9.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

METADATA: Final = sa.MetaData()

MESH: Final = sa.Table(
    "mesh",
    METADATA,
    sa.Column("mesh_id", sa.Uuid(as_uuid=False), primary_key=True),
    sa.Column("mesh_epoch", sa.BigInteger, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("applied_index", sa.BigInteger, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("local_node_id", sa.BigInteger, nullable=False),
)

NODES: Final = sa.Table(
    "nodes",
    METADATA,
    sa.Column("node_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("public_key", postgresql.BYTEA, nullable=False),
    sa.Column("peer_address", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("is_reachable", sa.Boolean, nullable=False),
    sa.Column("mcg_member", sa.BigInteger, nullable=False),
    sa.Column("is_voter", sa.Boolean, nullable=False),
)

STREAMS: Final = sa.Table(
    "streams",
    METADATA,
    sa.Column("stream_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("members", postgresql.JSONB, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("retained_bytes_max", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
)
