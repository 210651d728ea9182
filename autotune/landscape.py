"""Landscapes: every candidate of a case timed once, committed, so that search strategies can be judged without a device. Needs no torch."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.journal import rows
from autotune.search import Maker, Point, nearest
from autotune.table import shape_distance
from kernels.errors import Failure, OutputError, RecordError

SCHEMA = "tersparse-landscape/1"
FOLDER = Path(__file__).resolve().parent / "landscapes"
_LABEL = re.compile(r"\S+ (?:(?P<n>\d+)x|K=)(?P<k>\d+)(?: T=(?P<t>\d+))? (?P<sparsity>dense|\d+:\d+)(?: .*)?")
"""How a problem is written: see `kernels.problem.Problem`."""
NEAREST = 2
"""So many nearest other shapes lend their winners as starts."""


@dataclass(frozen=True)
class Landscape:
    """One case: its layer, its candidates and the microseconds of each, in the same order; where they are from."""

    kernel: str
    gpu: str
    date: str
    machine: str
    out_features: int
    in_features: int
    tokens: int
    sparsity: str
    points: tuple[Point, ...]
    times: tuple[float, ...]

    @property
    def best(self) -> float:
        """The optimum, microseconds."""
        return min(self.times)

    @property
    def winner(self) -> Point:
        """The config of the optimum."""
        return self.points[self.times.index(self.best)]

    @property
    def shape(self) -> tuple[int, int, int]:
        """out_features, in_features, tokens."""
        return self.out_features, self.in_features, self.tokens

    def __str__(self) -> str:
        return f"{self.kernel} {self.out_features}x{self.in_features} T={self.tokens} {self.sparsity} on {self.gpu}"


def read(path: Path) -> tuple[Landscape, ...]:
    """The landscapes of a file. Raises RecordError for a file that is not of this schema."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise RecordError(f"{path}: schema {data['schema']!r}, {SCHEMA!r} is known")
        common = [str(data[name]) for name in ("kernel", "gpu", "date", "machine")]
        return tuple(_landscape(common, data["axes"], data.get("constant", {}), row) for row in data["landscapes"])
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"{path}: not a readable file of landscapes: {error}") from None


def _landscape(common: Sequence[str], axes: Sequence[str], constant: Mapping[str, Any], row: Mapping[str, Any]) -> Landscape:
    points = tuple({**dict(zip(axes, values[:-1], strict=True)), **constant} for values in row["rows"])
    times = tuple(float(values[-1]) for values in row["rows"])
    if not times or not all(math.isfinite(time) and time > 0 for time in times):
        raise ValueError("a landscape needs times above zero")
    kernel, gpu, date, machine = common
    n, k, tokens = (int(row[name]) for name in ("out_features", "in_features", "tokens"))
    return Landscape(kernel, gpu, date, machine, n, k, tokens, str(row["sparsity"]), points, times)


def committed() -> tuple[Landscape, ...]:
    """Every landscape of the repository."""
    return tuple(landscape for path in sorted(FOLDER.glob("*-*.json")) for landscape in read(path))


