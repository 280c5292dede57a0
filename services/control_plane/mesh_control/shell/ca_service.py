"""CaService of the supervisor API. Source: ca.proto."""

from __future__ import annotations

from typing import Any

from mesh_control.shell.ca_desk import CaDesk
from mesh_control.shell.ca_watch import CaWatch
from meshapi.supervisor.v1 import ca_pb2, ca_pb2_grpc


class CaService(ca_pb2_grpc.CaServiceServicer):
    """The servicer; every refusal is a MeshError, which the server maps."""

    def __init__(self, desk: CaDesk, watch: CaWatch) -> None:
        self._desk = desk
        self._watch = watch

    async def ShowCa(self, request: ca_pb2.ShowCaRequest, context: Any) -> ca_pb2.ShowCaResponse:  # noqa: N802
        """The CA as applied here."""
        return self._desk.show()

    async def InitCa(self, request: ca_pb2.InitCaRequest, context: Any) -> ca_pb2.InitCaResponse:  # noqa: N802
        """Makes root and intermediate."""
        fingerprint = await self._desk.init()
        return ca_pb2.InitCaResponse(ca_fingerprint=fingerprint, root_key_file=self._desk.files.root_key_file)

    async def RotateCa(self, request: ca_pb2.RotateCaRequest, context: Any) -> ca_pb2.RotateCaResponse:  # noqa: N802
        """Exchanges the intermediate or the root."""
        if request.rotation == ca_pb2.CA_ROTATION_NEW_ROOT:
            await self._desk.rotate_root(revoke=request.revoke)
        elif request.rotation == ca_pb2.CA_ROTATION_FINISH:
            await self._desk.finish()
        else:
            await self._desk.rotate_intermediate(revoke=request.revoke)
        return ca_pb2.RotateCaResponse(ca=self._desk.show())

    async def RequestCa(self, request: ca_pb2.RequestCaRequest, context: Any) -> ca_pb2.RequestCaResponse:  # noqa: N802
        """A request for an operator's own root."""
        return ca_pb2.RequestCaResponse(csr_pem=self._desk.request())

    async def InstallCa(self, request: ca_pb2.InstallCaRequest, context: Any) -> ca_pb2.InstallCaResponse:  # noqa: N802
        """Commits what that root has signed."""
        await self._desk.install(request.certificate_pem, request.root_pem, revoke=request.revoke)
        return ca_pb2.InstallCaResponse(ca=self._desk.show())

    async def ListCertificates(  # noqa: N802
        self, request: ca_pb2.ListCertificatesRequest, context: Any
    ) -> ca_pb2.ListCertificatesResponse:
        """Certificates of the CA and of this node."""
        return self._watch.list_certificates()
