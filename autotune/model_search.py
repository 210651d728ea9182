"""Search by a model of the times: optuna's tree-structured Parzen estimator over the axes. Needs the extra `tune`."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from autotune.search import Point, Result
from kernels.errors import Failure, UsageError

FIRST = 8
"""So many outcomes the model needs before it says anything; until then candidates are random."""
TRIES = 8
"""Proposals of the model that are no candidate, or were tried, before a random candidate is taken instead."""


class Model:
    """Proposes by optuna's sampler; a proposal that is no candidate is told to it as bad and asked again.

    Failures are told to the model as the slowest time so far, doubled.
    """

    def __init__(self, points: Sequence[Point], starts: Sequence[int], seed: int) -> None:
        try:
            self._optuna: Any = import_module("optuna")
        except ModuleNotFoundError:
            raise UsageError("the search model needs optuna: pip install 'tersparse[tune]'") from None
        self._optuna.logging.set_verbosity(self._optuna.logging.WARNING)
        sampler = self._optuna.samplers.TPESampler(seed=seed, n_startup_trials=FIRST, multivariate=True)
        self._study: Any = self._optuna.create_study(sampler=sampler)
        self._points, self._starts = points, list(starts)
        self._axes = {name: list(dict.fromkeys(point[name] for point in points)) for name in points[0]}
        self._axes = {name: values for name, values in self._axes.items() if len(values) > 1}
        self._places = {self._key(point): place for place, point in enumerate(points)}
        self._random, self._tried, self._slowest = random.Random(seed), set[int](), 1.0

    def ask(self) -> int | None:
        """A start that is left, a random one while the model knows little, else the model's proposal."""
        place = next((start for start in self._starts if start not in self._tried), None)
        left = [other for other in range(len(self._points)) if other not in self._tried]
        if place is None and left:
            place = self._proposal() if len(self._tried) >= FIRST and self._axes else None
            place = self._random.choice(left) if place is None else place
        if place is not None:
            self._tried.add(place)
        return place

    def tell(self, place: int, outcome: Result) -> None:
        """Add the outcome to the model."""
        if not isinstance(outcome, Failure):
            self._slowest = max(self._slowest, outcome)
        value = 2 * self._slowest if isinstance(outcome, Failure) else outcome
        parameters = {name: values.index(self._points[place][name]) for name, values in self._axes.items()}
        ranges = {name: self._categories(name) for name in self._axes}
        self._study.add_trial(self._optuna.trial.create_trial(params=parameters, distributions=ranges, value=math.log(value)))

    def preview(self, count: int) -> list[int]:
        """The starts, then whatever was not tried: what the model will propose is not known before it was told more."""
        left = [place for place in range(len(self._points)) if place not in self._tried]
        return list(dict.fromkeys([*(start for start in self._starts if start not in self._tried), *left]))[:count]

    def _proposal(self) -> int | None:
        for _ in range(TRIES):
            trial = self._study.ask({name: self._categories(name) for name in self._axes})
            place = self._places.get(tuple(self._axes[name][trial.params[name]] for name in self._axes))
            if place is not None and place not in self._tried:
                self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)  # its own outcome comes with `tell`
                return place
            self._study.tell(trial, math.log(2 * self._slowest) if place is None else None,
                             state=None if place is None else self._optuna.trial.TrialState.FAIL)
        return None

    def _categories(self, name: str) -> Any:
        return self._optuna.distributions.CategoricalDistribution(range(len(self._axes[name])))

    def _key(self, point: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(point[name] for name in self._axes)
