"""Which store a log directory is, across starts, copies, exchanges, damage and crashes between two writes."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest

from meshcommon.ids import NodeId
from meshcommon.store_files import IDENTITY_FILE, PEERS_FILE, StoreFiles, forget_anchor
from meshcommon.store_guard import StoreMemory
from meshcommon.store_lineage import Seen, Verdict, judge, seen_of
from meshcommon.store_record import Found, NewIds, StoreRecord, given_up, number_raised, opened, without

GROUPS = frozenset({7, 8})
_numbers = itertools.count(100)


def new_ids() -> NewIds:
    return NewIds(next(_numbers), next(_numbers))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "log" / "mesh-1"
    path.mkdir(parents=True)
    return path


def blank() -> StoreRecord:
    return opened(Found(None), (), new_ids())


def start(directory: Path) -> StoreRecord:
    """What the shell does before it uses a log."""
    files = StoreFiles(directory, directory.parent.parent / "anchor")
    record = opened(files.read(), GROUPS, new_ids())
    files.write(record)
    return record


def test_each_start_has_a_higher_number_and_another_life(directory: Path) -> None:
    first, second = start(directory), start(directory)
    assert first.lineage.incarnations == second.lineage.incarnations[:1]
    assert [incarnation.boot for incarnation in second.lineage.incarnations] == [1, 2]
    assert second.disowned == frozenset()
    assert judge(seen_of(first.lineage), second.lineage) is Verdict.GOES_ON


@pytest.mark.parametrize("is_wiped", [True, False])
def test_a_directory_that_was_wiped_or_exchanged_is_given_up(directory: Path, is_wiped: bool) -> None:
    former = start(directory)
    (directory / IDENTITY_FILE).unlink()
    if not is_wiped:
        other = directory.parent / "elsewhere" / "mesh-1"
        other.mkdir(parents=True)
        StoreFiles(other, directory.parent / "another-anchor").write(blank())
        shutil.copy(other / IDENTITY_FILE, directory)
    found = start(directory)
    assert found.disowned == GROUPS
    assert (
        found.reason
        == "The log directory of this node's streams is not the one that it was: it was wiped or exchanged."
    )
    assert found.lineage.store_id != former.lineage.store_id
    assert judge(seen_of(former.lineage), found.lineage) is Verdict.GOES_ON  # it renounces what the peers know
    assert start(directory).disowned == GROUPS  # until the data are gone


def test_an_older_copy_is_given_up(directory: Path) -> None:
    start(directory)
    shutil.copytree(directory, directory.parent / "copy")
    latest = start(directory)
    shutil.rmtree(directory)
    (directory.parent / "copy").rename(directory)
    found = start(directory)
    assert found.disowned == GROUPS
    assert "rolled back" in found.reason
    assert judge(seen_of(latest.lineage), found.lineage) is Verdict.GOES_ON


def test_a_copy_that_was_taken_in_the_middle_of_a_life_is_given_up(directory: Path) -> None:
    record = start(directory)
    shutil.copytree(directory, directory.parent / "copy")
    StoreFiles(directory, directory.parent.parent / "anchor").write(number_raised(record))
    shutil.rmtree(directory)
    (directory.parent / "copy").rename(directory)
    assert start(directory).disowned == GROUPS


@pytest.mark.parametrize("at", [0, 20])
def test_a_damaged_record_is_given_up(directory: Path, at: int) -> None:
    start(directory)
    content = bytearray((directory / IDENTITY_FILE).read_bytes())
    content[at] ^= 1
    (directory / IDENTITY_FILE).write_bytes(content)
    found = start(directory)
    assert "damaged" in found.reason
    assert found.disowned == GROUPS


def test_a_directory_of_another_membership_or_of_an_older_version_is_taken_as_it_is(directory: Path) -> None:
    start(directory)
    other = directory.parent / "mesh-2"
    other.mkdir()
    assert start(other).disowned == frozenset()
    forget_anchor(directory.parent.parent / "anchor")
    forget_anchor(directory.parent.parent / "anchor")
    assert start(directory).disowned == frozenset()


def test_a_crash_between_record_and_anchor_is_no_objection(directory: Path) -> None:
    anchor = directory.parent.parent / "anchor"
    start(directory)
    before = anchor.read_bytes()
    record = start(directory)
    anchor.write_bytes(before)
    assert start(directory).disowned == frozenset()
    anchor.write_bytes(before)
    files = StoreFiles(directory, anchor)
    files.write(given_up(record, {9}, "A peer knows more.", [5], new_ids()))
    anchor.write_bytes(before)
    assert start(directory).disowned == {9}


def test_a_damaged_anchor_says_nothing(directory: Path) -> None:
    start(directory)
    (directory.parent.parent / "anchor").write_bytes(b"00000000 {}")
    assert start(directory).disowned == frozenset()


def test_groups_are_owned_again_one_by_one_when_their_data_are_gone() -> None:
    record = given_up(blank(), GROUPS, "why", [], new_ids())
    assert without(record, {99}) is record
    one = without(record, {7})
    assert (one.disowned, one.reason) == (frozenset({8}), "why")
    assert (without(one, {8}).disowned, without(one, {8}).reason) == (frozenset(), "")


def test_the_memory_of_the_peers_is_kept_and_lost_as_a_whole(directory: Path) -> None:
    files = StoreFiles(directory, directory.parent.parent / "anchor")
    assert files.read_peers() == StoreMemory()
    seen = {NodeId(2): Seen(2**64 - 1, 20, 3, (7, 8)), NodeId(3): Seen(3, 30, 1)}
    memory = StoreMemory(seen, {NodeId(3): Seen(3, 31, 2)})
    files.write_peers(memory)
    assert files.read_peers() == memory
    (directory / PEERS_FILE).write_bytes(b"not ours")
    assert files.read_peers() == StoreMemory()


def test_a_record_comes_back_as_it_was_written(directory: Path) -> None:
    files = StoreFiles(directory, directory.parent.parent / "anchor")
    record = given_up(blank(), GROUPS, "why", [5], new_ids())
    files.write(record)
    assert files.read().record == record
