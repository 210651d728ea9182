"""Comparing kernels within a case, and summing up cases: the arithmetic behind the tables, the figures and the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from reports.load import Case, Results
from suites.floors import SPARSE_MMA
from suites.record import Result
from suites.statistics import Ratio, best_variant, bootstrap_interval, geomean, speedup, strongest, time_us

STRONGEST, STRONGEST_DENSE, STRONGEST_LIBRARY, ROOF = "strongest", "strongest-dense", "strongest-library", "roof"
ROOFS = (ROOF, SPARSE_MMA)
TOGETHER, BEFORE = "same rounds", "before the cases"
"""When a roof of `mma.sp` was timed."""
CHOICES = (STRONGEST, STRONGEST_DENSE, STRONGEST_LIBRARY, *ROOFS)


@dataclass(frozen=True)
class Comparison:
    """Ours over theirs in one case.

    ratio: how many times faster ours is (over the roof: the share of it that ours reaches), or None with the reason.
    refused: the case has no answer at all, so that nothing is missing. theirs is None over the roof; roof_us is then its time. Over the
    roof of `mma.sp`, timed: whether in the case's own rounds or before the cases; cool_us: its time by the rate from before the cases.
    """

    case: Case
    ours: Result | None = None
    theirs: Result | None = None
    ratio: Ratio | None = None
    reason: str | None = None
    refused: bool = False
    roof_us: float | None = None
    timed: str | None = None
    cool_us: float | None = None

    @property
    def our_us(self) -> float | None:
        """Our kernel time, µs."""
        return time_us(self.ours) if self.ours else None

    @property
    def their_us(self) -> float | None:
        """Their kernel time, µs; over the roof its time."""
        return time_us(self.theirs) if self.theirs else self.roof_us

    @property
    def cool_share(self) -> float | None:
        """Ours as a share of the roof that was measured before the cases, where both are known."""
        us = self.our_us
        return self.cool_us / us if self.cool_us and us else None


def plain(ratio: float) -> str:
    """A ratio with three decimals, or three significant digits below 0.1."""
    return f"{ratio:.3f}" if not ratio < 0.1 else f"{ratio:.3g}"


@dataclass(frozen=True)
class Summary:
    """Ratios summed up: geometric mean, least and greatest, how many, and how many cases should have one and do not."""

    geomean: float
    least: float
    greatest: float
    count: int
    missing: int

    @property
    def line(self) -> str:
        """The last line of `reports.speedups`."""
        geomean, least, greatest = plain(self.geomean), plain(self.least), plain(self.greatest)
        return f"geomean {geomean} min {least} max {greatest} n {self.count} missing {self.missing}"


def compare(case: Case, over: str, results: Results, variant: str | None = None) -> Comparison:
    """The fastest exact variant (or the named one) over a baseline by name, `strongest`, `strongest-dense`, or a roof: the case's `roof`,
    or that of `mma.sp`."""
    record = case.record
    if record.refusal is not None:
        return Comparison(case, reason=record.refusal, refused=True)
    if not case.reached:
        return Comparison(case, reason="should have been measured, and was not")
    if not case.measured:
        return Comparison(case, reason=f"{record.evidence}, not measured")
    ours = best_variant(record, variant)
    if ours is None:
        return Comparison(case, reason=_why_not_ours(case, variant))
    if over == ROOF:
        return _over_roof(case, ours, results.roof_us(case))
    if over == SPARSE_MMA:
        return _over_ceiling(case, ours, results.sparse_roof_us(case))
    theirs = strongest(record, over == STRONGEST_DENSE, over == STRONGEST_LIBRARY) if over in CHOICES else record.result(over)
    if theirs is None or theirs.status != "ok" or time_us(theirs) is None:
        return Comparison(case, ours, reason=_why_not_theirs(case, over, theirs))
    ratio = speedup(ours, theirs)
    return Comparison(case, ours, theirs, ratio, None if ratio else f"{ours.kernel} and {theirs.kernel} share no paired samples")


def _over_roof(case: Case, ours: Result, roof: float | None) -> Comparison:
    if roof is None:
        return Comparison(case, ours, reason="no roof was measured in this run")
    series = [block["seconds"] / block["calls"] * 1e6 for block in ours.blocks] or list(ours.samples_us)
    logs = np.log(roof / np.asarray(series))
    low, high = bootstrap_interval(logs)
    return Comparison(case, ours, ratio=Ratio(math.exp(float(np.median(logs))), math.exp(low), math.exp(high), len(series)), roof_us=roof)


def _over_ceiling(case: Case, ours: Result, cool_us: float | None) -> Comparison:
    """Over the rate of `mma.sp` in the same rounds, pair by pair; where those were not timed, over that from before the cases."""
    if not ours.ceiling or ours.blocks:
        return replace(_over_roof(case, ours, cool_us), timed=BEFORE, cool_us=cool_us)
    roof = case.lifted_operations / np.asarray(ours.ceiling) * 1e6
    logs = np.log(roof / np.asarray(ours.samples_us))
    low, high = bootstrap_interval(logs)
    share = Ratio(math.exp(float(np.median(logs))), math.exp(low), math.exp(high), len(logs))
    return Comparison(case, ours, ratio=share, roof_us=float(np.median(roof)), timed=TOGETHER, cool_us=cool_us)


def why(result: Result) -> str:
    """One line: why a result has no time."""
    if result.status == "ok":
        return f"{result.kernel}: no samples"
    parts = dict.fromkeys(text for text in (result.status, result.stage, result.reason) if text)
    return f"{result.kernel}: {', '.join(parts)}"


def _why_not_ours(case: Case, variant: str | None) -> str:
    ours = [r for r in case.record.results if r.kind == "variant" and (r.kernel == variant if variant else r.exact)]
    if not ours:
        return f"no result of {variant}" if variant else "none of our variants has a result"
    return "; ".join(map(why, ours))


def _why_not_theirs(case: Case, over: str, theirs: Result | None) -> str:
    if theirs is not None:
        return why(theirs)
    if over not in CHOICES:
        return f"no result of {over}"
    tried = [r for r in case.record.results if r.kind == "baseline" and (r.dense if over == STRONGEST_DENSE else r.exact)]
    return "; ".join(map(why, tried)) or ("no dense baseline" if over == STRONGEST_DENSE else "no baseline computes exactly this")


class Comparer:
    """`compare` over one `Results`, each case and baseline once: the intervals are what takes time."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self._known: dict[tuple[str, str, str], Comparison] = {}

    def __call__(self, case: Case, over: str) -> Comparison:
        """Our fastest exact variant over this baseline in this case."""
        key = (case.record.key, case.record.evidence, over)
        if key not in self._known:
            self._known[key] = compare(case, over, self.results)
        return self._known[key]


def summarize(comparisons: Iterable[Comparison]) -> Summary:
    """Geometric mean, least, greatest and counts; refused cases count nowhere."""
    wanted = [item for item in comparisons if not item.refused]
    values = [item.ratio.value for item in wanted if item.ratio]
    edges = (min(values), max(values)) if values else (math.nan, math.nan)
    return Summary(geomean(values), *edges, len(values), len(wanted) - len(values))


def sparsities(cases: Iterable[Case]) -> list[str]:
    """The sparsities that occur: dense first, then by group."""
    found = {case.problem.sparsity for case in cases}
    return [str(sparsity) for sparsity in sorted(found, key=lambda s: (s.m, s.n))]


def in_order(names: Iterable[str], preferred: Sequence[str]) -> list[str]:
    """The distinct names: the preferred first in their order, then the others sorted."""
    found = set(names)
    return [name for name in preferred if name in found] + sorted(found - set(preferred))
