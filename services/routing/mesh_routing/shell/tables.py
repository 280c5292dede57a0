"""The tables that routing writes; migration 0002 makes them. Every site has its own, with what its database knows."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Boolean, Column, DateTime, MetaData, Table, Text, func
from sqlalchemy.dialects.postgresql import JSONB

metadata: Final = MetaData()

links: Final = Table(
    "links",
    metadata,
    Column("origin", BigInteger, primary_key=True),
    Column("peer", BigInteger, primary_key=True),
    Column("origin_name", Text, nullable=False),
    Column("peer_name", Text, nullable=False),
    Column("latency_us", BigInteger, nullable=False),
    Column("jitter_us", BigInteger, nullable=False),
    Column("loss_ppm", BigInteger),
    Column("admin_cost", BigInteger, nullable=False),
    Column("cost", BigInteger, nullable=False),
    Column("is_two_way", Boolean, nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)
"""Every advertised link as it is now, one row a direction; loss that nobody measured is NULL."""

lsa_versions: Final = Table(
    "lsa_versions",
    metadata,
    Column("origin", BigInteger, primary_key=True),
    Column("sequence", BigInteger, primary_key=True),
    Column("links", JSONB, nullable=False),
    Column("received_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
)
"""The last versions of every node's advertisement, the newest being the one in force."""
