"""Search strategies, one signature: candidates, a function that evaluates one, a budget; out come the trials."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kernels.errors import Failure
from kernels.space import Config

Evaluate = Callable[[Config], "float | Failure"]
"""Microseconds per call of a config, or why there are none."""


class Budget:
    """Seconds that may be spent, counted from now; `now` tells the time. None: no limit."""

    def __init__(self, seconds: float | None, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._end = now, None if seconds is None else now() + seconds

    @property
    def spent(self) -> bool:
        """Whether nothing is left."""
        return self._end is not None and self._now() >= self._end


@dataclass(frozen=True)
class Trial:
    """One evaluated config: its microseconds per call, or its failure."""

    config: Config
    outcome: float | Failure


@dataclass(frozen=True)
class Search:
    """What a search found. complete: whether every candidate was tried before the budget was spent."""

    trials: tuple[Trial, ...]
    complete: bool

    def best(self, count: int) -> list[Config]:
        """The fastest configs, fastest first."""
        timed = sorted((trial.outcome, place) for place, trial in enumerate(self.trials) if not isinstance(trial.outcome, Failure))
        return [self.trials[place].config for _, place in timed[:count]]

    def failures(self) -> Sequence[Failure]:
        """The failures, in the order in which they were met."""
        return [trial.outcome for trial in self.trials if isinstance(trial.outcome, Failure)]


def exhaustive(candidates: Iterable[Config], evaluate: Evaluate, budget: Budget) -> Search:
    """Every distinct candidate once, in order, until the budget is spent; a failure costs one candidate."""
    trials: list[Trial] = []
    for config in dict.fromkeys(candidates):
        if budget.spent:
            return Search(tuple(trials), False)
        trials.append(Trial(config, evaluate(config)))
    return Search(tuple(trials), True)
