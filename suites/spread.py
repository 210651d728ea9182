"""The spread between fresh processes, estimated for every kernel and case from what all of them measured.

A run measures a case in one process. What a repetition by another process gives differs by more than the rounds of one process show: memory
lies elsewhere, clocks are others. The spread is estimated from at least five processes per case, and the few degrees of freedom of each
case are strengthened by what all cases have in common (G. K. Smyth, Statistical Applications in Genetics and Molecular Biology 3(1), 2004).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from suites.calibration import CONFIRMED, Noise
from suites.calibration_pairs import Pair
from suites.distributions import digamma, trigamma, trigamma_inverse
from suites.statistics import CONFIDENCE, NORMAL

LEAST_SIGMA = 1e-5
ENOUGH_FOR_A_LINE = 12


def noises_of(pairs: Sequence[Pair]) -> tuple[Noise, ...]:
    """The noise of every pair; the spreads of all strengthen each, as far as they follow its noise within processes and its time."""
    if not pairs:
        return ()
    fast = [pair.steadier() for pair in pairs]
    seen = [pair.fast if own else pair.all for pair, own in zip(pairs, fast, strict=True)]
    spreads = [max(LEAST_SIGMA, float(np.std(own.medians, ddof=1))) for own in seen]
    degrees = [pair.processes - 1 for pair in pairs]
    withins = [math.sqrt(float(np.mean(np.square(own.errors)))) for own in seen]
    prior_degrees, priors = _prior(spreads, degrees, withins, [pair.us for pair in pairs])
    found = []
    for place, pair in enumerate(pairs):
        own, spread, prior = degrees[place], spreads[place], priors[place]
        variance = prior if math.isinf(prior_degrees) else (prior_degrees * prior + own * spread**2) / (prior_degrees + own)
        total = min(prior_degrees + own, float(sum(degrees)))
        noise = Noise(
            pair.key, pair.kernel, pair.baseline, pair.us, pair.processes, min(pair.rounds), spread, withins[place],
            math.sqrt(variance), total, medians=seen[place].medians, noisiest=max(seen[place].errors), fast=fast[place],
        )
        found.append(replace(noise, visible=noise.smallest(len(pairs), CONFIRMED, pair.processes)))
    tail = _tail([own.medians for own in seen], prior_degrees, priors)
    return tuple(replace(noise, tail=tail) for noise in found)


def _tail(medians: Sequence[Sequence[float]], prior_degrees: float, priors: Sequence[float]) -> float:
    """How many standard errors hold `CONFIDENCE` of the differences between two processes, all cases and processes together.

    The errors are as the other processes of the case, three at least, and what all cases have in common give them.
    """
    ratios = []
    for own, prior in zip(medians, priors, strict=True):
        if len(own) < 5:
            continue
        values = np.array(own) - np.mean(own)
        one, other = (values[places] for places in np.triu_indices(len(own), 1))
        rest = len(own) - 2
        squares = float(values @ values) - one**2 - other**2 - (one + other) ** 2 / rest
        shared = prior_degrees / (prior_degrees + rest - 1) if math.isfinite(prior_degrees) else 1.0
        variance = shared * prior + (1 - shared) * squares / (rest - 1)
        ratios.append(abs(one - other) / np.sqrt(2 * np.maximum(variance, LEAST_SIGMA**2)))
    return max(NORMAL, float(np.quantile(np.concatenate(ratios), CONFIDENCE))) if ratios else NORMAL


def _prior(
    spreads: Sequence[float], degrees: Sequence[int], withins: Sequence[float], times: Sequence[float],
) -> tuple[float, list[float]]:
    """Degrees of freedom of what the cases have in common, and the variance that it gives each: the moments of the log-variances.

    Their mean is a line in the logarithms of the noise within processes and of the time, where there are cases enough to draw one.
    """
    if len(spreads) < 2:
        return 0.0, [spread**2 for spread in spreads]
    logs = [2 * math.log(spread) - digamma(own / 2) + math.log(own / 2) for spread, own in zip(spreads, degrees, strict=True)]
    columns = [np.ones(len(logs))]
    if len(logs) >= ENOUGH_FOR_A_LINE:
        columns += [np.log(np.maximum(withins, LEAST_SIGMA)), np.log(times)]
    design = np.stack(columns, axis=1)
    fitted = design @ np.linalg.lstsq(design, np.array(logs), rcond=None)[0]
    scatter = float(np.sum(np.square(logs - fitted))) / (len(logs) - len(columns))
    excess = scatter - float(np.mean([trigamma(own / 2) for own in degrees]))
    if excess <= 0:
        return math.inf, [math.exp(middle) for middle in fitted.tolist()]
    half = trigamma_inverse(excess)
    return 2 * half, [math.exp(middle + digamma(half) - math.log(half)) for middle in fitted.tolist()]
