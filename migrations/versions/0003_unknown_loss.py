"""Loss of a link may be unknown: NULL, since it is measured by nobody until a link says so.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Lets the column be empty."""
    op.alter_column("links", "loss_ppm", existing_type=sa.BigInteger, nullable=True)


def downgrade() -> None:
    """Unknown becomes 0 again; the table holds copies only."""
    op.execute("UPDATE links SET loss_ppm = 0 WHERE loss_ppm IS NULL")
    op.alter_column("links", "loss_ppm", existing_type=sa.BigInteger, nullable=False)
