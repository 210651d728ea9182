"""The Triton functions that mask and quantize a 2:4 master weight and pack it in both orders that a training step reads
(`kernels.fragments`): the weight, and its transpose.

A thread finds the masks of 4 × 4 blocks in registers, for four fields of 64 columns one after the other, and has each field's codes in two
bits of every byte, as layout dense2 does: whatever is put in another order after that is done to the four fields at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.mask_quantize.activation_kernels import _begin
from kernels.mask_quantize.fragment_kernels import _all_metadata, _four, _values
from kernels.mask_quantize.repack_kernels import _by_byte, _half, row_scale

_LOW = tl.constexpr((0, 0, 0, 1, 1, 2))
_HIGH = tl.constexpr((1, 2, 3, 2, 3, 3))
_BITS = tl.constexpr((3, 5, 9, 6, 10, 12))
_COUNTS = tl.constexpr((0o11, 0o101, 0o1001, 0o110, 0o1010, 0o1100))  # an octal digit a column
_EVERY_COLUMN_TWICE = tl.constexpr(0o2222)


@triton.jit
def _row(w_ptr, row, row_stride, first_column, out_features, in_features):
    """Of a row of every block, [16, 1]: 16 times four weights from first_column on as float32, four tensors [16, 16].

    Columns lie beside each other in what is loaded, or lanes would go down the rows.
    """
    column = first_column + tl.arange(0, 64)[None, :]
    inside = (row < out_features) & (column < in_features)
    value = tl.load(w_ptr + row.to(tl.int64) * row_stride + column, mask=inside, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(value, [16, 16, 2, 2]))
    a, c = tl.split(even)
    b, d = tl.split(odd)
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
def _give(scratch, word, ROW: tl.constexpr, SPARSE: tl.constexpr):
    """Words of rows 4i + ROW of 64, [16, 16 of a row], to where the threads that make fragments of them read four at once: of two rows,
    eight apart, two words each, beside each other (SPARSE: 8 columns) or four apart.

    Two dimensions, here and in what is read: of several whose neighbours are not beside each other, lanes would go along the first.
    """
    pair, last = tl.arange(0, 128)[:, None], tl.arange(0, 2)[None, :]
    i = pair // 8
    thread = 32 * (i // 4) + 4 * (4 * (i % 2) + ROW) + pair % 4
    place = 512 * (pair // 4 % 2) + 4 * thread + 2 * (i // 2 % 2) + last
    if not SPARSE:
        word = tl.permute(tl.reshape(word, [16, 2, 2, 4]), [0, 1, 3, 2])
    tl.store(scratch + place, tl.reshape(word, [128, 2]))


@triton.jit
def _take(scratch, thread):
    """A thread's four words: the first of both rows, then the second of both, each [128]."""
    words = tl.load(scratch + (4 * thread[:, None] + tl.arange(0, 4)[None, :]))
    first, second = tl.split(tl.reshape(words, [128, 2, 2]))
    first_upper, first_lower = tl.split(first)
    second_upper, second_lower = tl.split(second)
    return first_upper, first_lower, second_upper, second_lower


@triton.jit
def _four_values(u0, u1, u2, u3):
    return _values(u0, u1, u2, u3, 0), _values(u0, u1, u2, u3, 1), _values(u0, u1, u2, u3, 2), _values(u0, u1, u2, u3, 3)


@triton.jit
def _in_turn(even, odd):
    """Fields 0, 1, 2 and 3 of [fields 0 and 2] and [fields 1 and 3]."""
    m0, m2 = tl.split(even)
    m1, m3 = tl.split(odd)
    return m0, m1, m2, m3


@triton.jit
def _sparse_words(scratch, thread):
    """Values and metadata of 64 rows × 64 columns for all four fields, at most two non-zeros of four: four tensors [128], then four."""
    for half in tl.static_range(2):
        a0, a1, b0, b1 = _take(scratch + 512 * half, thread)
        if half == 0:
            u0, u1, r0, r1 = _half(a0, a1, b0, b1)
        else:
            u2, u3, r2, r3 = _half(a0, a1, b0, b1)
    quad = tl.arange(0, 4)[None, None, :]
    chunks = (tl.reshape(r0, [4, 8, 4]), tl.reshape(r1, [4, 8, 4]), tl.reshape(r2, [4, 8, 4]), tl.reshape(r3, [4, 8, 4]))
    even, odd = tl.split(tl.reshape(_all_metadata(chunks[0], chunks[1], chunks[2], chunks[3], quad), [128, 2, 2]))
    return _four_values(u0, u1, u2, u3), _in_turn(even, odd)


