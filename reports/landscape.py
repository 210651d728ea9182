"""How well the tuner searches: strategies replayed on recorded landscapes, where the optimum is known; and what tuning gained."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from autotune import tuned
from autotune.coverage import coverage, told_of
from autotune.landscape import Landscape, at_share, committed, nearest_winners, replay
from autotune.search import STRATEGIES
from reports.figures import WIDTH, heading, ratio_axis, slug
from reports.load import Results
from reports.panel import Data, Panel, figures, paragraph, table
from reports.svg import MARKERS, MUTED, SERIES, Figure, draw
from suites.statistics import geomean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SEEDS = 10
SHARES = tuple(step / 20 for step in range(1, 21))
"""Shares of all candidates that a search may have evaluated."""
SHOWN = (0.1, 0.25, 0.5)
WAYS: Mapping[str, tuple[str, bool]] = {
    "local, from other shapes' winners": ("local", True), "local, from anywhere": ("local", False), "random": ("random", False),
}
"""Label to strategy and whether it starts from the winners of the nearest other shapes."""
QUANTILES = 4


def panel(data: Data) -> Panel | None:
    """The section; None where neither a landscape nor a tuned table of this GPU is committed."""
    kernels: dict[str, list[Landscape]] = {}
    for one in committed():
        if one.gpu == data.results.gpu:
            kernels.setdefault(one.kernel, []).append(one)
    parts = [gained(data.results)]
    for kernel, landscapes in sorted(kernels.items()):
        parts += [Markup("<h3>The landscape of {}</h3>").format(kernel), searched(landscapes)]
    shown = [part for part in parts if part is not None]
    return Panel("tuning", "Tuning: what it gains, and how soon", "Tuning", Markup("").join(shown)) if shown else None


def gained(results: Results) -> Markup | None:
    """Tuned against default over the committed table, per kernel, and how many results ran with it; None without a table."""
    found = tuned.read_table(tuned.FOLDER / f"{results.gpu}.json")
    entries = [entry for entry in found.entries if entry.default_us]
    if not entries and not found.stays:
        return None
    used: dict[tuple[str, str], list[str]] = {}
    for case in results.measured:
        for result in case.record.results if case.usual else ():
            if result.status == "ok":
                used.setdefault((result.kernel, case.problem.op), []).append(result.config_source)
    rows = []
    for key in sorted({(entry.kernel, entry.op) for entry in (*entries, *found.stays)}):
        own = [entry for entry in entries if (entry.kernel, entry.op) == key]
        stays = sum((entry.kernel, entry.op) == key for entry in found.stays)
        ratios = [entry.default_us / entry.us for entry in own if entry.default_us]
        spread = [f"{geomean(ratios):.2f}×", f"{min(ratios):.2f}×", f"{max(ratios):.2f}×"] if ratios else ["–"] * 3
        sources = used.get(key, [])
        rows.append([f"{key[0]} ({key[1]})", len(ratios), *spread, stays, f"{sources.count('tuned')} of {len(sources)}"])
    about = (
        "Tuned configs against the kernels' default configs, finalists timed interleaved on fresh inputs. A config is in the table where "
        "it was shown to be faster; where a search found nothing faster, the default stays. A table is not applied to a kernel whose "
        "source has changed since: the last column counts the results on this page that ran with a tuned config."
    )
    head = ("Kernel", "Faster", "Geomean", "Least", "Most", "Default stays", "Results here that used one")
    return paragraph(about) + table("Tuned against default", head, rows) + covered(found)


def covered(found: tuned.Table) -> Markup:
    """How much of what the suites measure the table holds an answer for, and what it took to make it."""
    rows = [[one.suite, f"{one.problems - len(one.missing)} of {one.problems}", one.tuned, one.stays]
            for one in coverage((*found.entries, *found.stays))]
    about = " ".join(("Problems of the suites for which a tuned config or a default that stays is known.", *told_of(found.made)))
    return paragraph(about) + table("Coverage of the suites", ("Suite", "Covered", "Another config is faster", "Default stays"), rows)


def searched(landscapes: Sequence[Landscape]) -> Markup:
    """The curves and their figures."""
    found = {label: curves(landscapes, *way) for label, way in WAYS.items()}
    sizes = sorted(len(one.points) for one in landscapes)
    quarter = {label: statistics.median(at_share(curve, 0.25) for curve in own) for label, own in found.items()}
    told = ", ".join(f"{label} {value:.1%}" for label, value in quarter.items())
    description = f"The best config found so far over the share of candidates tried, as a fraction of the optimum. After a quarter: {told}."
    drawn = draw(f"search-{slug(landscapes[0].kernel)}", "Search quality", description, (WIDTH, 3.6), functools.partial(_plot, found=found))
    rows = []
    for label, own in found.items():
        cells = [f"{statistics.median(at_share(curve, share) for curve in own):.1%}" for share in SHOWN]
        rows.append([label, *cells, f"{min(at_share(curve, 0.25) for curve in own):.1%}"])
    head = ("Search", *(f"after {share:.0%}" for share in SHOWN), "worst landscape after 25%")
    one = landscapes[0]
    drawing = figures([shape(landscapes), drawn])
    about = (
        f"{len(landscapes)} shapes, {sizes[0]} to {sizes[-1]} candidates each, every one timed once "
        f"({one.machine}, {one.date}). A quarter of the candidates is few here: {sizes[0] // QUANTILES} to {sizes[-1] // QUANTILES}. "
        f"Speed of the best so far as a share of the optimum's: median over the landscapes, each the mean of {SEEDS} seeds. "
        "“Other shapes’ winners” leaves out the shape that is searched, and no default config is tried first."
    )
    return paragraph(about) + drawing + axes_table(landscapes) + table("Search quality", head, rows)


def shape(landscapes: Sequence[Landscape]) -> Figure:
    """Every candidate of every landscape, fastest first, as a multiple of the optimum; the median landscape is the thick line."""
    curves_ = [sorted(time / one.best for time in one.times) for one in landscapes]
    middle = [statistics.median(at(curve, share) for curve in curves_) for share in (0.0, *SHARES)]
    title = f"All candidates of {landscapes[0].kernel}"
    description = (
        f"{title}, fastest first, as a multiple of the best: in the median landscape a quarter is within {middle[5]:.2f}×, half within "
        f"{middle[10]:.2f}×, all within {middle[-1]:.2f}×; the worst candidate of any is {max(map(max, curves_)):.1f}×."
    )

    def plot(axes: Axes) -> None:
        for place, curve in enumerate(curves_):
            x = [100 * rank / max(1, len(curve) - 1) for rank in range(len(curve))]
            axes.plot(x, curve, color=MUTED, linewidth=0.7, label="a shape" if not place else "_nolegend_")
        axes.plot([100 * share for share in (0.0, *SHARES)], middle, color=SERIES[0], linewidth=2.4, label="median")
        ratio_axis(axes, 1.0, max(map(max, curves_)), vertical=True)
        axes.set_xlabel("candidates, fastest first, %")
        axes.set_ylabel("time over the optimum's")
        heading(axes, title)

    return draw(f"fig-landscape-{slug(landscapes[0].kernel)}", title, description, (WIDTH, 3.3), plot)


def at(ordered: Sequence[float], share: float) -> float:
    """The value at that share of an ordered sequence."""
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def axes_table(landscapes: Sequence[Landscape]) -> Markup:
    """What fixing one axis of the config at one value costs: the best of the candidates that have it over the optimum."""
    rows = []
    for axis in landscapes[0].points[0]:
        found = {repr(point[axis]) for one in landscapes for point in one.points if axis in point}
        values = sorted(found, key=lambda text: (len(text), text))
        cells = [cell for value in values if (cell := _fixed(landscapes, axis, value))]
        if len(values) > 1:
            rows.append([axis, Markup("; ").join(cells)])
    about = "What fixing one axis of the config costs, geometric mean over the shapes; in brackets, for how many the optimum has it."
    return paragraph(about) + table("Axes of the config", ("Axis", "Value: time over the optimum's (shapes)"), rows, text=(0, 1))


def _fixed(landscapes: Sequence[Landscape], axis: str, value: str) -> Markup:
    costs = [
        min(own) / one.best for one in landscapes
        if (own := [time for point, time in zip(one.points, one.times, strict=True) if repr(point.get(axis)) == value])
    ]
    wins = sum(repr(one.winner.get(axis)) == value for one in landscapes)
    return Markup('<b>{}</b>: {:.2f}× <span class="iv">({} of {})</span>').format(value.strip("'"), geomean(costs), wins, len(costs))


def curves(landscapes: Sequence[Landscape], name: str, informed: bool) -> list[tuple[float, ...]]:
    """One curve per landscape, the mean over seeds: fraction of the optimum after 1, 2, 3 … evaluations."""
    found = []
    for one in landscapes:
        starts = nearest_winners(one, landscapes) if informed else []
        runs = [replay(one, STRATEGIES[name], starts, seed) for seed in range(SEEDS)]
        found.append(tuple(statistics.fmean(values) for values in zip(*runs, strict=True)))
    return found


def _plot(axes: Axes, found: Mapping[str, Sequence[Sequence[float]]]) -> None:
    for (label, own), colour, marker in zip(found.items(), SERIES, MARKERS, strict=False):
        bands = [statistics.quantiles([at_share(curve, share) for curve in own], n=QUANTILES) for share in SHARES] if len(own) > 1 else []
        middle = [statistics.median(at_share(curve, share) for curve in own) for share in SHARES]
        places = [100 * share for share in SHARES]
        axes.plot(places, [100 * value for value in middle], color=colour, marker=marker, markevery=4, label=label)
        if bands:
            axes.fill_between(places, [100 * band[0] for band in bands], [100 * band[-1] for band in bands], color=colour, alpha=0.15, lw=0)
    axes.set_xlabel("candidates tried, %")
    axes.set_ylabel("best so far, % of the optimum")
    axes.set_xlim(0, 100)
    axes.set_ylim(top=101)
    heading(axes, "Search quality")
