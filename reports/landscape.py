"""How well the tuner searches: strategies replayed on recorded landscapes, where the optimum is known; and what tuning gained."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from autotune import tuned
from autotune.landscape import Landscape, at_share, committed, nearest_winners, replay
from autotune.search import STRATEGIES
from reports.panel import Data, Panel, figures, paragraph, table
from reports.svg import MARKERS, SERIES, draw

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
    landscapes = [one for one in committed() if one.gpu == data.results.gpu]
    parts = [part for part in (gained(data.results.gpu), searched(landscapes) if landscapes else None) if part is not None]
    if not parts:
        return None
    return Panel("tuning", "Tuning: what it gains, and how soon", "Tuning", Markup("").join(parts))


def gained(gpu: str) -> Markup | None:
    """Tuned against default over the committed table, per kernel; None without one."""
    entries = [entry for entry in tuned.read(tuned.FOLDER / f"{gpu}.json") if entry.default_us]
    if not entries:
        return None
    rows = []
    for kernel, op in sorted({(entry.kernel, entry.op) for entry in entries}):
        ratios = [entry.default_us / entry.us for entry in entries if (entry.kernel, entry.op) == (kernel, op) and entry.default_us]
        geomean = math.exp(statistics.fmean(map(math.log, ratios)))
        rows.append([f"{kernel} ({op})", len(ratios), f"{geomean:.2f}×", f"{min(ratios):.2f}×", f"{max(ratios):.2f}×"])
    about = (
        "Tuned configs against the kernels' default configs, finalists timed interleaved on fresh inputs. Only cases where the winner was "
        "shown to be faster are in the table; all others run with their default, and are not counted here."
    )
    return paragraph(about) + table("Tuned against default", ("Kernel", "Cases", "Geomean", "Least", "Most"), rows)


def searched(landscapes: Sequence[Landscape]) -> Markup:
    """The curves and their figures."""
    found = {label: curves(landscapes, *way) for label, way in WAYS.items()}
    sizes = sorted(len(one.points) for one in landscapes)
    quarter = {label: statistics.median(at_share(curve, 0.25) for curve in own) for label, own in found.items()}
    told = ", ".join(f"{label} {value:.1%}" for label, value in quarter.items())
    description = f"The best config found so far over the share of candidates tried, as a fraction of the optimum. After a quarter: {told}."
    drawn = draw("search", "Search quality", description, (6.2, 3.4), functools.partial(_plot, found=found))
    rows = []
    for label, own in found.items():
        cells = [f"{statistics.median(at_share(curve, share) for curve in own):.1%}" for share in SHOWN]
        rows.append([label, *cells, f"{min(at_share(curve, 0.25) for curve in own):.1%}"])
    head = ("Search", *(f"after {share:.0%}" for share in SHOWN), "worst landscape after 25%")
    one = landscapes[0]
    about = (
        f"{len(landscapes)} landscapes, {sizes[0]} to {sizes[-1]} candidates each, every candidate of {one.kernel} timed once "
        f"({one.machine}, {one.date}). A quarter of the candidates is few here: {sizes[0] // QUANTILES} to {sizes[-1] // QUANTILES}. "
        f"Speed of the best so far as a share of the optimum's: median over the landscapes, each the mean of {SEEDS} seeds. "
        "“Other shapes’ winners” leaves out the shape that is searched, and no default config is tried first."
    )
    return paragraph(about) + figures([drawn]) + table("Search quality", head, rows)


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
    axes.set_ylabel("speed of the best so far, % of the optimum")
    axes.set_xlim(0, 100)
    axes.set_ylim(top=101)
    axes.legend(loc="lower right")
