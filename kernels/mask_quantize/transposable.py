"""Transposable 2:4 masks of a master weight: 2 of 4 along rows and columns alike, found per 4 × 4 block in registers.

Of the 90 patterns the one with the largest sum of |w| is kept, the first of equals, by the float32 sums of `reference.sparsity`: rows are
added in order, so patterns that begin alike share their sums. Source of the masks: Hubara et al., arXiv 2102.08124.
Floor: the master read once and its masked copy written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.errors import ShapeError
from kernels.kernel import CompileUnit

BLOCKS = 128
"""4 × 4 blocks of a program, one a thread."""
_LOW = tl.constexpr((0, 0, 0, 1, 1, 2))
_HIGH = tl.constexpr((1, 2, 3, 2, 3, 3))
_BITS = tl.constexpr((3, 5, 9, 6, 10, 12))
_COUNTS = tl.constexpr((0o11, 0o101, 0o1001, 0o110, 0o1010, 0o1100))  # an octal digit a column
_EVERY_COLUMN_TWICE = tl.constexpr(0o2222)
_TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}


@triton.jit
def _row(w_ptr, row, row_stride, column, valid):
    """Four magnitudes of a row of every block."""
    pointer = w_ptr + row.to(tl.int64) * row_stride + column
    a = tl.abs(tl.load(pointer, mask=valid, other=0.0).to(tl.float32))
    b = tl.abs(tl.load(pointer + 1, mask=valid, other=0.0).to(tl.float32))
    c = tl.abs(tl.load(pointer + 2, mask=valid, other=0.0).to(tl.float32))
    d = tl.abs(tl.load(pointer + 3, mask=valid, other=0.0).to(tl.float32))
    return a, b, c, d


@triton.jit
def transposable_kernel(w_ptr, out_ptr, in_features, row_stride, out_stride, BLOCK: tl.constexpr):
    """out = w where kept, else 0: BLOCK blocks of four rows. Rows in program axis 0, blocks of columns in axis 1."""
    first = tl.program_id(0) * 4
    column = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)) * 4
    valid = column < in_features
    row0 = _row(w_ptr, first, row_stride, column, valid)
    row1 = _row(w_ptr, first + 1, row_stride, column, valid)
    row2 = _row(w_ptr, first + 2, row_stride, column, valid)
    row3 = _row(w_ptr, first + 3, row_stride, column, valid)
    best = tl.full([BLOCK], -1.0, tl.float32)
    kept = tl.full([BLOCK], 0xCC33, tl.int32)
    for p in tl.static_range(6):
        sum0 = row0[_LOW[p]] + row0[_HIGH[p]]
        for q in tl.static_range(6):
            sum1 = (sum0 + row1[_LOW[q]]) + row1[_HIGH[q]]
            for r in tl.static_range(6):
                sum2 = (sum1 + row2[_LOW[r]]) + row2[_HIGH[r]]
                for s in tl.static_range(6):
                    if _COUNTS[p] + _COUNTS[q] + _COUNTS[r] + _COUNTS[s] == _EVERY_COLUMN_TWICE:
                        total = (sum2 + row3[_LOW[s]]) + row3[_HIGH[s]]
                        better = total > best
                        best = tl.where(better, total, best)
                        kept = tl.where(better, _BITS[p] | (_BITS[q] << 4) | (_BITS[r] << 8) | (_BITS[s] << 12), kept)
    for row in tl.static_range(4):
        for place in tl.static_range(4):
            pointer = w_ptr + (first + row).to(tl.int64) * row_stride + column + place
            value = tl.where(((kept >> (4 * row + place)) & 1) != 0, tl.load(pointer, mask=valid, other=0.0), 0.0)
            tl.store(out_ptr + (first + row).to(tl.int64) * out_stride + column + place, value, mask=valid)


def launch_transposable(weight: torch.Tensor, out: torch.Tensor) -> None:
    """Write weight [N, K] (bf16, fp16 or fp32, contiguous rows) with zeros where it is masked into out, of its shape and type.

    One launch, no synchronization. out may be the weight itself. Raises ShapeError unless 4 divides N and K and both fit.
    """
    if weight.dim() != 2 or weight.dtype not in _TYPES or weight.shape[0] % 4 or weight.shape[1] % 4 or weight.stride(1) != 1:
        raise ShapeError(f"weight is {weight.dtype} {list(weight.shape)}; bf16, fp16 or fp32 [N, K], both multiples of 4, is needed")
    if out.shape != weight.shape or out.dtype != weight.dtype or out.stride(1) != 1 or out.device != weight.device:
        raise ShapeError(f"out is {out.dtype} {list(out.shape)}; {weight.dtype} {list(weight.shape)} is needed")
    if weight.device.type == "cpu" and isinstance(transposable_kernel, triton.JITFunction):
        raise ShapeError("weight is on the CPU; this kernel runs on a GPU (or in Triton's interpreter)")
    if weight.numel():
        grid = (weight.shape[0] // 4, triton.cdiv(weight.shape[1], 4 * BLOCKS))
        transposable_kernel[grid](weight, out, weight.shape[1], weight.stride(0), out.stride(0), BLOCK=BLOCKS, num_warps=BLOCKS // 32)


def compile_unit(dtype: torch.dtype) -> CompileUnit:
    """The kernel as it is launched on rows of a multiple of 16 weights."""
    signature = {"w_ptr": _TYPES[dtype], "out_ptr": _TYPES[dtype], "in_features": "i32", "row_stride": "i32", "out_stride": "i32",
                 "BLOCK": "constexpr"}  # fmt: skip
    divisible = tuple(name for name in signature if name != "BLOCK")
    return CompileUnit(transposable_kernel, signature, {"BLOCK": BLOCKS}, divisible, {"num_warps": BLOCKS // 32})