def write(path: Path, landscapes: Sequence[Landscape]) -> None:
    """One file of landscapes of one kernel on one GPU: a line each, axes that never vary named once. Raises OutputError."""
    first = landscapes[0]
    axes = list(first.points[0])
    values = {axis: {json.dumps(point[axis]) for one in landscapes for point in one.points} for axis in axes}
    varied = [axis for axis in axes if len(values[axis]) > 1]
    head = {
        "schema": SCHEMA, "kernel": first.kernel, "gpu": first.gpu, "date": first.date, "machine": first.machine, "axes": varied,
        "constant": {axis: first.points[0][axis] for axis in axes if axis not in varied},
    }
    lines = []
    for one in sorted(landscapes, key=lambda one: one.shape):
        timed = [[*(point[axis] for axis in varied), round(time, 3)] for point, time in zip(one.points, one.times, strict=True)]
        shape = dict(zip(("out_features", "in_features", "tokens"), one.shape, strict=True))
        lines.append("  " + json.dumps({**shape, "sparsity": one.sparsity, "rows": timed}))
    try:
        path.write_text(json.dumps(head)[:-1] + ', "landscapes": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None


def from_journal(path: Path, kernel: str, gpu: str, date: str, machine: str) -> list[Landscape]:
    """What an exhaustive tuning run of that kernel left in its journal, one landscape per case; the last of equal candidates counts.

    Of a case that was tuned with several sources or libraries, those of the last. Raises RecordError for a file that is no journal.
    """
    cases: dict[str, tuple[object, dict[str, tuple[Point, float]]]] = {}
    for key, value in rows(path):
        if len(key) != 6 or key[0] != kernel or not isinstance(value, (int, float)):
            continue
        if key[1] not in cases or cases[key[1]][0] != key[2:5]:
            cases[key[1]] = key[2:5], {}
        cases[key[1]][1][json.dumps(key[5], sort_keys=True)] = key[5], float(value)
    found = []
    for label, (_, timed) in cases.items():
        named = _LABEL.fullmatch(label)
        if named is None:
            raise RecordError(f"{path}: unknown case {label!r}")
        points, times = zip(*timed.values(), strict=True)
        n, k, t = (int(named[name] or 0) for name in ("n", "k", "t"))
        found.append(Landscape(kernel, gpu, date, machine, n, k, t, named["sparsity"], points, times))
    return found


def nearest_winners(landscape: Landscape, others: Iterable[Landscape], count: int = NEAREST) -> list[int]:
    """Places of the candidates nearest to the winners of the nearest other shapes, nearest first: what a tuned table would offer.

    A landscape whose configs have other axes lends nothing: its winner would be near to many candidates at once.
    """
    known = [other for other in others if other.kernel == landscape.kernel and other.shape != landscape.shape]
    known = [other for other in known if set(other.points[0]) == set(landscape.points[0])]
    known.sort(key=lambda other: shape_distance(landscape.shape, other.shape))
    return nearest(landscape.points, [other.winner for other in known[:count]])


def replay(landscape: Landscape, make: Maker, starts: Sequence[int], seed: int = 0, share: float = 1.0) -> tuple[float, ...]:
    """Fraction of the optimum's speed that the best found so far has, after 1, 2, 3 … evaluations, until that share of the candidates."""
    search, best, found = make(landscape.points, starts, seed), math.inf, list[float]()
    while len(found) < count_at(share, len(landscape.points)) and (place := search.ask()) is not None:
        time = landscape.times[place]
        search.tell(place, time if math.isfinite(time) else Failure("launch", "not timed"))
        best = min(best, time)
        found.append(landscape.best / best)
    return tuple(found)


def count_at(share: float, candidates: int) -> int:
    """How many evaluations that share of the candidates is, at least one."""
    return max(1, int(share * candidates))


def expected_loss(ratio: float, landscapes: Sequence[Landscape]) -> float | None:
    """Median loss, 0.03 for 3 %, of using the winner of other tokens of the same layer; None without such a pair.

    ratio: of the larger to the smaller number of tokens; pairs within half a factor of two of it count.
    """
    losses = []
    for own in landscapes:
        for other in landscapes:
            same = (own.kernel, own.gpu, own.shape[:2], own.sparsity) == (other.kernel, other.gpu, other.shape[:2], other.sparsity)
            if not same or own.tokens == other.tokens or abs(shape_distance((own.tokens,), (other.tokens,)) - math.log2(ratio)) > 0.5:
                continue
            if other.winner in own.points:
                losses.append(own.times[own.points.index(other.winner)] / own.best - 1)
    return statistics.median(losses) if losses else None


def carried(kernel: str, tuned_for: int, tokens: int, landscapes: Sequence[Landscape]) -> str:
    """What is known of using this kernel's config, tuned for other tokens, at these: from the nearest factor that was recorded."""
    ratio = max(tuned_for, tokens) / max(1, min(tuned_for, tokens))
    own = [one for one in landscapes if one.kernel == kernel]
    for factor in (2, 4, 8, 16):
        if factor >= ratio and (loss := expected_loss(factor, own)) is not None:
            return f"carried over; a factor of {factor} in tokens loses {loss:.1%} in the median"
    return "carried over; no landscape of this kernel tells the loss"
