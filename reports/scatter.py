"""Distributions of samples, and the clock strip: what the device did while it was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kernels.problem import DENSE
from reports.compare import STRONGEST, Comparison
from reports.figures import short, slug
from reports.load import Case
from reports.panel import Data, Panel, figures, paragraph, wide
from reports.sketch import Sketch
from reports.svg import Figure
from reports.tables import SUITES
from suites.quality import noise
from suites.record import Result

WIDTH, LEFT, ROW = 331.0, 146.0, 15.0
STRIP_LEFT = 92.0
"""Where the strips of clocks begin, right of their names."""
REACH = 0.1  # of the median on either side; what lies beyond stands at the edge
STRIPS = (("sm_mhz", "SM clock, MHz"), ("power_w", "power, W"), ("temperature_c", "temperature, °C"))
SEEN = ("before", "after")
LETTER = 4.9
"""The width of a letter of small print."""


def panel(data: Data) -> Panel | None:
    """The samples of the least and most certain cases of each suite, and the conditions around every case in the order of measuring."""
    drawn = [made for suite in SUITES if (made := samples(suite, data))]
    started = {run.id: run.started for run in data.results.runs}
    cases = [case for case in data.results.measured if case.record.state == "interleaved"]
    strip = clock_strip(sorted(cases, key=lambda case: started.get(case.record.run, "")))
    if not drawn and strip is None:
        return None
    html = paragraph(
        "Each stroke is the ratio of one round, the strongest baseline's time over ours, relative to the median; the bar is the 95 % "
        "interval of the median. Shown are the four least certain cases of each suite, the one in the middle, and the most certain; what "
        f"lies more than {REACH:.0%} from the median stands at the edge."
    )
    html += figures(drawn)
    if strip is not None:
        html += paragraph(
            "The clock strip: what the driver said before (orange, long) and after (blue, short) each case, run after run."
        )
        html += wide(strip)
    return Panel("samples", "Samples and clocks", "Samples and clocks", html)


def samples(suite: str, data: Data) -> Figure | None:
    """Rounds of chosen cases of one suite: the four least certain, the middle one and the most certain."""
    cases = [case for case in data.results.measured if case.usual and (case.record.suite, case.record.state) == (suite, "interleaved")]
    found = [item for case in cases if (item := data.comparer(case, STRONGEST)).ratio and item.ours and item.theirs]
    if not found:
        return None
    ordered = sorted(found, key=lambda item: -noise(item.ratio) if item.ratio else 0.0)
    places = sorted({0, 1, 2, 3, len(ordered) // 2, len(ordered) - 1} & set(range(len(ordered))))
    shown = [ordered[place] for place in places]
    return _draw_samples(suite, shown)


def _draw_samples(suite: str, shown: Sequence[Comparison]) -> Figure:
    sketch = Sketch(WIDTH, 26 + ROW * len(shown) + 16)
    sketch.words(0, 11, f"{suite}: rounds of six cases" if len(shown) == 6 else f"{suite}: rounds", size=11, bold=True)
    bottom = 22 + ROW * len(shown)
    for share in (-REACH, 0.0, REACH):
        x = _x(share)
        sketch.line([(x, 20), (x, bottom)], "grid")
        sketch.words(x, bottom + 11, f"{share:+.0%}".replace("-", "−") if share else "median", size=8.5, colour="muted", anchor="middle")
    told = []
    for place, item in enumerate(shown):
        y = 20 + ROW * (place + 0.5)
        ratio = item.ratio
        if ratio is None or item.ours is None or item.theirs is None:
            continue
        name = _name(item.case)
        sketch.words(0, y + 3, short(name, int((LEFT - 2) / LETTER) + 1), size=8.5)
        low, high = _x(ratio.low / ratio.value - 1), _x(ratio.high / ratio.value - 1)
        sketch.box(low, y - 5, high - low, 10, "s1", opacity=0.3)
        rounds = rounds_of(item.ours, item.theirs)
        sketch.ticks([(_x(value / ratio.value - 1), y) for value in rounds], 8, "s1", opacity=0.75)
        told.append(f"{name}: {ratio.value:.3f}, interval {ratio.low:.3f} to {ratio.high:.3f}, {len(rounds)} rounds")
    title = f"Rounds of chosen cases, {suite}"
    return sketch.figure(f"fig-samples-{slug(suite)}", title, f"{title}. {'; '.join(told)}.")


def _name(case: Case) -> str:
    """A case for people: model, layer, tokens and weights; a square by its size."""
    record, problem = case.record, case.problem
    if record.suite == "square":
        return f"{problem.tokens}³ {problem.sparsity}"
    weights = "" if problem.op == "activation" and problem.sparsity == DENSE else str(problem.sparsity)
    return " ".join(filter(None, (record.model, record.layer, str(problem.tokens or ""), weights)))


def rounds_of(ours: Result, theirs: Result) -> list[float]:
    """The ratio of each round."""
    return [b / a for a, b in zip(ours.samples_us, theirs.samples_us, strict=False)]


def _x(share: float) -> float:
    kept = min(max(share, -REACH), REACH)
    return LEFT + 8 + (kept / REACH + 1) / 2 * (WIDTH - LEFT - 26)


def clock_strip(cases: Sequence[Case]) -> Figure | None:
    """SM clock, power and temperature around each case as three strips, in the order given; None where nothing was recorded."""
    values = {name: [[_seen(case, when, name) for when in SEEN] for case in cases] for name, _ in STRIPS}
    strips = [(name, title) for name, title in STRIPS if any(v is not None for pair in values[name] for v in pair)]
    if not strips or len(cases) < 2:
        return None
    height = 46.0
    sketch = Sketch(2 * WIDTH, 4 + height * len(strips) + 22)
    told = []
    for place, (name, title) in enumerate(strips):
        top = 14 + height * place
        known = [v for pair in values[name] for v in pair if v is not None]
        low, high = min(known), max(known)
        span = (high - low) or 1.0
        sketch.words(0, top + 4, title, size=9, bold=True)
        sketch.words(0, top + 16, f"{low:.0f} to {high:.0f}", size=8.5, colour="muted")
        told.append(f"{title}: {low:.0f} to {high:.0f}, median {float(np.median(known)):.0f}")
        _strip(sketch, values[name], top, low, span, height - 12)
    _suites(sketch, cases, 14 + height * len(strips))
    title = "Clock strip"
    return sketch.figure("fig-clock-strip", title, f"{title}: around {len(cases)} cases, run after run. {'; '.join(told)}.")


def _strip(sketch: Sketch, pairs: Sequence[Sequence[float | None]], top: float, low: float, span: float, height: float) -> None:
    left, width = STRIP_LEFT, sketch.width - STRIP_LEFT
    for which, (colour, length) in enumerate((("s2", 6.0), ("s1", 3.0))):
        spots = [
            (left + width * (place + 0.5) / len(pairs), top + height - 3 - (value - low) / span * (height - 8))
            for place, pair in enumerate(pairs)
            if (value := pair[which]) is not None
        ]
        sketch.ticks(spots, length, colour, width=max(1.0, min(2.4, width / len(pairs))), opacity=0.8)
    sketch.line([(left, top + height), (sketch.width, top + height)], "grid")


def _suites(sketch: Sketch, cases: Sequence[Case], y: float) -> None:
    """The name of each suite under its first case; where names would run into each other, that of the longer stretch stays."""
    left, width = STRIP_LEFT, sketch.width - STRIP_LEFT
    starts = [place for place, case in enumerate(cases) if place == 0 or case.record.suite != cases[place - 1].record.suite]
    stretches = [(end - start, start) for start, end in zip(starts, [*starts[1:], len(cases)], strict=True)]
    named: list[tuple[float, float]] = []
    for _, place in sorted(stretches, key=lambda stretch: (-stretch[0], stretch[1])):
        suite = cases[place].record.suite
        x = left + width * place / len(cases)
        end = x + LETTER * len(suite) + 6
        if end <= sketch.width and all(end < other or x > until for other, until in named):
            sketch.line([(x, 8), (x, y - 4)], "grid")
            sketch.words(x + 2, y + 4, suite, size=8.5, colour="muted")
            named.append((x, end))


def _seen(case: Case, when: str, name: str) -> float | None:
    value = (case.record.conditions.get(when) or {}).get(name)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
