"""Local search by a model of the landscape: a Gaussian process over the axes of the config, asked where most improvement is expected.

Near candidates are taken to be about equally fast (Matérn-5/2 on the log of the time), how near is read from the outcomes, and what is far
from all outcomes is uncertain. The next candidate is the one that is expected to improve on the best so far by most: D. R. Jones,
M. Schonlau, W. J. Welch, "Efficient Global Optimization of Expensive Black-Box Functions", Journal of Global Optimization 13, 1998.
The candidates are a list, so the improvement is asked of each of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from autotune.search import Point, Result
from kernels.errors import Failure

Floats: TypeAlias = NDArray[np.floating[Any]]

SPREAD = 4
"""So many outcomes the model needs where no start is given: of candidates that together are near to all others."""
FROM_STARTS = 2
"""So many it needs where starts are given: they are good ones, and the search is to stay near them."""
LENGTHS = (1.0, 2.0, 4.0)
"""Distances within which candidates are alike, as `coordinates` count; the likeliest of them is taken."""
NOISE = 1e-2
"""Variance of a timing, and of what the axes do not tell, over that of the landscape."""
KNOWN = 512
"""The model learns from the first so many outcomes: a space that is not known by then holds nothing that it could tell."""
NEARLY, SAMPLE = 1.02, 256
"""Candidates whose choice leaves the others this much farther than the best are as good; so many, drawn at random, stand for all others."""


def coordinates(points: Sequence[Point]) -> Floats:
    """[candidates, axes]: numbers by their log2 (of one more where there is a zero), anything else by a column per value, one apart."""
    columns = [np.zeros(len(points))]
    for name in points[0]:
        values = [point.get(name) for point in points]
        kinds = list(dict.fromkeys(map(repr, values)))
        numbers = [float(value) for value in values if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0]
        if len(kinds) > 1 and len(numbers) == len(values):
            columns.append(np.log2(np.array(numbers) + (min(numbers) == 0)))
        elif len(kinds) > 1:
            columns += [np.array([repr(value) == kind for value in values]) / math.sqrt(2) for kind in kinds]
    return np.stack(columns, 1)


def likeness(squares: Floats, length: float) -> Floats:
    """Matérn-5/2 of squared distances."""
    scaled = np.sqrt(5 * squares) / length
    return (1 + scaled + scaled * scaled / 3) * np.exp(-scaled)


class Process:
    """A Gaussian process of the candidates' log times, alike within one length, that is told one outcome after the other.

    The covariance of what was told is factored as it grows: `_reach` is the inverse of the factor times the covariance with all
    candidates, so that a further outcome costs one product with it. Right-hand sides go along: ones, values, failures.
    """

    def __init__(self, axes: Floats, length: float) -> None:
        self._axes, self._length, self._count, self._pivots = axes, length, 0, 0.0
        self._reach: Floats = np.empty((min(KNOWN, len(axes)), len(axes)))
        self._solved: Floats = np.empty((len(self._reach), 3))
        self._explained: Floats = np.zeros(len(axes))

    def tell(self, place: int, value: float | None) -> None:
        """The log time of a candidate; None for a failure."""
        count, reach = self._count, self._reach[: self._count]
        own = reach[:, place].copy()
        pivot = math.sqrt(1 + NOISE - float(own @ own))
        squares = ((self._axes - self._axes[place]) ** 2).sum(1)
        row = (likeness(squares, self._length) - own @ reach) / pivot
        right = np.array([1.0, 0.0 if value is None else value, float(value is None)])
        self._reach[count], self._solved[count] = row, (right - own @ self._solved[:count]) / pivot
        self._explained += row * row
        self._pivots += math.log(pivot)
        self._count += 1

    def predict(self, failed: float, middle: float, spread: float) -> tuple[float, Floats, Floats]:
        """Log likelihood up to a constant; mean and standard deviation of every candidate in units of `spread` around `middle`.

        failed: what counts as the value of a failure.
        """
        ones, values, failures = self._solved[: self._count].T
        scaled = (values + failed * failures - middle * ones) / spread
        mean = float(ones @ scaled / (ones @ ones))
        rest = scaled - mean * ones
        variance = max(float(rest @ rest) / self._count, 1e-6)
        deviation: Floats = np.sqrt(np.maximum(variance * (1 - self._explained), 1e-12))
        likelihood = -0.5 * self._count * math.log(variance) - self._pivots
        return likelihood, mean + rest @ self._reach[: self._count], deviation


def expected_improvement(mean: Floats, deviation: Floats, best: float) -> Floats:
    """By how much a normal variable is expected to be below `best`, counting 0 where it is above."""
    ahead = (best - mean) / deviation
    below = np.array([0.5 * math.erfc(-each / math.sqrt(2)) for each in ahead])
    gain: Floats = deviation * (ahead * below + np.exp(-0.5 * ahead * ahead) / math.sqrt(2 * math.pi))
    return gain


class Local:
    """The starts, then by expected improvement; `SPREAD` candidates that all others are near to first, where nothing lends a start.

    A failure counts as the slowest time so far. The seed decides between candidates that are equally good.
    """

    def __init__(self, points: Sequence[Point], starts: Sequence[int], seed: int) -> None:
        self._starts = list(dict.fromkeys(starts))
        self._axes = coordinates(points)
        self._processes = [Process(self._axes, length) for length in LENGTHS]
        self._outcomes: dict[int, Result] = {}
        self._lots: Floats = np.random.default_rng(seed).permutation(len(points)).astype(np.float64)
        self._order: list[int] | None = None

    def ask(self) -> int | None:
        """A start that is left, else the candidate of the most expected improvement."""
        return next(iter(self._likely()), None)

    def tell(self, place: int, outcome: Result) -> None:
        """Take it in."""
        if len(self._outcomes) < KNOWN:
            for process in self._processes:
                process.tell(place, None if isinstance(outcome, Failure) else math.log(outcome))
        self._outcomes[place], self._order = outcome, None

    def preview(self, count: int) -> list[int]:
        """The starts, then the others, those of the most expected improvement first; before there is a model, those near the starts."""
        return self._likely()[:count]

    def _likely(self) -> list[int]:
        """All that are left, likeliest first."""
        if self._order is None:
            starts = [place for place in self._starts if place not in self._outcomes]
            times = [math.log(outcome) for outcome in self._outcomes.values() if not isinstance(outcome, Failure)]
            if starts or not times or len(self._outcomes) < (FROM_STARTS if self._starts else SPREAD):
                ranked = self._unknown()
            else:
                ranked = self._expected(times)
            self._order = [place for place in dict.fromkeys([*starts, *ranked]) if place not in self._outcomes]
        return self._order

    def _expected(self, times: Sequence[float]) -> list[int]:
        failed, fastest = max(times), min(times)
        values = np.array([*times, *(failed for _ in range(len(self._outcomes) - len(times)))])
        middle, spread = float(values.mean()), float(values.std()) or 1.0
        found = [process.predict(failed, middle, spread) for process in self._processes]
        _, mean, deviation = max(found, key=lambda one: one[0])
        gain = np.round(expected_improvement(mean, deviation, (fastest - middle) / spread), 12)
        return [int(place) for place in np.lexsort((self._lots, np.round(mean, 9), -gain))]

    def _unknown(self) -> list[int]:
        """Without a model: near the starts where there are some, else the next of those that all others are near to, then any."""
        if self._starts:
            near = np.min([self._from(place) for place in self._starts], axis=0)
            return [int(place) for place in np.lexsort((self._lots, near))]
        drawn = np.argsort(self._lots)
        sample, spread = drawn[:SAMPLE], list(self._outcomes)
        apart = np.sqrt(np.stack([self._from(int(place))[sample] for place in sample]))
        nearest = np.min([np.sqrt(self._from(place)[sample]) for place in spread], axis=0) if spread else np.full(len(sample), np.inf)
        while len(spread) < min(SPREAD, len(self._axes)):
            left = np.minimum(apart, nearest).sum(1)
            left[np.isin(sample, spread)] = np.inf
            found = int(np.argmax(left <= NEARLY * left.min()))
            spread.append(int(sample[found]))
            nearest = np.minimum(nearest, apart[found])
        return [*spread, *map(int, drawn)]

    def _from(self, place: int) -> Floats:
        """Squared distances of all candidates from one."""
        squares: Floats = ((self._axes - self._axes[place]) ** 2).sum(1)
        return squares
