"""The files that say which store a Raft log directory is, and what was seen of the peers' stores.

`DIRECTORY/store.identity` goes wherever the log goes; the anchor lies outside of it; `DIRECTORY/store.peers` is the memory of the
peers. Each is a CRC-32 and JSON. The record is written before its anchor, so that an anchor is never ahead of a good
record. All calls block; small files. Leaves out: what follows from them (`store_record`). Source: architecture §7 "Identity
file and log directories share a store id and a boot number".
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from meshcommon.durable import sync_directory, write_durably
from meshcommon.ids import NodeId
from meshcommon.store_guard import StoreMemory
from meshcommon.store_lineage import Incarnation, Lineage, Seen
from meshcommon.store_record import Anchor, Found, StoreRecord

IDENTITY_FILE: Final = "store.identity"
PEERS_FILE: Final = "store.peers"


class StoreFiles:
    """The files of one log directory, which exists. The `anchor`, if any, may be of another directory and says nothing then."""

    def __init__(self, directory: Path, anchor: Path | None) -> None:
        self._directory = directory
        self._anchor = anchor

    def read(self) -> Found:
        """Record and anchor. Raises OSError."""
        fields = _load(self._directory / IDENTITY_FILE)
        known = _load(self._anchor) if self._anchor is not None else None
        anchor = _anchor_in(known or {}, self._directory.name)
        if fields is None:
            return Found(None, anchor=anchor)
        record = _record_in(fields)
        return Found(record, record is None, anchor)

    def write(self, record: StoreRecord) -> None:
        """Makes a record durable, then its anchor. Raises OSError."""
        lineage = record.lineage
        _save(
            self._directory / IDENTITY_FILE,
            {
                "store_id": lineage.store_id,
                "lives": [[incarnation.incarnation_id, incarnation.boot] for incarnation in lineage.incarnations],
                "renounced": list(lineage.renounced),
                "disowned": sorted(record.disowned),
                "reason": record.reason,
            },
        )
        if self._anchor is None:
            return
        present = {"store_id": lineage.store_id, "boot": lineage.present.boot, "renounced": list(lineage.renounced)}
        _save(self._anchor, {"directory": self._directory.name, **present})

    def read_peers(self) -> StoreMemory:
        """What is known of the peers; nothing when it cannot be read: then they are believed anew. Raises OSError."""
        fields = _load(self._directory / PEERS_FILE) or {}
        try:
            return StoreMemory(_known_in(fields["seen"]), _known_in(fields["heard"]))
        except (AttributeError, KeyError, TypeError, ValueError):
            return StoreMemory()

    def write_peers(self, memory: StoreMemory) -> None:
        """Makes the memory of the peers durable. Raises OSError."""
        _save(self._directory / PEERS_FILE, {"seen": _known_to(memory.seen), "heard": _known_to(memory.heard)})


def forget_anchor(anchor: Path) -> None:
    """The node left its mesh: no log directory is missed. Raises OSError."""
    if anchor.exists():
        anchor.unlink()
        sync_directory(anchor.parent)


def _load(path: Path) -> dict[str, Any] | None:
    """None when there is no such file; empty when it is damaged."""
    try:
        checksum, _, body = path.read_bytes().partition(b" ")
        fields = json.loads(body) if checksum == _checksum(body) else {}
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _save(path: Path, fields: Mapping[str, Any]) -> None:
    body = json.dumps(fields).encode()
    write_durably(path, b"%s %s" % (_checksum(body), body))


def _checksum(body: bytes) -> bytes:
    return b"%08x" % zlib.crc32(body)


def _anchor_in(fields: Mapping[str, Any], directory: str) -> Anchor | None:
    try:
        if fields["directory"] != directory:
            return None
        return Anchor(int(fields["store_id"]), int(fields["boot"]), tuple(map(int, fields["renounced"])))
    except (KeyError, TypeError, ValueError):
        return None


def _known_to(known: Mapping[NodeId, Seen]) -> dict[str, list[int]]:
    return {
        str(node): [seen.store_id, seen.incarnation_id, seen.boot, *seen.renounced]
        for node, seen in sorted(known.items())
    }


def _known_in(fields: Mapping[str, Any]) -> dict[NodeId, Seen]:
    return {NodeId(int(node)): _seen_in(*seen) for node, seen in fields.items()}


def _seen_in(store_id: int, incarnation_id: int, boot: int, *renounced: int) -> Seen:
    return Seen(int(store_id), int(incarnation_id), int(boot), tuple(map(int, renounced)))


def _record_in(fields: Mapping[str, Any]) -> StoreRecord | None:
    try:
        lineage = Lineage(
            int(fields["store_id"]),
            tuple(Incarnation(int(incarnation), int(boot)) for incarnation, boot in fields["lives"]),
            tuple(map(int, fields["renounced"])),
        )
        record = StoreRecord(lineage, frozenset(map(int, fields["disowned"])), str(fields["reason"]))
    except (KeyError, TypeError, ValueError):
        return None
    return record if lineage.incarnations else None
