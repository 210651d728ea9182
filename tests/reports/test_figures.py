"""Figures as they are drawn: nothing runs over the edge, ticks keep their distance. Widths are those of matplotlib's own font."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator
from itertools import pairwise

import pytest
from matplotlib.figure import Figure as Canvas
from matplotlib.textpath import TextPath

from reports import power
from reports.compare import Comparer
from reports.figures import ratio_axis
from reports.group_figures import headline_figure, roofline_figures, speedup_figures
from reports.load import Results, load
from reports.power_figures import drawings
from reports.svg import Figure
from reports.tables import groups

TEXT = re.compile(r'<text style="([^"]*)" x="([-\d.]+)" y="[-\d.]+" transform="rotate\((-?\d+)[^"]*"[^>]*>([^<]*)</text>')
ROUND = 2.0
"""Points by which a measured width may be off: places are cut to two digits, and renderers space letters."""


@pytest.fixture(scope="module")
def committed() -> Results:
    return load("h200")


def drawn(results: Results) -> Iterator[Figure]:
    found = groups(Comparer(results))
    yield headline_figure(results, found)
    yield from drawings(results, list(power.pairs(results)), power.name_of)
    yield from roofline_figures(results, found)
    for _, _, figures in speedup_figures(found):
        yield from figures


def spans(svg: str) -> Iterator[tuple[str, float, float]]:
    """Every level text with where it begins and ends."""
    for style, x, turned, words in TEXT.findall(svg):
        size = re.search(r"font-size: ([\d.]+)px", style)
        assert size is not None
        if turned in ("0", "-0") and words.strip():
            weight = "bold" if "font-weight: 700" in style else "normal"
            path = TextPath((0, 0), html.unescape(words), size=float(size[1]), prop={"family": "DejaVu Sans", "weight": weight})
            width = path.get_extents().width
            left = float(x) - width * (0.5 if "middle" in style else 1.0 if "anchor: end" in style else 0.0)
            yield words, left, left + width


def test_no_text_of_a_figure_is_cut_off(committed: Results) -> None:
    seen = 0
    for figure in drawn(committed):
        box = re.search(r'viewBox="0 0 ([\d.]+) ', figure.svg)
        assert box is not None
        for words, left, right in spans(figure.svg):
            seen += 1
            assert left >= -ROUND, f"{figure.id}: {words} begins at {left:.1f}"
            assert right <= float(box[1]) + ROUND, f"{figure.id}: {words} ends at {right:.1f} of {box[1]}"
    assert seen > 300


def test_few_tokens_have_figures_of_their_own(committed: Results) -> None:
    found = {figure.id: figure for figure in drawings(committed, list(power.pairs(committed)), power.name_of)}
    assert "llama3-70b" not in found["fig-sustained-energy"].description
    assert "mJ a call" in found["fig-sustained-energy-few"].description
    assert "decode" in found["fig-sustained-time-few"].description
    assert "1 tokens" not in found["fig-sustained-time-few"].description


@pytest.mark.parametrize("high", [1.0, 1.3, 2.7, 8.2, 14.8, 120.0])
@pytest.mark.parametrize("low", [0.4, 0.83, 1.0])
@pytest.mark.parametrize("vertical", [False, True])
def test_ticks_keep_their_distance(low: float, high: float, vertical: bool) -> None:
    axes = Canvas().add_subplot()
    ratio_axis(axes, low, high, vertical)
    axis, limits = (axes.yaxis, axes.get_ylim()) if vertical else (axes.xaxis, axes.get_xlim())
    ticks = [tick for tick in axis.get_majorticklocs() if limits[0] <= tick <= limits[1]]
    assert 1.0 in ticks
    assert len(ticks) <= 7
    steps = [math.log(b / a) / math.log(limits[1] / limits[0]) for a, b in pairwise(ticks)]
    assert min(steps, default=1.0) > (0.055 if vertical else 0.125)
