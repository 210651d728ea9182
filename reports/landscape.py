"""How well the tuner searches: strategies replayed on recorded landscapes, where the optimum is known; and what tuning gained."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from autotune.coverage import coverage, told_of
from autotune.landscape import Landscape, committed
from autotune.quality import FEW, SEEDS, SHARES, SHOWN, WAYS, Searched
from autotune.quality import read as read_quality
from autotune.quality import table as table_of
from kernels import tuned
from kernels.tuned_table import Table, read_table
from reports.figures import WIDTH, heading, ratio_axis, slug
from reports.load import Results
from reports.panel import Data, Panel, figures, folded, paragraph, table
from reports.svg import MARKERS, MUTED, SERIES, Figure, draw
from suites.statistics import geomean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEPS = tuple(step / 20 for step in range(21))
"""Shares of a landscape's candidates, fastest first, at which the median over landscapes is drawn."""

def panel(data: Data) -> Panel | None:
    """The section; None where neither a landscape nor a tuned table of this GPU is committed."""
    kernels: dict[tuple[str, bool], list[Landscape]] = {}
    for one in committed():
        if one.gpu == data.results.gpu:
            kernels.setdefault((one.kernel, len(one.points) <= FEW), []).append(one)
    parts = [gained(data.results)]
    if found := [one for one in read_quality() if one.gpu == data.results.gpu]:
        parts += [Markup("<h3>How soon a search finds the optimum</h3>"), quality_of(found)]
    if kernels:
        parts += [Markup("<h3>The landscapes</h3>"), landscapes_of([own for _, own in sorted(kernels.items())])]
    shown = [part for part in parts if part is not None]
    return Panel("tuning", "Tuning: what it gains, and how soon", "Tuning", Markup("").join(shown)) if shown else None


def gained(results: Results) -> Markup | None:
    """Tuned against default over the committed table, per kernel, and how many results ran with it; None without a table."""
    found = read_table(tuned.FOLDER / f"{results.gpu}.json")
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


def covered(found: Table) -> Markup:
    """How much of what the suites measure the table holds an answer for, and what it took to make it."""
    rows = [[one.suite, f"{one.problems - len(one.missing)} of {one.problems}", one.tuned, one.stays]
            for one in coverage((*found.entries, *found.stays))]
    made = "".join(f" The table was {line}." for line in told_of(found.made))
    about = f"Problems of the suites for which a tuned config or a default that stays is known.{made}"
    return paragraph(about) + table("Coverage of the suites", ("Suite", "Covered", "Another config is faster", "Default stays"), rows)


def quality_of(found: Sequence[Searched]) -> Markup:
    """How soon each way to search comes near the optimum: a figure and a table of landscapes with few and with many candidates."""
    rows = [[f"{kind} candidates", str(way), *(f"{value:.1%}" for value in values)] for kind, way, values in table_of(found)]
    head = ("Landscapes", "Search", *(f"after {100 * share:g} %" for share in SHOWN), "worst landscape after 25 %")
    own = [[one for one in found if one.few == few] for few in (True, False)]
    drawn = [_curves(group, "few" if group[0].few else "many") for group in own if group]
    about = (
        f"Every landscape was searched again, {SEEDS} times by each strategy: the speed of the best found so far as a share of the "
        "optimum's, over the share of the candidates tried; median over the landscapes of the mean over seeds. “Other shapes’ winners” are "
        "tried first where they are given, those of the shape that is searched left out; no default config is, nor is a cost model asked, "
        "since those were fitted to timings. local is a Gaussian process, model is optuna's tree-structured Parzen estimator."
    )
    kernels = sorted({(one.kernel, one.few) for one in found})
    each = [_row(kernel, [one for one in found if (one.kernel, one.few) == (kernel, few)]) for kernel, few in kernels]
    per_kernel = table("Search quality by kernel, after a quarter", ("Kernel", "Landscapes", "Candidates", *map(str, WAYS)), each)
    return paragraph(about) + figures(drawn) + table("Search quality", head, rows, text=(0, 1)) + per_kernel


