"""Which streams have had no leader for so long that an operator should hear of it, as the local replicas know.

An election is over within seconds, and a sleeping group keeps its leader. A member that has no data yet is left out: it may
only wait for its turn while the leader looks after another one. Source: docs/design/recovery.md, "Attested recovery".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from mesh_control.core.confirmations import Report
from mesh_control.core.model import Stream, StreamPhase
from meshcommon.ids import NO_NODE, MemberId, StreamId

NAMED_MAX: Final = 10
"""Streams with a sentence of their own; the others are counted. A lost node may stop thousands."""


@dataclass(frozen=True, slots=True)
class _Leaderless:
    since_s: float
    since: datetime
    member_id: MemberId


class LeaderlessStreams:
    """Remembers since when each local replica knows no leader."""

    def __init__(self, after_s: float) -> None:
        """`after_s`: a leader may be missing this long before it is told."""
        self._after_s = after_s
        self._known: dict[StreamId, _Leaderless] = {}

    def receive(self, reports: Mapping[StreamId, Report], now_s: float, now: datetime) -> None:
        """All that the local replicas say, at `now_s` of a clock that only goes forward, `now` in UTC."""
        self._known = {
            stream_id: self._noted(stream_id, _Leaderless(now_s, now, report.member_id))
            for stream_id, report in reports.items()
            if report.state == "open" and report.leader == NO_NODE
        }

    def _noted(self, stream_id: StreamId, item: _Leaderless) -> _Leaderless:
        known = self._known.get(stream_id)
        return known if known is not None and known.member_id == item.member_id else item

    def warnings(self, streams: Iterable[Stream], now_s: float) -> list[str]:
        """Sentences for the status, by the stream's name."""
        found = sorted((stream.name, item.since) for stream in streams if (item := self._lasting(stream, now_s)))
        told = [
            f"Stream {name!r} has had no leader since {since:%Y-%m-%d %H:%M:%S} UTC, as far as this node knows: nothing can "
            "be published or read exactly. `meshctl raft ls` says whom it waits for; `meshctl raft recover "
            f"{name} --survivor NODE` is the way out when a member is lost for good."
            for name, since in found[:NAMED_MAX]
        ]
        if len(found) > NAMED_MAX:
            told.append(f"{len(found) - NAMED_MAX} more streams have no leader either: `meshctl raft ls` names them.")
        return told

    def _lasting(self, stream: Stream, now_s: float) -> _Leaderless | None:
        """Since when the stream has no leader, if it lasts and the replica that says so is still in the group."""
        item = self._known.get(stream.stream_id)
        if item is None or now_s - item.since_s < self._after_s or stream.state is StreamPhase.DELETING:
            return None
        members = {member.member_id for member in stream.members}
        members |= {member.member_id for member in stream.retiring if not member.is_out}
        return item if item.member_id in members else None
