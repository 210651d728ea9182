"""Power-fair and data-fair: interleaved beside sustained ratios with clocks, watts and joules; the same shape under other operand values.

Interleaved turns share one clock, so their ratio compares cycles. Sustained, each kernel runs at the clock that the power cap leaves it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from reports.load import Case, Results
from reports.panel import Data, Panel, paragraph, table
from suites.record import Result
from suites.statistics import Ratio, best_variant, speedup, time_us

KINDS = ("ternary", "uniform", "zero")
EXPLAINED = 0.03
"""A clock that accounts for the difference of the two ratios within this much explains it."""


@dataclass(frozen=True)
class Load:
    """How a kernel ran in its sustained blocks: medians of clock (MHz) and power (W), joules per 10^12 operations; None where unread."""

    us: float
    mhz: float | None
    watts: float | None
    joules: float | None


@dataclass(frozen=True)
class Pair:
    """Our best variant and a baseline in a sustained case. interleaved: the ratio of the same two in its interleaved twin, or None."""

    case: Case
    ours: Result
    theirs: Result
    sustained: Ratio
    interleaved: Ratio | None

    @property
    def why(self) -> str:
        """Why the two ratios differ, as far as the clocks tell."""
        ours, theirs = load_of(self.case, self.ours), load_of(self.case, self.theirs)
        if self.interleaved is None:
            return "no interleaved measurement of this pair"
        change = self.sustained.value / self.interleaved.value
        if self.sustained.low <= self.interleaved.high and self.interleaved.low <= self.sustained.high:
            return "the same within their intervals"
        if ours.mhz is None or theirs.mhz is None:
            return f"{change - 1:+.1%}; the clocks were not read"
        clocks = ours.mhz / theirs.mhz
        share = f"{change - 1:+.1%}; our clock is {abs(clocks - 1):.1%} {'higher' if clocks > 1 else 'lower'}"
        if abs(change / clocks - 1) <= EXPLAINED:
            return f"{share}, which explains it"
        return f"{share}, which explains a part" if (change - 1) * (clocks - 1) > 0 else f"{share}: not the clock"


def load_of(case: Case, result: Result) -> Load:
    """How that result's kernel ran."""
    def middle(name: str) -> float | None:
        values = [block[name] for block in result.blocks if name in block]
        return statistics.median(values) if values else None

    return Load(time_us(result) or float("nan"), middle("sm_mhz"), middle("power_w"), case.joules_per_top(result))


def pairs(results: Results) -> Iterator[Pair]:
    """Every baseline of every sustained case of the usual data, against our best variant there."""
    twins = {case.record.key: case for case in results.measured}
    for case in results.measured:
        record = case.record
        ours = best_variant(record) if record.state == "sustained" and record.data == "ternary" else None
        if ours is None:
            continue
        twin = twins.get(record.key.removesuffix("sustained") + "interleaved")
        for theirs in record.results:
            ratio = speedup(ours, theirs) if theirs.kind == "baseline" and theirs.status == "ok" else None
            if ratio is not None:
                yield Pair(case, ours, theirs, ratio, _interleaved(twin, ours.kernel, theirs.kernel))


def _interleaved(twin: Case | None, ours: str, theirs: str) -> Ratio | None:
    results = [twin.record.result(name) for name in (ours, theirs)] if twin else [None, None]
    return speedup(results[0], results[1]) if results[0] and results[1] else None


@dataclass(frozen=True)
class UnderData:
    """One kernel in one shape under one kind of operand values, sustained. over_ternary: its rate over that under ternary data."""

    case: Case
    result: Result
    data: str
    over_ternary: float | None


def under_data(results: Results) -> list[UnderData]:
    """Every kernel of every sustained shape that was measured under more than one kind of data, ternary first."""
    shapes: dict[tuple[str, ...], dict[str, Case]] = {}
    for case in results.measured:
        record = case.record
        if record.state == "sustained":
            layer = record.layer.removesuffix(f" ({record.data} data)")
            shapes.setdefault((record.suite, record.model, layer, record.label, record.cache), {})[record.data] = case
    found = []
    for cases in shapes.values():
        if len(cases) < 2:
            continue
        names = dict.fromkeys(result.kernel for kind in KINDS if kind in cases for result in cases[kind].record.results)
        found += [own for name in names for own in _of_kernel(name, cases)]
    return found


def _of_kernel(name: str, cases: dict[str, Case]) -> Iterator[UnderData]:
    base = cases["ternary"].record.result(name) if "ternary" in cases else None
    usual = time_us(base) if base is not None and base.status == "ok" else None
    for kind in KINDS:
        result = cases[kind].record.result(name) if kind in cases else None
        time = time_us(result) if result is not None and result.status == "ok" else None
        if result is not None and time is not None:
            yield UnderData(cases[kind], result, kind, usual / time if usual else None)


def panel(data: Data) -> Panel | None:
    """The panel, or None where nothing was measured sustained."""
    compared, values = list(pairs(data.results)), under_data(data.results)
    if not compared and not values:
        return None
    parts = [_ratios(compared)] if compared else []
    parts += [_values(values)] if values else []
    return Panel("power", "Power: what a busy GPU makes of it", "Power", Markup("").join(parts))


def _ratios(compared: Sequence[Pair]) -> Markup:
    head = (
        "case", "kernel", "over", "interleaved", "sustained", "MHz", "their MHz", "W", "their W", "J/10¹²", "their J/10¹²",
        "why they differ",
    )
    rows = []
    for pair in compared:
        ours, theirs = load_of(pair.case, pair.ours), load_of(pair.case, pair.theirs)
        rows.append((
            _name(pair.case), pair.ours.kernel, pair.theirs.kernel, _ratio(pair.interleaved), _ratio(pair.sustained), _number(ours.mhz),
            _number(theirs.mhz), _number(ours.watts), _number(theirs.watts), _number(ours.joules, 3), _number(theirs.joules, 3), pair.why,
        ))
    said = paragraph(
        "Interleaved turns share one clock and compare cycles. Sustained blocks run each kernel at the clock that the power cap leaves it, "
        "so a kernel that draws less power gains. Joules are those of the whole board per 10¹² operations, zeros included.",
    )
    return said + table("Interleaved and sustained ratios with clocks, power and energy", head, rows, (0, 1, 2, 11))


def _values(values: Sequence[UnderData]) -> Markup:
    head = ("case", "kernel", "data", "µs", "MHz", "W", "J/10¹²", "rate over ternary")
    rows = []
    for own in values:
        load = load_of(own.case, own.result)
        over = f"{own.over_ternary:.3f}×" if own.over_ternary is not None else "-"
        rows.append((
            _name(own.case), own.result.kernel, own.data, f"{load.us:.1f}", _number(load.mhz), _number(load.watts),
            _number(load.joules, 3), over,
        ))
    said = paragraph(
        "The same shapes and kernels under other operand values. Values change power and so clocks: every other comparison on this page "
        "gives dense baselines the same ternary values as ours, which neither flatters nor hurts them. Uniform: weights from −15 to 15, "
        "activations from −127 to 127; our packed weights cannot hold them.",
    )
    return said + table("The same shape under ternary, uniform and zero data", head, rows, (0, 1, 2))


def _name(case: Case) -> str:
    record = case.record
    layer = record.layer.removesuffix(f" ({record.data} data)")
    return f"{record.suite} {record.model} {layer} {record.label}"


def _ratio(ratio: Ratio | None) -> str:
    return f"{ratio.value:.2f}×" if ratio is not None else "-"


def _number(value: float | None, digits: int = 0) -> str:
    return f"{value:.{digits}f}" if value is not None else "-"
