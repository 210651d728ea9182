"""What a calibrated gate does, by resampling what fresh processes measured: its false alarms, its power, and how well two runs agree.

A resampled comparison of two runs is two of the processes, with the rounds inside each drawn anew; the noise it is judged by is that
of the *other* processes, so that nothing is judged by itself. All cases of a resampled run are of the same two processes, as in a real one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from suites.calibration import ALPHA, FEWEST, MEASURABLE, Noise, Pair, noises_of
from suites.distributions import proportion_bound, student_quantile, student_tail
from suites.judging import FLOOR
from suites.statistics import CONFIDENCE, Estimate, holm

INJECTED = (0.02, 0.05, 0.10)


@dataclass(frozen=True)
class Checks:
    """What resampling showed, as shares. runs, comparisons: resampled runs, and independent ones among the pairs of processes.

    false_alarms: REGRESSED or IMPROVED per case of the same code; upper: its 95 % bound. runs_with_alarm: resampled runs with any.
    power: by injected slowdown, found cases; measurable: those whose `visible` is at most `MEASURABLE`, as share and in number.
    power_measurable: of these alone. agreement: intervals of one run that cover the other's median; stated: how many should.
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


@dataclass(frozen=True)
class _Batch:
    """Resampled comparisons of two processes. differences: logarithmic, [runs, pairs]. errors, degrees (of freedom): of each pair."""

    differences: np.ndarray
    errors: np.ndarray
    degrees: np.ndarray


def check(pairs: Sequence[Pair], noises: Sequence[Noise], runs: int = 2000, seed: int = 0) -> Checks | None:
    """Resample; None where fewer than two more processes than `FEWEST` took part. noises: of all processes, for what is measurable."""
    processes = min((len(pair.logs) for pair in pairs), default=0)
    if processes < FEWEST + 2:
        return None
    batches = list(_batches(pairs, noises, processes, runs, seed))
    alarms = np.concatenate([_alarms(batch) for batch in batches])
    rate = float(alarms.mean())
    independent = len({pair.key for pair in pairs}) * (processes // 2)
    measurable = np.array([noise.visible <= MEASURABLE for noise in noises])
    power = {f"{share:.0%}": np.concatenate([_found(batch, share) for batch in batches]).mean(axis=0) for share in INJECTED}
    covered = [abs(batch.differences) <= _quantiles(batch) * batch.errors for batch in batches]
    return Checks(
        processes, len({pair.key for pair in pairs}), len(pairs), len(alarms), independent, rate,
        max(proportion_bound(math.ceil(rate * independent), independent), rate), float(alarms.any(axis=1).mean()), int(measurable.sum()),
        {name: float(found.mean()) for name, found in power.items()},
        {name: float(found[measurable].mean()) if measurable.any() else 0.0 for name, found in power.items()},
        float(np.concatenate(covered).mean()),
    )


def _batches(pairs: Sequence[Pair], noises: Sequence[Noise], processes: int, runs: int, seed: int) -> Iterator[_Batch]:
    random = np.random.default_rng(seed)
    orders = list(permutations(range(processes), 2))
    each = max(1, runs // len(orders))
    for now, then in orders:
        judged_by = noises_of([pair.without(now, then) for pair in pairs])
        variances = [
            sum(noise.variance(Estimate(0.0, pair.errors[place], 1, len(pair.logs[place]))) for place in (now, then))
            for pair, noise in zip(pairs, judged_by, strict=True)
        ]
        differences = [
            _medians(pair, noise, now, each, random) - _medians(pair, noise, then, each, random)
            for pair, noise in zip(pairs, noises, strict=True)
        ]
        yield _Batch(np.array(differences).T, np.sqrt(np.array(variances)), np.array([noise.degrees for noise in judged_by]))


def _medians(pair: Pair, noise: Noise, place: int, count: int, random: np.random.Generator) -> np.ndarray:
    """Medians of a process's rounds drawn anew.

    What the rounds scatter is in the spread of the processes already: where each process lies is drawn towards their middle by that much,
    so that it is not counted twice.
    """
    logs = pair.logs[place]
    medians = np.median(logs[random.integers(0, len(logs), (count, len(logs)))], axis=1)
    own, middle = float(np.median(logs)), float(np.mean([np.median(log) for log in pair.logs]))
    kept = math.sqrt(max(0.0, 1 - (noise.within / noise.sigma) ** 2))
    moved: np.ndarray = np.asarray(medians, dtype=np.float64) + (middle - own + kept * (own - middle))
    return moved


def _alarms(batch: _Batch) -> np.ndarray:
    """Which pairs are called REGRESSED or IMPROVED, by Holm's procedure, as the gate does."""
    adjusted = np.array([holm(list(row)) for row in _probabilities(batch)])
    return (adjusted <= ALPHA) & (abs(batch.differences) >= math.log1p(FLOOR))


def _probabilities(batch: _Batch) -> np.ndarray:
    """Two-sided, read from a table of Student's t for each number of degrees."""
    ratios, found = abs(batch.differences) / batch.errors, np.ones_like(batch.differences)
    grid = np.concatenate([np.linspace(0, 10, 401), np.geomspace(10.1, 1e4, 200)])
    for degrees in set(batch.degrees.tolist()):
        table = [math.log(max(1e-300, 2 * student_tail(t, degrees))) for t in grid]
        own = batch.degrees == degrees
        found[:, own] = np.exp(np.interp(ratios[:, own], grid, table))
    return found


def _found(batch: _Batch, slowdown: float) -> np.ndarray:
    """Which pairs are called REGRESSED when each, alone, is slower by that share: then Holm's first step is what it has to take."""
    shifted = batch.differences - math.log1p(slowdown)
    quantiles = _quantiles(batch, ALPHA / len(batch.degrees) / 2)
    found: np.ndarray = (shifted < -quantiles * batch.errors) & (shifted <= -math.log1p(FLOOR))
    return found


def _quantiles(batch: _Batch, tail: float = (1 - CONFIDENCE) / 2) -> np.ndarray:
    known = {degrees: student_quantile(tail, degrees) for degrees in set(batch.degrees.tolist())}
    return np.array([known[degrees] for degrees in batch.degrees.tolist()])


def lines(checks: Checks) -> list[str]:
    """The checks in words."""
    curve = ", ".join(f"{name} {found:.1%}" for name, found in checks.power.items())
    sharp = ", ".join(f"{name} {found:.1%}" for name, found in checks.power_measurable.items())
    return [
        f"{checks.kernels} kernels in {checks.cases} cases, {checks.processes} fresh processes, {checks.runs} resampled runs",
        f"false alarms per case {checks.false_alarms:.2%}, at most {checks.upper:.1%} "
        f"(95 %, {checks.comparisons} independent comparisons); runs with any {checks.runs_with_alarm:.1%}",
        f"measurable (a slowdown of {MEASURABLE:.0%} is found in 99 %): {checks.measurable} of {checks.kernels}",
        f"found of an injected slowdown: {curve}; of the measurable ones: {sharp}",
        f"intervals that cover the other run's median: {checks.agreement:.1%}, stated {checks.stated:.0%}",
    ]
