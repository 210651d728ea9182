"""Who won: from paired samples of the finalists to a winner, its ties, and its chance of being the best."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autotune.measure import median_interval

RESAMPLES = 1000


@dataclass(frozen=True)
class Verdict:
    """winner: its place. better: whether it is shown to be faster than the default (place 0), or the default cannot run.

    chance: share of bootstrap resamples of the rounds in which it has the least median. ties: places within the noise of it.
    times: medians, microseconds.
    """

    winner: int
    better: bool
    chance: float
    ties: tuple[int, ...]
    times: Mapping[int, float]


def decide(samples: Mapping[int, Sequence[float]]) -> Verdict:
    """The verdict on at least one finalist; sample i of each is of round i."""
    times = {place: median(own) for place, own in samples.items()}
    winner = min(times, key=lambda place: times[place])
    shown = {place: ratio_interval(own, samples[winner])[0] > 1 for place, own in samples.items() if place != winner}
    ties = tuple(place for place, slower in shown.items() if not slower)
    better = winner != 0 and shown.get(0, True)
    return Verdict(winner, better, chance_of_best(samples, winner), ties, times)


def median(values: Sequence[float]) -> float:
    """The median of microseconds."""
    low, high = sorted(values)[(len(values) - 1) // 2], sorted(values)[len(values) // 2]
    return (low + high) / 2


def ratio_interval(slower: Sequence[float], faster: Sequence[float]) -> tuple[float, float]:
    """The interval of the paired ratio slower / faster."""
    low, high = median_interval([math.log(a / b) for a, b in zip(slower, faster, strict=True)])
    return math.exp(low), math.exp(high)


def chance_of_best(samples: Mapping[int, Sequence[float]], winner: int, seed: int = 0) -> float:
    """In what share of resamples of the rounds, with replacement, the winner has the least median."""
    if len(samples) == 1:
        return 1.0
    rounds, draw, won = len(samples[winner]), random.Random(seed), 0
    for _ in range(RESAMPLES):
        chosen = draw.choices(range(rounds), k=rounds)
        least = median([samples[winner][each] for each in chosen])
        won += all(median([own[each] for each in chosen]) >= least for place, own in samples.items() if place != winner)
    return won / RESAMPLES
