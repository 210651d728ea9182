"""The Triton functions that round an output gradient to int8 along both of its dimensions, and that transpose int8 rows.

What is transposed is put together four tokens a word in registers, so that the exchange between threads moves words and not bytes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.mask_quantize.activation_kernels import _magnitude
from kernels.mask_quantize.repack_kernels import _by_byte

_SMALLEST = tl.constexpr(1e-30)
"""Least absmax of a token or an out_feature: its codes are zeros."""


@triton.jit
def row_scale_kernel(w_scale, bounds, out, rows, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """out[row] = w_scale[split of the row] / 64; bounds: int64, first row of every split."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.zeros([BLOCK], tl.float32) + tl.load(w_scale)
    for split in tl.static_range(1, SPLITS):
        value = tl.where(row >= tl.load(bounds + split), tl.load(w_scale + split), value)
    tl.store(out + row, value * 0.015625, mask=row < rows)


@triton.jit
def gradient_maxima_kernel(
    dy, row_scale, x_scale, tops, edge, tokens, out_features, dy_stride, STEPS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Bits of the largest |dy · row_scale| of every token and, from `edge` on, of the largest |dy · x_scale| of every out_feature.

    STEPS · ROWS tokens × BLOCK columns a program; tops: int32, zeros before. Maxima come out the same in any order. row_scale: None where
    no token's is wanted.
    """
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < out_features
    if row_scale is not None:
        weight = tl.load(row_scale + column, mask=inside, other=0.0)[None, :]
    first = tl.program_id(0) * (STEPS * ROWS)
    down = tl.zeros([ROWS, BLOCK], tl.int32)
    for step in range(STEPS):
        row = first + step * ROWS + tl.arange(0, ROWS)
        valid = row < tokens
        source = dy + row.to(tl.int64)[:, None] * dy_stride + column[None, :]
        value = tl.load(source, mask=valid[:, None] & inside[None, :], other=0.0).to(tl.float32)
        along = tl.load(x_scale + row, mask=valid, other=0.0)[:, None]
        down = tl.maximum(down, _magnitude(value * along))
        if row_scale is not None:
            tl.atomic_max(tops + row, tl.max(_magnitude(value * weight), axis=1), mask=valid, sem="relaxed")
    tl.atomic_max(tops + edge + column, tl.max(down, axis=0), mask=inside, sem="relaxed")


@triton.jit
def gradient_scales_kernel(tops, scale, inverse, count, BLOCK: tl.constexpr):
    """From the bits of an absmax a: scale = a / 127 and inverse = 127 / a; the bits go back to zero, for the next launch.

    What holds a NaN or an infinity gets the scale NaN.
    """
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    top = tl.load(tops + place, mask=place < count, other=0)
    finite = top < 0x7F800000
    absmax = tl.maximum(tl.where(finite, top, 0).to(tl.float32, bitcast=True), _SMALLEST)
    largest = tl.full([BLOCK], 127.0, tl.float32)
    tl.store(scale + place, tl.where(finite, tl.div_rn(absmax, largest), float("nan")), mask=place < count)
    tl.store(inverse + place, tl.div_rn(largest, absmax), mask=place < count)
    tl.store(tops + place, tl.zeros([BLOCK], tl.int32), mask=place < count)


@triton.jit
def _code(scaled, noise, STOCHASTIC: tl.constexpr):
    """The nearest code of a scaled value, half to even, in the low byte; STOCHASTIC: of the value plus noise from (-1/2, 1/2)."""
    if STOCHASTIC:
        scaled = tl.minimum(tl.maximum(scaled + noise, -127.0), 127.0)
    return (scaled + 12582912.0).to(tl.int32, bitcast=True)


@triton.jit
def _noise(drawn):
    """16 random bits as a float32 from (-1/2, 1/2), its mean zero."""
    return (drawn.to(tl.int32) * 2 - 65535).to(tl.float32) * (0.5 / 65536)


@triton.jit
def quantize_both_kernel(
    dy, row_scale, x_scale, inverse, edge, by_token, by_feature, seed, tokens, out_features, dy_stride, token_stride, feature_words,
    quads, STOCHASTIC: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """TOKENS × BLOCK of dy to codes of dy · row_scale, token by token, and to codes of dy · x_scale, out_feature by out_feature.

    inverse: 127 / absmax per token and, from `edge` on, per out_feature. by_token: int8 [tokens, …], or None; by_feature: int8
    [out_features, …] in rows of feature_words words, of which `quads` are written, zeros behind the last token. Compiled without FMA
    fusion: the products are rounded first.
    """
    quad = tl.program_id(0) * (TOKENS // 4) + tl.arange(0, TOKENS // 4)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < out_features
    if by_token is not None:
        weight = tl.load(row_scale + column, mask=inside, other=0.0)[None, :]
    feature_inverse = tl.load(inverse + edge + column, mask=inside, other=0.0)[None, :]
    word = tl.zeros([TOKENS // 4, BLOCK], tl.int32)
    noise: tl.tuple = (0, 0, 0, 0)
    if STOCHASTIC:
        noise = tl.randint4x(seed, quad[:, None] * out_features + column[None, :])
    for place in tl.static_range(4):
        row = 4 * quad + place
        valid = row < tokens
        long_row = row.to(tl.int64)[:, None]
        both = valid[:, None] & inside[None, :]
        value = tl.load(dy + long_row * dy_stride + column[None, :], mask=both, other=0.0).to(tl.float32)
        along = tl.load(x_scale + row, mask=valid, other=0.0)[:, None]
        if STOCHASTIC:
            drawn = noise[place].to(tl.uint32, bitcast=True)
            low, high = _noise(drawn & 0xFFFF), _noise(drawn >> 16)
        else:
            low, high = 0.0, 0.0
        if by_token is not None:
            token_inverse = tl.load(inverse + row, mask=valid, other=0.0)[:, None]
            code = _code(value * weight * token_inverse, low, STOCHASTIC)
            tl.store(by_token + long_row * token_stride + column[None, :], code.to(tl.int8), mask=both)
        word |= (_code(value * along * feature_inverse, high, STOCHASTIC) & 0xFF) << (8 * place)
    target = by_feature.to(tl.pointer_type(tl.int32)) + column.to(tl.int64)[:, None] * feature_words + quad[None, :]
    tl.store(target, tl.trans(word), mask=inside[:, None] & (quad < quads)[None, :])


@triton.jit
def transpose_kernel(
    source, target, rows, columns, words, quads, source_words, target_words, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """target[column, row] = source[row, column], int8, a tile of ROWS × BLOCK.

    words and quads: columns and rows divided by four, rounded up; source_words, target_words: from row to row. Zeros fill the last quad.
    """
    quad = tl.program_id(0) * (ROWS // 4) + tl.arange(0, ROWS // 4)
    column_word = tl.program_id(1) * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    inside = (column_word < words)[None, :]
    first = source.to(tl.pointer_type(tl.int32)) + (4 * quad).to(tl.int64)[:, None] * source_words + column_word[None, :]
    a = tl.load(first, mask=(4 * quad < rows)[:, None] & inside, other=0)
    b = tl.load(first + source_words, mask=(4 * quad + 1 < rows)[:, None] & inside, other=0)
    c = tl.load(first + 2 * source_words, mask=(4 * quad + 2 < rows)[:, None] & inside, other=0)
    d = tl.load(first + 3 * source_words, mask=(4 * quad + 3 < rows)[:, None] & inside, other=0)
    w0, w1, w2, w3 = _by_byte(a, b, c, d)
    tile = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [ROWS // 4, BLOCK])
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = target.to(tl.pointer_type(tl.int32)) + column.to(tl.int64)[:, None] * target_words + quad[None, :]
    tl.store(place, tl.trans(tile), mask=(column < columns)[:, None] & (quad < quads)[None, :])
