"""Random histories of a mesh whose nodes hear of them late: whatever lanes open in whatever order, nobody believes what never was.

Invariants as in docs/design/overlay.md "Membership": what a node knows is a membership that was committed, at a revision at
which it was (MB2), it never goes back (MB1), and no link is up to a node that it knows to be gone (MB4, MB5).
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from data_plane_testing.identities import seed_of
from data_plane_testing.settling import Mesh, view
from mesh_data.core.membership_desk import Refused, membership_of
from mesh_data.core.settlement import VouchWanted
from mesh_data.core.view import View
from meshcommon.ids import NodeId
from meshcommon.key_signer import KeySigner
from meshcommon.membership import Vouch

NODES = 6
STEPS = 40


def history(rng: random.Random) -> list[View]:
    """Views of rising revision; members go, votes move, most revisions change neither. Nodes 1 and 2 stay and vote all the time."""
    members, voters = set(range(1, NODES + 1)), {1, 2, 3}
    views, revision = [view(*members, revision=1, voters=voters)], 1
    for _ in range(12):
        revision += rng.randint(1, 3)
        match rng.randrange(4):
            case 0 if len(members) > 4:
                gone = rng.choice(sorted(members - {1, 2}))
                members.discard(gone)
                voters.discard(gone)
            case 1:
                voters ^= {rng.choice(sorted(members - {1, 2}))}
        views.append(view(*members, revision=revision, voters=voters))
    return views


class Storm:
    """One random run."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.views = history(self.rng)
        first = self.views[0]
        self.mesh = Mesh(**{f"n{node}": first for node in range(1, NODES + 1)})
        self.told = dict.fromkeys(range(1, NODES + 1), 0)
        self.revisions = dict.fromkeys(self.told, 0)
        self.settled = 0

    def truth(self, revision: int) -> bytes:
        """The digest that was committed at that revision."""
        return membership_of([item for item in self.views if item.revision <= revision][-1]).digest

    def step(self) -> None:
        rng, mesh = self.rng, self.mesh
        one, other = rng.sample(sorted(self.told), 2)
        match rng.randrange(5):
            case 0:
                self.told[one] = min(self.told[one] + rng.randint(1, 4), len(self.views) - 1)
                self.tell(one, self.told[one])
            case 1:
                self.tell(one, rng.randint(0, self.told[one]))  # its control plane started again and knows less
            case 2:
                self.forge(one, other)
            case _:
                if self.admits(one, other) and self.admits(other, one):
                    mesh.wire(one, other)
        mesh.run(rng.choice((0.02, 0.3, 2.2)))
        for node in self.told:
            for wanted in mesh.of(node, VouchWanted):
                self.vouch(node, wanted)
            mesh.events[node].clear()

    def tell(self, node: int, at: int) -> None:
        """A data plane ignores older views of its control plane but for the delegation: it is configured with the same one."""
        known = self.mesh.views[node]
        told = self.views[at]
        if node in told.nodes:
            self.mesh.tell(node, told if told.revision >= known.revision else known)

    def admits(self, node: int, peer: int) -> bool:
        """The handshake of `node` lets in only whom it knows."""
        return peer in self.mesh.knows(node)

    def vouch(self, node: int, wanted: VouchWanted) -> None:
        """What voters answer when they are asked: their word for the view that their control plane told them."""
        for voter in wanted.voters:
            own = self.mesh.cores[voter].membership.own_vouch
            if own is not None:
                self.mesh.cores[node].add_vouch(own, self.mesh.now)

    def forge(self, victim: int, liar: int) -> None:
        """A member shows its own invention: with its word, with a voter's that it does not have, or with an old one of a voter."""
        rng, desk = self.rng, self.mesh.cores[victim].membership
        invented = replace(view(victim, liar, revision=1000, voters=(liar,)))
        old = self.views[0]
        shown, word = rng.choice(
            [
                (invented, Vouch.signed(KeySigner(seed_of(liar)), NodeId(1), 1000, membership_of(invented))),
                (invented, Vouch.signed(KeySigner(seed_of(1)), NodeId(1), 1000, membership_of(old))),
                (old, Vouch.signed(KeySigner(seed_of(1)), NodeId(1), old.revision, membership_of(old))),
            ]
        )
        if liar != 1:
            assert isinstance(desk.believe(NodeId(liar), membership_of(shown).encode(word), self.mesh.now), Refused)

    def check(self) -> None:
        mesh = self.mesh
        for node in self.told:
            desk = mesh.cores[node].membership
            assert desk.revision >= self.revisions[node], f"node {node} went back"
            self.revisions[node] = desk.revision
            assert desk.digest == self.truth(desk.revision), f"node {node} believes what never was"
            up = {int(link.peer) for link in mesh.cores[node].links() if link.is_up}
            assert up <= mesh.knows(node), f"node {node} has a link to one that it knows to be gone"
            self.settled += desk.digest != membership_of(mesh.views[node]).digest


@pytest.mark.parametrize("seed", range(6))
def test_nobody_believes_what_never_was_or_goes_back(seed: int) -> None:
    storm = Storm(seed)
    for _ in range(STEPS):
        storm.step()
        storm.check()
    # In the end every member that is left meets one that knows all, and is up to date by that alone.
    last = len(storm.views) - 1
    storm.tell(1, last)
    mesh = storm.mesh
    mesh.run(10.0)
    for node in sorted(mesh.knows(1) - {1}):
        if storm.admits(node, 1):
            mesh.wire(node, 1)
            mesh.run(0.5)
            assert mesh.knows(node) == mesh.knows(1) == {int(item) for item in storm.views[-1].nodes}
            assert mesh.is_up(node, 1)
    storm.check()


def test_storms_do_what_they_are_for() -> None:
    """Over some seeds, nodes know what their control plane does not yet: else the runs above would show nothing."""
    learned = 0
    for seed in range(3):
        storm = Storm(seed)
        for _ in range(STEPS):
            storm.step()
            storm.check()
        learned += storm.settled
    assert learned > 10
