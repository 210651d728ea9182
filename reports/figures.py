"""The figures of the report: headline, speed-up over tokens, roofline, projections."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from reports.compare import Comparison, Summary
from reports.load import TERA, Case, Results
from reports.svg import INK, MARKERS, MUTED, SERIES, Figure, draw
from suites.statistics import geomean

WIDTH = 4.6  # inches of 72 units: a panel is as wide as a phone
PARTS = ("forward", "input-grad", "weight-grad", "step")
_TICKS: tuple[tuple[float, ...], ...] = (  # coarse to fine; 1 is in each
    tuple(10.0**power for power in range(-4, 6)),
    tuple(base * 10.0**power for power in range(-4, 6) for base in (1, 2, 5)),
    tuple(base * 10.0**power for power in range(-4, 6) for base in (1, 1.5, 2, 3, 5, 7)),
    tuple(tick / 5 for tick in range(1, 40)),
    tuple(tick / 10 for tick in range(1, 60)),
    tuple(tick / 20 for tick in range(1, 60)),
)


@dataclass(frozen=True)
class Line:
    """One line of a speed-up panel: its name, and per number of tokens the geometric mean, least and greatest ratio."""

    name: str
    points: tuple[tuple[int, float, float, float], ...]


def times(value: float) -> str:
    """A ratio for people: 1.42×, 12.3×, 120×."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}×"


def short(text: str, most: int = 30) -> str:
    """A label that fits a figure: at most so many characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def slug(text: str) -> str:
    """Text as part of an id."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"


def ratio_axis(axes: Axes, low: float, high: float, vertical: bool) -> None:
    """A logarithmic axis for ratios from low to high with at most seven plain ticks, 1 among them."""
    low, high = min(low, 0.9) / 1.08, max(high, 1.12) * 1.08
    fitting = [[tick for tick in ticks if low <= tick <= high] for ticks in _TICKS]
    ticks = next((ticks for ticks in reversed(fitting) if len(ticks) <= 7), fitting[0])
    (axes.set_yscale if vertical else axes.set_xscale)("log")
    (axes.set_ylim if vertical else axes.set_xlim)(low, high)
    axis = axes.yaxis if vertical else axes.xaxis
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    (axes.axhline if vertical else axes.axvline)(1.0, color=INK, linewidth=1.0)


def headline(groups: Sequence[tuple[str, Summary, Summary]], over: str, gpu: str) -> Figure:
    """Geometric mean (dot) and range from worst to best case (bar) of each named group, over a baseline, and the geometric mean over the
    strongest library where that is another (ring); without a group that has a ratio, axes that say so."""
    shown = [(name, summary) for name, summary, _ in groups if summary.count]
    rings = [(place, ring) for place, (_, s, ring) in enumerate(group for group in groups if group[1].count) if _differ(s, ring)]
    title = f"Speed-up over {over}, {gpu}"
    told = "; ".join(f"{name}: {times(s.geomean)}, from {times(s.least)} to {times(s.greatest)}, {s.count} cases" for name, s in shown)
    told += "".join(f"; {shown[place][0]} over libraries: {times(ring.geomean)}" for place, ring in rings)

    def plot(axes: Axes) -> None:
        for place, ring in rings:
            axes.plot([ring.geomean], [place], marker="o", color=SERIES[0], markerfacecolor="none", markersize=7, linestyle="none")
        for place, (_, summary) in enumerate(shown):
            colour = SERIES[0] if summary.geomean >= 1 else SERIES[1]
            axes.plot([summary.least, summary.greatest], [place, place], color=colour, linewidth=7, alpha=0.28, solid_capstyle="round")
            axes.plot([summary.geomean], [place], marker="o" if summary.geomean >= 1 else "D", color=colour, markersize=8)
            axes.text(1.03, place, times(summary.geomean), transform=axes.get_yaxis_transform(), va="center", color=INK, weight="bold")
        least = min((s.least for _, s in shown), default=1.0)
        greatest = max([*(s.greatest for _, s in shown), *(ring.geomean for _, ring in rings)], default=1.0)
        ratio_axis(axes, least, greatest, vertical=False)
        axes.set_yticks(range(len(shown)), [short(name) for name, _ in shown])
        axes.set_ylim(max(len(shown), 1) - 0.5, -0.6)
        if not shown:
            axes.text(0.5, 0.5, "nothing measured yet", transform=axes.transAxes, ha="center")
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        also = "; ring: over libraries" if rings else ""
        axes.set_xlabel(f"times as fast (dot: geomean; bar: worst to best{also})", fontsize=9.5)
        axes.set_title(title, loc="left", weight="bold", fontsize=11, color=INK, pad=10, x=-0.38)

    return draw("headline", title, f"{title}. {told or 'nothing was measured'}.", (5.6, 1.1 + 0.28 * max(len(shown), 1)), plot)


