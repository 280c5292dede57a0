"""The list of all error codes, `docs/errors.md`, made from the one table that maps them and the meanings beside it.

scripts/errors-page            writes the page
scripts/errors-page --verify   changes nothing; fails when the page is not what the tables say
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from meshcommon.error_meanings import MEANINGS
from meshcommon.errors import MAPPINGS, ErrorCode

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = ROOT / "docs" / "errors.md"

GROUPS: Final[dict[ErrorCode, str]] = {
    ErrorCode.INVALID_ARGUMENT: "Any service",
    ErrorCode.ALREADY_MEMBER: "Membership",
    ErrorCode.JOIN_CLOSED: "Joining",
    ErrorCode.HANDSHAKE_FAILED: "Lanes and paths",
    ErrorCode.STREAM_NOT_FOUND: "Streams",
    ErrorCode.ROUTE_NOT_FOUND: "REST",
    ErrorCode.SETTING_INVALID: "Start of a service",
}
"""The first code of each group, in the order of the codes."""

_BEGINNING: Final = """\
# Errors

<!-- Made by scripts/errors-page from meshcommon/errors.py and meshcommon/error_meanings.py. Change those, not this page. -->

Whatever is refused or fails is told with a stable code, a sentence that says what to do next, a flag `retryable`, and
values for programs. A code is never renamed. A refusal changes nothing. The column *retry* says what became of the
request:

| retry | the request | asking again | `retryable` |
|---|---|---|---|
| not applied | changed nothing | may succeed | yes |
| unknown | may have taken effect | is safe only if a repetition is recognised: a read, a batch of a producer | yes |
| final | was refused for good, or met a fault that needs a person | changes nothing | no |

*elsewhere: …* is what the same request can come to at another node, or at the next leader, where that differs.

- **gRPC**: the status of the table, and an `ErrorDetail` in the trailing metadata `mesh-error-bin`. Where one item of a
  stream fails, the `ErrorDetail` is in its answer.
- **REST**: the HTTP status of the table and a problem document (`application/problem+json`, RFC 9457) with `type`
  `urn:mesh:error:CODE`.
- **WebSocket**: the problem document as a message, then a close with 1008, or 1011 where the HTTP status is 500 or
  above.
- **meshctl**: one line `error: CODE: sentence` on standard error; exit status 3 where a retry may help, otherwise 1, 2
  for wrong usage, 130 after Ctrl-C. What `meshctl audit` and [`meshctl check`](check.md) find is no error: exit
  status 4 for a finding, 3 where not everything could be looked at.
- **A service that cannot start**: one JSON line on standard error and the exit status of the table.

An error may override the flag of its code: what it says itself counts. A batch without a producer whose outcome is
unknown is not retryable, for example. If the code says *unknown*, it stays that.
"""


def page() -> str:
    """The whole page."""
    return _BEGINNING + "".join(_lines())


def _lines() -> Iterator[str]:
    is_start = False
    for code in ErrorCode:
        mapping = MAPPINGS[code]
        if code in GROUPS:
            is_start = code is ErrorCode.SETTING_INVALID
            last = "exit status" if is_start else "retry"
            yield f"\n## {GROUPS[code]}\n\n| code | meaning | HTTP | gRPC | {last} |\n|---|---|---|---|---|\n"
        end = str(mapping.exit_status) if is_start else mapping.retry.value
        if not is_start and mapping.elsewhere is not mapping.retry:
            end += f"; elsewhere: {mapping.elsewhere.value}"
        yield f"| `{code}` | {MEANINGS[code]} | {mapping.http} | {mapping.grpc} | {end} |\n"


def differences() -> str:
    """What is wrong with the page that is there, as a unified difference; empty when it is current."""
    there = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    lines = difflib.unified_diff(
        there.splitlines(keepends=True), page().splitlines(keepends=True), "docs/errors.md", "the tables"
    )
    return "".join(lines)


def main() -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description="Writes docs/errors.md from the table of error codes.")
    parser.add_argument("--verify", action="store_true", help="change nothing; fail when the page is stale")
    if parser.parse_args().verify:
        found = differences()
        if found:
            print(f"{found}\nerrors-page: docs/errors.md is stale. Run scripts/errors-page and commit the result.")
            return 1
        print("errors-page: docs/errors.md is current")
        return 0
    PAGE.write_text(page(), encoding="utf-8")
    print(f"errors-page: wrote docs/errors.md, {len(ErrorCode)} codes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
