"""Many Raft groups over one log: the typed face of the native module, and the driver of what it leaves to its caller.

Everything native is documented in `_native.pyi` and re-exported here. The driver is pure Python without sockets, clocks or an
event loop; only `host_loop` knows asyncio, and nothing here imports it.

Source: Ongaro's thesis; TiKV `raft` 0.7 and `raft-engine` 0.4.

Files:

    configuration  The members of one group as its leader sees them: who votes, who is heard, who has caught up, what is
                   witnessed
    driver         The driver of one Raft host: its groups, and the one order in which what a turn produces is acted
                   upon
    group          One member of one group, as its node drives it: role, terms, proposals, read points, steps of the
                   configuration
    host_loop      The asyncio shell of a Raft driver: its ticks, the wake-ups of the log, and one turn for all that
                   came since the last
    proposals      Proposals of one group that this member has appended and that are not decided, and who waits for them
    read_points    Read points of one group: what its leader confirms to be committed, so that a read sees all that was
                   acknowledged
"""

from __future__ import annotations

from meshraft._native import (
    CLASS_BULK,
    CLASS_CONTROL,
    ENTRY_CONF_CHANGE,
    ENTRY_EMPTY,
    ENTRY_NORMAL,
    AppliedStateRefused,
    Backpressure,
    Committed,
    EngineDisk,
    Entries,
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
    LogReader,
    NotLeader,
    Progress,
    PublishRun,
    Pump,
    RaftError,
    RaftHost,
    Role,
    SimDisk,
    UnknownGroup,
    publish_runs,
)

__all__ = [
    "CLASS_BULK",
    "CLASS_CONTROL",
    "ENTRY_CONF_CHANGE",
    "ENTRY_EMPTY",
    "ENTRY_NORMAL",
    "AppliedStateRefused",
    "Backpressure",
    "Committed",
    "EngineDisk",
    "Entries",
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
    "LogReader",
    "NotLeader",
    "Progress",
    "PublishRun",
    "Pump",
    "RaftError",
    "RaftHost",
    "Role",
    "SimDisk",
    "UnknownGroup",
    "publish_runs",
]
