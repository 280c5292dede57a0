"""REST: the mesh's certificate authority, and the certificates of this node."""

from __future__ import annotations

from fastapi import APIRouter, status

from mesh_gateway.shell import ca_models
from mesh_gateway.shell.calls import Calls
from meshapi.supervisor.v1 import ca_pb2


def ca_router(calls: Calls) -> APIRouter:
    """Routes of the CA, answered by the control plane."""
    router = APIRouter(prefix="/v1", tags=["mesh"])

    @router.get("/ca", summary="The certificate authority")
    async def show_ca() -> ca_models.Ca:
        """The mesh's CA as this node knows it. Errors: NOT_A_MEMBER."""
        return _ca(await calls.show_ca())

    @router.post("/ca/init", summary="Make the certificate authority", status_code=status.HTTP_201_CREATED)
    async def init_ca() -> ca_models.CaMade:
        """Makes root and intermediate for a mesh that has none; repeated at the same node it changes nothing.

        Errors: NOT_A_MEMBER, CA_EXISTS, MESH_VERSION_TOO_LOW, MESH_CRITICAL, NO_QUORUM.
        """
        answer = await calls.init_ca()
        return ca_models.CaMade(ca_fingerprint=answer.ca_fingerprint, root_key_file=answer.root_key_file)

    @router.post("/ca/rotate", summary="Exchange intermediate or root")
    async def rotate_ca(body: ca_models.RotateCaBody | None = None) -> ca_models.Ca:
        """Makes another intermediate, or another root, with the root key in this node's directory.

        Errors: NOT_A_MEMBER, CA_MISSING, ROOT_KEY_MISSING, CA_CHANGED, MESH_CRITICAL, NO_QUORUM.
        """
        wish = body or ca_models.RotateCaBody()
        rotation = ca_pb2.CaRotation.Value(f"CA_ROTATION_{wish.rotation}")
        return _ca(await calls.rotate_ca(ca_pb2.RotateCaRequest(rotation=rotation, revoke=wish.revoke)))

    @router.post("/ca/request", summary="Request an intermediate of your own root")
    async def request_ca() -> ca_models.CaRequest:
        """A request for an intermediate's certificate; its key is kept at this node until the certificate is installed.

        Errors: NOT_A_MEMBER, MESH_VERSION_TOO_LOW.
        """
        return ca_models.CaRequest(csr_pem=(await calls.request_ca()).csr_pem)

    @router.post("/ca/install", summary="Install an intermediate of your own root")
    async def install_ca(body: ca_models.InstallCaBody) -> ca_models.Ca:
        """Commits what an operator's root has signed for the last request of this node.

        Errors: NOT_A_MEMBER, CERTIFICATE_INVALID, CLOCK_SKEW, CA_CHANGED, MESH_CRITICAL, NO_QUORUM.
        """
        return _ca(await calls.install_ca(ca_pb2.InstallCaRequest(**body.model_dump())))

    @router.get("/certificates", summary="Certificates")
    async def list_certificates() -> ca_models.Certificates:
        """Certificates of the CA and of this node. Errors: NOT_A_MEMBER."""
        answer = await calls.list_certificates()
        fields = ca_models.Certificate.model_fields
        listed = [ca_models.Certificate(**{name: getattr(it, name) for name in fields}) for it in answer.certificates]
        return ca_models.Certificates(certificates=listed)

    return router


def _ca(answer: ca_pb2.ShowCaResponse) -> ca_models.Ca:
    return ca_models.Ca(
        exists=answer.exists,
        generation=answer.generation,
        root_fingerprints=list(answer.root_fingerprints),
        roots_pem=answer.roots_pem,
        intermediate_fingerprint=answer.intermediate_fingerprint,
        intermediate_pem=answer.intermediate_pem,
        issuers=list(answer.issuers),
        voters_without_key=list(answer.voters_without_key),
        is_rotation_due=answer.is_rotation_due,
        root_key_file=answer.root_key_file,
    )
