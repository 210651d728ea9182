"""The figures of what a busy GPU delivers: rate and joules of each sustained kernel, and both ratios of each pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes

from reports.figures import WIDTH, heading, ratio_axis, short, slug, times
from reports.load import Case, Results
from reports.power import Pair
from reports.svg import GRID, MARKERS, MUTED, SERIES, Figure, draw
from suites.record import Result
from suites.statistics import Ratio, joules_per_call, time_us

MOST_KERNELS = 6
OURS = 100
"""The weight of a kernel of ours, beyond any number of cases of a baseline."""


def drawings(results: Results, compared: Sequence[Pair], name: Callable[[Case], str]) -> list[Figure]:
    """A figure of both ratios per baseline, then rate and joules of all kernels. name: a case for people."""
    rivals = dict.fromkeys(pair.theirs.kernel for pair in compared if pair.interleaved)
    both = [_ratios(rival, [pair for pair in compared if pair.theirs.kernel == rival and pair.interleaved], name) for rival in rivals]
    return [*_rates(results, name), *both]


def _ratios(rival: str, own: Sequence[Pair], name: Callable[[Case], str]) -> Figure:
    """A row per case: from the interleaved ratio to the sustained one."""
    rows = [(name(pair.case), pair.interleaved, pair.sustained) for pair in own]
    told = ". ".join(f"{label}: {times(a.value)} interleaved, {times(b.value)} sustained" for label, a, b in rows if a)
    title = f"Over {rival}"

    def plot(axes: Axes) -> None:
        for place, (_, a, b) in enumerate(rows):
            if a:
                axes.plot([a.value, b.value], [place, place], color=MUTED, linewidth=1, zorder=1)
        for series, which in ((1, 1), (0, 2)):
            spots = [(ratio, place) for place, row in enumerate(rows) if isinstance(ratio := row[which], Ratio)]
            face = SERIES[0] if which == 2 else "none"
            axes.plot(
                [ratio.value for ratio, _ in spots], [place for _, place in spots], linestyle="none", marker=MARKERS[series],
                color=SERIES[series], markerfacecolor=face, label="sustained" if which == 2 else "interleaved",
            )
        every = [ratio.value for _, a, b in rows for ratio in (a, b) if ratio]
        ratio_axis(axes, min(every), max(every), vertical=False)
        _rows(axes, [label for label, *_ in rows])
        axes.set_xlabel("times as fast, ours over it")
        heading(axes, title, left=None)

    return draw(f"fig-both-{slug(rival)}", title, f"{title}, interleaved and sustained. {told}.", (WIDTH, 1.5 + 0.24 * len(rows)), plot)


def _rates(results: Results, name: Callable[[Case], str]) -> list[Figure]:
    """Rate and joules of the sustained cases, per operation; where few tokens wait for the weight, time and joules per call."""
    cases = [case for case in results.measured if case.record.state == "sustained" and case.usual]
    many = [case for case in cases if case.record.suite != "decode"]
    few = [case for case in cases if case.record.suite == "decode"]

    def tops(case: Case, result: Result) -> float | None:
        us = time_us(result)
        return case.tops(us) if us else None

    def microseconds(_: Case, result: Result) -> float | None:
        return time_us(result)

    def millijoules(_: Case, result: Result) -> float | None:
        joules = joules_per_call(result)
        return 1e3 * joules if joules is not None else None

    plans = [
        ("fig-sustained-rate", "Sustained rate", many, tops, "TOPS, more is better"),
        ("fig-sustained-energy", "Energy", many, Case.joules_per_top, "J per 10¹² operations, less is better"),
        ("fig-sustained-time-few", "Sustained time, few tokens", few, microseconds, "µs a call, less is better"),
        ("fig-sustained-energy-few", "Energy, few tokens", few, millijoules, "mJ a call, less is better"),
    ]
    return [
        by_case(figure_id, title, [(name(case), case) for case in own], *_marked(own), value, label)
        for figure_id, title, own, value, label in plans if own
    ]


def _marked(cases: Sequence[Case]) -> tuple[list[str], list[str]]:
    """The kernels that a figure of these cases shows, ours first, of each side those of most cases; and which of them are ours."""
    counted: dict[str, int] = {}
    for case in cases:
        for result in case.record.results:
            if result.blocks and result.status == "ok" and (result.exact or result.kind == "baseline"):
                counted[result.kernel] = counted.get(result.kernel, 0) + (OURS if result.kind == "variant" else 1)
    kernels = sorted(counted, key=lambda name: (-counted[name], name))[:MOST_KERNELS]
    return kernels, [name for name in kernels if counted[name] >= OURS]


def by_case(
    figure_id: str, title: str, cases: Sequence[tuple[str, Case]], kernels: Sequence[str], ours: Sequence[str],
    value: Callable[[Case, Result], float | None], xlabel: str,
) -> Figure:  # fmt: skip
    """A row per case and a mark per kernel: for sustained rates and joules. ours: the names whose marks are filled."""
    rows = [(label, [(name, mark) for name in kernels if (mark := _value(case, name, value)) is not None]) for label, case in cases]
    told = ". ".join(f"{label}: " + ", ".join(f"{kernel} {figure:.3g}" for kernel, figure in marks) for label, marks in rows)

    def plot(axes: Axes) -> None:
        for place, kernel in enumerate(kernels):
            spots = [(figure, row) for row, (_, marks) in enumerate(rows) for name, figure in marks if name == kernel]
            if spots:
                x, y = zip(*spots, strict=True)
                colour = SERIES[place % len(SERIES)]
                face = colour if kernel in ours else "none"
                marker = MARKERS[place % len(MARKERS)]
                label = short(f"{kernel} (ours)" if kernel in ours else kernel)
                axes.plot(x, y, linestyle="none", marker=marker, color=colour, markerfacecolor=face, label=label)
        axes.set_xlim(left=0)
        _rows(axes, [label for label, _ in rows])
        axes.set_xlabel(xlabel)
        heading(axes, title, left=None)
        axes.grid(color=GRID, axis="both")

    return draw(figure_id, title, f"{title}, {xlabel}. {told}.", (WIDTH, 1.3 + 0.16 * len(kernels) + 0.24 * len(rows)), plot)


def _rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), [short(label.replace(", 8192 tokens", "")) for label in labels])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _value(case: Case, kernel: str, value: Callable[[Case, Result], float | None]) -> float | None:
    result = case.record.result(kernel)
    return value(case, result) if result and result.status == "ok" else None
