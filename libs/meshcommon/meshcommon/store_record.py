"""What a Raft log directory says of itself on disk, what is believed of it at a start, and how it is given up.

The *anchor* repeats store id and boot number outside of the directory, so that a log directory that was removed, exchanged or
restored alone is recognised without asking anybody. A store that is not what it was is *renounced*: it takes a new id, and
every group that it holds or should hold is *disowned*, that is, its membership at this node must not be counted on
before its data are gone. Pure: new ids are passed in. Source: architecture §7; docs/design/stores.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from meshcommon.store_lineage import Lineage, Verdict, begin, next_incarnation, raised, renounced


@dataclass(frozen=True, slots=True)
class StoreRecord:
    """A log directory about itself.

    Attributes:
        lineage: which store it is.
        disowned: groups whose membership at this node must not be counted on.
        reason: why, as a sentence; empty when nothing is disowned.
    """

    lineage: Lineage
    disowned: frozenset[int] = frozenset()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Anchor:
    """Which store the directory should be, the boot number that it has reached at least, what it had renounced."""

    store_id: int
    boot: int
    renounced: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """What was on the disk at a start. `record` is None when there is none, or when it `is_damaged`."""

    record: StoreRecord | None
    is_damaged: bool = False
    anchor: Anchor | None = None


@dataclass(frozen=True, slots=True)
class NewIds:
    """Two random numbers that nobody has had before."""

    store_id: int
    incarnation_id: int


def opened(found: Found, groups: Collection[int], ids: NewIds, lost: str = "") -> StoreRecord:
    """The record to make durable before the log is used; `groups` are stored there or should be.

    `lost` says, as a sentence, what the log itself knows to have lost; empty when it lost nothing.
    """
    objection = _objection(found)
    if reason := lost or (objection and f"The log directory of this node's streams {objection}."):
        former = found.record or StoreRecord(
            begin(found.anchor.store_id if found.anchor else ids.incarnation_id, ids.incarnation_id)
        )
        others = (*found.anchor.renounced, found.anchor.store_id) if found.anchor else ()
        return given_up(former, groups, reason, others, ids)
    if found.record is None:
        return StoreRecord(begin(ids.store_id, ids.incarnation_id))
    return replace(found.record, lineage=next_incarnation(found.record.lineage, ids.incarnation_id))


def given_up(
    record: StoreRecord, groups: Collection[int], reason: str, others: Iterable[int], ids: NewIds
) -> StoreRecord:
    """The record of a store that was renounced, with all its groups; `others` are stores that it should have been."""
    lineage = renounced(record.lineage, ids.store_id, ids.incarnation_id, others)
    return StoreRecord(lineage, record.disowned | frozenset(groups), reason)


def number_raised(record: StoreRecord) -> StoreRecord:
    """The record with the next boot number of the same incarnation."""
    return replace(record, lineage=raised(record.lineage))


def without(record: StoreRecord, groups: Collection[int]) -> StoreRecord:
    """The record when the data of some disowned groups are gone; the same one when none of them was disowned."""
    if record.disowned.isdisjoint(groups):
        return record
    disowned = record.disowned - frozenset(groups)
    return replace(record, disowned=disowned, reason=record.reason if disowned else "")


def _objection(found: Found) -> str:
    """Why the directory is not what it was, the end of a sentence; empty when nothing speaks against it."""
    if found.is_damaged:
        return "has a damaged record of its identity"
    anchor, record = found.anchor, found.record
    if anchor is None:
        return ""
    if record is None:
        return Verdict.ANOTHER_STORE.value
    if anchor.store_id in record.lineage.renounced:
        return ""
    if anchor.store_id != record.lineage.store_id:
        return Verdict.ANOTHER_STORE.value
    return Verdict.ROLLED_BACK.value if anchor.boot > record.lineage.present.boot else ""
