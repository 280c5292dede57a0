"""What the control plane has of its site's TLS, put together: the issuer, the files that it writes, and its own of them.

Leaves out the certificate of the issuer's key by the mesh CA. Source: ADR 0020.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Self

from mesh_control.shell.certificate_files import CertificateFiles
from mesh_control.shell.settings import OWN_NAMES, ControlSettings
from mesh_control.shell.site_issuer import SiteIssuer
from mesh_control.shell.store_watch import Jobs
from meshcommon.admin import Readiness
from meshcommon.datadir import DataDir
from meshcommon.lifecycle import Stop
from meshcommon.service_certificates import UNJOINED, Service
from meshcommon.settings import NodeSettings
from meshcommon.site_files import SiteFiles
from meshcommon.site_start import await_site_files


@dataclass(frozen=True, slots=True)
class SiteTls:
    """The issuer always exists; `certificates` unless the operator writes the files; `files` with MESH_NODE_TLS_DIR."""

    issuer: SiteIssuer
    certificates: CertificateFiles | None
    files: SiteFiles | None

    @classmethod
    async def start(cls, node: NodeSettings, own: ControlSettings, data_dir: DataDir, stop: Stop) -> Self:
        """Writes the first files, where that is this service's task, and reads its own.

        Raises:
            MeshError: DATA_DIR_INCOMPLETE, DATA_DIR_UNWRITABLE, TLS_FILES_MISSING or CERTIFICATE_REFUSED.
        """
        issuer = SiteIssuer.load_or_make(data_dir.path, node.name)
        certificates = None
        if node.tls_dir and own.site_issuer:
            certificates = CertificateFiles(
                issuer,
                Path(node.tls_dir),
                [*OWN_NAMES, *own.certificate_names],
                timedelta(seconds=own.certificate_life_s),
                lambda: data_dir.marker.mesh_id or UNJOINED,
            )
            await asyncio.to_thread(certificates.write)
        return cls(issuer, certificates, await await_site_files(node, Service.CONTROL, own.admin_listen, stop))

    def jobs(self, readiness: Readiness) -> Jobs:
        """What keeps the files fresh."""
        jobs: Jobs = {}
        if self.certificates is not None:
            jobs["certificates"] = self.certificates.run(readiness)
        if self.files is not None:
            jobs["own certificate"] = self.files.run(readiness)
        return jobs
