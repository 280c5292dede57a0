"""Many Raft groups over one log: the typed face of the native module.

Everything is documented in `_native.pyi`; this package only re-exports it. It leaves out sockets, clocks and the event
loop, which are the caller's.

Source: Ongaro's thesis; TiKV `raft` 0.7 and `raft-engine` 0.4.
"""

from __future__ import annotations

from meshraft._native import (
    CLASS_BULK,
    CLASS_CONTROL,
    KIND_CONF,
    KIND_EMPTY,
    KIND_NORMAL,
    Backpressure,
    Committed,
    Entry,
    Frame,
    GroupConfig,
    GroupExists,
    GroupPoisoned,
    GroupStatus,
    HostPoisoned,
    Installed,
    InvalidFrame,
    LogCompacted,
    LogCorrupt,
    NotLeader,
    Progress,
    Pump,
    RaftError,
    RaftHost,
    Role,
    SimDisk,
    UnknownGroup,
)

__all__ = [
    "CLASS_BULK",
    "CLASS_CONTROL",
    "KIND_CONF",
    "KIND_EMPTY",
    "KIND_NORMAL",
    "Backpressure",
    "Committed",
    "Entry",
    "Frame",
    "GroupConfig",
    "GroupExists",
    "GroupPoisoned",
    "GroupStatus",
    "HostPoisoned",
    "Installed",
    "InvalidFrame",
    "LogCompacted",
    "LogCorrupt",
    "NotLeader",
    "Progress",
    "Pump",
    "RaftError",
    "RaftHost",
    "Role",
    "SimDisk",
    "UnknownGroup",
]
