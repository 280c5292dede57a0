"""The keys of a service that signs for its node: made here, kept in `delegated.key`, replaced every twelve hours.

Delegations are public: they travel with what is signed. So a stolen key would be worth all later delegations for it, and each
key is delegated only until a day after it was made, however often that is signed. From half of that on another one is
offered. The file holds three keys at most, the newest first, each as when it was made (u64, seconds since 1970, network byte
order) and its seed of 32 bytes: besides the newest the one before it, which may just be on its way to be delegated, and the
one in use, which the state on disk names. For shells. Source: docs/design/identity.md "Delegations"; ADR 0018.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

from meshcommon.delegation import is_young
from meshcommon.durable import write_durably
from meshcommon.errors import ErrorCode, MeshError
from meshcommon.key_signer import PRIVATE_KEY_BYTES, KeySigner
from meshcommon.signer import Signer

DELEGATED_KEY: Final = "delegated.key"
_KEYS_MAX: Final = 3
_LAYOUT: Final = Struct(f"!Q{PRIVATE_KEY_BYTES}s")


class DelegatedKey(NamedTuple):
    """One key, and when it was made: wall clock, seconds since 1970."""

    made_at_s: int
    seed: bytes

    @property
    def signer(self) -> KeySigner:
        """What signs with it."""
        return KeySigner(self.seed)


class DelegatedKeys:
    """The keys of one service. `offer` and `keep` block on the disk, one call at a time; meanwhile `find` may be called."""

    def __init__(
        self, directory: Path, keys: Sequence[DelegatedKey] = (), wall_s: Callable[[], float] = time.time
    ) -> None:
        """`keys` are those that `directory` holds, the newest first; see `load`."""
        self._path = directory / DELEGATED_KEY
        self._keys = tuple(keys)
        self._wall_s = wall_s
        self._in_use: DelegatedKey | None = None

    @classmethod
    def load(cls, directory: Path) -> DelegatedKeys:
        """The keys in `directory`; there may be none yet.

        Raises:
            MeshError: DATA_DIR_INCOMPLETE when the file is damaged.
        """
        path = directory / DELEGATED_KEY
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return cls(directory)
        if len(data) not in range(_LAYOUT.size, _KEYS_MAX * _LAYOUT.size + 1, _LAYOUT.size):
            raise MeshError(
                ErrorCode.DATA_DIR_INCOMPLETE,
                f"{path} is damaged: remove it; another key is made, and the control plane delegates it.",
                {"path": str(path)},
            )
        return cls(directory, [DelegatedKey(*fields) for fields in _LAYOUT.iter_unpack(data)])

    def offer(self) -> tuple[bytes, int]:
        """Public half of the key to delegate, and when it was made; another one, durably kept, when that is half a day ago.

        Raises:
            MeshError: DATA_DIR_UNWRITABLE.
        """
        now_s = self._wall_s()
        if not self._keys or not is_young(self._keys[0].made_at_s, now_s):
            made = DelegatedKey(max(0, int(now_s)), secrets.token_bytes(PRIVATE_KEY_BYTES))
            kept = tuple(key for key in self._keys if key in (self._keys[0], self._in_use))
            self._write((made, *kept))
        newest = self._keys[0]
        return newest.signer.public_key, newest.made_at_s

    def find(self, public_key: bytes) -> Signer | None:
        """What signs with the key of which this is the public half; the one that was asked for last is kept."""
        for key in self._keys:
            signer = key.signer
            if signer.public_key == public_key:
                self._in_use = key
                return signer
        return None

    def keep(self) -> None:
        """Writes the file again, after its directory was emptied. Raises MeshError: DATA_DIR_UNWRITABLE."""
        self._write(self._keys)

    def _write(self, keys: tuple[DelegatedKey, ...]) -> None:
        try:
            write_durably(self._path, b"".join(_LAYOUT.pack(*key) for key in keys), 0o600)
        except OSError as error:
            raise MeshError(
                ErrorCode.DATA_DIR_UNWRITABLE,
                f"Cannot write {self._path} ({error.strerror}): check owner, mount and free space.",
                {"path": str(self._path)},
            ) from error
        self._keys = keys
