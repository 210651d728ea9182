"""What a run shows while it goes: a bar with the time left on a terminal, plain lines elsewhere; and the table at its end."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from suites.case import Case
from suites.quality import headline, troubles
from suites.record import CaseRecord
from suites.statistics import best_variant, geomean, strongest, time_us


class Reporter:
    """Tells of each case as it is done; a context manager. total: cases to come. stream: standard output unless another is given."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self._total, self._done, self._started = total, 0, time.monotonic()
        stream = stream or sys.stdout
        self._console = Console(file=stream, highlight=False, markup=False, soft_wrap=True)
        self._bar: Progress | None = None
        if stream.isatty():
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console)
            self._bar.add_task("starting", total=total)

    def __enter__(self) -> Reporter:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def case(self, case: Case, record: CaseRecord) -> None:
        """One case is done."""
        self._done += 1
        problems = [text for _, text in troubles(record)]
        if self._bar:
            self._bar.update(self._bar.task_ids[0], description=str(case), completed=self._done)
        else:
            self._console.print(f"[{self._done}/{self._total}, {self._left()} left] {case}: {summary(record)}")
        for text in problems:
            self._console.print(f"  ! {case}: {text}" if self._bar else f"  ! {text}")

    def _left(self) -> str:
        seconds = round((time.monotonic() - self._started) / self._done * (self._total - self._done))
        return f"{seconds // 60}:{seconds % 60:02d}"


def summary(record: CaseRecord) -> str:
    """A case in one line: our time, and the speed-up over the strongest baseline."""
    if record.refusal:
        return f"refused: {record.refusal}"
    ours, theirs, ratio = best_variant(record), strongest(record), headline(record)
    if ours is None:
        return "no variant measured"
    text = f"{ours.kernel} {time_us(ours):.1f} µs"
    return f"{text}, {ratio.value:.2f}× {theirs.kernel}" if ratio and theirs else f"{text}, no exact baseline"


def table(records: Sequence[CaseRecord]) -> Table:
    """Speed-ups over the strongest baseline by suite, op and sparsity; cases without a pair are counted as missing."""
    made = Table(title="best variant over the strongest baseline")
    for name in ("suite", "op", "sparsity", "geomean", "min", "max", "cases", "missing", "seconds"):
        made.add_column(name, justify="left" if name in ("suite", "op", "sparsity") else "right")
    groups: dict[tuple[str, str, str], list[CaseRecord]] = {}
    for record in records:
        groups.setdefault((record.suite, record.problem["op"], record.problem["sparsity"]), []).append(record)
    for (suite, op, sparsity), members in groups.items():
        values = [ratio.value for member in members if (ratio := headline(member))]
        figures = [f"{value:.2f}" for value in (geomean(values), min(values), max(values))] if values else ["-"] * 3
        seconds = sum(member.seconds for member in members)
        made.add_row(suite, op, sparsity, *figures, str(len(values)), str(len(members) - len(values)), f"{seconds:.0f}")
    return made


def phases(records: Sequence[CaseRecord]) -> str:
    """Where the time went, in one line."""
    total: dict[str, float] = {}
    for record in records:
        for name, seconds in record.phases.items():
            total[name] = total.get(name, 0.0) + seconds
    parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in sorted(total.items(), key=lambda pair: -pair[1]))
    return f"cases took {sum(record.seconds for record in records):.0f} s: {parts}" if parts else ""
