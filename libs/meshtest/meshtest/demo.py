"""`make demo`: three nodes, a stream, a link that dies without a word, a service that is killed – and every byte compared.

What it shows and the keys of `build/demo/report.json` are described in the README. Exit status 0 only if what went in
came out, in order, nothing lost and nothing doubled.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import signal
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

from meshcommon.errors import MeshError
from meshtest.demo_input import default_input
from meshtest.line_stream import Reader, RecordingPublisher, publish_paced, split_lines
from meshtest.load import LoadFailedError, run_in_process
from meshtest.site import SiteFailedError
from meshtest.stores import StoreFailedError
from meshtest.trio import Trio, form_mesh, running_trio
from meshtest.waiting import ConditionNotMetError, eventually

DIRECTORY: Final = Path("build/demo")
STREAM: Final = "demo/lines"
SPEED_STREAM: Final = "demo/speed"
PACE_PER_S: Final = 5_000
SPEED_MESSAGES: Final = 200_000
SPEED_BYTES: Final = 128
SPEED_BATCH: Final = 500
_FIRST_PART: Final = 0.3


@dataclass(slots=True)
class Report:
    """Keys of `report.json`. Times in milliseconds; `reroute_ms` is null when the file was too short to measure it."""

    nodes: int = 3
    messages: int = 0
    bytes: int = 0
    sha256_in: str = ""
    sha256_out: str = ""
    lost: int = 0
    duplicated: int = 0
    publish_p50_ms: float = 0.0
    publish_p99_ms: float = 0.0
    messages_per_s: float = 0.0
    hops_before: int = 0
    hops_after: int = 0
    reroute_ms: float | None = None
    restart_ms: float = 0.0

    @property
    def is_good(self) -> bool:
        """Whether everything that went in came out, once and in order."""
        return self.sha256_in == self.sha256_out and self.lost == 0 and self.duplicated == 0


class Narrator:
    """Prints each step in plain words with the time since the start."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._is_terminal = sys.stdout.isatty()
        self._has_progress = False

    def say(self, text: str) -> None:
        """One step."""
        self._end_progress()
        print(f"[{time.monotonic() - self._started:6.1f} s] {text}", flush=True)

    def progress(self, text: str) -> None:
        """A passing state: overwritten on a terminal, a line of its own elsewhere."""
        start, end = ("\r\x1b[K", "") if self._is_terminal else ("", "\n")
        self._has_progress = self._is_terminal
        print(f"{start}           … {text}", end=end, flush=True)

    def _end_progress(self) -> None:
        if self._has_progress:
            print("\r\x1b[K", end="")
            self._has_progress = False


async def run_demo(data: bytes, narrator: Narrator) -> Report:
    """The whole story; everything that it started is stopped when it returns or raises."""
    narrator.say("starting three nodes (a and b listen for peers, c only dials)")
    async with running_trio(DIRECTORY / "sites", narrator.say) as trio:
        await form_mesh(trio.sites, trio.gateways, narrator.say)
        narrator.say("all three nodes see a HEALTHY mesh")
        await create_led_by_a(trio, STREAM)
        narrator.say(f"stream {STREAM} formed on a, b, c with a leading")
        report = await _story(trio, data, narrator)
        await _full_speed(trio, report, narrator)
    narrator.say("everything is stopped")
    return report


async def create_led_by_a(trio: Trio, stream: str) -> None:
    """Creates a stream on all three nodes and waits until a leads it."""
    await trio.create_stream(stream)

    async def a_leads() -> bool:
        return (await trio.gateways["a"].describe(stream)).leader == "a"

    await eventually(f"a leads {stream}", a_leads)


