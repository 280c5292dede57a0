"""Checkers of what a stream promised, over plain lists: what was acknowledged and what each member holds.

C1: an acknowledged record is readable at its offset on every member. C2: no duplicate, no gap, no reorder per producer,
no offset that moves. C4: equal state hashes at equal applied index. A checker returns findings in words; none is a pass.
C3 (linearizability) and C5 (progress) look at calls in time: `histories`. Pure; used by the simulator and by end-to-end
tests.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A record that a publisher was told is committed. (producer, sequence) is unique for what was meant once."""

    producer: int
    sequence: int
    offset: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Held:
    """A record that a member returns at an offset; `identity` is the (producer, sequence) that its value names."""

    offset: int
    value: bytes
    identity: tuple[int, int]


@dataclass(frozen=True, slots=True)
class StateHash:
    """State hash of one member at an applied index."""

    member: str
    applied_index: int
    state_hash: bytes


def check_acknowledged_readable(
    acknowledged: Iterable[Acknowledged], members: Mapping[str, Sequence[Held]]
) -> list[str]:
    """C1. `members` maps a member's name to all it holds, from its floor on."""
    by_member = {name: {record.offset: record.value for record in held} for name, held in members.items()}
    floors = {name: held[0].offset if held else 0 for name, held in members.items()}
    findings: list[str] = []
    for item in acknowledged:
        for name, values in by_member.items():
            if item.offset < floors[name]:
                continue
            found = values.get(item.offset)
            if found is None:
                findings.append(f"C1 {name} lacks offset {item.offset} ({item.producer}, {item.sequence})")
            elif found != item.value:
                findings.append(f"C1 {name} holds another value at offset {item.offset} than was acknowledged")
    return findings


def check_exactly_once(acknowledged: Iterable[Acknowledged], members: Mapping[str, Sequence[Held]]) -> list[str]:
    """C2."""
    findings: list[str] = []
    offset_of: dict[tuple[int, int], int] = {}
    for item in acknowledged:
        identity = (item.producer, item.sequence)
        if offset_of.setdefault(identity, item.offset) != item.offset:
            findings.append(f"C2 {identity} was acknowledged at {offset_of[identity]} and at {item.offset}")
    value_at: dict[int, bytes] = {}
    for name, held in members.items():
        findings += _check_one_member(name, held)
        for record in held:
            if value_at.setdefault(record.offset, record.value) != record.value:
                findings.append(f"C2 members disagree at offset {record.offset}, among them {name}")
    return findings


def _check_one_member(name: str, held: Sequence[Held]) -> list[str]:
    findings: list[str] = []
    last_sequence: dict[int, int] = {}
    seen: set[tuple[int, int]] = set()
    for before, record in zip((None, *held), held, strict=False):
        if before is not None and record.offset != before.offset + 1:
            findings.append(f"C2 {name} goes from offset {before.offset} to {record.offset}")
        if record.identity in seen:
            findings.append(f"C2 {name} holds {record.identity} twice, again at offset {record.offset}")
        seen.add(record.identity)
        producer, sequence = record.identity
        if sequence < last_sequence.get(producer, -1):
            findings.append(f"C2 {name} has producer {producer}'s {sequence} after {last_sequence[producer]}")
        last_sequence[producer] = max(sequence, last_sequence.get(producer, -1))
    return findings


def check_state_hashes(hashes: Iterable[StateHash]) -> list[str]:
    """C4."""
    at_index: dict[int, dict[bytes, list[str]]] = defaultdict(lambda: defaultdict(list))
    for item in hashes:
        at_index[item.applied_index][item.state_hash].append(item.member)
    return [
        f"C4 state hashes differ at index {index}: {sorted(map(sorted, by_hash.values()))}"
        for index, by_hash in sorted(at_index.items())
        if len(by_hash) > 1
    ]
