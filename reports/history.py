"""History: each case over the runs of many commits, with the places where its speed-up changed, as one HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kernels.errors import UsageError
from reports import database, scan
from reports.changepoints import LEAST_RUN, Change, changes
from reports.figures import times
from reports.points import Point, moved, point_of
from reports.sketch import Sketch
from reports.svg import Figure
from reports.tables import brief
from suites.record import CaseRecord, RunRecord

WIDTH, HEIGHT, LEFT = 520.0, 132.0, 46.0
MOST_DRAWN = 400
"""So many cases get a figure of their own, those that changed most; the table holds all."""


@dataclass(frozen=True)
class Series:
    """One case over the runs, oldest first (runs and points side by side), and the shifts of its speed-up."""

    key: str
    runs: tuple[RunRecord, ...]
    points: tuple[Point, ...]
    changes: tuple[Change, ...]

    @property
    def name(self) -> str:
        """The case for people: its key without what is the same for most."""
        rest, layer, label, cache, state = self.key.rsplit("/", 4)
        return " ".join([*rest.split("/", 1), layer, *brief(label).split()[1:], cache, *([] if state == "interleaved" else [state])])

    @property
    def last(self) -> Point:
        """The newest point."""
        return self.points[-1]

    @property
    def largest(self) -> float:
        """The largest shift of any change as a factor of at least 1; 1 without changes."""
        return max((max(change.factor, 1 / change.factor) for change in self.changes), default=1.0)

    @property
    def latest(self) -> float | None:
        """The last speed-up over that of the run before; None for a single run."""
        return self.last.ratio.value / self.points[-2].ratio.value if len(self.points) > 1 else None

    def told(self, change: Change) -> str:
        """A change in words: how much, at which commit, when, and what else changed there."""
        before, after, run = self.points[change.place - 1], self.points[change.place], self.runs[change.place]
        also = "; ".join(moved((before.kernel, before.rival), (after.kernel, after.rival)))
        rest = f" ({also})" if also else ""
        return f"{change.factor - 1:+.1%} at {run.commit[:10]}, {run.started[:10]}{rest}"


def history(gpu: str, store: Path) -> list[Series]:
    """The series of every measured case in a folder of runs (searched to the bottom) or a .sqlite file, the largest change first, then
    the largest step from the run before.

    RecordError where there is nothing to read, UsageError for runs of another GPU.
    """
    heads: dict[str, RunRecord] = {}
    points: dict[str, dict[str, Point]] = {}
    for item in _points(store):
        if isinstance(item, RunRecord):
            heads[item.id] = item
        elif item.run in heads:
            points.setdefault(item.key, {})[item.run] = item
    found = sorted({head.gpu for head in heads.values()})
    if len(found) > 1 or (found and gpu not in ("auto", *found)):
        raise UsageError(f"{store}: holds runs of {', '.join(found)}, but --gpu {gpu} is claimed; a history is of one GPU")
    made = [_series(key, found.values(), heads) for key, found in points.items()]
    return sorted(made, key=lambda one: (-one.largest, -max(one.latest or 1.0, 1 / (one.latest or 1.0)), one.key))


def _points(store: Path) -> Iterator[RunRecord | Point]:
    if store.suffix == database.SUFFIX:
        yield from database.points(store)
        return
    for record in scan.every(store):
        item = record if isinstance(record, RunRecord) else point_of(record) if isinstance(record, CaseRecord) else None
        if item is not None:
            yield item


def _series(key: str, points: Iterable[Point], heads: Mapping[str, RunRecord]) -> Series:
    ordered = sorted(points, key=lambda point: (heads[point.run].started, point.run))
    runs = tuple(heads[point.run] for point in ordered)
    return Series(key, runs, tuple(ordered), tuple(changes([point.ratio.value for point in ordered])))


def draw(series: Series, figure_id: str) -> Figure:
    """The speed-up of one case over its runs, with intervals, levels and change points."""
    points = series.points
    low, high = min(point.ratio.low for point in points), max(point.ratio.high for point in points)
    pad = max(0.06 * (high - low), 0.004 * high)
    low, high = low - pad, high + pad
    bottom = HEIGHT - 24

    def x(place: float) -> float:
        return LEFT + (place + 0.5) / len(points) * (WIDTH - LEFT)

    def y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - 10)

    sketch = Sketch(WIDTH, HEIGHT)
    for value in (low + pad, high - pad, *([1.0] if low < 1 < high else [])):
        sketch.line([(LEFT, y(value)), (WIDTH, y(value))], "ink" if value == 1 else "grid", width=0.8)
        sketch.words(LEFT - 4, y(value) + 3, times(value), size=8.5, colour="muted", anchor="end")
    for change in series.changes:
        spot, better = x(change.place - 0.5), change.factor > 1
        sketch.line([(spot, 6), (spot, bottom)], "s1" if better else "s2", width=1.4, dashed=True)
        mark, colour = ("▲", "s1") if better else ("▼", "s2")
        sketch.words(spot + 3, 13, f"{mark} {change.factor - 1:+.1%}", size=8.5, colour=colour, bold=True)
    for place, point in enumerate(points):
        sketch.line([(x(place), y(point.ratio.low)), (x(place), y(point.ratio.high))], "muted", width=1.2)
    sketch.ticks([(x(place), y(point.ratio.value)) for place, point in enumerate(points)], 4.5, "ink", width=4.5)
    for place in sorted({0, len(points) - 1}):
        run, anchor = series.runs[place], "start" if place == 0 else "end"
        words = f"{run.commit[:8]}, {run.started[:10]}"
        sketch.words(LEFT if place == 0 else WIDTH, HEIGHT - 6, words, size=8.5, colour="muted", anchor=anchor)
    told = "; ".join(series.told(change) for change in series.changes) or "no change"
    title, first = f"{series.name} over {len(points)} runs", times(points[0].ratio.value)
    return sketch.figure(figure_id, title, f"{title}: {first} at first, {times(series.last.ratio.value)} now; {told}.")


def strip(series: Series) -> str:
    """The speed-ups of a case as a row of eight-step bars, at most the last 40 runs, for a cell of a table."""
    values = [point.ratio.value for point in series.points[-40:]]
    low, span = min(values), (max(values) - min(values)) or 1.0
    flat = max(values) / low < 1.01
    return "".join("▄" if flat else "▁▂▃▄▅▆▇█"[min(7, int(8 * (value - low) / span))] for value in values)


def context(gpu: str, store: Path) -> dict[str, object]:
    """What the template of the page needs."""
    found = history(gpu, store)
    runs = {run.id: run for one in found for run in one.runs}
    drawn = [(one, draw(one, f"fig-case-{place}")) for place, one in enumerate(found[:MOST_DRAWN])]
    ordered: Sequence[RunRecord] = sorted(runs.values(), key=lambda run: (run.started, run.id))
    return {
        "gpu": ordered[-1].gpu if ordered else gpu, "runs": ordered, "commits": len({run.commit for run in ordered}), "series": found,
        "drawn": drawn, "changed": [one for one in found if one.changes], "longest": max((len(one.points) for one in found), default=0),
        "enough": 2 * LEAST_RUN, "strip": strip, "source": str(store),
    }  # fmt: skip
