"""The checkpoints of this node's replicas as files: a directory a stream, a file a checkpoint, named by its applied index.

The newest two are kept, because the newest one may be ahead of what a log that lost its last writes knows to be committed.
Every call blocks on the disk. Leaves out: what is in them and when they are written (`replica_checkpoint`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mesh_data.core.replica_checkpoint import ReplicaCheckpoint, decode_checkpoint, encode_checkpoint
from meshcommon.durable import sync_directory, write_durably
from meshcommon.ids import MemberId, StreamId
from meshcommon.logging import get_logger
from meshwire.errors import WireError

KEPT: Final = 2

_log = get_logger(__name__)


class CheckpointFiles:
    """Checkpoints under one directory. Writes of one stream must not overlap; anything else may."""

    def __init__(self, directory: Path) -> None:
        """`directory` is made by the first write."""
        self._directory = directory

    def write(self, checkpoint: ReplicaCheckpoint) -> int:
        """Makes a checkpoint durable, then drops those that it makes superfluous. Returns its size in bytes.

        Raises:
            OSError: the disk refused; the earlier checkpoints are still there.
        """
        directory = self._of(checkpoint.stream_id)
        if not directory.is_dir():
            directory.mkdir(parents=True, exist_ok=True)
            sync_directory(directory.parent)
        data = encode_checkpoint(checkpoint)
        write_durably(directory / str(checkpoint.applied_index), data)
        for old in self._newest_first(checkpoint.stream_id)[KEPT:]:
            old.unlink(missing_ok=True)
        return len(data)

    def read(self, stream_id: StreamId, member_id: MemberId) -> Iterator[ReplicaCheckpoint]:
        """Checkpoints of that member, the newest first. Those that cannot be used are removed, and the log says why."""
        for path in self._newest_first(stream_id):
            try:
                checkpoint = decode_checkpoint(path.read_bytes())
            except (OSError, WireError) as error:
                self.refuse(stream_id, int(path.name), str(error))
                continue
            if (checkpoint.stream_id, checkpoint.member_id) != (stream_id, member_id):
                self.refuse(stream_id, int(path.name), f"it is of member {checkpoint.member_id}, not {member_id}")
                continue
            yield checkpoint

    def refuse(self, stream_id: StreamId, applied_index: int, reason: str) -> None:
        """Removes a checkpoint that cannot be used: its place in the log is replayed instead."""
        _log.warning("checkpoint_refused", stream_id=stream_id, index=applied_index, reason=reason)
        (self._of(stream_id) / str(applied_index)).unlink(missing_ok=True)

    def forget(self, stream_id: StreamId) -> None:
        """Removes what is kept of a stream."""
        shutil.rmtree(self._of(stream_id), ignore_errors=True)

    def _of(self, stream_id: StreamId) -> Path:
        return self._directory / f"{stream_id:016x}"

    def _newest_first(self, stream_id: StreamId) -> list[Path]:
        directory = self._of(stream_id)
        if not directory.is_dir():
            return []
        # Anything else is what a crash left of a write.
        return sorted((path for path in directory.iterdir() if path.name.isdecimal()), key=_index_of, reverse=True)


def _index_of(path: Path) -> int:
    return int(path.name)
