"""The start of a service that needs a certificate for the gRPC of its site: waits for the files, and says so meanwhile.

All services do it before anything else, so that nothing behind it has to know of a certificate that is not there yet. The
files stay in their folder, so only the first start of a site waits. Leaves out: what the files must hold (`site_files`).
"""

from __future__ import annotations

import asyncio

from meshcommon.admin import Readiness, serve_admin
from meshcommon.lifecycle import Stop
from meshcommon.service_certificates import Service
from meshcommon.settings import NodeSettings
from meshcommon.site_files import WAIT_S, SiteFiles


async def await_site_files(
    node: NodeSettings, service: Service, admin_listen: str, stop: Stop, within_s: float = WAIT_S
) -> SiteFiles | None:
    """The certificate files of `service`; None when the site has none (MESH_NODE_TLS_DIR is empty), or at `stop`.

    While they are missing the admin pages are served, and /readyz names them.

    Raises:
        MeshError: TLS_FILES_MISSING or CERTIFICATE_REFUSED: no pair that can be used within `within_s`.
    """
    files = SiteFiles.of_setting(node.tls_dir, node.name, service)
    if files is None:
        return None
    await files.look()
    if files.pair is not None:
        return files
    readiness = Readiness()
    async with asyncio.TaskGroup() as tasks:
        page = tasks.create_task(serve_admin(readiness, admin_listen, hosts=node.admin_hosts), name="admin")
        waiting = tasks.create_task(files.wait(readiness, within_s), name="wait for the certificate")
        stopping = tasks.create_task(stop.wait(), name="wait for a stop")
        await asyncio.wait({waiting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for task in (page, waiting, stopping):
            task.cancel()
    return None if stop.is_requested else files
