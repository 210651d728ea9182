"""Two runs side by side: each case's time and speed-up in both, and what changed besides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reports.compare import STRONGEST, Comparison, Summary, compare
from reports.load import Case, Results
from reports.points import moved
from suites.statistics import geomean

EDGE = 5
"""So many cases that lost most, and that gained most, stand above the table of all."""
STEADY = 0.01
"""A time that changes by less is no change worth a row of its own."""


@dataclass(frozen=True)
class Change:
    """One case in two runs. time: how many times faster ours is in the second; ratio: change of the speed-up over one baseline that both
    runs timed, None where there is none."""

    case: Case
    first: Comparison
    second: Comparison
    time: float
    ratio: float | None

    @property
    def moved(self) -> str:
        """Which kernels are other ones than before, in words; empty where none is."""
        sides = [(one.ours.kernel if one.ours else "", one.theirs.kernel if one.theirs else "") for one in (self.first, self.second)]
        return "; ".join(moved(*sides))


@dataclass(frozen=True)
class TwoRuns:
    """The cases with a time of ours in both runs, those that lost most first; alone: how many have one in one run only."""

    first: Results
    second: Results
    rows: tuple[Change, ...]
    alone: int

    @property
    def times(self) -> Summary:
        """How many times faster ours is in the second run."""
        return _sum([row.time for row in self.rows])

    @property
    def ratios(self) -> Summary:
        """The second run's speed-ups over the first's."""
        return _sum([row.ratio for row in self.rows if row.ratio])

    @property
    def edges(self) -> list[Change]:
        """The cases that lost most and those that gained most."""
        lost = [row for row in self.rows[:EDGE] if row.time < 1 - STEADY]
        return [*lost, *(row for row in self.rows[-EDGE:] if row.time > 1 + STEADY)]


def two_runs(first: Results, second: Results) -> TwoRuns:
    """Set the measured cases of two runs side by side."""
    before = {case.record.key: case for case in first.measured}
    after = {case.record.key: case for case in second.measured}
    rows = []
    for key in [key for key in before if key in after]:
        a, b = compare(before[key], STRONGEST, first), compare(after[key], STRONGEST, second)
        if a.our_us and b.our_us:
            rows.append(Change(after[key], a, b, a.our_us / b.our_us, _ratio(a, b, first, second)))
    rows.sort(key=lambda row: (row.time, row.case.record.key))
    return TwoRuns(first, second, tuple(rows), len(before.keys() | after.keys()) - len(rows))


def _ratio(a: Comparison, b: Comparison, first: Results, second: Results) -> float | None:
    """How the speed-up changed: over the baseline that is the strongest in the second run, or else the one that was in the first."""
    for rival in dict.fromkeys(one.theirs.kernel for one in (b, a) if one.theirs):
        was = a.ratio if a.theirs and a.theirs.kernel == rival else compare(a.case, rival, first).ratio
        now = b.ratio if b.theirs and b.theirs.kernel == rival else compare(b.case, rival, second).ratio
        if was and now:
            return now.value / was.value
    return None


def _sum(values: Sequence[float]) -> Summary:
    return Summary(geomean(values), min(values, default=math.nan), max(values, default=math.nan), len(values), 0)
