"""What a calibrated gate does, by resampling what fresh processes measured: its false alarms, its power, and how well two runs agree.

A resampled run is `CONFIRMED` of the processes; the *other* processes are its calibration: the noise that it is judged by, what it
is compared with, and which cases are called measurable all come from them alone. All cases of a resampled run are of the same
processes, as in a real one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from suites.calibration import ALPHA, CONFIRMED, FLOOR, MEASURABLE, Noise
from suites.calibration_pairs import FEWEST, Pair
from suites.distributions import proportion_bound, student_quantile, student_tail
from suites.spread import noises_of
from suites.statistics import CONFIDENCE, NORMAL, holm

INJECTED = (0.02, 0.05, 0.10)


@dataclass(frozen=True)
class Checks:
    """What resampling showed, as shares. runs: resampled runs. comparisons: cases of runs that share no process with each other.

    false_alarms: REGRESSED or IMPROVED per kernel and case of the same code; upper: its 95 % bound, as if only `comparisons` had been made.
    runs_with_alarm: resampled runs with any. power: by injected slowdown, found cases; power_measurable: of those that the other
    processes call measurable. measurable: the number that all processes together call so. agreement: intervals that cover the other
    run's median; twins: those of one process that cover another one's; stated: how many should.
    """

    processes: int
    cases: int
    kernels: int
    runs: int
    comparisons: int
    false_alarms: float
    upper: float
    runs_with_alarm: float
    measurable: int
    power: dict[str, float]
    power_measurable: dict[str, float]
    agreement: float
    stated: float = CONFIDENCE
    twins: float = math.nan


@dataclass(frozen=True)
class _Run:
    """A resampled run, by pair. differences: logarithmic, to its calibration. errors, halves, degrees: of these. measurable: called so.

    halves: half-widths of the intervals.
    """

    differences: np.ndarray
    errors: np.ndarray
    halves: np.ndarray
    degrees: tuple[float, ...]
    measurable: np.ndarray


def check(pairs: Sequence[Pair], noises: Sequence[Noise], runs: int = 500, seed: int = 0) -> Checks | None:
    """Resample; None where fewer processes than `CONFIRMED` + `FEWEST` took part. noises: of all processes. runs: at most so many."""
    processes = min((pair.processes for pair in pairs), default=0)
    if processes < CONFIRMED + FEWEST:
        return None
    made = [_resampled(pairs, now) for now in _sampled(list(combinations(range(processes), CONFIRMED)), runs, seed)]
    alarms = np.array([_alarms(run) for run in made])
    rate, cases = float(alarms.mean()), len({pair.key for pair in pairs})
    independent = cases * (processes // CONFIRMED)
    called = np.array([run.measurable for run in made])
    power = {f"{share:.0%}": np.array([_found(run, share) for run in made]) for share in INJECTED}
    covered, pairwise = [_covers(run) for run in made], _sampled(list(combinations(range(processes), 2)), runs, seed)
    return Checks(
        processes, cases, len(pairs), len(made), independent, rate,
        max(proportion_bound(math.ceil(rate * independent), independent), rate), float(alarms.any(axis=1).mean()),
        sum(noise.visible <= MEASURABLE for noise in noises), {name: float(found.mean()) for name, found in power.items()},
        {name: float(found[called].mean()) if called.any() else 0.0 for name, found in power.items()}, float(np.mean(covered)),
        twins=float(np.mean([_covers(_resampled(pairs, (now,), then)) for now, then in pairwise])),
    )


def _sampled(chosen: Sequence[tuple[int, ...]], runs: int, seed: int) -> Sequence[tuple[int, ...]]:
    """At most so many of them."""
    if len(chosen) <= runs:
        return chosen
    return [chosen[place] for place in np.random.default_rng(seed).choice(len(chosen), runs, replace=False)]


def _resampled(pairs: Sequence[Pair], now: Sequence[int], then: int | None = None) -> _Run:
    """Those processes against one that is given, or else against all others; all others are the calibration."""
    others = (*now, *(() if then is None else (then,)))
    judged_by = noises_of([pair.without(*others) for pair in pairs])
    differences, errors, halves, degrees = [], [], [], []
    for pair, noise in zip(pairs, judged_by, strict=True):
        own = pair.estimate(now, noise.fast)
        reference = noise.reference() if then is None else pair.estimate((then,), noise.fast)
        error, free = noise.error(own, reference)
        differences.append(own.value - reference.value)
        errors.append(error)
        halves.append(noise.half_width(own, reference))
        degrees.append(free)
    visible = np.array([noise.visible for noise in judged_by])
    return _Run(np.array(differences), np.array(errors), np.array(halves), tuple(degrees), visible <= MEASURABLE)


def _covers(run: _Run) -> np.ndarray:
    """Which intervals include no change."""
    covers: np.ndarray = abs(run.differences) <= run.halves
    return covers


def _alarms(run: _Run) -> np.ndarray:
    """Which pairs are called REGRESSED or IMPROVED, by Holm's procedure and for each look that the run took, as the gate does.

    What lies within the 95 % of a normal distribution is not looked at closer: no Student's t finds it.
    """
    ratios = (abs(run.differences) / run.errors).tolist()
    probabilities = [2 * CONFIRMED * student_tail(t, free) if t > NORMAL else 1.0 for t, free in zip(ratios, run.degrees, strict=True)]
    return (np.array(holm(probabilities)) <= ALPHA) & (abs(run.differences) >= math.log1p(FLOOR))


def _found(run: _Run, slowdown: float) -> np.ndarray:
    """Which pairs are called REGRESSED when each, alone, is slower by that share: then Holm's first step is what it has to take."""
    shifted = run.differences - math.log1p(slowdown)
    quantiles = _quantiles(run, ALPHA / len(run.degrees) / CONFIRMED / 2)
    found: np.ndarray = (shifted <= -quantiles * run.errors) & (shifted <= -math.log1p(FLOOR))
    return found


def _quantiles(run: _Run, tail: float) -> np.ndarray:
    known = {degrees: student_quantile(tail, degrees) for degrees in set(run.degrees)}
    return np.array([known[degrees] for degrees in run.degrees])


def lines(checks: Checks) -> list[str]:
    """The checks in words."""
    curve = ", ".join(f"{name} {found:.1%}" for name, found in checks.power.items())
    sharp = ", ".join(f"{name} {found:.1%}" for name, found in checks.power_measurable.items())
    return [
        f"{checks.kernels} kernels in {checks.cases} cases, {checks.processes} fresh processes; runs of {CONFIRMED}: {checks.runs}",
        f"false alarms per case {checks.false_alarms:.2%}, at most {checks.upper:.1%} "
        f"(95 %, {checks.comparisons} independent comparisons); runs with any {checks.runs_with_alarm:.1%}",
        f"measurable (a slowdown of {MEASURABLE:.0%} is found in 99 %): {checks.measurable} of {checks.kernels}",
        f"found of an injected slowdown: {curve}; of the measurable ones: {sharp}",
        f"intervals that cover the other run's median: {checks.agreement:.1%}; of one process and another one's: {checks.twins:.1%}; "
        f"stated {checks.stated:.0%}",
    ]
