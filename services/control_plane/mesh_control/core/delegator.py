"""Delegates the key of one service of this site, and says when the service has to be asked for another one.

A key is delegated until a day after it was made, however often that is signed: so a signature needs no memory, and the same
key and place always get the same one. Leaves out asking the service for its key, and telling it (shell).
Source: docs/design/identity.md "Delegations".
"""

from __future__ import annotations

import math
from typing import Final

from meshapi.common.v1 import view_pb2
from meshcommon.delegation import RENEW_AFTER_S, VALID_BEFORE_S, Delegation, Grantor, Use
from meshcommon.signer import Signer

ASK_AGAIN_S: Final = 60.0
"""A service that still offers an old key, because its clock is behind, is asked again after this."""


class Delegator:
    """Delegations for one use. `now_s` is the wall clock, seconds since 1970."""

    def __init__(self, use: Use) -> None:
        self._use = use
        self._told_at_s = 0.0
        self._renew_at_s = math.inf
        self._renewals = 0

    def renewals(self, now_s: float) -> int:
        """How often a key was due for renewal so far: when it rises, the service has to be asked and told anew."""
        # A clock that was set back would leave a delegation that has not begun.
        if now_s >= self._renew_at_s or now_s < self._told_at_s - VALID_BEFORE_S:
            self._told_at_s, self._renew_at_s = 0.0, math.inf
            self._renewals += 1
        return self._renewals

    def introduce(
        self, identity: Signer, name: str, grantor: Grantor, offered: tuple[bytes, int], now_s: float
    ) -> view_pb2.LocalIdentity:
        """The node as it is told to a service.

        Args:
            identity: has the grantor's key.
            name: of the node.
            grantor: the node's place.
            offered: the service's public key, and when that was made: seconds since 1970, later than now counts as now.
            now_s: the wall clock.
        """
        public_key, made_at_s = offered[0], min(offered[1], now_s)
        delegation = Delegation.signed(identity, grantor, self._use, public_key, made_at_s)
        self._told_at_s, self._renew_at_s = now_s, max(made_at_s + RENEW_AFTER_S, now_s + ASK_AGAIN_S)
        return view_pb2.LocalIdentity(
            node_id=grantor.node_id, name=name, public_key=grantor.public_key, delegation=delegation.to_proto()
        )
