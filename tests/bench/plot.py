"""A picture of a bench's ratios, as SVG written by hand: a bar for each row on a logarithmic scale, and the bar to reach.

To the right of the line at 1 we do better than the peer, whether that means more or less of the unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

_WIDTH: Final = 860
_LEFT: Final = 250
_RIGHT: Final = 150
_ROW: Final = 30
_TOP: Final = 64
_LOW: Final = 0.1
_HIGH: Final = 32.0
_TICKS: Final = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
_MET, _SHORT, _PLAIN = "#2a7f62", "#c0562f", "#7a8594"


def better_by(row: Mapping[str, Any], ratio: float) -> float:
    """The ratio turned so that more is better."""
    return ratio if row["better"] == "higher" else 1 / ratio


def draw(found: Mapping[str, Any], title: str, path: Path) -> None:
    """Writes the picture of the rows that have a ratio."""
    rows = [row for row in found["rows"] if row["ratio"]]
    height = _TOP + _ROW * len(rows) + 48
    load = found["machine"].get("load_1m")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="sans-serif">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        _text(16, 26, title, size=17),
        _text(16, 46, f"{found['taken_at']}, load of the machine before {load}", colour=_PLAIN),
        *_grid(len(rows)),
    ]
    for at, row in enumerate(rows):
        parts += _bar(_TOP + _ROW * at, row)
    parts.append(_text(_LEFT, height - 12, "times better than the peer; the mark is the bar to reach", colour=_PLAIN))
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")


def _grid(rows: int) -> Sequence[str]:
    bottom = _TOP + _ROW * rows
    lines: list[str] = []
    for tick in _TICKS:
        x = _x(tick)
        colour, width = ("#333", 1.5) if tick == 1 else ("#ddd", 1)
        lines.append(
            f'<line x1="{x}" x2="{x}" y1="{_TOP - 4}" y2="{bottom}" stroke="{colour}" stroke-width="{width}"/>'
        )
        lines.append(_text(x, bottom + 16, f"{tick:g}", anchor="middle", colour=_PLAIN))
    return lines


def _bar(y: int, row: Mapping[str, Any]) -> Sequence[str]:
    found = better_by(row, row["ratio"])
    colour = _PLAIN if row["met"] is None else _MET if row["met"] else _SHORT
    start, end = sorted((_x(1), _x(found)))
    figures = f"{row['ours']:,g} vs {row['peer']:,g} {row['unit']}"
    width = max(end - start, 1)
    bar = f'<rect x="{start}" y="{y + 6}" width="{width:.1f}" height="{_ROW - 12}" fill="{colour}">'
    unit = row["unit"].replace("messages/s", "/s")
    parts = [
        _text(_LEFT - 10, y + 19, row["case"], anchor="end"),
        f"{bar}<title>{escape(figures)}</title></rect>",
        _text(_WIDTH - _RIGHT + 10, y + 19, f"{found:.2g}x  ({_short(row['ours'])} {unit})"),
    ]
    if row["bar"] and row["peer"]:
        x = _x(better_by(row, row["bar"] / row["peer"]))
        parts.append(f'<line x1="{x}" x2="{x}" y1="{y + 2}" y2="{y + _ROW - 2}" stroke="black" stroke-width="3"/>')
    return parts


def _short(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 1000 else f"{figure:.3g}"


def _x(ratio: float) -> float:
    share = math.log(min(max(ratio, _LOW), _HIGH) / _LOW) / math.log(_HIGH / _LOW)
    return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)


def _text(x: float, y: float, text: str, *, anchor: str = "start", colour: str = "#222", size: int = 12) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">{escape(text)}</text>'
