"""The site's Redis or Valkey: a client for a URL whose options have been read strictly (`store_urls`).

Leaves out: telling that Redis is away (`mesh_control.shell.store_watch`).
"""

from __future__ import annotations

from typing import Any, Final

from redis.asyncio import Redis

from meshcommon.errors import ErrorCode, MeshError
from meshcommon.store_urls import parse_redis, tls_of

SETTING: Final = "MESH_NODE_REDIS_URL"


def open_redis(url: str, **options: Any) -> Redis:
    """A client that connects when it is used; over TLS it checks authority and name, always.

    Raises:
        MeshError: SETTING_INVALID: an option that is unknown or malformed, or a file that cannot be used.
    """
    try:
        wanted = parse_redis(url)
    except ValueError as error:
        text = f"Setting {SETTING} is not valid: {error}."
        raise MeshError(ErrorCode.SETTING_INVALID, text, {"setting": SETTING}) from None
    if wanted is not None:
        # redis-py reads the files at each connection; what is wrong with them is told here, at the start.
        tls_of(wanted, SETTING)
    return Redis.from_url(url, **options)
