"""The comparison that every check ends in: a result against the float64 truth, in units in the last place of the result's type."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from reference.sparsity import chunk_rows


@dataclass(frozen=True)
class Tolerance:
    """How far a floating-point value may be from the expected one: `ulps` units in the last place, or `absolute`, whichever is more.

    The unit is that of the result's type at the expected value. absolute: a number, or a tensor that broadcasts to the result.
    Integers and booleans are always compared exactly.
    """

    ulps: float = 0.0
    absolute: float | torch.Tensor = 0.0


EXACT = Tolerance()


@dataclass(frozen=True)
class Mismatch:
    """A comparison that failed: `count` of `total` elements are wrong; the worst is at `index`, `excess` times what is tolerated.

    name: which output, where there are several. reason: set instead of numbers where shapes or types already differ.
    """

    count: int
    total: int
    index: tuple[int, ...] = ()
    actual: float = float("nan")
    expected: float = float("nan")
    excess: float = float("inf")
    name: str = ""
    reason: str = ""

    def __str__(self) -> str:
        prefix = f"{self.name}: " if self.name else ""
        if self.reason:
            return prefix + self.reason
        return f"{prefix}{self.count} of {self.total} wrong, worst at {self.index}: {self.actual:.9g} instead of {self.expected:.9g}"


def ulp(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The unit in the last place of `dtype` (bf16, fp16, fp32) at each |value|: float64, exact, subnormal numbers included.

    It is 2^(e - p) for 2^e <= |value| < 2^(e+1) with p bits of fraction, and never less than the smallest subnormal.
    """
    info = torch.finfo(dtype)
    lowest = int(torch.tensor(info.tiny, dtype=torch.float64).log2().round())
    fraction = int(torch.tensor(info.eps, dtype=torch.float64).log2().round())
    exponent = ((value.double().abs().view(torch.int64) >> 52) - 1023).clamp(min=lowest) + fraction
    return ((exponent + 1023) << 52).view(torch.float64)


def compare(actual: torch.Tensor, expected: torch.Tensor, tolerance: Tolerance = EXACT) -> Mismatch | None:
    """None where every element of `actual` is within the tolerance of `expected`, else what is wrong.

    Both have one shape; `expected` is float64 or integer. A NaN or an infinity is right only where it is expected: a NaN where the
    expected value is NaN, an infinity where it is that infinity or so large that the type of `actual` has none nearer.
    A wrong shape is a mismatch, not an exception.
    """
    if actual.shape != expected.shape:
        return Mismatch(actual.numel(), actual.numel(), reason=f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}")
    if not actual.numel():
        return None
    rows = actual.shape[0] if actual.dim() else 1
    absolute = tolerance.absolute
    if isinstance(absolute, torch.Tensor):
        absolute = absolute.to(actual.device).expand(actual.shape).reshape(rows, -1)
    values, truth = actual.reshape(rows, -1), expected.reshape(rows, -1)
    found = []
    for chunk in chunk_rows(*values.shape):
        limit = absolute[chunk] if isinstance(absolute, torch.Tensor) else absolute
        mismatch = _compare_chunk(values[chunk], truth[chunk], tolerance.ulps, limit)
        if mismatch:
            row, column = mismatch.index
            position = torch.tensor((row + chunk.start) * values.shape[1] + column)
            found.append(replace(mismatch, index=tuple(int(i) for i in torch.unravel_index(position, actual.shape))))
    return combine(found, actual.numel())


def combine(mismatches: Iterable[Mismatch | None], total: int) -> Mismatch | None:
    """One mismatch for the parts of one tensor of `total` elements: counts add up, the worst stays; None where no part has one."""
    found = [mismatch for mismatch in mismatches if mismatch]
    if not found:
        return None
    worst = max(found, key=lambda mismatch: mismatch.excess)
    return replace(worst, count=sum(mismatch.count for mismatch in found), total=total)


def _compare_chunk(actual: torch.Tensor, expected: torch.Tensor, ulps: float, absolute: float | torch.Tensor) -> Mismatch | None:
    """`compare` on some rows [rows, columns]; the index counts from the first of them."""
    if actual.is_floating_point():
        excess = _excess(actual, expected.double(), ulps, absolute)
    else:
        wide = torch.float64 if expected.is_floating_point() else torch.int64
        excess = (actual.to(wide) - expected.to(wide)).double().abs().nan_to_num(torch.inf)
    count = int(excess.count_nonzero())
    if not count:
        return None
    row, column = divmod(int(excess.argmax()), actual.shape[1])
    worst = (float(actual[row, column]), float(expected[row, column]), float(excess[row, column]))
    return Mismatch(count, actual.numel(), (row, column), *worst)


def _excess(actual: torch.Tensor, expected: torch.Tensor, ulps: float, absolute: float | torch.Tensor) -> torch.Tensor:
    """Zero where an element is right, else how many times what is tolerated it is off; infinite where nothing can excuse it."""
    value = actual.double()
    limit = torch.maximum(ulps * ulp(expected, actual.dtype), torch.as_tensor(absolute, dtype=torch.float64, device=actual.device))
    distance = (value - expected).abs()
    largest = torch.tensor(torch.finfo(actual.dtype).max, dtype=torch.float64, device=actual.device)
    reached = limit.isfinite() & (expected.abs() + limit >= largest + ulp(largest, actual.dtype))
    overflow = value.isinf() & (expected.sign() == value.sign()) & reached
    right = (value == expected) | (value.isnan() & expected.isnan()) | overflow | (distance.isfinite() & (distance <= limit))
    return torch.where(right, 0.0, (distance / limit).nan_to_num(torch.inf))
