"""The Triton functions that round an output gradient to int8 along both of its dimensions, and that transpose int8 rows.

What is transposed is put together four tokens a word in registers, so that the exchange between threads moves words and not bytes.
Everything a program reads of a tile is asked for before anything is written: a store or an atomic may alias what is read, so no load
is moved over one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.mask_quantize.activation_kernels import _begin
from kernels.mask_quantize.repack_kernels import _by_byte, row_scale

_SMALLEST = tl.constexpr(1e-30)
"""Least absmax of a token or an out_feature: its codes are zeros."""
_PIECE = tl.constexpr(256)
"""Columns that a warp reads of a row at once, 8 a lane."""


@triton.jit
def _larger(a, b):
    """The larger one; NaN where either is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _bits(value):
    """Of a magnitude: they order like it, with infinities and NaN above everything."""
    return value.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _pieces(dy, first_row, last_row, dy_stride, first, out_features, RUNS: tl.constexpr, PIECES: tl.constexpr, WARPS: tl.constexpr):
    """dy [WARPS, 256], a tuple: from column `first`, `first` + 256 …, then of the next rows. Zeros from last_row on."""
    pieces: tl.tuple = ()
    lane = tl.arange(0, _PIECE)[None, :]
    for run in tl.static_range(RUNS):
        row = first_row + run * WARPS + tl.arange(0, WARPS)[:, None]
        for piece in tl.static_range(PIECES):
            column = first + piece * _PIECE + lane
            source = dy + row.to(tl.int64) * dy_stride + column
            pieces = pieces + (tl.load(source, mask=(row < last_row) & (column < out_features), other=0.0),)  # noqa: RUF005
    return pieces


@triton.jit
def _along(x_scale, first_row, last_row, RUNS: tl.constexpr, WARPS: tl.constexpr):
    """x_scale of the same rows, a tuple of [WARPS, 1]."""
    scales: tl.tuple = ()
    for run in tl.static_range(RUNS):
        row = first_row + run * WARPS + tl.arange(0, WARPS)[:, None]
        scales = scales + (tl.load(x_scale + row, mask=row < last_row, other=0.0),)  # noqa: RUF005
    return scales


@triton.jit
def _of_eight(value, WARPS: tl.constexpr):
    """The largest of every eight columns, which a thread has: [WARPS, 32]."""
    for level in tl.static_range(3):
        even, odd = tl.split(tl.reshape(value, [WARPS, _PIECE >> (level + 1), 2]))
        value = _larger(even, odd)
    return value


