"""Transposable 2:4 masks: 2 of 4 along rows and columns alike, found per 4 × 4 block of a master weight in registers, with ternary
quantization and packing (layout dense2) in the same pass. `repack` then makes fragments of the weight and of its transpose.

Of the 90 patterns the one with the largest sum of |w| is kept, the first of equals, by the float32 sums of `reference.sparsity`: rows are
added in order, so patterns that begin alike share their sums. Source of the masks: Hubara et al., arXiv 2102.08124.
Floor: two reads of the master (the first for the scales) and a quarter of a byte written per weight.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.errors import ShapeError
from kernels.kernel import CompileUnit
from kernels.mask_quantize.two_pass import PrepareBuffers, TwoPassConfig, check_weight, launch_scales
from kernels.packed import packed_width
from kernels.problem import Problem, Sparsity

TWO_OF_FOUR = Sparsity(2, 4)
BLOCKS = 128
"""4 × 4 blocks that a program has in hand at once, one a thread: 8 blocks of 256 columns, a field after the other."""
_LOW = tl.constexpr((0, 0, 0, 1, 1, 2))
_HIGH = tl.constexpr((1, 2, 3, 2, 3, 3))
_BITS = tl.constexpr((3, 5, 9, 6, 10, 12))
_COUNTS = tl.constexpr((0o11, 0o101, 0o1001, 0o110, 0o1010, 0o1100))  # an octal digit a column
_EVERY_COLUMN_TWICE = tl.constexpr(0o2222)
_TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}


@triton.jit
def _row(w_ptr, row, row_stride, column, valid, WORDS: tl.constexpr):
    """Four weights of a row of every block as float32. WORDS: 16-bit weights in rows at multiples of 8 bytes, four a load."""
    pointer = w_ptr + row.to(tl.int64) * row_stride + column
    if WORDS:
        word = tl.load(pointer.to(tl.pointer_type(tl.int64)), mask=valid, other=0)
        a = word.to(tl.int16).to(w_ptr.dtype.element_ty, bitcast=True).to(tl.float32)
        b = (word >> 16).to(tl.int16).to(w_ptr.dtype.element_ty, bitcast=True).to(tl.float32)
        c = (word >> 32).to(tl.int16).to(w_ptr.dtype.element_ty, bitcast=True).to(tl.float32)
        d = (word >> 48).to(tl.int16).to(w_ptr.dtype.element_ty, bitcast=True).to(tl.float32)
    else:
        a = tl.load(pointer, mask=valid, other=0.0).to(tl.float32)
        b = tl.load(pointer + 1, mask=valid, other=0.0).to(tl.float32)
        c = tl.load(pointer + 2, mask=valid, other=0.0).to(tl.float32)
        d = tl.load(pointer + 3, mask=valid, other=0.0).to(tl.float32)
    return a, b, c, d


@triton.jit
def _best_pattern(row0, row1, row2, row3):
    """The 16 bits of the pattern with the largest sum, row by row from the lowest bit."""
    best = tl.full(row0[0].shape, -1.0, tl.float32)
    kept = tl.full(row0[0].shape, 0xCC33, tl.int32)
    for p in tl.static_range(6):
        sum0 = tl.abs(row0[_LOW[p]]) + tl.abs(row0[_HIGH[p]])
        for q in tl.static_range(6):
            sum1 = (sum0 + tl.abs(row1[_LOW[q]])) + tl.abs(row1[_HIGH[q]])
            for r in tl.static_range(6):
                sum2 = (sum1 + tl.abs(row2[_LOW[r]])) + tl.abs(row2[_HIGH[r]])
                for s in tl.static_range(6):
                    if _COUNTS[p] + _COUNTS[q] + _COUNTS[r] + _COUNTS[s] == _EVERY_COLUMN_TWICE:
                        total = (sum2 + tl.abs(row3[_LOW[s]])) + tl.abs(row3[_HIGH[s]])
                        better = total > best
                        best = tl.where(better, total, best)
                        kept = tl.where(better, _BITS[p] | (_BITS[q] << 4) | (_BITS[r] << 8) | (_BITS[s] << 12), kept)
    return kept


@triton.jit
def _codes(weights, kept, limit):
    """The 2-bit codes of a row's four weights, a byte each; kept: its four bits."""
    word = tl.zeros(kept.shape, tl.int32)
    for place in tl.static_range(4):
        bits = weights[place].to(tl.int32, bitcast=True)
        nonzero = ((bits & 0x7FFFFFFF) > limit) & (((kept >> place) & 1) != 0)
        word |= tl.where(nonzero, 1 | ((bits >> 30) & 2), 0) << (8 * place)
    return word


@triton.jit
def _limit(row, limit_ptr, bound_ptr, SPLITS: tl.constexpr):
    """The bits of the largest magnitude that quantizes to zero in this row."""
    limit = tl.load(limit_ptr)
    for split in tl.static_range(1, SPLITS):
        limit = tl.where(row >= tl.load(bound_ptr + split), tl.load(limit_ptr + split), limit)
    return limit


