"""What a table of tuned configs covers of the suites: every problem that they measure and a tuner has a choice for. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from autotune import plan
from autotune.table import Entry
from kernels.problem import Problem


@dataclass(frozen=True)
class Coverage:
    """Of one suite. problems: how many there are. tuned: for how many another config than the default won. stays: for how many nothing was
    shown to be faster. missing: those that no entry is for."""

    suite: str
    problems: int
    tuned: int
    stays: int
    missing: tuple[Problem, ...]

    def __str__(self) -> str:
        covered = self.problems - len(self.missing)
        told = f"{self.suite}: {covered} of {self.problems} problems, {self.tuned} tuned, {self.stays} stay with their default"
        return told + (f"; not covered: {', '.join(map(str, self.missing))}" if self.missing else "")


def coverage(entries: Iterable[Entry]) -> list[Coverage]:
    """Suite by suite. A problem with entries of several kernels counts as tuned where any of them won against its default."""
    found: dict[tuple[object, ...], bool] = {}
    for entry in entries:
        key = (entry.op, entry.out_features, entry.in_features, entry.tokens, entry.sparsity, entry.dtype)
        found[key] = found.get(key, False) or not entry.stays
    told = []
    for suite in dict.fromkeys(row.suite for row in plan.ROWS):
        own = list(dict.fromkeys(one for row in plan.ROWS if row.suite == suite for group in row.groups() for one in group))
        known = [found.get(_key(one)) for one in own]
        missing = tuple(one for one, won in zip(own, known, strict=True) if won is None)
        told.append(Coverage(suite, len(own), known.count(True), known.count(False), missing))
    return told


def _key(problem: Problem) -> tuple[object, ...]:
    return problem.op, problem.out_features, problem.in_features, problem.tokens, str(problem.sparsity), problem.dtype


def told_of(made: Mapping[str, Any]) -> list[str]:
    """A line about the run that made a table, where the table knows."""
    if not made:
        return []
    return [f"made by {made.get('command')} on {made.get('date')}: {made.get('seconds')} s on {made.get('devices')} devices, "
            f"{made.get('complete')} of {made.get('cases')} cases, {made.get('evaluated')} candidates"]