@triton.jit
def _dense_words(scratch, thread):
    """The words of two steps of 32 columns, for all four fields: four tensors, then four."""
    a0, a1, b0, b1 = _take(scratch, thread)
    c0, c1, d0, d1 = _take(scratch + 512, thread)
    return _four_values(a0, a1, b0, b1), _four_values(c0, c1, d0, d1)


@triton.jit
def pack_both_orders_kernel(
    w_ptr, scratch_ptr, forward_ptr, backward_ptr, row_scale_ptr, bound_ptr, limit_ptr, w_scale_ptr, out_features, in_features, row_stride,
    along_programs, TRANSPOSABLE: tl.constexpr, SPLITS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """64 rows × 256 columns of a master, 2:4, to the weight in layout fragment24 and to its transpose: in fragment24 too where the mask is
    TRANSPOSABLE, which keeps 2 of 4 along rows and columns alike, else in layout fragment.

    scratch_ptr: int32 [programs, 2048], through which threads exchange words: the layout of what is computed after follows from how it
    is loaded, and exchanged in registers they took six times the barriers. row_scale_ptr: float32 [out_features], w_scale / 64 of every
    row. Runs from the last tile to the first: the end of the weight is what the pass before left in the L2. Rows behind the last one, up
    to a whole block of the transpose, are zeros.
    """
    _begin(DEPENDENT)
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    down = tile // along_programs
    along = tile % along_programs
    first = down * 64 + 4 * tl.arange(0, 16)[:, None]
    zero = tl.zeros([16, 16], tl.int32)
    word0, word1, word2, word3 = zero, zero, zero, zero
    fields = 4 if down * 64 < out_features else 0
    for field in range(fields):
        column = along * 256 + field * 64
        row0 = _row(w_ptr, first, row_stride, column, out_features, in_features)
        row1 = _row(w_ptr, first + 1, row_stride, column, out_features, in_features)
        row2 = _row(w_ptr, first + 2, row_stride, column, out_features, in_features)
        row3 = _row(w_ptr, first + 3, row_stride, column, out_features, in_features)
        if TRANSPOSABLE:
            kept = _best_pattern(row0, row1, row2, row3)
        else:
            kept = _two_largest(row0) | (_two_largest(row1) << 4) | (_two_largest(row2) << 8) | (_two_largest(row3) << 12)
        word0 |= _codes(row0, kept, _limit(first, limit_ptr, bound_ptr, SPLITS)) << (2 * field)
        word1 |= _codes(row1, kept >> 4, _limit(first + 1, limit_ptr, bound_ptr, SPLITS)) << (2 * field)
        word2 |= _codes(row2, kept >> 8, _limit(first + 2, limit_ptr, bound_ptr, SPLITS)) << (2 * field)
        word3 |= _codes(row3, kept >> 12, _limit(first + 3, limit_ptr, bound_ptr, SPLITS)) << (2 * field)
    scratch = scratch_ptr + tl.program_id(0) * 2048
    turned0, turned1, turned2, turned3 = _by_byte(word0, word1, word2, word3)
    rows, turned = (word0, word1, word2, word3), (turned0, turned1, turned2, turned3)
    for row in tl.static_range(4):
        _give(scratch, rows[row], row, True)
        _give(scratch + 1024, tl.trans(turned[row]), row, TRANSPOSABLE)
    tl.debug_barrier()
    thread = tl.arange(0, 128)
    value, meta = _sparse_words(scratch, thread)
    column_blocks, block = (in_features + 127) // 128, 2 * along
    start = forward_ptr + (down.to(tl.int64) * column_blocks + block) * 512
    place = 4 * thread[:, None] + tl.arange(0, 4)[None, :]
    there = (down < (out_features + 63) // 64) & (place >= 0)
    for side in tl.static_range(2):
        words = tl.reshape(_four(value[2 * side], meta[2 * side], value[2 * side + 1], meta[2 * side + 1]), [128, 4])
        tl.store(start + 512 * side + place, words, mask=there & (block + side < column_blocks))
    first_words, second_words = _sparse_words(scratch + 1024, thread) if TRANSPOSABLE else _dense_words(scratch + 1024, thread)
    place = 4 * thread[:, None] + (2 * (down % 2) + tl.arange(0, 2)[None, :])
    for field in tl.static_range(4):
        block = 4 * along + field
        start = backward_ptr + (block.to(tl.int64) * ((out_features + 127) // 128) + down // 2) * 512
        tl.store(start + place, tl.join(first_words[field], second_words[field]), mask=(block < (in_features + 63) // 64) & (place >= 0))
    if along == 0:
        every_row = down * 64 + tl.arange(0, 64)
        tl.store(row_scale_ptr + every_row, row_scale(w_scale_ptr, bound_ptr, every_row, SPLITS), mask=every_row < out_features)
