"""The few distributions that judging needs: Student's t, moments of a log-variance, the exact bound of a proportion. Standard library."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable


def student_tail(t: float, degrees: float) -> float:
    """P(T > t) of Student's t with that many degrees of freedom, infinitely many allowed."""
    if t < 0:
        return 1 - student_tail(-t, degrees)
    if math.isinf(degrees):
        return 0.5 * math.erfc(t / math.sqrt(2))
    return 0.5 * incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t))


@functools.lru_cache(maxsize=4096)
def student_quantile(probability: float, degrees: float) -> float:
    """The t for which P(T > t) is this probability, at most one half."""
    return _root(lambda t: student_tail(t, degrees) - probability, 0.0, 1e6)


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularized incomplete beta function, by its continued fraction (Lentz's method)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    tiny = 1e-300
    value, c, d = 1.0, 1.0, 0.0
    for step in range(400):
        half = step // 2
        if step == 0:
            term = 1.0
        elif step % 2 == 0:
            term = half * (b - half) * x / ((a + 2 * half - 1) * (a + 2 * half))
        else:
            term = -(a + half) * (a + b + half) * x / ((a + 2 * half) * (a + 2 * half + 1))
        d = 1 / (1 + term * d or tiny)
        c = 1 + term / c or tiny
        value *= c * d
        if step and abs(1 - c * d) < 1e-12:
            break
    return front * (value - 1)


def proportion_bound(found: int, tried: int, confidence: float = 0.95) -> float:
    """The exact (Clopper-Pearson) one-sided upper bound of a proportion; 1 where nothing was tried."""
    if found >= tried:
        return 1.0
    return _root(lambda p: (1 - confidence) - (1 - incomplete_beta(found + 1, tried - found, p)), 0.0, 1.0)


def digamma(x: float) -> float:
    """The derivative of the logarithm of the gamma function, x > 0."""
    shift = 0.0
    while x < 8:
        shift -= 1 / x
        x += 1
    square = 1 / (x * x)
    return shift + math.log(x) - 0.5 / x - square * (1 / 12 - square * (1 / 120 - square / 252))


def trigamma(x: float) -> float:
    """The derivative of `digamma`, x > 0."""
    shift = 0.0
    while x < 8:
        shift += 1 / (x * x)
        x += 1
    square = 1 / (x * x)
    return shift + 1 / x + square / 2 + square / x * (1 / 6 - square * (1 / 30 - square / 42))


def trigamma_inverse(value: float) -> float:
    """The x > 0 whose trigamma is `value` > 0."""
    return math.exp(_root(lambda logarithm: value - trigamma(math.exp(logarithm)), -20.0, 20.0))


def _root(rising_or_falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a monotonous function changes its sign, by bisection; the nearer end where it does not."""
    sign = math.copysign(1.0, rising_or_falling(low))
    if sign == math.copysign(1.0, rising_or_falling(high)):
        return min((low, high), key=lambda x: abs(rising_or_falling(x)))
    for _ in range(90):
        middle = (low + high) / 2
        if math.copysign(1.0, rising_or_falling(middle)) == sign:
            low = middle
        else:
            high = middle
    return (low + high) / 2
