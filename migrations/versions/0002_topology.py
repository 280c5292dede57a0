"""Tables of the topology that routing mirrors: links and lsa_versions.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes both tables."""
    op.create_table(
        "links",
        sa.Column("origin", sa.BigInteger, primary_key=True, comment="Advertising node"),
        sa.Column("peer", sa.BigInteger, primary_key=True, comment="Neighbour"),
        sa.Column("origin_name", sa.Text, nullable=False),
        sa.Column("peer_name", sa.Text, nullable=False),
        sa.Column("latency_us", sa.BigInteger, nullable=False, comment="One way, smoothed"),
        sa.Column("jitter_us", sa.BigInteger, nullable=False),
        sa.Column("loss_ppm", sa.BigInteger, nullable=False),
        sa.Column("admin_cost", sa.BigInteger, nullable=False, comment="Microsecond-equivalents"),
        sa.Column("cost", sa.BigInteger, nullable=False, comment="Microsecond-equivalents"),
        sa.Column("is_two_way", sa.Boolean, nullable=False, comment="Both ends advertise it: only then is it used"),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        comment="Links as routing of this site knows them now, one row a direction",
    )
    op.create_table(
        "lsa_versions",
        sa.Column("origin", sa.BigInteger, primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True, comment="The greatest one of an origin is in force"),
        sa.Column("links", JSONB, nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        comment="The last versions of each node's link state advertisement",
    )


def downgrade() -> None:
    """Removes both tables; they hold copies only."""
    op.drop_table("lsa_versions")
    op.drop_table("links")
