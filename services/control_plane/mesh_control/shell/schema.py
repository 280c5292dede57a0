"""Brings the node's database to the newest schema, or says that it is newer than this version.

Several services and replicas may start at once: an advisory lock lets one of them migrate while the others wait.
Source: alembic's cookbook "Programmatic API use (connection sharing with asyncio)".
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.ext.asyncio import AsyncEngine

from meshcommon.errors import ErrorCode, MeshError

_LOCK_KEY: Final = 0x6D657368  # "mesh"


async def migrate(engine: AsyncEngine, migrations_dir: Path) -> None:
    """Upgrades the schema to the head of the history in `migrations_dir`.

    Raises:
        MeshError: SCHEMA_NEWER; nothing was changed.
        sqlalchemy.exc.SQLAlchemyError, OSError: Postgres went away.
    """
    async with engine.begin() as connection:
        await connection.run_sync(_migrate, migrations_dir)


def _migrate(connection: sa.Connection, migrations_dir: Path) -> None:
    # Held until the transaction ends, which also takes the whole upgrade back if a step fails.
    connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
    config = Config()
    config.set_main_option("script_location", str(migrations_dir))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    found = set(MigrationContext.configure(connection).get_current_heads())
    if found - known:
        raise MeshError(
            ErrorCode.SCHEMA_NEWER,
            f"The database has schema revision {', '.join(sorted(found - known))}, which this version does not know: "
            "update this node, or give it a database of its own.",
            {"revision": ",".join(sorted(found))},
        )
    command.upgrade(config, "head")