async def _story(trio: Trio, data: bytes, narrator: Narrator) -> Report:
    lines = split_lines(data)
    report = Report(messages=len(lines), bytes=len(data), sha256_in=hashlib.sha256(data).hexdigest())
    publisher = RecordingPublisher(trio.gateways["a"], STREAM)
    output = DIRECTORY / "received"
    reader = Reader(trio.gateways["c"], STREAM, output)
    go = asyncio.Event()
    go.set()
    narrator.say(f"publishing {len(lines):,} lines ({len(data):,} B) at a, {PACE_PER_S:,}/s; a reader follows at c")
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(reader.run(), name="reader at c")
        sending = group.create_task(publisher.run(), name="publisher at a")
        group.create_task(publish_paced(publisher, lines, PACE_PER_S, go), name="pace")
        showing = group.create_task(_show_progress(publisher, reader, len(lines), narrator), name="progress")
        await _faults(trio, publisher, reader, report, narrator)
        await sending
        narrator.say(f"all {publisher.committed:,} lines are committed ({publisher.retries} retried calls)")
        await eventually("the reader at c has every line", partial(_has_all, reader, len(lines)), timeout_s=60)
        showing.cancel()
        reading.cancel()
    received = output.read_bytes()
    report.sha256_out = hashlib.sha256(received).hexdigest()
    sent, got = Counter(lines), Counter(reader.lines)
    report.lost = sum((sent - got).values())
    report.duplicated = sum((got - sent).values())
    return report


async def _has_all(reader: Reader, count: int) -> bool:
    return len(reader.lines) >= count


async def _show_progress(publisher: RecordingPublisher, reader: Reader, total: int, narrator: Narrator) -> None:
    while True:
        await asyncio.sleep(2)
        narrator.progress(f"{publisher.committed:,} of {total:,} committed, {len(reader.lines):,} read at c")


async def _faults(
    trio: Trio, publisher: RecordingPublisher, reader: Reader, report: Report, narrator: Narrator
) -> None:
    """Silences a–c, heals it, kills b's data plane: all while lines are being published."""
    first_part = int(report.messages * _FIRST_PART)
    await eventually("the first part is published", partial(_committed, publisher, first_part), timeout_s=300)
    path = await eventually("a has a path to c", partial(trio.gateways["a"].path_in_use, "c"))
    report.hops_before = len(path) - 1
    cut_at = time.monotonic()
    trio.link("a", "c").silence()
    narrator.say(f"silenced the link a–c ({'–'.join(path)} was in use): nothing is closed, bytes just stop")
    path = await eventually("a reaches c through b", partial(_path_through_b, trio))
    report.hops_after = len(path) - 1
    report.reroute_ms = await _reroute_ms(publisher, reader, cut_at)
    shown = "not measured: the file is too short" if report.reroute_ms is None else f"{report.reroute_ms:.0f} ms"
    narrator.say(f"records go on through b ({'–'.join(path)}); first record after the cut: {shown}")
    trio.link("a", "c").heal()
    healed_at = time.monotonic()
    await eventually("a reaches c directly again", partial(_is_direct, trio), timeout_s=30)
    narrator.say(f"healed a–c: direct again after {(time.monotonic() - healed_at) * 1000:.0f} ms")
    trio.sites["b"].kill_service("data")
    narrator.say("killed b's data plane (SIGKILL)")
    started = time.monotonic()
    trio.sites["b"].start_service("data")
    await eventually("b has caught up", partial(_has_caught_up, trio, "b"), timeout_s=60, poll_s=0.02)
    report.restart_ms = (time.monotonic() - started) * 1000
    narrator.say(f"b's data plane is back and has caught up {report.restart_ms:.0f} ms after its process started")


async def _committed(publisher: RecordingPublisher, count: int) -> bool:
    return publisher.committed >= count


async def _path_through_b(trio: Trio) -> list[str] | None:
    path = await trio.gateways["a"].path_in_use("c")
    return path if path == ["a", "b", "c"] else None


async def _is_direct(trio: Trio) -> bool:
    return await trio.gateways["a"].path_in_use("c") == ["a", "c"]


async def _has_caught_up(trio: Trio, node: str) -> bool:
    """Whether the node's own replica has applied everything that the leader had applied a moment before."""
    leader = await trio.gateways["a"].describe(STREAM)
    own = await trio.gateways[node].describe(STREAM, is_local=True)
    return own.applied_index >= leader.applied_index


