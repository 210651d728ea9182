"""Power-fair: interleaved beside sustained ratios, with clocks, watts and joules, and why the two differ.

Interleaved turns share one clock, so their ratio compares cycles. Sustained, each kernel runs at the clock that the power cap leaves it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from reports.load import Case, Results
from suites.record import Result
from suites.statistics import Ratio, best_variant, is_baseline, speedup, time_us

EXPLAINED = 0.02
"""A clock that accounts for the difference of the two ratios within this much explains it: both clocks are read in steps of 1 %."""
EQUAL = 0.01
"""Clocks that differ by less, one step of their reading, are called equal."""


@dataclass(frozen=True)
class Load:
    """How a kernel ran in its sustained blocks: medians of clock (MHz) and power (W), joules per 10^12 operations; None where unread."""

    us: float
    mhz: float | None
    watts: float | None
    joules: float | None


@dataclass(frozen=True)
class Pair:
    """Our best variant and a baseline in a sustained case. interleaved: the ratio of the same two in its interleaved twin, or None.

    other_card, other_commit: whether the twin is of another card, or of another commit of the code, than the sustained case.
    """

    case: Case
    ours: Result
    theirs: Result
    sustained: Ratio
    interleaved: Ratio | None
    other_card: bool = False
    other_commit: bool = False

    @property
    def name(self) -> str:
        """The case for people."""
        return name_of(self.case)

    @property
    def change(self) -> float | None:
        """The sustained ratio over the interleaved one."""
        return self.sustained.value / self.interleaved.value if self.interleaved else None

    @property
    def clocks(self) -> float | None:
        """Our clock over theirs."""
        ours, theirs = load_of(self.case, self.ours), load_of(self.case, self.theirs)
        return ours.mhz / theirs.mhz if ours.mhz and theirs.mhz else None

    @property
    def energy(self) -> float | None:
        """Our joules per operation over theirs."""
        ours, theirs = load_of(self.case, self.ours), load_of(self.case, self.theirs)
        return ours.joules / theirs.joules if ours.joules and theirs.joules else None

    @property
    def same(self) -> bool:
        """Whether the intervals of the two ratios overlap."""
        a, b = self.sustained, self.interleaved
        return b is not None and a.low <= b.high and b.low <= a.high

    @property
    def why(self) -> str:
        """Why the two ratios differ, as far as the clocks tell."""
        change, clocks = self.change, self.clocks
        if change is None:
            return "no interleaved measurement of this pair"
        if self.same:
            return "the same within their intervals"
        if clocks is None:
            return f"{change - 1:+.1%}; the clocks were not read"
        rest = change / clocks - 1
        if abs(clocks - 1) < EQUAL:
            return f"{change - 1:+.1%}; the clocks are equal, so not the clock"
        share = f"{change - 1:+.1%}; our clock is {abs(clocks - 1):.1%} {'higher' if clocks > 1 else 'lower'}"
        if abs(rest) <= EXPLAINED:
            return f"{share}, which explains it"
        if (change - 1) * (clocks - 1) > 0 and abs(rest) < abs(change - 1):
            return f"{share}, which explains a part; {rest:+.1%} is left"
        return f"{share}: not the clock, {rest:+.1%} is left"


def name_of(case: Case) -> str:
    """A GEMM for people: model, layer, weights and tokens; for a square, its size."""
    record, problem = case.record, case.problem
    if problem.out_features == problem.in_features == problem.tokens and record.model in ("", record.suite):
        return f"{problem.tokens}³ {problem.sparsity}"
    layer = record.layer.removesuffix(f" ({record.data} data)")
    tokens = f"{problem.tokens} {'token' if problem.tokens == 1 else 'tokens'}"
    return " ".join(word for word in (record.model, layer, str(problem.sparsity)) if word) + f", {tokens}"


def load_of(case: Case, result: Result) -> Load:
    """How that result's kernel ran."""
    def middle(name: str) -> float | None:
        values = [block[name] for block in result.blocks if name in block]
        return statistics.median(values) if values else None

    return Load(time_us(result) or float("nan"), middle("sm_mhz"), middle("power_w"), case.joules_per_top(result))


def pairs(results: Results) -> Iterator[Pair]:
    """Every baseline of every sustained case of the usual data, against our best variant there."""
    twins = {case.record.key: case for case in results.measured}
    heads = {run.id: run for run in results.runs}
    for case in results.measured:
        record = case.record
        ours = best_variant(record) if record.state == "sustained" and record.data == "ternary" else None
        if ours is None:
            continue
        twin = twins.get(record.key.removesuffix("sustained") + "interleaved")
        here, there = heads.get(record.run), heads.get(twin.record.run) if twin else None
        card = here and there and here.device.get("uuid") != there.device.get("uuid")
        commit = here and there and here.commit != there.commit
        for theirs in record.results:
            ratio = speedup(ours, theirs) if is_baseline(record, theirs) and theirs.status == "ok" else None
            if ratio is not None:
                yield Pair(case, ours, theirs, ratio, _interleaved(twin, ours.kernel, theirs.kernel), bool(card), bool(commit))


def _interleaved(twin: Case | None, ours: str, theirs: str) -> Ratio | None:
    results = [twin.record.result(name) for name in (ours, theirs)] if twin else [None, None]
    return speedup(results[0], results[1]) if results[0] and results[1] else None
