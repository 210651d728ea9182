"""The Triton functions that mask and quantize a 2:4 master weight and pack it in both orders that a training step reads
(`kernels.fragments`): the weight, and its transpose.

A thread finds the masks of 4 × 4 blocks in registers, for four fields of 64 columns one after the other, and has each field's codes in two
bits of every byte, as layout dense2 does: whatever is put in another order after that is done to the four fields at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.mask_quantize.activation_kernels import _begin
from kernels.mask_quantize.fragment_kernels import _EVEN, _all_metadata, _all_values, _bytes_of_row, _compressed
from kernels.mask_quantize.repack_kernels import _by_byte

_LOW = tl.constexpr((0, 0, 0, 1, 1, 2))
_HIGH = tl.constexpr((1, 2, 3, 2, 3, 3))
_BITS = tl.constexpr((3, 5, 9, 6, 10, 12))
_COUNTS = tl.constexpr((0o11, 0o101, 0o1001, 0o110, 0o1010, 0o1100))  # an octal digit a column
_EVERY_COLUMN_TWICE = tl.constexpr(0o2222)


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
def _majority(a, b, c):
    return (a & b) | (c & (a | b))


@triton.jit
def _two_largest(row):
    """The four bits of a row's two largest weights; ties keep the lower index."""
    a, b, c, d = tl.abs(row[0]), tl.abs(row[1]), tl.abs(row[2]), tl.abs(row[3])
    ab, ac, ad, bc, bd, cd = a >= b, a >= c, a >= d, b >= c, b >= d, c >= d
    bits = _majority(ab, ac, ad).to(tl.int32) | (_majority(~ab, bc, bd).to(tl.int32) << 1)
    return bits | (_majority(~ac, ~bc, cd).to(tl.int32) << 2) | (_majority(~ad, ~bd, ~cd).to(tl.int32) << 3)


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
    limit = tl.zeros(row.shape, tl.int32) + tl.load(limit_ptr)
    for split in tl.static_range(1, SPLITS):
        limit = tl.where(row >= tl.load(bound_ptr + split), tl.load(limit_ptr + split), limit)
    return limit


@triton.jit
def _store_rows(scratch, first_row, word, a, b, c, d):
    """Words of four rows after each other to rows of 16 words."""
    place = scratch + first_row * 16 + word
    tl.store(place, a)
    tl.store(place + 16, b)
    tl.store(place + 32, c)
    tl.store(place + 48, d)


@triton.jit
def _sparse_fragments(rows, quad):
    """Values and metadata of 64 rows × 64 columns for all four fields: [4, 8, 4, 2, 2, 2], the fields, then value and metadata.

    rows: a thread's first row, of 16 words of four columns each, at most two non-zeros of four.
    """
    for half in tl.static_range(2):
        pair = rows + (8 * half + 2 * quad)
        w0, w1, w2, w3 = _by_byte(tl.load(pair), tl.load(pair + 128), tl.load(pair + 1), tl.load(pair + 129))
        one, two, low, high = _compressed(w0 & _EVEN, w1 & _EVEN, w2 & _EVEN, w3 & _EVEN, (w0 >> 1) & _EVEN, (w1 >> 1) & _EVEN,
                                          (w2 >> 1) & _EVEN, (w3 >> 1) & _EVEN)  # fmt: skip
        if half == 0:
            u0, u1 = _bytes_of_row(one, two, 0), _bytes_of_row(one, two, 1)
            r0, r1 = _bytes_of_row(low, high, 0), _bytes_of_row(low, high, 1)
        else:
            u2, u3 = _bytes_of_row(one, two, 0), _bytes_of_row(one, two, 1)
            r2, r3 = _bytes_of_row(low, high, 0), _bytes_of_row(low, high, 1)
    return tl.join(_all_values(u0, u1, u2, u3), _all_metadata(r0, r1, r2, r3, quad))


@triton.jit
def _dense_fragments(rows, quad):
    """The words of two steps of 32 columns, for all four fields: [4, 8, 4, 2, 2, 2], the fields, then the steps."""
    first = rows + quad
    one = _all_values(tl.load(first), tl.load(first + 128), tl.load(first + 4), tl.load(first + 132))
    return tl.join(one, _all_values(tl.load(first + 8), tl.load(first + 136), tl.load(first + 12), tl.load(first + 140)))


