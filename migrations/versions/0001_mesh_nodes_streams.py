"""Tables of the control group's projection: mesh, nodes, streams."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the tables."""
    op.create_table(
        "mesh",
        sa.Column("mesh_id", sa.Uuid(), primary_key=True),
        sa.Column("mesh_epoch", sa.BigInteger, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("applied_index", sa.BigInteger, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("local_node_id", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "nodes",
        sa.Column("node_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("public_key", postgresql.BYTEA, nullable=False),
        sa.Column("peer_address", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("is_reachable", sa.Boolean, nullable=False),
        sa.Column("mcg_member", sa.BigInteger, nullable=False),
        sa.Column("is_voter", sa.Boolean, nullable=False),
    )
    op.create_table(
        "streams",
        sa.Column("stream_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("members", postgresql.JSONB, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("retained_bytes_max", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )


def downgrade() -> None:
    """Drops them."""
    for table in ("streams", "nodes", "mesh"):
        op.drop_table(table)
