"""Writing the checkpoints of this node's replicas, one after another, and opening replicas at them.

A checkpoint that fails to be written costs a longer restart and nothing else; one that cannot be used is removed, and the
next older one is tried, then the stored snapshot with a replay of everything after it. Leaves out: the bytes and when one is
due (`replica_checkpoint`), the files (`checkpoint_files`). Source: architecture §7.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from mesh_data.core.replica_checkpoint import CLOSING_BYTES, ReplicaCheckpoint, due
from mesh_data.shell.groups.checkpoint_files import CheckpointFiles
from mesh_data.shell.groups.replica import Replica
from mesh_data.shell.streams_metrics import CHECKPOINT_BYTES, CHECKPOINTS_FAILED
from meshcommon.ids import StreamId
from meshcommon.logging import get_logger
from meshraft import AppliedStateRefused, GroupConfig, RaftError, RaftHost
from meshwire.errors import WireError

LOOK_S: Final = 0.5
"""So often the replicas are looked over for one whose checkpoint is due."""
PAUSE_S: Final = 0.1
"""Between two checkpoints, so that their fsyncs do not crowd out those of the log."""

_log = get_logger(__name__)


class Checkpointing:
    """Checkpoints of one node. `run` is for the event loop; everything else blocks on the disk for a moment."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files = CheckpointFiles(directory)

    def use(self, membership: str) -> None:
        """From now on those of this membership: another mesh has other streams under the same ids."""
        self._files = CheckpointFiles(self._directory / membership)

    async def run(self, replicas: Mapping[StreamId, Replica], is_deleted: Callable[[StreamId], bool]) -> None:
        """Writes what is due, until cancelled.

        Args:
            replicas: the open ones, at any time.
            is_deleted: whether a stream was deleted meanwhile.
        """
        while True:
            await asyncio.sleep(LOOK_S)
            while (replica := due((replica, replica.unsaved) for replica in replicas.values())) is not None:
                checkpoint, files = _take(replica), self._files
                if checkpoint is not None:
                    replica.checkpoint_written(await asyncio.to_thread(_write, files, checkpoint))
                    if is_deleted(checkpoint.stream_id):
                        files.forget(checkpoint.stream_id)
                await asyncio.sleep(PAUSE_S)

    def save_all(self, replicas: Iterable[Replica]) -> None:
        """Before groups close: what was applied since the last checkpoints, where that is worth it."""
        for replica in replicas:
            if replica.unsaved.applied_bytes >= CLOSING_BYTES:
                checkpoint = _take(replica)
                if checkpoint is not None:
                    _write(self._files, checkpoint)

    def open(self, host: RaftHost, replica: Replica, peers: dict[int, int], config: GroupConfig) -> None:
        """Opens a stored group at its newest checkpoint that the log bears out, else at its stored snapshot.

        Raises:
            RaftError: the group cannot be opened.
            WireError: the stored snapshot is damaged.
        """
        group, stream_id, member = replica.group, replica.stream.stream_id, int(replica.member_id)
        for checkpoint in self._files.read(stream_id, replica.member_id):
            try:
                floor = host.open_group(group, member, peers, applied_state=checkpoint.applied_state, config=config)
            except AppliedStateRefused as error:
                self._files.refuse(stream_id, checkpoint.applied_index, str(error))
                continue
            try:
                replica.resume(checkpoint, floor)
            except WireError as error:
                host.close_group(group)
                self._files.refuse(stream_id, checkpoint.applied_index, error.reason)
                continue
            return
        installed = host.open_group(group, member, peers, config=config)
        if installed.index:
            replica.restore(installed.data, installed.index)

    def forget(self, stream_id: StreamId) -> None:
        """The stream is gone."""
        self._files.forget(stream_id)


def _write(files: CheckpointFiles, checkpoint: ReplicaCheckpoint) -> int:
    """Returns the size in bytes, 0 when the disk refused."""
    try:
        size_bytes = files.write(checkpoint)
    except OSError as error:
        CHECKPOINTS_FAILED.inc()
        _log.warning("checkpoint_not_written", stream_id=checkpoint.stream_id, reason=str(error))
        return 0
    CHECKPOINT_BYTES.inc(size_bytes)
    return size_bytes


def _take(replica: Replica) -> ReplicaCheckpoint | None:
    try:
        return replica.take_checkpoint()
    except RaftError as error:
        # The next pump closes the group or the host, and says why.
        _log.warning("checkpoint_not_taken", stream=replica.stream.name, reason=str(error))
        return None
