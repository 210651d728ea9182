"""Change points: where the level of a series shifts. Least squares over all ways to cut it, with a price for every cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

PRICE = 4.0
"""What a cut costs, in units of the noise's variance times log(n). Two would be the Bayesian criterion; twice that, because a history is
looked at for many cases and false alarms cost more than a late one."""
LEAST_SHIFT = 0.01
"""Shifts of less than this (relative) are not reported, however certain."""
LEAST_NOISE = 0.002
"""The noise is never taken to be smaller than this (relative): short series can look quieter than they are."""
LEAST_RUN = 2
"""Points that a level must last: a single odd run is no change."""


@dataclass(frozen=True)
class Change:
    """A shift: the place of the first point of the new level, and the new level over the old one."""

    place: int
    factor: float


def changes(values: Sequence[float]) -> list[Change]:
    """The shifts of level in a series of positive values, in order; none for fewer than four."""
    if len(values) < 2 * LEAST_RUN:
        return []
    raw = np.log(np.asarray(values, dtype=float))
    noise = _noise(raw)
    logs = _without_spikes(raw, 3 * noise)
    bounds = [0, *_cuts(logs, PRICE * noise**2 * math.log(len(logs))), len(logs)]
    levels = [float(np.mean(logs[low:high])) for low, high in pairwise(bounds)]
    found = [Change(place, math.exp(b - a)) for place, (a, b) in zip(bounds[1:-1], pairwise(levels), strict=True)]
    return [change for change in found if abs(math.log(change.factor)) >= LEAST_SHIFT]


def _noise(logs: np.ndarray) -> float:
    """The scatter of the points about their level: from the median of the steps between neighbours, which few shifts do not move."""
    steps = np.abs(np.diff(logs))
    return max(1.4826 * float(np.median(steps)) / math.sqrt(2), LEAST_NOISE)


def _without_spikes(logs: np.ndarray, reach: float) -> np.ndarray:
    """The series with each point drawn to within `reach` of the median of it and its neighbours, which a single odd point does not move."""
    ends = np.concatenate([logs[1:2], logs, logs[-2:-1]])
    middle = np.median(np.stack([ends[:-2], ends[1:-1], ends[2:]]), axis=0)
    clipped: np.ndarray = np.clip(logs, middle - reach, middle + reach)
    return clipped


def _cuts(logs: np.ndarray, price: float) -> list[int]:
    """The cheapest places to cut: dynamic programming over the sum of squares about the means plus the price of each cut."""
    count = len(logs)
    sums, squares = np.concatenate([[0.0], np.cumsum(logs)]), np.concatenate([[0.0], np.cumsum(logs**2)])
    cost, before = np.full(count + 1, np.inf), np.zeros(count + 1, dtype=int)
    cost[0] = -price
    for end in range(LEAST_RUN, count + 1):
        starts = np.arange(0, end - LEAST_RUN + 1)
        lengths = end - starts
        spread = squares[end] - squares[starts] - (sums[end] - sums[starts]) ** 2 / lengths
        total = cost[starts] + spread + price
        best = int(np.argmin(total))
        cost[end], before[end] = total[best], starts[best]
    cuts, end = [], count
    while before[end]:
        end = int(before[end])
        cuts.append(end)
    return cuts[::-1]
