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
    expected value is NaN, an infinity where it is that infinity or is too large for the type of `actual`.
    A wrong shape is a mismatch, not an exception.
    """
    if actual.shape != expected.shape:
        return Mismatch(actual.numel(), actual.numel(), reason=f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}")
    if not actual.numel():
        return None
    flat = (actual[None], expected[None]) if actual.dim() < 2 else (actual, expected)
    absolute = tolerance.absolute
    if isinstance(absolute, torch.Tensor):
        absolute = absolute.to(actual.device).expand(actual.shape)
        absolute = absolute[None] if actual.dim() < 2 else absolute
    found = []
    for chunk in chunk_rows(flat[0].shape[0], flat[0][0].numel()):
        limit = absolute[chunk] if isinstance(absolute, torch.Tensor) else absolute
        mismatch = _compare_chunk(flat[0][chunk], flat[1][chunk], tolerance.ulps, limit)
        if mismatch:
            row = (mismatch.index[0] + chunk.start, *mismatch.index[1:])
            found.append(replace(mismatch, index=row[2 - len(row) :] if actual.dim() >= 2 else row[1 : 1 + actual.dim()]))
    return combine(found, actual.numel())


def combine(mismatches: Iterable[Mismatch | None], total: int) -> Mismatch | None:
    """One mismatch for the parts of one tensor of `total` elements: counts add up, the worst stays; None where no part has one."""
    found = [mismatch for mismatch in mismatches if mismatch]
    if not found:
        return None
    worst = max(found, key=lambda mismatch: mismatch.excess)
    return replace(worst, count=sum(mismatch.count for mismatch in found), total=total)


def _compare_chunk(actual: torch.Tensor, expected: torch.Tensor, ulps: float, absolute: float | torch.Tensor) -> Mismatch | None:
    """`compare` on a part; indices count from the start of the part."""
    if actual.is_floating_point():
        excess = _excess(actual, expected.double(), ulps, absolute)
    else:
        wide = torch.float64 if expected.is_floating_point() else torch.int64
        distance = (actual.to(wide) - expected.to(wide)).double().abs()
        excess = torch.where(distance == 0, 0.0, 1.0 + distance)
    wrong = excess > 1
    count = int(wrong.sum())
    if not count:
        return None
    position = int(excess.argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(position), actual.shape))
    worst = (float(actual[index]), float(expected[index]), float(excess[index]))
    return Mismatch(count, actual.numel(), index, *worst)


def _excess(actual: torch.Tensor, expected: torch.Tensor, ulps: float, absolute: float | torch.Tensor) -> torch.Tensor:
    """How many times the tolerance each element is off, at most 1 where it is right; infinite where nothing can excuse it."""
    value = actual.double()
    unit = ulp(expected, actual.dtype)
    limit = torch.maximum(ulps * unit, torch.as_tensor(absolute, dtype=torch.float64, device=actual.device))
    distance = (value - expected).abs()
    excess = torch.where(distance <= limit, 0.0, distance / limit)
    excess = torch.where(value.isfinite() & expected.isfinite() & (distance > limit), excess.clamp(min=1 + 1e-12), excess)
    overflow = value.isinf() & (expected.sign() == value.sign()) & (expected.abs() + limit > torch.finfo(actual.dtype).max)
    same = (value == expected) | (value.isnan() & expected.isnan()) | overflow
    return torch.where(same, 0.0, excess.nan_to_num(torch.inf, torch.inf))
