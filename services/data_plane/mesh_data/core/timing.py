"""Times of the overlay, with named presets. Source: architecture §5 "Detection"; RFC 6298 for the estimator's gains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class OverlayTiming:
    """All times in seconds.

    Attributes:
        beat_s: a lane's heartbeat period; all lanes of a node beat at the same moments. Cost: a wake per beat, and two packets of about 70 bytes per beat, lane and direction.
        silence_floor_s: a lane is down after max(floor, base + srtt_factor·SRTT + rttvar_factor·RTTVAR) of silence.
        silence_base_s: see above.
        srtt_factor: see above.
        rttvar_factor: see above.
        handshake_s: a lane that has not proved its keys by then is closed.
        dial_first_s: bound of the first delay before dialling again; doubles up to `dial_max_s`, with full jitter.
        dial_max_s: largest bound of that delay.
        yield_s: how long the node with the smaller id leaves the dialling to the other, when both can be dialled.
        broken_hold_s: how long a source avoids a link that a path error named.
        path_error_gap_s: least time between two path errors to one source about one link.
        join_lane_life_s: a lane that carries only the join protocol is closed after that.
    """

    beat_s: float = 0.1
    silence_floor_s: float = 0.3
    silence_base_s: float = 0.2
    srtt_factor: float = 1.5
    rttvar_factor: float = 4.0
    handshake_s: float = 2.0
    dial_first_s: float = 0.1
    dial_max_s: float = 2.0
    yield_s: float = 3.0
    broken_hold_s: float = 1.0
    path_error_gap_s: float = 0.05
    join_lane_life_s: float = 60.0


PRESETS: Final = {"lan": OverlayTiming(), "wan": OverlayTiming(handshake_s=5.0), "test": OverlayTiming()}
"""The detector adapts to the path by itself, so the presets hardly differ; `wan` gives the handshake more round trips."""
