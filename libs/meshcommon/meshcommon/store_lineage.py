"""Lineage of a store: its incarnations, and whether its announcement agrees with what was seen of it before.

A *store* is a Raft log directory. Each start of it is an *incarnation* with a random id and a boot number that is
higher than all before; the number is also raised while the log is written, so that a copy taken in the middle of an
incarnation is told from its end. What was announced had been made durable, so it stays in the store's lineage for ever:
if it is missing there, the disk was rolled back to an older copy; if the store is another, the disk was wiped or
exchanged. Pure. Source: architecture §7.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from enum import Enum

from meshwire.store_message import INCARNATIONS_MAX, RENOUNCED_MAX, Incarnation, Lineage, Seen

__all__ = [
    "Incarnation",
    "Lineage",
    "Seen",
    "Verdict",
    "begin",
    "is_news",
    "judge",
    "next_incarnation",
    "raised",
    "renounced",
    "seen_of",
]


class Verdict(Enum):
    """What a lineage is to somebody who has seen something of it; the value is the end of a sentence."""

    GOES_ON = "goes on from what was seen of it"
    OVERTAKEN = "says less than it has said before in the same incarnation"
    ROLLED_BACK = "is an older copy of what it was: it was rolled back"
    ANOTHER_STORE = "is not the one that it was: it was wiped or exchanged"


def begin(store_id: int, incarnation_id: int) -> Lineage:
    """A store in its first incarnation."""
    return Lineage(store_id, (Incarnation(incarnation_id, 1),))


def next_incarnation(lineage: Lineage, incarnation_id: int) -> Lineage:
    """The store at its next start. To be made durable before the log is used."""
    return replace(
        lineage,
        incarnations=(*lineage.incarnations, Incarnation(incarnation_id, lineage.present.boot + 1))[-INCARNATIONS_MAX:],
    )


def raised(lineage: Lineage) -> Lineage:
    """The same incarnation with the next boot number. To be made durable before it is announced."""
    present = lineage.present
    return replace(lineage, incarnations=(*lineage.incarnations[:-1], replace(present, boot=present.boot + 1)))


def renounced(lineage: Lineage, store_id: int, incarnation_id: int, others: Iterable[int]) -> Lineage:
    """A new store in place of this one, for which nothing counts that this one, or the `others`, ever confirmed."""
    former = dict.fromkeys((*lineage.renounced, *others, lineage.store_id))
    return Lineage(store_id, (Incarnation(incarnation_id, lineage.present.boot + 1),), tuple(former)[-RENOUNCED_MAX:])


def seen_of(lineage: Lineage) -> Seen:
    """What is to be remembered of a lineage."""
    return Seen(lineage.store_id, lineage.present.incarnation_id, lineage.present.boot, lineage.renounced)


def is_news(told: Seen, known: Seen | None) -> bool:
    """Whether what somebody else has seen of a store goes beyond what is known of it here."""
    if known is None:
        return True
    if told.store_id == known.store_id:
        return told.boot > known.boot
    return told.store_id not in known.renounced


def judge(seen: Seen | None, lineage: Lineage) -> Verdict:
    """Whether `lineage` goes on from what was seen; of a store of which nothing was seen everything is believed."""
    if seen is None or seen.store_id in lineage.renounced:
        return Verdict.GOES_ON
    if seen.store_id != lineage.store_id:
        return Verdict.ANOTHER_STORE
    known = next(
        (incarnation for incarnation in lineage.incarnations if incarnation.incarnation_id == seen.incarnation_id), None
    )
    if known is None:
        # Incarnations before the first of the lineage are forgotten; boot numbers only rise.
        return Verdict.GOES_ON if seen.boot < lineage.incarnations[0].boot else Verdict.ROLLED_BACK
    if known.boot >= seen.boot:
        return Verdict.GOES_ON
    return Verdict.OVERTAKEN if known is lineage.present else Verdict.ROLLED_BACK
