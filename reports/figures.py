"""The figures of the report, headline, speed-up over tokens, projections, and what all figures share: axes of ratios, titles, legends."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import blended_transform_factory

from reports.compare import Comparison, Summary
from reports.load import Case
from reports.svg import INK, MARKERS, SERIES, Figure, draw
from suites.statistics import geomean

WIDTH = 4.6  # inches of 72 units: a panel is as wide as a phone
EDGE = 0.01  # of a figure's width: where what stands at its left edge begins
BOLD: Any = {"weight": "bold", "fontsize": 11, "color": INK}  # Any: keywords of several types
PARTS = ("forward", "input-grad", "weight-grad", "step")
TICKS: tuple[tuple[float, ...], ...] = (  # coarse to fine; 1 is in each
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
    """A logarithmic axis for ratios from low to high with at most seven plain ticks, 1 among them, none so near another that their
    labels would touch."""
    low, high = min(low, 0.9) / 1.08, max(high, 1.12) * 1.08
    nearest = (high / low) ** (0.06 if vertical else 0.13)
    fitting = [[tick for tick in ticks if low <= tick <= high] for ticks in TICKS]
    able = (ticks for ticks in reversed(fitting) if len(ticks) <= 7 and all(b >= a * nearest for a, b in pairwise(ticks)))
    ticks = next(able, fitting[0])
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
        edge_title(axes, title, 10)

    return draw("headline", title, f"{title}. {told or 'nothing was measured'}.", (5.6, 1.1 + 0.28 * max(len(shown), 1)), plot)


def _differ(one: Summary, other: Summary) -> bool:
    return other.count > 0 and abs(other.geomean / one.geomean - 1) > 0.01


def heading(axes: Axes, title: str, left: float | None = -0.12) -> None:
    """Title and legend above the axes, from `left` in axes widths on, None for the edge of the figure: over long labels. The legend takes
    the columns that fit a panel."""
    labels = axes.get_legend_handles_labels()[1]
    in_one_row = sum(len(label) + 4 for label in labels) <= 50
    columns = max(1, len(labels) if in_one_row else 52 // (max(map(len, labels)) + 3))
    rows = math.ceil(len(labels) / columns)
    if left is None:
        edge_title(axes, short(title, 60), 8 + 13.5 * rows)
    else:
        axes.set_title(short(title, 60), loc="left", pad=8 + 13.5 * rows, x=left, **BOLD)
    if labels:
        across = axes.transAxes if left is not None else blended_transform_factory(axes.figure.transFigure, axes.transAxes)
        start = left if left is not None else EDGE
        made = axes.legend(loc="lower left", bbox_to_anchor=(start, 1), bbox_transform=across, ncols=columns, borderaxespad=0.3)
        made.set_in_layout(False)


def edge_title(axes: Axes, title: str, pad: float) -> None:
    """A title `pad` points above the axes that begins at the edge of the figure, whatever room the labels take."""
    axes.set_title(" ", pad=pad, **BOLD)  # what the layout leaves room for
    words = axes.annotate(
        title, (EDGE, 1), xytext=(0, pad), xycoords=("figure fraction", "axes fraction"), textcoords="offset points",
        annotation_clip=False, **BOLD,
    )
    words.set_in_layout(False)


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
        apart = min(0.09, 0.02 * math.log2(every[-1] / every[0])) or 0.09 if every else 0.0
        for place, (series, group) in enumerate(drawn):
            colour, label = SERIES[series % len(SERIES)], short(group[0].name.split(" · ")[0])
            for line in (line for line in group if line.points):
                x, y, low, high = zip(*line.points, strict=True)
                shift = [tokens * 2 ** (apart * (place - (len(drawn) - 1) / 2)) for tokens in x]
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