def _differ(one: Summary, other: Summary) -> bool:
    return other.count > 0 and abs(other.geomean / one.geomean - 1) > 0.01


def heading(axes: Axes, title: str, left: float = -0.12) -> None:
    """Title and legend above the axes, from `left` in axes widths on; the legend takes the columns that fit a panel."""
    labels = axes.get_legend_handles_labels()[1]
    in_one_row = sum(len(label) + 4 for label in labels) <= 50
    columns = max(1, len(labels) if in_one_row else 52 // (max(map(len, labels)) + 3))
    rows = math.ceil(len(labels) / columns)
    axes.set_title(short(title, 60), loc="left", weight="bold", fontsize=11, color=INK, pad=8 + 13.5 * rows, x=left)
    if labels:
        axes.legend(loc="lower left", bbox_to_anchor=(left, 1.01), ncols=columns)


def _token_axis(axes: Axes, tokens: Sequence[int]) -> None:
    """Ticks where there are tokens, without those that would run into the one before."""
    ticks: list[int] = []
    for count in tokens:
        if not ticks or count > 2 * ticks[-1] or len(tokens) < 4:
            ticks.append(count)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1024:g}k" if value >= 1024 else f"{value:g}"))
    axes.set_xlabel("tokens")


def line_of(name: str, comparisons: Sequence[Comparison]) -> Line:
    """The comparisons that have a ratio, gathered by tokens."""
    by_tokens: dict[int, list[float]] = {}
    for item in comparisons:
        if item.ratio:
            by_tokens.setdefault(item.case.problem.tokens, []).append(item.ratio.value)
    return Line(name, tuple((tokens, geomean(values), min(values), max(values)) for tokens, values in sorted(by_tokens.items())))


def over_tokens(figure_id: str, title: str, groups: Sequence[Sequence[Line]], limits: tuple[float, float], ylabel: str) -> Figure:
    """Speed-up over tokens for one model. groups: lines that share a colour (the name of the first is in the legend), at the same
    place in every panel of a family, empty or not, so that a colour means the same in all; limits: of y, for the same reason."""
    every = sorted({point[0] for group in groups for line in group for point in line.points})
    told = ". ".join(
        f"{line.name}: " + ", ".join(f"{times(mean)} at {tokens} tokens" for tokens, mean, _, _ in line.points)
        for group in groups
        for line in group
        if line.points
    )

    def plot(axes: Axes) -> None:
        axes.set_xscale("log", base=2)
        drawn = [(series, group) for series, group in enumerate(groups) if any(line.points for line in group)]
        for place, (series, group) in enumerate(drawn):
            colour, label = SERIES[series % len(SERIES)], short(group[0].name.split(" · ")[0])
            for line in (line for line in group if line.points):
                x, y, low, high = zip(*line.points, strict=True)
                shift = [tokens * 2 ** (0.09 * (place - (len(drawn) - 1) / 2)) for tokens in x]
                axes.vlines(shift, low, high, color=colour, alpha=0.35, linewidth=3)
                axes.plot(shift, y, color=colour, marker=MARKERS[series % len(MARKERS)], label=label)
                label = "_nolegend_"
        ratio_axis(axes, *limits, vertical=True)
        _token_axis(axes, every)
        axes.set_ylabel(ylabel)
        heading(axes, title)

    return draw(figure_id, title, f"{title}: {ylabel}. {told}.", (WIDTH, 3.3), plot)


def limits_of(families: Sequence[Sequence[Sequence[Line]]]) -> tuple[float, float]:
    """The least and greatest ratio of many panels."""
    points = [point for groups in families for group in groups for line in group for point in line.points]
    return min((point[2] for point in points), default=1.0), max((point[3] for point in points), default=1.0)


