"""What this node knows of the membership: by its control plane, or shown by another node that knows a newer one.

Purpose: the rule of docs/design/overlay.md "Membership": what is shown in a hello, what is shown to a node that is behind, and
what is believed of a node that is ahead. Pure. Leaves out: the exchange on a lane (`settling_lane`).

Invariants (numbers as in the design): MB1 what is believed is newer than all that was known, so nothing is ever rolled back;
MB2 a node that was known as a voter has signed it; MB3 this node is in it, with its own key.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final

from mesh_data.core.handshake import LocalNode
from mesh_data.core.view import Node, NodeState, View
from meshcommon.ids import NodeId
from meshcommon.membership import Member, Membership, Vouch, decode_membership
from meshcommon.token_bucket import TokenBucket

VOTERS_MAX: Final = 16
"""Most voters that are named in an ask; a mesh has at most seven, one more for a moment."""
BELIEFS_PER_S: Final = 0.5
BELIEFS_BURST: Final = 4.0
"""Memberships of one neighbour that are looked at: each costs a signature check and a few milliseconds."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a membership that was shown is not believed."""

    reason: str


class MembershipDesk:
    """The membership that this node knows. `now` is monotonic seconds."""

    def __init__(self) -> None:
        """As no member."""
        self._local: LocalNode | None = None
        self._told: View | None = None
        self._known: Membership | None = None
        self._revision = 0
        self._is_learned = False
        """Whether it was shown by another node, because the control plane does not know it yet."""
        self._vouches: dict[NodeId, Vouch] = {}
        """For exactly the membership that is known, by who gave them."""
        self._own_vouch: Vouch | None = None
        self._buckets: dict[NodeId, TokenBucket] = {}
        self._view: View | None = None

    @property
    def revision(self) -> int:
        """MCG revision at which the membership is known, 0 for no member."""
        return self._revision

    @property
    def digest(self) -> bytes:
        """Of the membership that is known, empty for no member."""
        return self._known.digest if self._known is not None else b""

    @property
    def view(self) -> View | None:
        """The view in force: what the control plane told, with the members that are known now."""
        return self._view

    @property
    def own_vouch(self) -> Vouch | None:
        """What this node's control plane vouched for last."""
        return self._own_vouch

    @property
    def voters(self) -> list[NodeId]:
        """Who this node knows as voters: one of them has to vouch for what it is shown."""
        members = self._known.members if self._known is not None else ()
        return [member.node_id for member in members if member.is_voter][:VOTERS_MAX]

    def configure(self, local: LocalNode | None, view: View | None, vouch: Vouch | None) -> None:
        """Takes what the control plane tells; both None for no member. What another node has shown stands while it is newer."""
        is_same = local is not None and local == self._local
        self._local, self._told = local, view
        if local is None or view is None:
            self._known, self._revision, self._is_learned = None, 0, False
            self._vouches, self._own_vouch, self._buckets, self._view = {}, None, {}, None
            return
        told = membership_of(view)
        self._own_vouch = vouch
        if is_same and self._is_learned and view.revision < self._revision:
            self._view = self._merged(view)
            return
        if not is_same or self._known != told:
            self._vouches = {}
        self._known, self._revision, self._is_learned, self._view = told, view.revision, False, view
        self._keep(vouch)
        self._buckets = {peer: bucket for peer, bucket in self._buckets.items() if peer in view.nodes}

    def shown_to(self, voters: Collection[int], behind: int) -> bytes | None:
        """The membership for a node that knows these voters and nothing newer than revision `behind`.

        Returns:
            It encoded, with the vouch of one of them; None when no such vouch is here.
        """
        for voter, vouch in self._vouches.items():
            if voter in voters and vouch.revision > behind and self._known is not None:
                return self._known.encode(vouch)
        return None

    def add_vouch(self, vouch: Vouch) -> bool:
        """Keeps what another member vouches for; False when it is not for the membership that is known here."""
        view = self._view
        node = view.nodes.get(vouch.node_id) if view is not None else None
        if view is None or node is None or vouch.digest != self.digest:
            return False
        if not vouch.is_signed_by(node.public_key, view.mesh_id, view.mesh_epoch):
            return False
        self._keep(vouch)
        return True

    def believe(self, peer: NodeId, data: bytes, now: float) -> Refused | None:
        """Takes the membership that a neighbour shows; afterwards `view` has its members. Else says why not."""
        bucket = self._buckets.setdefault(peer, TokenBucket(BELIEFS_PER_S, BELIEFS_BURST, now))
        if not bucket.take(now):
            return Refused("it shows memberships too often")
        decoded = decode_membership(data)
        if decoded is None:
            return Refused("it is not well formed")
        shown, vouch = decoded
        refusal = self._refusal(shown, vouch)
        if refusal is not None:
            return Refused(refusal)
        self._known, self._revision, self._is_learned = shown, vouch.revision, True
        self._vouches = {vouch.node_id: vouch}
        if self._told is not None:
            self._view = self._merged(self._told)
        return None

    def _refusal(self, shown: Membership, vouch: Vouch) -> str | None:
        local, known = self._local, self._known
        if local is None or known is None or (shown.mesh_id, shown.mesh_epoch) != (local.mesh_id, local.mesh_epoch):
            return "it is of another mesh"
        if vouch.revision <= self._revision:
            return "it is no newer than what is known here"
        if vouch.digest != shown.digest:
            return "the vouch is for other members"
        voter = next((item for item in known.members if item.node_id == vouch.node_id), None)
        if voter is None or not voter.is_voter:
            return "nobody who is known here as a voter vouches for it"
        if not vouch.is_signed_by(voter.public_key, local.mesh_id, local.mesh_epoch):
            return "the voter's signature does not fit"
        own = next((item for item in shown.members if item.node_id == local.node_id), None)
        if own is None or own.public_key != local.public_key:
            return "this node is no member in it: it was forgotten"
        return None

    def _keep(self, vouch: Vouch | None) -> None:
        if vouch is None or vouch.digest != self.digest:
            return
        held = self._vouches.get(vouch.node_id)
        if held is None or held.revision < vouch.revision:
            self._vouches[vouch.node_id] = vouch

    def _merged(self, told: View) -> View:
        """The view that the control plane told, with the members that are known. Addresses and streams come with its next one."""
        members = self._known.members if self._known is not None else ()
        return replace(told, nodes={member.node_id: _node(member, told) for member in members})


def membership_of(view: View) -> Membership:
    """The membership in a view."""
    members = (Member(node.node_id, node.name, node.public_key, node.is_voter) for node in view.nodes.values())
    return Membership.of(view.mesh_id, view.mesh_epoch, members)


def _node(member: Member, told: View) -> Node:
    known = told.nodes.get(member.node_id)
    if known is None:
        return Node(member.node_id, member.name, member.public_key, "", NodeState.ACTIVE, is_voter=member.is_voter)
    return replace(known, name=member.name, public_key=member.public_key, is_voter=member.is_voter)
