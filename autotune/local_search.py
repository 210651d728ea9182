"""Local search by a model of the landscape: a Gaussian process over the axes of the config, asked where most improvement is expected.

Near candidates are taken to be about equally fast (Matérn-5/2 on the log of the time), how near is read from the outcomes, and what is far
from all outcomes is uncertain. The next candidate is the one that is expected to improve on the best so far by most: D. R. Jones,
M. Schonlau, W. J. Welch, "Efficient Global Optimization of Expensive Black-Box Functions", Journal of Global Optimization 13, 1998.
The candidates are a list, so the improvement is asked of each of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
KNOWN = 256
"""The model looks at the fastest so many outcomes, so that a search of thousands does not wait for it."""
NEARLY, SAMPLE = 1.02, 512
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


def _likeness(squares: Floats, length: float) -> Floats:
    """Matérn-5/2 of squared distances."""
    scaled = np.sqrt(5 * squares) / length
    return (1 + scaled + scaled * scaled / 3) * np.exp(-scaled)


@dataclass(frozen=True)
class _Fit:
    """A process with likeness over that length: the factor of its covariance, its mean, the values without it solved by the factor, its
    variance, and its log likelihood up to a constant."""

    length: float
    factor: Floats
    mean: float
    rest: Floats
    variance: float
    likelihood: float


def _fit(squares: Floats, values: Floats, length: float) -> _Fit:
    factor: Floats = np.linalg.cholesky(_likeness(squares, length) + NOISE * np.eye(len(values)))
    ones, solved = np.linalg.solve(factor, np.stack([np.ones(len(values)), values], 1)).T
    mean = float(ones @ solved / (ones @ ones))
    rest: Floats = solved - mean * ones
    variance = max(float(rest @ rest) / len(values), 1e-6)
    likelihood = -0.5 * len(values) * math.log(variance) - float(np.log(np.diag(factor)).sum())
    return _Fit(length, factor, mean, rest, variance, likelihood)


def predict(squares: Floats, places: Sequence[int], values: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation of every candidate, in units of the values' own deviation around their mean.

    squares: [outcomes, candidates], squared distances of the outcomes' candidates from all. places: the outcomes' among the candidates.
    """
    scaled = (values - values.mean()) / (values.std() or 1.0)
    fit = max((_fit(squares[:, places], scaled, length) for length in LENGTHS), key=lambda fit: fit.likelihood)
    reach: Floats = np.linalg.solve(fit.factor, _likeness(squares, fit.length))
    return fit.mean + fit.rest @ reach, np.sqrt(np.maximum(fit.variance * (1 - (reach * reach).sum(0)), 1e-12))


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
        self._outcomes: dict[int, Result] = {}
        self._squares: dict[int, Floats] = {}
        self._lots: Floats = np.random.default_rng(seed).permutation(len(points)).astype(np.float64)
        self._order: list[int] | None = None

    def ask(self) -> int | None:
        """A start that is left, else the candidate of the most expected improvement."""
        return next(iter(self._likely()), None)

    def tell(self, place: int, outcome: Result) -> None:
        """Take it in."""
        self._outcomes[place], self._order = outcome, None

    def preview(self, count: int) -> list[int]:
        """The starts, then the others, those of the most expected improvement first; before there is a model, those near the starts."""
        return self._likely()[:count]

    def _likely(self) -> list[int]:
        """All that are left, likeliest first."""
        if self._order is None:
            starts = [place for place in self._starts if place not in self._outcomes]
            timed = [place for place, outcome in self._outcomes.items() if not isinstance(outcome, Failure)]
            if starts or not timed or len(self._outcomes) < (FROM_STARTS if self._starts else SPREAD):
                ranked = self._unknown()
            else:
                ranked = self._expected(timed)
            self._order = [place for place in dict.fromkeys([*starts, *ranked]) if place not in self._outcomes]
        return self._order

    def _expected(self, timed: Sequence[int]) -> list[int]:
        times = {place: math.log(float(self._outcomes[place])) for place in timed}  # type: ignore[arg-type]  # those are no failures
        slowest = max(times.values())
        known = sorted(self._outcomes, key=lambda place: times.get(place, slowest))[:KNOWN]
        values = np.array([times.get(place, slowest) for place in known])
        mean, deviation = predict(np.stack([self._from(place) for place in known]), known, values)
        best = (values.min() - values.mean()) / (values.std() or 1.0)
        gain = np.round(expected_improvement(mean, deviation, best), 12)
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
        if place not in self._squares:
            self._squares[place] = ((self._axes - self._axes[place]) ** 2).sum(1)
        return self._squares[place]
