"""Publishing with everything running: three nodes of four services each, with Postgres and Valkey, formed as a user would.

The same load as on data planes alone, in turn with it; what the rest of a node costs while a stream is busy is the ratio.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from meshtest.gateway_client import Gateway
from meshtest.ports import free_ports
from meshtest.site import PORTS_PER_SITE, Site
from meshtest.trio import create_stream, form_mesh, plan, start_sites

STREAM: Final = "bench/full"


@asynccontextmanager
async def running_full_mesh(directory: Path) -> AsyncIterator[str]:
    """Address of the client listener of the node that leads `STREAM`; everything is stopped at the end."""
    sites = {name: Site(config) for name, config in plan(directory, free_ports(3 * PORTS_PER_SITE), {}).items()}
    async with AsyncExitStack() as stack:
        try:
            await start_sites(sites, lambda _text: None)
            gateways = {
                name: await stack.enter_async_context(Gateway(site.config.gateway)) for name, site in sites.items()
            }
            await form_mesh(sites, gateways, lambda _text: None)
            await create_stream(gateways, STREAM)
            yield sites["a"].config.client
        finally:
            await asyncio.gather(*(site.stop() for site in sites.values()))
