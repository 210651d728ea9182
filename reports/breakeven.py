"""Break-even: from which number of tokens on, or up to which, our kernels are faster than a baseline over all layers of a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from markupsafe import Markup

from reports.answers import WORK, Answer, answers
from reports.panel import Data, Panel, folded, paragraph, table

RIVALS = ("dense-bf16", "dense-fp8", "dense-int8", "cusparselt-int8-scaled", "fakequant-published-compiled")
"""Named baselines with a column of their own, where any case has them."""
ALWAYS = "every count"
FASTER, SLOWER = "●", "○"
FIXED = 4
"""Columns before those of baselines."""


def panel(data: Data) -> Panel | None:
    """A row per model, work, cache state and weights that has at least two numbers of tokens."""
    series: dict[tuple[str, str, str, str], list[Answer]] = {}
    for answer in answers(data.comparer):
        series.setdefault((answer.model, answer.work, answer.cache, answer.sparsity), []).append(answer)
    able = {key: found for key, found in series.items() if len(found) > 1}
    if not able:
        return None
    rivals = [name for name in RIVALS if any(name in answer.others for found in able.values() for answer in found)]
    rows = [_row(key, able[key], rivals) for key in sorted(able)]
    crossing_rows = [row for row in rows if any(SLOWER in str(cell) for cell in row[FIXED:])]
    head = ("Model", "Work", "Weights", "Measured", "Strongest", *rivals)
    crossed = [place for place in range(len(head)) if place < FIXED or any(SLOWER in str(row[place]) for row in rows)]
    about = (
        "From which number of tokens on, or up to which, ours is faster, all layers of a block together: a filled mark for each measured "
        "count at which it is. Between two counts the crossing is interpolated on logarithmic scales and marked ≈; beyond what was "
        "measured nothing is claimed. dense-fp8 computes another function, and never counts as strongest."
    )
    html = paragraph(about) + paragraph(_told(rows, rivals))
    if crossing_rows:
        shown = [[row[place] for place in crossed] for row in crossing_rows]
        html += table("Break-even numbers of tokens where there are any", [head[place] for place in crossed], shown, range(len(crossed)))
    if len(crossing_rows) < len(rows):
        html += folded(f"All {len(rows)} combinations of model, work and weights", table("Break-even", head, rows, text=range(len(head))))
    return Panel("breakeven", "Break-even: at how many tokens ours is faster", "Break-even", html)


def _told(rows: Sequence[Sequence[object]], rivals: Sequence[str]) -> str:
    """Against whom ours is faster at every count, and how often."""
    parts = []
    for place, name in enumerate(("the strongest baseline", *rivals), FIXED):
        cells = [str(row[place]) for row in rows if row[place] != "–"]
        always = sum(SLOWER not in cell for cell in cells)
        parts.append(f"{name} in {'all' if always == len(cells) else f'{always} of'} {len(cells)}")
    return f"At every measured count ours is faster than {', than '.join(parts)} combinations of model, work and weights."


def _row(key: tuple[str, str, str, str], found: Sequence[Answer], rivals: Sequence[str]) -> list[object]:
    model, work, cache, weights = key
    strongest = _cell([(answer.tokens, answer.ratio.value) for answer in found])
    return [model, f"{WORK[work].split(', ')[1]}, {cache}", weights, _range(found), strongest, *_against(found, rivals)]


def _range(found: Sequence[Answer]) -> str:
    counts = sorted(answer.tokens for answer in found)
    return f"{counts[0]} to {counts[-1]}"


def _cell(points: Sequence[tuple[int, float]]) -> Markup:
    marks = "".join(FASTER if ratio >= 1 else SLOWER for _, ratio in sorted(points))
    return Markup('<span class="marks" aria-hidden="true">{}</span> {}').format(marks, when(points).replace(ALWAYS, "all"))


def _against(found: Sequence[Answer], rivals: Sequence[str]) -> list[Markup | str]:
    points = {name: [(a.tokens, a.others[name] / a.us) for a in found if name in a.others] for name in rivals}
    return [_cell(points[name]) if len(points[name]) > 1 else "–" for name in rivals]


def when(points: Sequence[tuple[int, float]]) -> str:
    """Where the ratio is at least 1, in words. points: (tokens, ratio), at least one.

    "every count", "no count", or the ranges, whose inner ends are crossings interpolated on logarithmic scales.
    """
    ordered = sorted(points)
    if all(ratio >= 1 for _, ratio in ordered):
        return ALWAYS
    ranges: list[tuple[str, str]] = []
    start = "" if ordered[0][1] >= 1 else None
    for (t0, r0), (t1, r1) in pairwise(ordered):
        if (r0 >= 1) == (r1 >= 1):
            continue
        spot = crossing((t0, r0), (t1, r1))
        if r1 >= 1:
            start = spot
        else:
            ranges.append((start or "", spot))
            start = None
    if start is not None:
        ranges.append((start, ""))
    return ", ".join(_words(low, high) for low, high in ranges) or "no count"


def _words(low: str, high: str) -> str:
    if low and high:
        return f"{low} to {high}"
    return f"from {low}" if low else f"up to {high}"


def crossing(first: tuple[int, float], second: tuple[int, float]) -> str:
    """Where the line through two points on logarithmic scales crosses 1, with two digits: `≈ 310`."""
    (t0, r0), (t1, r1) = first, second
    share = math.log(r0) / (math.log(r0) - math.log(r1))
    tokens = math.exp(math.log(t0) + share * (math.log(t1) - math.log(t0)))
    digits = max(0, int(math.log10(tokens)) - 1)
    return f"≈ {round(tokens, -digits):.0f}"
