"""The Triton functions of `activation`: a row's absmax, then its int8 codes, plain or lifted."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _begin(DEPENDENT: tl.constexpr):
    """DEPENDENT: this launch may have begun before the one before it ended; wait for that, then let the next one (the GEMM) begin as
    early."""
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def _flag(flags_ptr, finite, row, tokens):
    """flags_ptr: None, or an int32 that becomes 1 where a token is not finite, and stays as it is else."""
    if flags_ptr is not None:
        bad = ((row < tokens) & (finite == 0)).to(tl.int32)
        tl.store(flags_ptr, 1, mask=tl.max(bad, axis=0) > 0)


@triton.jit
def _magnitude(x):
    """Float bits without the sign: they order like |x|, with infinities and NaN above everything."""
    return x.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _quantized(x, inverse):
    """rint(x · inverse), half to even, in the low byte. Needs multiplication and addition kept apart (no FMA fusion)."""
    return (x.to(tl.float32) * inverse + 12582912.0).to(tl.int32, bitcast=True)


@triton.jit
def _store(q_ptr, code, row_offset, row_valid, start, in_features, MIDDLE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Codes [ROWS, BLOCK] to the columns from start; MIDDLE: also columns 8g + 2 … 8g + 5 as one word each behind the natural columns."""
    column = start + tl.arange(0, BLOCK)[None, :]
    tl.store(q_ptr + row_offset + column, code.to(tl.int8), mask=row_valid & (column < in_features))
    if MIDDLE:
        place = tl.arange(0, 8)[None, None, :]
        inside = (place >= 2) & (place < 6)
        byte = tl.reshape(code & 0xFF, [ROWS, BLOCK // 8, 8]) << tl.where(inside, (place - 2) * 8, 0)
        word = tl.sum(tl.where(inside, byte, 0), axis=2)
        group = start // 8 + tl.arange(0, BLOCK // 8)[None, :]
        target = q_ptr.to(tl.pointer_type(tl.int32)) + (row_offset // 4 + in_features // 4) + group
        tl.store(target, word, mask=row_valid & (group < in_features // 8))


@triton.jit
def _lifted_column(position, in_features, LIFT: tl.constexpr):
    """The column that a lifted position repeats: even windows, then odd ones where 4 divides LIFT, else each group's in order."""
    if LIFT % 4 == 0:
        behind = position - in_features
        odd: tl.constexpr = LIFT // 4 - 1
        repeated = behind // (4 * odd) * LIFT + behind % (4 * odd) // 4 * 4 + 2 + behind % 4
        return tl.where(behind < 0, position, repeated)
    windows: tl.constexpr = LIFT // 2 - 1
    return position // (4 * windows) * LIFT + position % (4 * windows) // 4 * 2 + position % 4


@triton.jit
def activation_kernel(
    x_ptr, q_ptr, scale_ptr, flags_ptr, tokens, in_features, width, x_stride, q_stride,
    LIFT: tl.constexpr, ONE_BLOCK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):
    """ROWS tokens: their absmax, then their codes. ONE_BLOCK: the row stays in registers, else it is read again from the cache.

    flags_ptr: as of `_flag`. LIFT: 0, or the group; 8 is written from registers, other groups read the row again through the column they
    repeat.
    """
    _begin(DEPENDENT)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_valid = (row < tokens)[:, None]
    x_row = x_ptr + row.to(tl.int64)[:, None] * x_stride
    q_row = row.to(tl.int64)[:, None] * q_stride
    lane = tl.arange(0, BLOCK)[None, :]
    if ONE_BLOCK:
        valid = row_valid & (lane < in_features)
        x = tl.load(x_row + lane, mask=valid, other=0.0)
        top = tl.max(_magnitude(x), axis=1)
    else:
        tops = tl.zeros([ROWS, BLOCK], tl.int32)
        for start in range(0, in_features, BLOCK):
            piece = tl.load(x_row + (start + lane), mask=row_valid & (start + lane < in_features), other=0.0)
            tops = tl.maximum(tops, _magnitude(piece))
        top = tl.max(tops, axis=1)
    finite = top < 0x7F800000
    absmax = tl.maximum(tl.where(finite, top, 0).to(tl.float32, bitcast=True), 1e-5)
    inverse = tl.div_rn(tl.full([ROWS], 127.0, tl.float32), absmax)[:, None]
    x_scale = tl.div_rn(absmax, tl.full([ROWS], 127.0, tl.float32))
    tl.store(scale_ptr + row, tl.where(finite, x_scale, float("nan")), mask=row < tokens)
    _flag(flags_ptr, finite, row, tokens)
    if LIFT != 0 and LIFT != 8:
        for start in range(0, width, BLOCK):
            position = start + lane
            inside = row_valid & (position < width)
            piece = tl.load(x_row + _lifted_column(position, in_features, LIFT), mask=inside, other=0.0)
            tl.store(q_ptr + q_row + position, _quantized(piece, inverse).to(tl.int8), mask=inside)
    elif ONE_BLOCK:
        _store(q_ptr, _quantized(x, inverse), q_row, row_valid, 0, in_features, LIFT == 8, ROWS, BLOCK)
    else:
        for start in range(0, in_features, BLOCK):
            column = start + lane
            inside = row_valid & (column < in_features)
            piece = tl.load(x_row + column, mask=inside, other=0.0)
            _store(q_ptr, _quantized(piece, inverse), q_row, row_valid, start, in_features, LIFT == 8, ROWS, BLOCK)


@triton.jit
def _store_words(q_ptr, code, q_row, row_valid, start, words, MIDDLE: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr):
    """Codes, two a word [ROWS, WORDS], from word start.

    MIDDLE: also columns 8g + 2 … 8g + 5 as one word each behind the natural columns.
    """
    word = start + tl.arange(0, WORDS)[None, :]
    tl.store(q_ptr.to(tl.pointer_type(tl.int16)) + q_row // 2 + word, code.to(tl.int16), mask=row_valid & (word < words))
    if MIDDLE:
        even, odd = tl.split(tl.reshape(code, [ROWS, WORDS // 4, 2, 2]))
        _, third = tl.split(even)
        second, _ = tl.split(odd)
        group = start // 4 + tl.arange(0, WORDS // 4)[None, :]
        target = q_ptr.to(tl.pointer_type(tl.int32)) + (q_row // 4 + words // 2) + group
        tl.store(target, second | (third << 16), mask=row_valid & (group < words // 4))


@triton.jit
def activation_words_kernel(
    x_ptr, q_ptr, scale_ptr, wide_ptr, flags_ptr, tokens, in_features, x_stride, q_stride,
    MIDDLE: tl.constexpr, PIECES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """ROWS tokens of bf16, two values a word, all of a row's PIECES of BLOCK columns in registers.

    Rows start at multiples of 4 bytes and in_features is even. wide_ptr: None, or contiguous bf16 [tokens, in_features] for code · scale.
    flags_ptr: as of `_flag`.
    """
    _begin(DEPENDENT)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_valid = (row < tokens)[:, None]
    words = in_features // 2
    x_row = x_ptr.to(tl.pointer_type(tl.int32)) + row.to(tl.int64)[:, None] * (x_stride // 2)
    q_row = row.to(tl.int64)[:, None] * q_stride
    lane = tl.arange(0, BLOCK // 2)[None, :]
    pieces: tl.tuple = ()
    for piece in tl.static_range(PIECES):
        word = piece * (BLOCK // 2) + lane
        loaded = tl.load(x_row + word, mask=row_valid & (word < words), other=0)
        pieces = pieces + (loaded,)  # noqa: RUF005 (Triton does not unpack)
    low_top = tl.zeros([ROWS, BLOCK // 2], tl.uint32)
    high_top = tl.zeros([ROWS, BLOCK // 2], tl.int32)
    for piece in tl.static_range(PIECES):
        low_top = tl.maximum(low_top, (pieces[piece] << 17).to(tl.uint32, bitcast=True))
        high_top = tl.maximum(high_top, pieces[piece] & 0x7FFFFFFF)
    top = tl.max(tl.maximum((low_top >> 1).to(tl.int32, bitcast=True), high_top & 0x7FFF0000), axis=1)
    finite = top < 0x7F800000
    absmax = tl.maximum(tl.where(finite, top, 0).to(tl.float32, bitcast=True), 1e-5)
    inverse = tl.div_rn(tl.full([ROWS], 127.0, tl.float32), absmax)[:, None]
    x_scale = tl.where(finite, tl.div_rn(absmax, tl.full([ROWS], 127.0, tl.float32)), float("nan"))
    tl.store(scale_ptr + row, x_scale, mask=row < tokens)
    _flag(flags_ptr, finite, row, tokens)
    for piece in tl.static_range(PIECES):
        low = (pieces[piece] << 16).to(tl.float32, bitcast=True)
        high = (pieces[piece] & -0x10000).to(tl.float32, bitcast=True)
        code = (_quantized(low, inverse) & 0xFF) | ((_quantized(high, inverse) & 0xFF) << 8)
        _store_words(q_ptr, code, q_row, row_valid, piece * (BLOCK // 2), words, MIDDLE, ROWS, BLOCK // 2)
        if wide_ptr is not None:
            value = tl.reshape(tl.join(low * inverse, high * inverse), [ROWS, BLOCK])
            value = ((value + 12582912.0) - 12582912.0) * x_scale[:, None]
            column = piece * BLOCK + tl.arange(0, BLOCK)[None, :]
            target = wide_ptr + row.to(tl.int64)[:, None] * in_features + column
            tl.store(target, value.to(wide_ptr.dtype.element_ty), mask=row_valid & (column < in_features))
