"""Keys of a service: made when the first one is asked for, replaced every half day, and never lost between two states."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshcommon.delegated_keys import DELEGATED_KEY, DelegatedKeys
from meshcommon.delegation import RENEW_AFTER_S, VALID_BEFORE_S
from meshcommon.errors import ErrorCode, MeshError

NOW_S = 1_800_000_000


class Clock:
    """A wall clock that the test sets."""

    def __init__(self) -> None:
        self.now_s = float(NOW_S)

    def __call__(self) -> float:
        return self.now_s


def loaded(directory: Path, clock: Clock) -> DelegatedKeys:
    keys = DelegatedKeys.load(directory)
    keys._wall_s = clock
    return keys


def test_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    clock = Clock()
    public_key, made_at_s = loaded(tmp_path, clock).offer()
    assert (len(public_key), made_at_s) == (32, NOW_S)
    assert (tmp_path / DELEGATED_KEY).stat().st_mode & 0o777 == 0o600
    clock.now_s = NOW_S + RENEW_AFTER_S - 1
    again = loaded(tmp_path, clock)
    assert again.offer() == (public_key, NOW_S)
    signer = again.find(public_key)
    assert signer is not None
    assert signer.public_key == public_key
    assert again.find(bytes(32)) is None


def test_key_of_half_a_day_is_replaced_and_still_found(tmp_path: Path) -> None:
    clock = Clock()
    keys = loaded(tmp_path, clock)
    first, _ = keys.offer()
    clock.now_s = NOW_S + RENEW_AFTER_S
    second, made_at_s = keys.offer()
    assert second != first
    assert made_at_s == NOW_S + RENEW_AFTER_S
    # A crash before the control plane has delegated the second one costs nothing.
    again = loaded(tmp_path, clock)
    assert again.offer() == (second, made_at_s)
    assert again.find(first) is not None
    assert again.find(second) is not None


def test_key_in_use_stays_however_many_were_offered_in_vain(tmp_path: Path) -> None:
    clock = Clock()
    keys = loaded(tmp_path, clock)
    in_use, _ = keys.offer()
    newest = in_use
    assert keys.find(in_use) is not None
    for number in range(1, 5):
        clock.now_s = NOW_S + number * RENEW_AFTER_S
        newest, _ = keys.offer()
    again = loaded(tmp_path, clock)
    assert again.find(in_use) is not None
    assert again.find(newest) is not None
    assert len((tmp_path / DELEGATED_KEY).read_bytes()) == 3 * 40
    # The newest was delegated: with the next one the first goes.
    clock.now_s += RENEW_AFTER_S
    keys.find(newest)
    keys.offer()
    assert keys.find(in_use) is None
    assert loaded(tmp_path, clock).find(in_use) is None


def test_clock_that_was_set_back_makes_another_key(tmp_path: Path) -> None:
    """Delegated from a time to come, it would not count for the others."""
    clock = Clock()
    keys = loaded(tmp_path, clock)
    first, _ = keys.offer()
    clock.now_s = NOW_S - VALID_BEFORE_S
    assert keys.offer()[0] == first
    clock.now_s -= 1
    assert keys.offer()[0] != first
    clock.now_s = -5.0
    assert keys.offer()[1] == 0


@pytest.mark.parametrize("size", [0, 39, 41, 79, 81, 160])
def test_damaged_file_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / DELEGATED_KEY).write_bytes(bytes(size))
    with pytest.raises(MeshError) as caught:
        DelegatedKeys.load(tmp_path)
    assert caught.value.code is ErrorCode.DATA_DIR_INCOMPLETE


def test_key_that_cannot_be_kept_is_not_offered(tmp_path: Path) -> None:
    keys = DelegatedKeys(tmp_path / "missing")
    for _ in range(2):
        with pytest.raises(MeshError) as caught:
            keys.offer()
        assert caught.value.code is ErrorCode.DATA_DIR_UNWRITABLE


def test_keys_are_written_again_after_their_directory_was_emptied(tmp_path: Path) -> None:
    keys = DelegatedKeys.load(tmp_path)
    public_key, _ = keys.offer()
    (tmp_path / DELEGATED_KEY).unlink()
    keys.keep()
    assert DelegatedKeys.load(tmp_path).find(public_key) is not None
