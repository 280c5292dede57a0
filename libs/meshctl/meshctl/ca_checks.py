"""Checks of the mesh's certificate authority and of certificates. See `checks`."""

from __future__ import annotations

from typing import Final

from meshctl.checks import CONTROL_PLANE, Answers, Check, Finding, count, failed, ok, some, told, warning

_MEMBER: Final = ("gateway.reachable", "node.member")
_PRESENT: Final = (*_MEMBER, "ca.present")
ALARM_BELOW: Final = 1 / 3
"""Share of its life at which a certificate should have been renewed."""
_ROTATE: Final = "run `meshctl ca rotate` where the root's key is"


def _present(answers: Answers) -> Finding:
    ca = told(answers.ca, CONTROL_PLANE)
    if not ca.exists:
        return warning(
            "the mesh has no certificate authority",
            "run `meshctl ca init` at its founder, and keep the root's key safe",
        )
    return ok(f"root {ca.root_fingerprints[0][:16]}…", root_fingerprints=list(ca.root_fingerprints))


def _expiry(answers: Answers) -> Finding:
    listed = told(answers.certificates, CONTROL_PLANE).certificates
    if not listed:
        return ok("there is none")
    ended = [item.kind for item in listed if item.life_left <= 0]
    ending = [item.kind for item in listed if 0 < item.life_left < ALARM_BELOW]
    hint = f"the node renews its own when a voter answers; for the others {_ROTATE}"
    if ended:
        return failed(f"ended: {some(ended)}", hint, ended=ended, ending=ending)
    if ending:
        return warning(f"less than a third of its life is left: {some(ending)}", hint, ending=ending)
    if not any(item.kind == "node" for item in listed):
        return warning("this node has no certificate", "see the warnings of `meshctl status` for the reason")
    return ok(f"{count(len(listed), 'certificate')} with more than a third of their lives left")


def _rotation(answers: Answers) -> Finding:
    if told(answers.ca, CONTROL_PLANE).is_rotation_due:
        return warning("a node that was given the key of the intermediate is no member any more", _ROTATE)
    return ok("nobody but members was given the key of the intermediate")


def _keys(answers: Answers) -> Finding:
    ca = told(answers.ca, CONTROL_PLANE)
    if not ca.exists:
        return ok("there is no key")
    if not ca.issuers:
        return failed("no node can issue certificates", _ROTATE)
    if ca.voters_without_key:
        return warning(
            f"voters that cannot issue certificates: {some(list(ca.voters_without_key))}",
            "look again: another node seals the key for them; a node with old software has to be updated",
            voters=list(ca.voters_without_key),
        )
    return ok(f"{some(list(ca.issuers))} can issue certificates", issuers=list(ca.issuers))


CA_CHECKS: Final = (
    Check("ca.present", _present, _MEMBER),
    Check("ca.certificates", _expiry, _PRESENT),
    Check("ca.rotation", _rotation, _PRESENT),
    Check("ca.keys", _keys, _PRESENT),
)