def _row(kernel: str, own: Sequence[Searched]) -> list[object]:
    middles = (statistics.median(one.at(way, 0.25) for one in own) for way in WAYS)
    return [kernel, len(own), _range([one.candidates for one in own]), *(f"{middle:.1%}" for middle in middles)]


def _curves(own: Sequence[Searched], name: str) -> Figure:
    quarter = ", ".join(f"{way} {statistics.median(one.at(way, 0.25) for one in own):.1%}" for way in WAYS)
    title = f"Landscapes of {name} candidates"
    description = (
        f"{len(own)} landscapes. The best config found so far over the share of candidates tried, as a fraction of the optimum. "
        f"After a quarter: {quarter}."
    )

    def plot(axes: Axes) -> None:
        for way, colour, marker in zip(WAYS, SERIES, MARKERS, strict=True):
            places, middle = [], []
            for share in SHARES:
                places.append(100 * share)
                middle.append(100 * statistics.median(one.at(way, share) for one in own))
            label, line = (f"{way.strategy}, with winners", "-") if way.informed else (way.strategy, "--")
            axes.plot(places, middle, color=colour, marker=marker, markevery=4, label=label, linestyle=line)
        axes.set_xlabel("candidates tried, %")
        axes.set_ylabel("best so far, % of the optimum")
        axes.set_xlim(0, 100 * SHARES[-1])
        axes.set_ylim(top=101)
        heading(axes, title)

    return draw(f"search-{name}", title, description, (WIDTH, 3.8), plot)


def landscapes_of(groups: Sequence[Sequence[Landscape]]) -> Markup:
    """What the candidates of each kernel take, a figure each, and behind a line what each axis of its config costs."""
    about = (
        "Every candidate of a config space, fastest first, timed once: a thin line is a shape, the thick one the median. A flat line "
        "forgives a wrong choice, a steep one does not. Behind each line below: what fixing one axis costs."
    )
    folds = (folded(f"The landscape of {_name(own)}: {_size(own)}", axes_table(own)) for own in groups)
    return paragraph(about) + figures([shape(own) for own in groups]) + Markup("").join(folds)


def _name(landscapes: Sequence[Landscape]) -> str:
    return f"{landscapes[0].kernel}, {'few' if len(landscapes[0].points) <= FEW else 'many'} candidates"


def _size(landscapes: Sequence[Landscape]) -> str:
    one, each = landscapes[0], _range([len(one.points) for one in landscapes])
    shapes = f"{len(landscapes)} shapes, {each} candidates each" if len(landscapes) > 1 else f"one shape, {each} candidates"
    return f"{shapes} ({one.machine}, {one.date})"


def _range(counts: Sequence[int]) -> str:
    return f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else str(counts[0])


def shape(landscapes: Sequence[Landscape]) -> Figure:
    """Every candidate of every landscape, fastest first, as a multiple of the optimum; the median landscape is the thick line."""
    curves_ = [sorted(time / one.best for time in one.times) for one in landscapes]
    middle = [statistics.median(at(curve, share) for curve in curves_) for share in STEPS]
    title = _name(landscapes)
    description = (
        f"All of {title}, fastest first, as a multiple of the best: in the median landscape a quarter is within {middle[5]:.2f}×, half "
        f"within {middle[10]:.2f}×, all within {middle[-1]:.2f}×; the worst candidate of any is {max(map(max, curves_)):.1f}×."
    )

    def plot(axes: Axes) -> None:
        for place, curve in enumerate(curves_):
            x = [100 * rank / max(1, len(curve) - 1) for rank in range(len(curve))]
            axes.plot(x, curve, color=MUTED, linewidth=0.7, label="a shape" if not place else "_nolegend_")
        axes.plot([100 * share for share in STEPS], middle, color=SERIES[0], linewidth=2.4, label="median")
        ratio_axis(axes, 1.0, max(map(max, curves_)), vertical=True)
        axes.set_xlabel("candidates, fastest first, %")
        axes.set_ylabel("time over the optimum's")
        heading(axes, title)

    return draw(f"fig-landscape-{slug(title)}", title, description, (WIDTH, 3.3), plot)


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
