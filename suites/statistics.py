"""Statistics of samples, derived on reading: medians, paired ratios with their interval, geometric means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from kernels.problem import DENSE
from suites.record import CaseRecord, Result

CONFIDENCE = 0.95
RESAMPLES = 2000
NORMAL = 1.959964
"""The standard errors of a normal distribution on each side of the middle that hold `CONFIDENCE`."""

NEAR = 0.01
"""Rounds at one clock scatter by less than this."""
FEWEST_ROUNDS = 3


@dataclass(frozen=True)
class Ratio:
    """A speed-up with its interval at `CONFIDENCE`, from n paired samples; above 1 the first is faster."""

    value: float
    low: float
    high: float
    pairs: int


def time_us(result: Result) -> float | None:
    """Microseconds per call: the median of the samples, or for sustained blocks all seconds over all calls; None where not measured."""
    if result.blocks:
        calls = sum(block["calls"] for block in result.blocks)
        return sum(block["seconds"] for block in result.blocks) / calls * 1e6 if calls else None
    return median(result.samples_us) if result.samples_us else None


def joules_per_call(result: Result) -> float | None:
    """Joules per call over the settled part of the sustained blocks, or None."""
    calls = sum(block["calls"] for block in result.blocks)
    joules = sum(block.get("joules", math.nan) for block in result.blocks)
    return joules / calls if calls and math.isfinite(joules) else None


def speedup(ours: Result, theirs: Result, fast: bool = False) -> Ratio | None:
    """How many times faster `ours` is than `theirs` in the same case: the median of the round-by-round ratios, bootstrapped.

    Interleaved samples are paired by round, sustained blocks by their place in the round-robin. None without pairs. fast: only of the
    rounds `at_full_clock`.
    """
    parts = process_logs(ours, theirs, (), fast)
    if not parts:
        return None
    low, high = bootstrap_interval(parts[0])
    return Ratio(math.exp(float(np.median(parts[0]))), math.exp(low), math.exp(high), len(parts[0]))


@dataclass(frozen=True)
class Estimate:
    """A logarithmic speed-up: the mean over fresh processes of the median over rounds.

    error: its standard error as the rounds alone show it. rounds: of the process with the fewest. scatter, degrees: the sum of squares of
    the processes around their mean, and its degrees of freedom; none where the spread between these processes is known already.
    """

    value: float
    error: float
    processes: int
    rounds: int
    scatter: float = 0.0
    degrees: int = 0


def process_logs(ours: Result, theirs: Result, processes: Sequence[int] = (), fast: bool = False) -> list[np.ndarray]:
    """Logarithms of the paired speed-ups, process by process. processes: `CaseRecord.processes`; empty: one process took them all.

    fast: only of the rounds `at_full_clock`.
    """
    first, second = _series(ours), _series(theirs)
    pairs = min(len(first), len(second))
    if pairs == 0:
        return []
    both = np.log(np.asarray([first[:pairs], second[:pairs]], dtype=np.float64))
    parts = np.split(both, np.cumsum(processes)[:-1].astype(int), axis=1) if sum(processes) == pairs else [both]
    return [(part[1] - part[0])[at_full_clock(part) if fast else slice(None)] for part in parts if part.shape[1]]


def at_full_clock(logs: np.ndarray) -> np.ndarray:
    """Which rounds found both kernels within `NEAR` of their second fastest, at least three of them. logs: of the times, [2, rounds].

    A device begins a case at its highest clock and reaches its power cap within it, sooner or later: a median over all rounds is of
    the one state or of the other. The fastest round alone may be a slip of the clock.
    """
    second = np.sort(logs, axis=1)[:, min(1, logs.shape[1] - 1)]
    distance = np.max(logs - second[:, None], axis=0)
    near: np.ndarray = distance <= max(NEAR, float(np.sort(distance)[min(FEWEST_ROUNDS, len(distance)) - 1]))
    return near


def estimate(logs: Sequence[np.ndarray], rounds: int = 0) -> Estimate | None:
    """What processes say together, each with the same weight; None without any. rounds: that they took, where logs hold not all of them."""
    if not logs:
        return None
    return together([float(np.median(part)) for part in logs], list(map(median_error, logs)), rounds or min(map(len, logs)))


def together(medians: Sequence[float], errors: Sequence[float], rounds: int) -> Estimate:
    """What the medians of processes, each with its standard error, say together."""
    count = len(medians)
    return Estimate(float(np.mean(medians)), math.hypot(*errors) / count, count, rounds, count * float(np.var(medians)), count - 1)


def median_error(values: np.ndarray) -> float:
    """The standard error of a median, from its bootstrap."""
    low, high = bootstrap_interval(values)
    return (high - low) / (2 * NORMAL)


def holm(probabilities: Sequence[float]) -> list[float]:
    """Holm's adjusted probabilities: those at or below a level are found with at most that chance of a single false one among all."""
    adjusted, largest = [1.0] * len(probabilities), 0.0
    for rank, place in enumerate(sorted(range(len(probabilities)), key=lambda place: probabilities[place])):
        largest = max(largest, min(1.0, (len(probabilities) - rank) * probabilities[place]))
        adjusted[place] = largest
    return adjusted


def _series(result: Result) -> Sequence[float]:
    if result.blocks:
        return [block["seconds"] / block["calls"] for block in result.blocks if block["calls"]]
    return result.samples_us


def bootstrap_interval(values: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Percentile bootstrap of the median, seeded: equal samples give equal intervals."""
    if len(values) == 1:
        return float(values[0]), float(values[0])
    draws = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    medians = np.median(values[draws], axis=1)
    tail = (1 - confidence) / 2 * 100
    low, high = np.percentile(medians, [tail, 100 - tail])
    return float(low), float(high)


def geomean(values: Sequence[float]) -> float:
    """The geometric mean of positive values; nan for none."""
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


OWN_DENSE = "dense-wgmma"
"""Our int8 GEMM on Hopper's dense tensor cores: a baseline of every sparse weight, whose zeros it multiplies; of a dense one a variant."""
OWN_BASELINES = (OWN_DENSE, "dense-int8-triton")
"""Baselines that are kernels of this project."""


def is_baseline(case: CaseRecord, result: Result) -> bool:
    """Whether a result is one that ours are measured against in this case: libraries, and our own dense kernels under a sparse weight."""
    return result.kind == "baseline" or (result.kernel == OWN_DENSE and case.problem["sparsity"] != str(DENSE))


def strongest(case: CaseRecord, dense_only: bool = False, libraries: bool = False) -> Result | None:
    """The fastest measured baseline that computes exactly the case's function; or, if asked, the fastest dense one of any precision, or
    the fastest exact one that is not a kernel of this project."""
    measured = [r for r in case.results if is_baseline(case, r) and r.status == "ok" and not (libraries and r.kernel in OWN_BASELINES)]
    measured = [r for r in measured if (r.dense or r.kernel == OWN_DENSE if dense_only else r.exact)]
    timed = [(time, r) for r in measured if (time := time_us(r)) is not None]
    return min(timed, key=lambda pair: pair[0])[1] if timed else None


def best_variant(case: CaseRecord, name: str | None = None) -> Result | None:
    """The named variant, or the fastest measured exact one that is no baseline here; variants that are not exact count only when named."""
    ours = [r for r in case.results if r.kind == "variant" and r.status == "ok"]
    ours = [r for r in ours if (r.kernel == name if name else r.exact and not is_baseline(case, r))]
    timed = [(time, r) for r in ours if (time := time_us(r)) is not None]
    return min(timed, key=lambda pair: pair[0])[1] if timed else None
