"""Bodies of the REST API that speak of the mesh's CA. Field names are those of the protos."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from mesh_gateway.shell.models import Body

CaRotation = Literal["INTERMEDIATE", "NEW_ROOT", "FINISH"]
_Pem = Annotated[str, Field(max_length=8192, description="One certificate, PEM.")]
_Revoke = Annotated[
    bool,
    Field(description="Accept certificates of the intermediate before no longer, instead of until they have ended."),
]


class Ca(BaseModel):
    """The mesh's certificate authority, as this node knows it."""

    exists: bool = Field(description="Whether the mesh has one.")
    generation: int = Field(description="Raised by each change of its certificates.")
    root_fingerprints: list[str] = Field(description="SHA-256 of each root certificate, the present one first.")
    roots_pem: str = Field(description="The root certificates, PEM, the present one first.")
    intermediate_fingerprint: str = Field(description="SHA-256 of the intermediate.")
    intermediate_pem: str = Field(description="The intermediate, PEM.")
    issuers: list[str] = Field(description="Nodes that can issue certificates.")
    voters_without_key: list[str] = Field(description="Voters that cannot.")
    is_rotation_due: bool = Field(description="Whether a node that was given the key is no member any more.")
    root_key_file: str = Field(description="File of this node that holds the root's private key; empty: not here.")


class CaMade(BaseModel):
    """A CA that was made."""

    ca_fingerprint: str = Field(description="SHA-256 of the root certificate, hexadecimal.")
    root_key_file: str = Field(description="File of this node that holds the root's private key: move it away.")


class RotateCaBody(Body):
    """Which part of the CA is exchanged."""

    rotation: CaRotation = Field(
        default="INTERMEDIATE", description="What to exchange, or FINISH an exchange of roots."
    )
    revoke: _Revoke = False


class CaRequest(BaseModel):
    """A request for an intermediate's certificate."""

    csr_pem: str = Field(description="PKCS #10, PEM.")


class InstallCaBody(Body):
    """What an operator's root has signed."""

    certificate_pem: _Pem
    root_pem: _Pem
    revoke: _Revoke = False


class Certificate(BaseModel):
    """One certificate."""

    kind: str = Field(description="What it is for: root, former root, intermediate, node.")
    subject: str = Field(description="Its URI, or its subject when it has none.")
    issuer: str = Field(description="Its issuer's name.")
    not_before_ms: int = Field(description="Valid from, milliseconds since 1970.")
    not_after_ms: int = Field(description="Valid until, milliseconds since 1970.")
    life_left: float = Field(description="Share of its life that is left, 0 to 1.")
    fingerprint: str = Field(description="SHA-256, hexadecimal.")
    file: str = Field(description="File of this node that holds it; empty for one in the mesh's state.")


class Certificates(BaseModel):
    """Certificates of the CA and of this node."""

    certificates: list[Certificate] = Field(description="The root first.")