@triton.jit
def transposable_kernel(
    w_ptr, packed_ptr, bound_ptr, limit_ptr, in_features, row_stride, packed_words, WORDS: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Four rows × 16 · BLOCK columns to packed bytes: a word a row and thread, of which each field is a 4 × 4 block's."""
    first = tl.program_id(0) * 4
    word_index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    zero = tl.zeros([BLOCK], tl.int32)
    word0, word1, word2, word3 = zero, zero, zero, zero
    for field in range(4):
        column = word_index // 16 * 256 + field * 64 + word_index % 16 * 4
        valid = column < in_features
        row0 = _row(w_ptr, first, row_stride, column, valid, WORDS)
        row1 = _row(w_ptr, first + 1, row_stride, column, valid, WORDS)
        row2 = _row(w_ptr, first + 2, row_stride, column, valid, WORDS)
        row3 = _row(w_ptr, first + 3, row_stride, column, valid, WORDS)
        kept = _best_pattern(row0, row1, row2, row3)
        word0 |= _codes(row0, kept, _limit(first, limit_ptr, bound_ptr, SPLITS)) << (2 * field)
        word1 |= _codes(row1, kept >> 4, _limit(first + 1, limit_ptr, bound_ptr, SPLITS)) << (2 * field)
        word2 |= _codes(row2, kept >> 8, _limit(first + 2, limit_ptr, bound_ptr, SPLITS)) << (2 * field)
        word3 |= _codes(row3, kept >> 12, _limit(first + 3, limit_ptr, bound_ptr, SPLITS)) << (2 * field)
    target = packed_ptr.to(tl.pointer_type(tl.int32)) + first.to(tl.int64) * packed_words + word_index
    inside = word_index < packed_words
    tl.store(target, word0, mask=inside)
    tl.store(target + packed_words, word1, mask=inside)
    tl.store(target + 2 * packed_words, word2, mask=inside)
    tl.store(target + 3 * packed_words, word3, mask=inside)


def launch_transposable(
    weight: torch.Tensor, buffers: PrepareBuffers, config: TwoPassConfig, sums: torch.Tensor | None = None
) -> None:
    """Mask, quantize and pack `weight` [N, K] into the buffers on the current stream: two launches, no allocation, no synchronization.

    weight: bf16, fp16 or fp32, contiguous rows. The scales are those of the whole weight, as without a mask. sums: float64 [S], as
    `launch_prepare` takes them. A split with a NaN or an infinity gets NaN scales, `workspace.nonfinite` set, and zero weights.
    Raises ShapeError unless 4 divides N and K and both fit.
    """
    splits = buffers.workspace.splits
    check_weight(weight, TWO_OF_FOUR, splits)
    rows, columns = weight.shape
    if rows % 4:
        raise ShapeError(f"out_features {rows} is not a multiple of 4, the height of a transposable block")
    if tuple(buffers.packed.shape) != (rows, packed_width(columns)) or not buffers.packed.is_contiguous():
        raise ShapeError(f"packed bytes {list(buffers.packed.shape)} do not fit a weight {[rows, columns]}")
    if not rows:
        buffers.w_scale.fill_(1e-5)
        buffers.inv_scale.fill_(1e5)
        return
    launch_scales(weight, buffers.w_scale, buffers.inv_scale, buffers.workspace, config, sums)
    words = packed_width(columns) // 4
    aligned = weight.dtype.itemsize == 2 and weight.stride(0) % 4 == 0 and weight.data_ptr() % 8 == 0
    transposable_kernel[(rows // 4, triton.cdiv(words, BLOCKS))](
        weight, buffers.packed, buffers.workspace.bounds, buffers.workspace.limits, columns, weight.stride(0), words, WORDS=aligned,
        SPLITS=len(splits), BLOCK=BLOCKS, num_warps=BLOCKS // 32,
    )


def unavailable(problem: Problem) -> str | None:
    """Why a weight cannot have such a mask, or None."""
    if problem.sparsity != TWO_OF_FOUR:
        return f"transposable masks are 2:4, not {problem.sparsity}"
    return f"out_features {problem.out_features} is not a multiple of 4" if problem.out_features % 4 else None


def compile_unit(dtype: torch.dtype, splits: int = 1) -> CompileUnit:
    """The second pass as it is launched on rows of a multiple of 16 weights."""
    constants = {"WORDS": dtype.itemsize == 2, "SPLITS": splits, "BLOCK": BLOCKS}
    pointers = {"w_ptr": _TYPES[dtype], "packed_ptr": "*u8", "bound_ptr": "*i64", "limit_ptr": "*i32"}
    signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in transposable_kernel.arg_names}
    divisible = (*pointers, "in_features", "row_stride", "packed_words")
    return CompileUnit(transposable_kernel, signature, constants, divisible, {"num_warps": BLOCKS // 32})
