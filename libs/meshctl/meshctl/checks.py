"""The checks of `meshctl check`: what they are called, what they depend on, and which result the answers give.

Pure: answers of the gateway in, results out. `check_command` asks the gateway and prints. A check never guesses: if the
answer that it reads is missing, it is skipped and says why. A failed check also skips the checks that depend on it, so
that one cause shows as one failure. The decisions are in `node_checks`, `mesh_checks` and `stream_checks`.
Source: docs/check.md, whose table lists every id.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, TypeVar

from meshapi.supervisor.v1 import ca_pb2, data_pb2, mesh_pb2, topology_pb2
from meshcommon.errors import ErrorCode, MeshError

NAMED_MAX: Final = 5
"""Names in a summary; `details` has them all."""
AWAY: Final = frozenset({ErrorCode.UNAVAILABLE, ErrorCode.DEADLINE_EXCEEDED})
"""Codes of a service that does not answer."""
CONTROL_PLANE: Final = "control plane"
ROUTING: Final = "routing"
DATA_PLANE: Final = "data plane"

_NOT_ASKED: Final = MeshError(ErrorCode.UNAVAILABLE, "Not asked.")

AnswerT = TypeVar("AnswerT")


class Status(StrEnum):
    """What came of a check. Users depend on these words: they are never renamed."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Answers:
    """What the gateway answered. An error stands where an answer is missing."""

    gateway: str
    """Address that was asked."""
    status: mesh_pb2.GetStatusResponse | MeshError
    """From the control plane."""
    links: topology_pb2.ListLinksResponse | MeshError
    """From routing."""
    forwarding: data_pb2.GetForwardingResponse | MeshError
    """From the data plane."""
    replicas: data_pb2.ListReplicasResponse | MeshError
    """From the data plane."""
    remote: Mapping[str, data_pb2.DescribeStreamResponse | MeshError] = field(default_factory=dict)
    """Streams of the catalogue that this node holds no replica of, by name."""
    not_asked: int = 0
    """More such streams, which were not asked about."""
    ca: ca_pb2.ShowCaResponse | MeshError = _NOT_ASKED
    """From the control plane."""
    certificates: ca_pb2.ListCertificatesResponse | MeshError = _NOT_ASKED
    """From the control plane."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        status: The verdict.
        summary: One line without a full stop.
        hint: What to do next; empty if there is nothing to do.
        details: Values for programs, for example all names where the summary shows the first.
    """

    status: Status
    summary: str
    hint: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """A finding and the id of its check."""

    id: str
    finding: Finding

    def as_json(self) -> dict[str, Any]:
        """The form that `--json` prints."""
        found = self.finding
        return {
            "id": self.id,
            "status": found.status.value,
            "summary": found.summary,
            "hint": found.hint,
            "details": dict(found.details),
        }


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    Attributes:
        id: Stable name `subject.aspect`; never renamed, never used for another meaning.
        needs: Ids of earlier checks; if one of them fails, this one is skipped.
        decide: The decision. It raises NoAnswerError if an answer that it reads is missing.
    """

    id: str
    decide: Callable[[Answers], Finding]
    needs: tuple[str, ...] = ()


class NoAnswerError(Exception):
    """The answer that a check reads is missing; the text says why."""

    def __init__(self, service: str, error: MeshError) -> None:
        reason = f"no answer from {service}" if error.code in AWAY else f"{error.code}: {error.message}"
        super().__init__(reason)
        self.code = error.code


def told(answer: AnswerT | MeshError, service: str) -> AnswerT:
    """The answer of `service`.

    Raises:
        NoAnswerError: There is none.
    """
    if isinstance(answer, MeshError):
        raise NoAnswerError(service, answer)
    return answer


def ok(summary: str, **details: Any) -> Finding:
    """All is well."""
    return Finding(Status.OK, summary, "", details)


def warning(summary: str, hint: str, **details: Any) -> Finding:
    """It works, and somebody should look at it."""
    return Finding(Status.WARNING, summary, hint, details)


def failed(summary: str, hint: str, **details: Any) -> Finding:
    """Something does not work."""
    return Finding(Status.FAILED, summary, hint, details)


def skipped(summary: str, hint: str = "", **details: Any) -> Finding:
    """Not looked at, or not at everything."""
    return Finding(Status.SKIPPED, summary, hint, details)


def some(names: Iterable[str]) -> str:
    """The first names and how many there are beside them."""
    listed = list(names)
    rest = len(listed) - NAMED_MAX
    return ", ".join(listed[:NAMED_MAX]) + (f" and {rest} more" if rest > 0 else "")


def count(number: int, singular: str, plural: str = "") -> str:
    """`1 node`, `2 nodes`."""
    return f"{number} {singular if number == 1 else plural or singular + 's'}"


def run_checks(checks: Sequence[Check], answers: Answers, only: Collection[str] = ()) -> list[Result]:
    """Results in the order of `checks`.

    Args:
        checks: A check comes after those that it needs.
        answers: What the gateway answered.
        only: Ids of the results wanted, all if empty. What they need is looked at in any case.
    """
    results: dict[str, Result] = {}
    for check in checks:
        results[check.id] = Result(check.id, _find(check, answers, results))
    return [result for result in results.values() if not only or result.id in only]


def _find(check: Check, answers: Answers, earlier: Mapping[str, Result]) -> Finding:
    for need in check.needs:
        if earlier[need].finding.status is Status.FAILED:
            return skipped(f"not looked at: {need} failed")
    try:
        return check.decide(answers)
    except NoAnswerError as error:
        return skipped(f"not looked at: {error}", code=str(error.code))


def tally(results: Iterable[Result]) -> dict[Status, int]:
    """How many results there are of each status."""
    found = dict.fromkeys(Status, 0)
    for result in results:
        found[result.finding.status] += 1
    return found


def unsettled(results: Iterable[Result]) -> list[str]:
    """Ids of what failed or, if nothing did, of what was skipped. Warnings are accepted."""
    listed = list(results)
    bad = [result.id for result in listed if result.finding.status is Status.FAILED]
    return bad or [result.id for result in listed if result.finding.status is Status.SKIPPED]


def lines(results: Sequence[Result]) -> Iterator[tuple[Status, str, str]]:
    """For people: status, line and hint of each result, the ids in a column."""
    width = max((len(result.id) for result in results), default=0)
    for result in results:
        yield result.finding.status, f"{result.id:<{width}}  {result.finding.summary}", result.finding.hint