async def _reroute_ms(publisher: RecordingPublisher, reader: Reader, cut_at: float) -> float | None:
    """Time from the cut to the first record at c that was sent after it; None when nothing was left to send."""

    async def measured() -> tuple[float | None] | None:
        after = next((batch for batch in publisher.batches if batch.sent_at > cut_at), None)
        if after is None:
            return (None,) if publisher.committed == publisher.submitted else None
        if after.base_offset < 0:
            return None
        arrival = next((at for offset, at in reader.arrivals if offset >= after.base_offset), None)
        return None if arrival is None else ((arrival - cut_at) * 1000,)

    return (await eventually("a record published after the cut arrives at c", measured))[0]


async def _full_speed(trio: Trio, report: Report, narrator: Narrator) -> None:
    """SPEED_MESSAGES of SPEED_BYTES as fast as they go, in batches, every one committed."""
    await create_led_by_a(trio, SPEED_STREAM)
    narrator.say(f"full speed: {SPEED_MESSAGES:,} messages of {SPEED_BYTES} B in batches of {SPEED_BATCH}")
    figures = await run_in_process(trio.gateways["a"].target, SPEED_STREAM, SPEED_MESSAGES, SPEED_BYTES, SPEED_BATCH)
    report.messages_per_s = figures.messages_per_s
    report.publish_p50_ms = figures.publish_p50_ms
    report.publish_p99_ms = figures.publish_p99_ms


def _print_summary(report: Report, narrator: Narrator) -> None:
    rows = [
        ("lines published, bytes", f"{report.messages:,}, {report.bytes:,}"),
        ("sha256 in", report.sha256_in),
        ("sha256 out", report.sha256_out),
        ("lost, duplicated", f"{report.lost}, {report.duplicated}"),
        ("hops a→c before and after the cut", f"{report.hops_before}, {report.hops_after}"),
        ("silent cut → record on the other path", "–" if report.reroute_ms is None else f"{report.reroute_ms:.0f} ms"),
        ("data plane killed → caught up", f"{report.restart_ms:.0f} ms"),
        ("full speed, committed", f"{report.messages_per_s:,.0f} messages/s of {SPEED_BYTES} B"),
        ("publish p50, p99 at full speed", f"{report.publish_p50_ms:.1f} ms, {report.publish_p99_ms:.1f} ms"),
    ]
    narrator.say("summary")
    for name, value in rows:
        print(f"    {name:<40} {value}")
    verdict = "every byte that went in came out, once and in order" if report.is_good else "INPUT AND OUTPUT DIFFER"
    print(f"\n{verdict}; {DIRECTORY}/report.json has the figures")


async def _run_until_interrupted(data: bytes, narrator: Narrator) -> Report | None:
    """None when Ctrl-C or SIGTERM came; everything is stopped then, too."""
    story = asyncio.create_task(run_demo(data, narrator), name="demo")
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, story.cancel)
    try:
        return await story
    except asyncio.CancelledError:
        return None


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m meshtest.demo", description=__doc__)
    parser.add_argument("--file", type=Path, help="what to publish; the standard library's source unless given")
    path: Path | None = parser.parse_args().file
    narrator = Narrator()
    try:
        data = default_input() if path is None else path.read_bytes()
    except OSError as error:
        sys.exit(f"error: cannot read {path}: {error.strerror}")
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    report: Report | None = None
    try:
        report = asyncio.run(_run_until_interrupted(data, narrator))
    except* (SiteFailedError, StoreFailedError, ConditionNotMetError, LoadFailedError, MeshError) as failures:
        for failure in failures.exceptions:
            print(f"error: {failure}", file=sys.stderr)
        sys.exit(f"the demo failed; logs are in {DIRECTORY}/sites/*/log/")
    if report is None:
        sys.exit("interrupted; everything that was started is stopped")
    (DIRECTORY / "report.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
    _print_summary(report, narrator)
    sys.exit(0 if report.is_good else 1)


if __name__ == "__main__":
    main()