def roofline(figure_id: str, title: str, results: Results, families: Sequence[tuple[str, Sequence[Comparison]]]) -> Figure:
    """Rate over arithmetic intensity of the fastest variant of each case, a series per family, under the measured roofs."""
    bandwidth = max(results.rates.get("B/s", {}).values(), default=0.0)
    rates = sorted(results.rates.get("op/s", {}).items(), key=lambda item: item[1])
    dots = {name: [dot for item in items if (dot := _dot(item))] for name, items in families}
    every = [dot for some in dots.values() for dot in some]
    told = "; ".join(f"{name}: {len(some)} cases up to {max(y for _, y in some):.0f} TOPS" for name, some in dots.items() if some)
    roofs = ", ".join([f"{bandwidth / TERA:.2f} TB/s"] + [f"{name} {rate / TERA:.0f} TOPS" for name, rate in rates])

    def plot(axes: Axes) -> None:
        axes.set_xscale("log")
        axes.set_yscale("log")
        xs, ys = [x for x, _ in every] or [1.0, 1e4], [y for _, y in every] or [rate / TERA for _, rate in rates] or [1.0]
        low, high = min(xs) / 1.6, max(xs) * 1.6
        axes.set_xlim(low, high)
        axes.set_ylim(min(ys) / 1.6, max([*ys, *(rate / TERA for _, rate in rates)]) * 1.6)
        spot = 0.0
        for name, rate in rates:
            axes.plot([max(rate / bandwidth, low) if bandwidth else low, high], [rate / TERA] * 2, color=MUTED, linewidth=1)
            spot = max(rate / TERA, spot * (axes.get_ylim()[1] / axes.get_ylim()[0]) ** 0.05)
            axes.text(1.02, spot, short(name), transform=axes.get_yaxis_transform(), va="center", color=MUTED, fontsize=8.5)
        if bandwidth:
            knee = max((rate for _, rate in rates), default=bandwidth * high) / bandwidth
            axes.plot([low, knee], [low * bandwidth / TERA, knee * bandwidth / TERA], color=MUTED, linewidth=1, scalex=False, scaley=False)
        for place, (name, some) in enumerate((name, some) for name, some in dots.items() if some):
            x, y = zip(*some, strict=True)
            axes.plot(x, y, linestyle="none", marker=MARKERS[place], color=SERIES[place], alpha=0.75, markersize=4, label=short(name))
        for axis, (least, most) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            fitting = [[tick for tick in ticks if least <= tick <= most] for ticks in _TICKS[:3]]
            axis.set_major_locator(FixedLocator(next((ticks for ticks in reversed(fitting) if len(ticks) <= 6), fitting[0])))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("operations per compulsory byte")
        axes.set_ylabel("TOPS")
        heading(axes, title)

    return draw(figure_id, title, f"{title}. Roofs: {roofs}. {told}.", (WIDTH, 3.9), plot)


def _dot(item: Comparison) -> tuple[float, float] | None:
    record, us = item.case.record, item.our_us
    if not us or not record.operations or not record.compulsory_bytes:
        return None
    return record.operations / record.compulsory_bytes, record.operations / us / 1e6


def projected(figure_id: str, title: str, cases: Sequence[Case], kernels: Sequence[str]) -> Figure:
    """Projected TOPS over tokens, a line per kernel, means over the layers; says on its face that nothing was measured."""
    lines: dict[str, dict[int, list[float]]] = {kernel: {} for kernel in kernels}
    for case in cases:
        for result in case.record.results:
            rate = case.tops(result.projected_us) if result.projected_us else None
            if rate and result.kernel in lines:
                lines[result.kernel].setdefault(case.problem.tokens, []).append(rate)
    means = {kernel: [(tokens, geomean(rates)) for tokens, rates in sorted(points.items())] for kernel, points in lines.items() if points}
    told = ". ".join(f"{name}: " + ", ".join(f"{rate:.0f} TOPS at {tokens}" for tokens, rate in line) for name, line in means.items())
    full = f"{title}: projected, not measured"

    def plot(axes: Axes) -> None:
        axes.set_xscale("log", base=2)
        for place, (kernel, line) in enumerate(means.items()):
            x, y = zip(*line, strict=True)
            colour, marker = SERIES[place % len(SERIES)], MARKERS[place % len(MARKERS)]
            axes.plot(x, y, color=colour, linestyle=(0, (2, 2)), marker=marker, markerfacecolor="none", label=short(kernel))
        axes.set_ylim(bottom=0)
        _token_axis(axes, sorted({tokens for line in means.values() for tokens, _ in line}))
        axes.set_ylabel("projected TOPS")
        heading(axes, full)

    return draw(figure_id, full, f"{full}. {told}.", (WIDTH, 3.1 + 0.1 * len(means)), plot)