@triton.jit
def pack_both_orders_kernel(
    w_ptr, scratch_ptr, forward_ptr, backward_ptr, row_scale_ptr, bound_ptr, limit_ptr, w_scale_ptr, out_features, in_features, row_stride,
    along_programs, WORDS: tl.constexpr, TRANSPOSABLE: tl.constexpr, SPLITS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """64 rows × 256 columns of a master, 2:4, to the weight in layout fragment24 and to its transpose: in fragment24 too where the mask is
    TRANSPOSABLE, which keeps 2 of 4 along rows and columns alike, else in layout fragment.

    scratch_ptr: int32 [programs, 2, 64, 16], through which threads exchange words: in registers it took six times the barriers, since
    layouts are inferred from loads. row_scale_ptr: float32 [out_features], w_scale / 64 of every row. Runs from the last tile to the first:
    the end of the weight is what the pass before left in the L2. Rows behind the last one, up to a whole block of the transpose, are zeros.
    """
    _begin(DEPENDENT)
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    down = tile // along_programs
    along = tile % along_programs
    first = down * 64 + 4 * tl.arange(0, 16)[:, None]
    zero = tl.zeros([16, 16], tl.int32)
    word0, word1, word2, word3 = zero, zero, zero, zero
    for field in range(4):
        column = along * 256 + field * 64 + 4 * tl.arange(0, 16)[None, :]
        inside = column < in_features
        row0 = _row(w_ptr, first, row_stride, column, inside & (first < out_features), WORDS)
        row1 = _row(w_ptr, first + 1, row_stride, column, inside & (first + 1 < out_features), WORDS)
        row2 = _row(w_ptr, first + 2, row_stride, column, inside & (first + 2 < out_features), WORDS)
        row3 = _row(w_ptr, first + 3, row_stride, column, inside & (first + 3 < out_features), WORDS)
        if TRANSPOSABLE:
            kept = _best_pattern(row0, row1, row2, row3)
        else:
            kept = _two_largest(row0) | (_two_largest(row1) << 4) | (_two_largest(row2) << 8) | (_two_largest(row3) << 12)
        word0 |= _codes(row0, kept, _limit(first, limit_ptr, bound_ptr, SPLITS)) << (2 * field)
        word1 |= _codes(row1, kept >> 4, _limit(first + 1, limit_ptr, bound_ptr, SPLITS)) << (2 * field)
        word2 |= _codes(row2, kept >> 8, _limit(first + 2, limit_ptr, bound_ptr, SPLITS)) << (2 * field)
        word3 |= _codes(row3, kept >> 12, _limit(first + 3, limit_ptr, bound_ptr, SPLITS)) << (2 * field)
    quad = tl.arange(0, 4)[None, None, :]
    thread = 4 * (32 * tl.arange(0, 4)[:, None, None] + 4 * tl.arange(0, 8)[None, :, None] + quad)
    thread = thread[:, :, :, None, None, None]
    two = tl.arange(0, 2)
    upper, lower, last = two[None, None, None, :, None, None], two[None, None, None, None, :, None], two[None, None, None, None, None, :]
    four_rows, word = 4 * tl.arange(0, 16)[:, None], tl.arange(0, 16)[None, :]
    scratch = scratch_ptr + tl.program_id(0) * 2048
    in_block = scratch + 16 * (16 * tl.arange(0, 4)[:, None, None] + tl.arange(0, 8)[None, :, None])
    _store_rows(scratch, four_rows, word, word0, word1, word2, word3)
    turned0, turned1, turned2, turned3 = _by_byte(word0, word1, word2, word3)
    _store_rows(scratch + 1024, 4 * word, four_rows // 4, turned0, turned1, turned2, turned3)
    tl.debug_barrier()
    column_blocks = (in_features + 127) // 128
    block = 2 * along + upper
    place = (down.to(tl.int64) * column_blocks + block) * 512 + (thread + 2 * lower + last)
    there = (block < column_blocks) & (down < (out_features + 63) // 64)
    tl.store(forward_ptr + place, _sparse_fragments(in_block, quad), mask=there & (thread >= 0))
    block = 4 * along + 2 * upper + lower
    place = (block.to(tl.int64) * ((out_features + 127) // 128) + down // 2) * 512 + (thread + 2 * (down % 2) + last)
    fragments = _sparse_fragments(in_block + 1024, quad) if TRANSPOSABLE else _dense_fragments(in_block + 1024, quad)
    tl.store(backward_ptr + place, fragments, mask=(block < (in_features + 63) // 64) & (thread + last >= 0))
    if along == 0:
        every_row = down * 64 + tl.arange(0, 64)
        row_scale = tl.zeros([64], tl.float32) + tl.load(w_scale_ptr)
        for split in tl.static_range(1, SPLITS):
            row_scale = tl.where(every_row >= tl.load(bound_ptr + split), tl.load(w_scale_ptr + split), row_scale)
        tl.store(row_scale_ptr + every_row, row_scale * 0.015625, mask=every_row < out_features)
