"""The last view on disk, so that routing restarts while the control plane is down. Blocking; a small file.

A damaged file is reported and ignored: the control plane pushes the view again when it is back.
"""

from __future__ import annotations

import zlib
from typing import Final

from google.protobuf.message import DecodeError

from meshapi.routing.v1 import routing_pb2
from meshcommon.datadir import DataDir
from meshcommon.delegated_keys import DelegatedKeys
from meshcommon.durable import write_durably
from meshcommon.logging import get_logger

_FILE: Final = "view.bin"
_MODE: Final = 0o600
_MAGIC: Final = b"MRV1"
_HEADER_BYTES: Final = len(_MAGIC) + 4
_log = get_logger(__name__)


class ViewStore:
    """`view.bin`: magic, CRC-32 of the rest, the last Configure request."""

    def __init__(self, data_dir: DataDir, keys: DelegatedKeys) -> None:
        """`keys` are this service's own, which stay when the directory is emptied."""
        self._data_dir = data_dir
        self._keys = keys
        self._path = data_dir.path / _FILE

    def load(self) -> routing_pb2.ConfigureRequest | None:
        """What was saved last, None when there is nothing usable."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None
        body = data[_HEADER_BYTES:]
        if data[:_HEADER_BYTES] == _header(body):
            try:
                return routing_pb2.ConfigureRequest.FromString(body)
            except DecodeError:
                _log.warning("view_unreadable", path=str(self._path))
                return None
        _log.warning("view_damaged", path=str(self._path), bytes=len(data))
        return None

    def save(self, request: routing_pb2.ConfigureRequest) -> None:
        """Replaces what is there; the directory is bound to the node and mesh of `request`.

        Raises:
            OSError: The disk refused.
            MeshError: DATA_DIR_UNWRITABLE.
        """
        membership = (request.node_id, request.view.mesh_id if request.node_id else "")
        marker = self._data_dir.marker
        if (marker.node_id, marker.mesh_id) not in {membership, (0, "")}:
            # The control plane decides the membership; all that is here derives from it.
            self._data_dir.reset()
            self._keys.keep()
        if not request.node_id:
            self.forget()
            return
        self._data_dir.claim(*membership)
        body = request.SerializeToString()
        write_durably(self._path, _header(body) + body, _MODE)

    def forget(self) -> None:
        """Removes the view. Raises OSError."""
        self._path.unlink(missing_ok=True)


def _header(body: bytes) -> bytes:
    return _MAGIC + zlib.crc32(body).to_bytes(4, "big")
