"""What the two sides of a lane handshake agree on beside who is there: sealed frames, and who knows the newer membership."""

from __future__ import annotations

import pytest

from data_plane_testing.handshakes import VIEW, changed_hello, code, joiner, local, pair, refused, run, terms
from mesh_data.core.handshake import Handshake, Role, Standing
from meshcommon.errors import ErrorCode
from meshwire.errors import WireError

DIALLED, LISTENED = b"\x0d" * 32, b"\x0e" * 32


def behind_proxy(dial: bool, listen: bool) -> tuple[Handshake, Handshake]:
    """A proxy ends TLS: the dialler sees its certificate, the node behind it has shown its own. Who says that frames be sealed?"""
    return pair(
        local(1),
        local(2),
        dial=terms(VIEW, certificate_seen=DIALLED, seals_frames=dial),
        listen=terms(VIEW, certificate_shown=LISTENED, seals_frames=listen),
    )


def test_both_ends_that_say_so_seal_their_frames_with_keys_of_the_handshake() -> None:
    dialler, listener = behind_proxy(dial=True, listen=True)
    run(dialler, listener)
    assert dialler.seal is not None
    assert listener.seal is not None
    assert listener.seal.open(dialler.seal.seal(b"frame", 0.0)) == b"frame"
    assert dialler.seal.open(listener.seal.seal(b"frame", 0.0)) == b"frame"


@pytest.mark.parametrize(("dial", "listen"), [(True, False), (False, True), (False, False)])
def test_proxy_that_not_both_ends_allow_is_refused(dial: bool, listen: bool) -> None:
    dialler, listener = behind_proxy(dial, listen)
    run(dialler, listener)
    assert code(dialler) is ErrorCode.TLS_TERMINATED
    assert code(listener) is ErrorCode.TLS_TERMINATED
    assert dialler.seal is None


def test_lane_without_a_proxy_goes_unsealed_when_one_end_alone_allows_one() -> None:
    dialler, listener = pair(local(1), local(2), listen=terms(VIEW, seals_frames=True))
    run(dialler, listener)
    assert dialler.peer is not None
    assert (dialler.seal, listener.seal) == (None, None)


@pytest.mark.parametrize("strips_both", [True, False])
def test_middle_that_strips_the_wish_to_seal_or_adds_it_breaks_the_proofs(strips_both: bool) -> None:
    dialler, listener = pair(
        local(1), local(2), dial=terms(VIEW, seals_frames=True), listen=terms(VIEW, seals_frames=True)
    )
    there, back = dialler.take_outgoing()[0], listener.take_outgoing()[0]
    listener.receive(changed_hello(there, seals_frames=False))
    dialler.receive(changed_hello(back, seals_frames=False) if strips_both else back)
    run(dialler, listener)
    assert dialler.peer is None
    assert listener.peer is None
    assert ErrorCode.KEY_MISMATCH in {code(dialler), code(listener)}


def test_keys_of_frames_differ_from_lane_to_lane() -> None:
    first, second = behind_proxy(dial=True, listen=True), behind_proxy(dial=True, listen=True)
    again = Handshake(Role.LISTENER, local(2), terms(VIEW, seals_frames=True), b"m" * 32, b"M" * 32, 2.0)
    run(*first)
    run(second[0], again)
    assert first[0].seal is not None
    assert again.seal is not None
    with pytest.raises(WireError):
        again.seal.open(first[0].seal.seal(b"frame", 0.0))


OTHER_DIGEST = b"\x11" * 32


@pytest.mark.parametrize(
    ("revision", "digest", "standing"),
    [
        (5, b"\x10" * 32, Standing.SAME),
        (9, b"\x10" * 32, Standing.SAME),
        (9, OTHER_DIGEST, Standing.BEHIND),
        (4, OTHER_DIGEST, Standing.AHEAD),
    ],
)
def test_hello_tells_who_knows_the_newer_membership(revision: int, digest: bytes, standing: Standing) -> None:
    dialler, listener = pair(
        local(1),
        local(2),
        dial=terms(VIEW, membership_revision=5, membership_digest=b"\x10" * 32),
        listen=terms(VIEW, membership_revision=revision, membership_digest=digest),
    )
    run(dialler, listener)
    assert dialler.peer is not None
    assert (dialler.peer.standing, dialler.peer.membership_revision) == (standing, revision)
    assert dialler.peer.membership_digest == digest


def test_other_members_at_the_same_revision_are_refused_by_name() -> None:
    dialler, listener = pair(
        local(1),
        local(2),
        dial=terms(VIEW, membership_revision=5, membership_digest=b"\x10" * 32),
        listen=terms(VIEW, membership_revision=5, membership_digest=OTHER_DIGEST),
    )
    run(dialler, listener)
    assert {code(dialler), code(listener)} == {ErrorCode.MEMBERSHIP_OUTDATED}


def test_middle_that_changes_the_membership_in_a_hello_breaks_the_proofs() -> None:
    dialler, listener = pair(local(1), local(2))
    listener.receive(changed_hello(dialler.take_outgoing()[0], membership_revision=9, membership_digest=OTHER_DIGEST))
    run(dialler, listener)
    assert listener.peer is None
    assert dialler.peer is None


@pytest.mark.parametrize("fields", [{"membership_digest": b"\x01" * 31}, {"membership_revision": 2**63}])
def test_membership_that_no_node_shows_is_refused(fields: dict[str, object]) -> None:
    assert code(refused(**fields)) is ErrorCode.WRONG_PROTOCOL


def test_newcomer_shows_no_membership_and_settles_nothing() -> None:
    dialler, listener = pair(
        joiner(), local(2), dial=terms(), listen=terms(VIEW, membership_revision=5, membership_digest=OTHER_DIGEST)
    )
    run(dialler, listener)
    assert dialler.peer is not None
    assert listener.peer is not None
    assert (dialler.peer.standing, listener.peer.standing) == (Standing.SAME, Standing.SAME)
