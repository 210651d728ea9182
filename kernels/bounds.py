"""The named bounds that kernels are held to, and the comparison of an output with its bound some rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import sqrt
from typing import TypeAlias

import torch

from kernels.kernel import Outputs
from reference.compare import Mismatch, Tolerance, combine, compare, ulp
from reference.sparsity import chunk_rows


@dataclass(frozen=True)
class Bound:
    """How far a sum of n products a·b may be off: 1 ulp plus share(n) · (|sum| + 8 · sqrt(sum of (a·b)^2)).

    share(n) = relative + n · per_term + sqrt(n) · per_root. The roundings of n terms add up like a random walk, of which `SPREAD` = 8
    standard deviations are never met by chance, and what is common to all terms is a share of |sum| (probabilistic error analysis:
    Higham and Mary, doi 10.1137/18M1226312). Up to n = 64 this is not below the worst case. why: where the numbers come from, in a line.

    codes: by how many steps of 1/127 of its row's absmax dY may be rounded too (1/2 to the nearest code, 1 at random). both_ways: the mask
    is the one that is 2:4 along rows and columns.
    """

    why: str
    relative: float = 0.0
    per_term: float = 0.0
    per_root: float = 0.0
    codes: float = 0.0
    both_ways: bool = False

    def share(self, terms: int) -> float:
        """The factor for a sum of that many products."""
        return self.relative + terms * self.per_term + sqrt(terms) * self.per_root

    def rounding(self, scaled: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """What the codes are allowed in scaled · other: `SPREAD` standard deviations of independent roundings, the worst case at most."""
        step = self.codes * scaled.abs().amax(1, keepdim=True) / 127
        return step * torch.minimum(other.abs().sum(0), SPREAD / sqrt(3) * other.square().sum(0).sqrt())


BF16 = 2.0**-8
"""Largest relative error of one rounding to bf16."""
SPREAD = 8.0

BOUNDS: Mapping[str, Bound] = {
    "exact": Bound("1 ulp of the float64 value, or 2^-22 · (|acc · scales| + |bias|) where those cancel; integers equal"),
    "raw": Bound("the accumulators without scales, rounded once to the output type"),
    "float": Bound("both operands rounded to bf16; n float32 additions of a partial sum, 2^-24 each", 2 * BF16, 2**-24),
    "unquantized": Bound("as float, on activations that were never quantized to int8", 2 * BF16, 2**-24),
    "dense-linear": Bound("the GEMMs of x, dY and the master weight as they are; partial sums that a library adds in bf16", BF16, 2**-24),
    "gradient": Bound("as float: dY and the other operand with its scale, each rounded to bf16", 2 * BF16, 2**-24),
    "transposable": Bound("as gradient, of a weight under a mask that is 2:4 along rows and columns", 2 * BF16, 2**-24, both_ways=True),
    "int8": Bound("as gradient, dY rounded to one of 255 codes along what is summed over", 2 * BF16, 2**-24, codes=1.0),
    "int8-transposable": Bound("as int8, under such a mask", 2 * BF16, 2**-24, codes=1.0, both_ways=True),
    "fp8": Bound("sums rounded to bf16 before the scales; fp8 tensor cores keep 14 bits, n times 2^-13 either way", BF16, 0, 2**-12),
}
"""What `Kernel.judged` may name. For gradients `exact` means `gradient`; in a step the bounds from `gradient` to `int8-transposable`
mean an exact y. In a layer `float` means `unquantized` (a bf16 layer takes x as it is) and `fp8` per-token e4m3 activations with every
scale; in a gemm `fp8` means e4m3(x_q) and accumulators without scales."""

CANCELLED = 2.0**-22
"""Share of |acc · scales| + |bias| that the float32 epilogue may lose: four roundings of at most 2^-24."""

ALL_ROWS: Mapping[str, Mapping[str, int]] = {"exact": {"cuda": 1 << 40, "cpu": 1 << 32}, "bounded": {"cuda": 1 << 36, "cpu": 1 << 28}}
"""Multiply-adds up to which all rows are judged: a tenth of a second on a GPU, seconds on a CPU; a bound costs two products more."""
SAMPLE = {"exact": 1024, "bounded": 256}
"""Rows judged above that: a quarter from each end, the others drawn with a fixed seed."""

Expect: TypeAlias = Callable[[torch.Tensor], tuple[torch.Tensor, Tolerance]]
"""From indices of rows to what these rows should be and how nearly."""


def bounded(
    product: torch.Tensor, squares: torch.Tensor, share: float, slack: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype
) -> Tolerance:
    """`Bound` as a tolerance. product: the sums; squares: the sums of squared products; slack: what is allowed beside."""
    return Tolerance(0, share * (product.abs() + SPREAD * squares.sqrt()) + slack + ulp(expected, dtype))


def by_rows(
    name: str, outputs: Outputs, shape: tuple[int, int], dtypes: tuple[torch.dtype, ...], terms: int, exact: bool, expect: Expect
) -> Mismatch | None:
    """Compare an output with what `expect` says of some of its rows at a time: of all rows, or of a sample where the work is too much.

    shape: of the output, whose elements are sums of `terms` products. dtypes: allowed ones. exact: which of the limits counts.
    """
    refusal = refused(name, outputs, shape, dtypes)
    if refusal:
        return refusal
    actual, kind = outputs[name], "exact" if exact else "bounded"
    limit = ALL_ROWS[kind].get(actual.device.type, ALL_ROWS[kind]["cpu"])
    rows = sample_rows(shape[0], SAMPLE[kind] if shape[0] * shape[1] * terms > limit else shape[0]).to(actual.device)
    found = []
    for chunk in chunk_rows(len(rows), max(shape[1], terms)):
        mismatch = compare(actual[rows[chunk]], *expect(rows[chunk]))
        if mismatch:
            place = (int(rows[mismatch.index[0] + chunk.start]), mismatch.index[1])
            found.append(replace(mismatch, index=place, name=name))
    return combine(found, len(rows) * shape[1])


def refused(name: str, outputs: Outputs, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> Mismatch | None:
    """A mismatch where an output is missing or has another shape or type."""
    if name not in outputs:
        return Mismatch(1, 1, name=name, reason="the kernel returned no such output")
    found = outputs[name]
    if tuple(found.shape) != shape or found.dtype not in dtypes:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        reason = f"{str(found.dtype).removeprefix('torch.')} {list(found.shape)} instead of {wanted} {list(shape)}"
        return Mismatch(found.numel(), found.numel(), name=name, reason=reason)
    return None


def sample_rows(rows: int, count: int) -> torch.Tensor:
    """Ascending indices of about `count` of `rows`: a quarter from each end, the others at random; the same every time."""
    if count >= rows:
        return torch.arange(rows)
    drawn = torch.randint(rows, (count // 2,), generator=torch.Generator().manual_seed(0))
    chosen = torch.zeros(rows, dtype=torch.bool).index_fill_(0, drawn, True)
    chosen[: count // 4] = chosen[rows - count // 4 :] = True
    return chosen.nonzero()[:, 0]
