"""How a newcomer asks for its place: at which addresses, in which order, how often, and which refusal it reports in the end.

A refusal is not confirmed by a token and may be forged by the one that answers, so every address is asked once. Leaves out
lanes and waiting (`shell/lifecycle`). `now` is monotonic seconds. Source: docs/design/identity.md "Joining".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from mesh_control.core.join_tokens import JoinKey, parse_token
from meshcommon.address import parse_peer_address
from meshcommon.errors import ErrorCode, MeshError, Retry
from meshcommon.ids import check_mesh_id

_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
TRIES_MIN: Final = 3
"""A lane that dies is told to nobody: after a part of the time a newcomer asks again over another one."""


@dataclass(frozen=True, slots=True)
class JoinPlan:
    """What an operator asked for.

    Attributes:
        addresses: canonical peer addresses, at least one.
        mesh_id: expected mesh, empty when the operator named none.
        key: the token, None when the newcomer trusts whatever answers, or a fingerprint.
        fingerprint: SHA-256 of the root that the answer must chain to, empty for none.
    """

    addresses: tuple[str, ...]
    mesh_id: str
    key: JoinKey | None
    fingerprint: bytes = b""


def plan_join(address: str, mesh_id: str, token: str, *, trust_first: bool, fingerprint: str = "") -> JoinPlan:
    """The plan for what an operator gave; an address beside a token is asked in place of the token's.

    Raises:
        MeshError: INVALID_ARGUMENT; TOKEN_REQUIRED for an address alone, unless the operator accepts that.
    """
    key = parse_token(token) if token else None
    addresses = key.addresses if key is not None and not address else (str(parse_peer_address(address)),)
    if mesh_id:
        check_mesh_id(mesh_id)
    pinned = read_fingerprint(fingerprint) if fingerprint else b""
    if pinned and (key is not None or trust_first):
        raise MeshError(
            ErrorCode.INVALID_ARGUMENT, "A fingerprint is given beside neither a token nor `--trust-first`: drop one."
        )
    if key is None and not trust_first and not pinned:
        raise MeshError(
            ErrorCode.TOKEN_REQUIRED,
            "An address does not show which mesh answers there: join with a token (`meshctl token issue` at a member), or, in an "
            "OPEN mesh, with the fingerprint of its root (`--trust`, see `meshctl ca show` at a member), or accept that "
            "(`--trust-first`).",
        )
    if not addresses:
        raise MeshError(
            ErrorCode.INVALID_ARGUMENT,
            "The token names no address, since no member listened for peers: give one as well (`--address`).",
        )
    return JoinPlan(addresses, mesh_id, key, pinned)


def read_fingerprint(text: str) -> bytes:
    """SHA-256 in hexadecimal, with or without colons, as `meshctl ca show` and openssl print it. Raises INVALID_ARGUMENT."""
    digits = text.replace(":", "").lower()
    if not _FINGERPRINT.fullmatch(digits):
        raise MeshError(
            ErrorCode.INVALID_ARGUMENT,
            "The fingerprint of a root has 64 hexadecimal digits: see `meshctl ca show` at a member.",
        )
    return bytes.fromhex(digits)


class JoinAttempts:
    """The attempts of one join, one after the other."""

    def __init__(self, addresses: tuple[str, ...], give_up_at: float) -> None:
        self._addresses = addresses
        self._give_up_at = give_up_at
        self._refusals: list[MeshError] = []
        self._may_be_in = False

    @property
    def address(self) -> str:
        """Whom to ask now."""
        return self._addresses[len(self._refusals) % len(self._addresses)]

    def may_go_on(self, refusal: MeshError, now: float) -> bool:
        """Takes the refusal of the attempt that ended; whether another one should follow."""
        self._refusals.append(refusal)
        # Before anything may have been committed a refusal by all is told at once: the addresses may be wrong.
        self._may_be_in = self._may_be_in or refusal.retry is Retry.UNKNOWN
        is_untold = len(self._refusals) < len(self._addresses)
        is_final = not self._may_be_in or refusal.retry is Retry.FINAL
        is_passing = not is_final and len(self._refusals) < TRIES_MIN
        return now < self._give_up_at and (is_untold or is_passing)

    def refusal(self) -> MeshError:
        """What to report: what a mesh decided, else that it could not decide, else that nobody was there."""
        return max(self._refusals, key=_weight)


def _weight(refusal: MeshError) -> int:
    return (Retry.NOT_APPLIED, Retry.UNKNOWN, Retry.FINAL).index(refusal.retry)
