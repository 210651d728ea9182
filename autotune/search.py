"""Search strategies behind one signature: the candidates as plain points, where to start, a seed; then ask for one, tell its outcome.

Each strategy is sequential, so the same outcomes give the same search, whatever was compiled ahead (see `Strategy.preview`).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kernels.errors import Failure, UsageError

Point = Mapping[str, Any]
"""A config as plain JSON data: axis to value."""
Result = float | Failure
"""Microseconds per call, or why there are none."""

class Budget:
    """What may be spent: seconds, counted from now, and evaluations. None: no limit. `now` tells the time."""

    def __init__(self, seconds: float | None = None, evaluations: int | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self.now, self._end, self.evaluations = now, None if seconds is None else now() + seconds, evaluations

    @property
    def seconds(self) -> float | None:
        """What is left, at least 0."""
        return None if self._end is None else max(0.0, self._end - self.now())

    @property
    def spent(self) -> bool:
        """Whether no time is left."""
        return self._end is not None and self.now() >= self._end

    def share(self, cases: int, reserve: float = 0.0) -> Budget:
        """The budget of one case of so many that are left: its part of the time, all of the evaluations.

        reserve: seconds of its part that it needs besides, for what comes after the search.
        """
        left = self.seconds
        return Budget(None if left is None else max(0.0, left / max(1, cases) - reserve), self.evaluations, self.now)


class Strategy(Protocol):
    """Proposes candidates by their place in the list it was made from."""

    def ask(self) -> int | None:
        """The next candidate to try, never one twice; None when all were."""

    def tell(self, place: int, outcome: Result) -> None:
        """What became of it. Every asked candidate is told before the next is asked."""

    def preview(self, count: int) -> list[int]:
        """Candidates that are likely to be asked for next, likeliest first: worth compiling ahead. Changes nothing."""


Maker = Callable[[Sequence[Point], Sequence[int], int], Strategy]
"""(points, starts, seed): the candidates, the places to begin with, the seed of whatever is random."""


@dataclass
class Listed:
    """Candidates in a fixed order."""

    order: Sequence[int]
    _next: int = 0

    def ask(self) -> int | None:
        """The next of the order."""
        if self._next >= len(self.order):
            return None
        self._next += 1
        return self.order[self._next - 1]

    def tell(self, place: int, outcome: Result) -> None:
        """The order does not depend on outcomes."""

    def preview(self, count: int) -> list[int]:
        """The next of the order."""
        return list(self.order[self._next : self._next + count])


def exhaustive(points: Sequence[Point], starts: Sequence[int], seed: int) -> Listed:
    """Every candidate, the starts first."""
    del seed
    return Listed(list(dict.fromkeys([*starts, *range(len(points))])))


def shuffled(points: Sequence[Point], starts: Sequence[int], seed: int) -> Listed:
    """Every candidate in random order, the starts first."""
    rest = list(range(len(points)))
    random.Random(seed).shuffle(rest)
    return Listed(list(dict.fromkeys([*starts, *rest])))


def distance(first: Point, second: Point) -> float:
    """How far two configs are apart: 1 per factor of two in a number, 1 per other value that differs."""
    total = 0.0
    for name, value in first.items():
        other = second.get(name)
        if value == other:
            continue
        numbers = all(isinstance(each, (int, float)) and not isinstance(each, bool) and each > 0 for each in (value, other))
        total += min(3.0, abs(math.log2(value / other))) if numbers else 1.0
    return total


def nearest(points: Sequence[Point], wanted: Sequence[Point]) -> list[int]:
    """The place of the candidate nearest to each wanted config, in order, each once: what another shape's winners come to here."""
    return list(dict.fromkeys(min(range(len(points)), key=lambda place: distance(other, points[place])) for other in wanted))


def local(points: Sequence[Point], starts: Sequence[int], seed: int) -> Strategy:
    """Local search from the starts: the default, and the winners of the nearest tuned shapes or GPUs; see `autotune.local_search`."""
    from autotune.local_search import Local

    return Local(points, starts, seed)


def model(points: Sequence[Point], starts: Sequence[int], seed: int) -> Strategy:
    """A model of the times proposes (optuna's tree-structured Parzen estimator). UsageError where optuna is not installed."""
    from autotune.model_search import Model

    return Model(points, starts, seed)


STRATEGIES: Mapping[str, Maker] = {"exhaustive": exhaustive, "random": shuffled, "local": local, "model": model}
"""By name, as the command line knows them."""


def strategy(name: str) -> Maker:
    """The strategy of that name; UsageError lists the names there are."""
    if name not in STRATEGIES:
        raise UsageError(f"unknown search {name!r}; allowed: {', '.join(STRATEGIES)}")
    return STRATEGIES[name]