@triton.jit(do_not_specialize=["steps"])
def gradient_maxima_kernel(
    dy, w_scale, bounds, x_scale, tops, edge, tokens, out_features, dy_stride, steps, SPLITS: tl.constexpr,
    TOGETHER: tl.constexpr, RUNS: tl.constexpr, PIECES: tl.constexpr, WARPS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Bits of the largest |dy · w_scale / 64| of every token and, from `edge` on, of the largest |dy · x_scale| of every out_feature.

    steps · RUNS · WARPS tokens × PIECES · 256 columns a program, a row a warp; the next RUNS · WARPS are asked for before the last are
    used. What is left at the end, atomics and an exchange between warps, is what long programs save. tops: int32, zeros before; maxima come
    out the same in any order. TOGETHER: eight columns are of one split, and since rounding
    is monotonic the largest of them is multiplied. w_scale: None where no token's is wanted.
    """
    _begin(DEPENDENT)
    first_column = tl.program_id(1) * (PIECES * _PIECE)
    step_rows: tl.constexpr = RUNS * WARPS
    first = tl.program_id(0) * (steps * step_rows)
    last = tl.minimum(first + steps * step_rows, tokens)
    down: tl.tuple = ()
    weights: tl.tuple = ()
    for piece in tl.static_range(PIECES):
        down = down + (tl.zeros([WARPS, _PIECE], tl.float32),)  # noqa: RUF005
        if w_scale is not None:
            # Eight columns of a thread have one scale, or each has its own.
            column = 8 * tl.arange(0, 32) if TOGETHER else tl.arange(0, _PIECE)
            weights = weights + (row_scale(w_scale, bounds, first_column + piece * _PIECE + column[None, :], SPLITS),)  # noqa: RUF005
    along = _along(x_scale, first, last, RUNS, WARPS)
    pieces = _pieces(dy, first, last, dy_stride, first_column, out_features, RUNS, PIECES, WARPS)
    lane = tl.arange(0, 32)[None, :]
    for _ in range(steps):
        ahead = _pieces(dy, first + step_rows, last, dy_stride, first_column, out_features, RUNS, PIECES, WARPS)
        along_ahead = _along(x_scale, first + step_rows, last, RUNS, WARPS)
        for run in tl.static_range(RUNS):
            row = first + run * WARPS + tl.arange(0, WARPS)[:, None]
            token = tl.zeros([WARPS, 32], tl.float32)
            largest: tl.tuple = ()
            for piece in tl.static_range(PIECES):
                value = pieces[run * PIECES + piece].to(tl.float32)
                largest = largest + (_larger(down[piece], tl.abs(value * along[run])),)  # noqa: RUF005
                if w_scale is not None:
                    if TOGETHER:
                        part = _of_eight(tl.abs(value), WARPS) * weights[piece]
                    else:
                        part = _of_eight(tl.abs(value) * weights[piece], WARPS)
                    token = _larger(token, part)
            down = largest
            if w_scale is not None:
                # As many as lanes, of which one is added: what is reduced stays in its warp.
                top = tl.max(_bits(token), axis=1)[:, None] + tl.zeros_like(lane)
                tl.atomic_max(tops + row + lane, top, mask=(row < last) & (lane == 0), sem="relaxed")
        pieces = ahead
        along = along_ahead
        first += step_rows
    for piece in tl.static_range(PIECES):
        column = first_column + piece * _PIECE + tl.arange(0, _PIECE)
        tl.atomic_max(tops + edge + column, tl.max(_bits(down[piece]), axis=0), mask=column < out_features, sem="relaxed")


@triton.jit
def _absmax(top):
    """From its bits: of what is finite, and not less than the smallest that has codes."""
    return tl.maximum(tl.where(top < 0x7F800000, top, 0).to(tl.float32, bitcast=True), _SMALLEST)


@triton.jit
def _inverse(top):
    """127 / absmax."""
    return tl.div_rn(tl.full(top.shape, 127.0, tl.float32), _absmax(top))


@triton.jit
def _scale(top):
    """absmax / 127; NaN of what holds a NaN or an infinity."""
    return tl.where(top < 0x7F800000, tl.div_rn(_absmax(top), tl.full(top.shape, 127.0, tl.float32)), float("nan"))


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


@triton.jit(do_not_specialize=["seed"])
def quantize_both_kernel(
    dy, w_scale, bounds, x_scale, tops, scale, by_token, by_feature, edge, seed, tokens, out_features, dy_stride, token_stride,
    feature_words, quads, SPLITS: tl.constexpr, STOCHASTIC: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """TOKENS × BLOCK of dy to codes of dy · w_scale / 64, token by token, and to codes of dy · x_scale, out_feature by out_feature.

    tops: of `gradient_maxima_kernel`; scale: absmax / 127 per token and, from `edge` on, per out_feature, written here. by_token: int8
    [tokens, …], or None; by_feature: int8 [out_features, …] in rows of feature_words words, of which `quads` are written, zeros behind
    the last token. Runs from the last tile to the first: the end of dy is what the pass before left in the L2. Compiled without FMA
    fusion: the products are rounded first.
    """
    _begin(DEPENDENT)
    down = tl.num_programs(0) - 1 - tl.program_id(0)
    over = tl.num_programs(1) - 1 - tl.program_id(1)
    quad = down * (TOKENS // 4) + tl.arange(0, TOKENS // 4)
    column = over * BLOCK + tl.arange(0, BLOCK)
    inside = column < out_features
    values: tl.tuple = ()
    for place in tl.static_range(4):
        row = 4 * quad + place
        both = (row < tokens)[:, None] & inside[None, :]
        loaded = tl.load(dy + row.to(tl.int64)[:, None] * dy_stride + column[None, :], mask=both, other=0.0)
        values = values + (loaded,)  # noqa: RUF005
    top = tl.load(tops + edge + column, mask=inside, other=0)
    feature_inverse = _inverse(top)
    if down == 0:
        tl.store(scale + edge + column, _scale(top), mask=inside)
    if by_token is not None:
        weight = row_scale(w_scale, bounds, column, SPLITS)[None, :]
        every = down * TOKENS + tl.arange(0, TOKENS)
        token_top = tl.load(tops + every, mask=every < tokens, other=0)
        if over == 0:
            tl.store(scale + every, _scale(token_top), mask=every < tokens)
        even, odd = tl.split(tl.reshape(_inverse(token_top), [TOKENS // 4, 2, 2]))
        inverse0, inverse2 = tl.split(even)
        inverse1, inverse3 = tl.split(odd)
        inverses = (inverse0, inverse1, inverse2, inverse3)
    word = tl.zeros([TOKENS // 4, BLOCK], tl.int32)
    noise: tl.tuple = (0, 0, 0, 0)
    if STOCHASTIC:
        noise = tl.randint4x(seed, quad[:, None] * out_features + column[None, :])
    for place in tl.static_range(4):
        row = 4 * quad + place
        valid = row < tokens
        value = values[place].to(tl.float32)
        along = tl.load(x_scale + row, mask=valid, other=0.0)[:, None]
        if STOCHASTIC:
            drawn = noise[place].to(tl.uint32, bitcast=True)
            low, high = _noise(drawn & 0xFFFF), _noise(drawn >> 16)
        else:
            low, high = 0.0, 0.0
        if by_token is not None:
            code = _code(value * weight * inverses[place][:, None], low, STOCHASTIC)
            target = by_token + row.to(tl.int64)[:, None] * token_stride + column[None, :]
            tl.store(target, code.to(tl.int8), mask=valid[:, None] & inside[None, :])
        word |= (_code(value * along * feature_inverse[None, :], high, STOCHASTIC) & 0xFF) << (8 * place)
    target = by_feature.to(tl.pointer_type(tl.int32)) + column.to(tl.int64)[:, None] * feature_words + quad[None, :]
    tl.store(target, tl.trans(word), mask=inside[:, None] & (quad < quads)[None, :])


@triton.jit
def transpose_kernel(
    source, target, clear, rows, columns, words, quads, source_words, target_words, count, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    CLEARED: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """target[column, row] = source[row, column], int8, a tile of ROWS × BLOCK; and zeros to the `count` words from clear.

    words and quads: columns and rows divided by four, rounded up; source_words, target_words: from row to row. Zeros fill the last quad.
    """
    _begin(DEPENDENT)
    quad = tl.program_id(0) * (ROWS // 4) + tl.arange(0, ROWS // 4)
    column_word = tl.program_id(1) * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    inside = (column_word < words)[None, :]
    first = source.to(tl.pointer_type(tl.int32)) + (4 * quad).to(tl.int64)[:, None] * source_words + column_word[None, :]
    a = tl.load(first, mask=(4 * quad < rows)[:, None] & inside, other=0)
    b = tl.load(first + source_words, mask=(4 * quad + 1 < rows)[:, None] & inside, other=0)
    c = tl.load(first + 2 * source_words, mask=(4 * quad + 2 < rows)[:, None] & inside, other=0)
    d = tl.load(first + 3 * source_words, mask=(4 * quad + 3 < rows)[:, None] & inside, other=0)
    programs = tl.num_programs(0) * tl.num_programs(1)
    for start in range((tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * CLEARED, count, programs * CLEARED):
        place = start + tl.arange(0, CLEARED)
        tl.store(clear + place, tl.zeros([CLEARED], tl.int32), mask=place < count)
    w0, w1, w2, w3 = _by_byte(a, b, c, d)
    tile = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [ROWS // 4, BLOCK])
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = target.to(tl.pointer_type(tl.int32)) + column.to(tl.int64)[:, None] * target_words + quad[None, :]
    tl.store(place, tl.trans(tile), mask=(column < columns)[:, None] & (quad < quads)[None, :])
