"""What has no time and why: what failed, what is not made for a case, and what was measured and is not to be relied on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from reports.compare import why
from reports.load import Case, Results
from reports.tables import CaseRow, name_of
from suites.record import CaseRecord
from suites.statistics import time_us

EVERY = "every kernel"
FAILED = ("wrong", "failed", "ok")
"""States of a result without a time that should have one; the others, unavailable and refused, are no failures."""


@dataclass(frozen=True)
class Row:
    """One reason. kernel: its name, or `EVERY`. count: of the cases. example: one of them."""

    kernel: str
    reason: str
    count: int
    example: str


def failures(results: Results) -> list[Row]:
    """What should have a time in a measured or planned case and has none."""
    found: dict[tuple[str, str], list[str]] = {}
    for case in results.measured:
        for result in case.record.results:
            if result.status in FAILED and time_us(result) is None:
                found.setdefault((result.kernel, why(result).removeprefix(f"{result.kernel}: ")), []).append(_where(case.record))
    for case in results.unreached:
        found.setdefault((EVERY, "should have been measured, and was not"), []).append(_where(case.record))
    return [Row(kernel, reason, len(places), places[0]) for (kernel, reason), places in sorted(found.items())]


def absences(cases: Iterable[Case]) -> list[Row]:
    """What cannot take part in these cases: kernels that are not made for it, cases that are refused. Reasons that differ in their
    last words only ("…, not 512") are one row."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for case in cases:
        absent = [result for result in case.record.results if result.status not in FAILED]
        reasons = [(result.kernel, why(result).removeprefix(f"{result.kernel}: ").removeprefix("unavailable, ")) for result in absent]
        for kernel, reason in [*reasons, *([(EVERY, case.record.refusal)] if case.record.refusal else [])]:
            split = re.fullmatch(r"(.+), not ([^,;]+)", reason)
            base, last = (split[1], split[2]) if split else (reason, "")
            found.setdefault((kernel, base), {}).setdefault(last, []).append(_where(case.record))
    return [
        Row(kernel, _joined(base, own), sum(map(len, own.values())), next(iter(own.values()))[0])
        for (kernel, base), own in sorted(found.items(), key=lambda item: item[0])
    ]


def _joined(base: str, lasts: Iterable[str]) -> str:
    known = sorted((last for last in lasts if last), key=lambda last: (not last.isdigit(), int(last) if last.isdigit() else 0, last))
    return f"{base}, not {', '.join(known)}" if known else base


def _where(record: CaseRecord) -> str:
    return " ".join(dict.fromkeys(name for name in (record.suite, record.model, name_of(record)) if name))


def statuses(results: Results) -> dict[str, int]:
    """How many results of measured cases have each status."""
    found: dict[str, int] = {}
    for case in results.measured:
        for result in case.record.results:
            found[result.status] = found.get(result.status, 0) + 1
    return found


def doubtful(tables: Iterable[tuple[str, list[CaseRow]]]) -> list[tuple[str, str, str]]:
    """The measured cases that are not to be relied on: suite, case, and why."""
    flagged = [(name, row.comparison.case.record, row.flag) for name, rows in tables for row in rows if row.flag]
    return [(name, " ".join(filter(None, (record.model, name_of(record)))), flag) for name, record, flag in flagged]
