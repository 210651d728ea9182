"""The PTX of a decode layer's own activation quantization: per-token absmax and int8 codes, straight into shared memory.

The numerics of `kernels.mask_quantize.activation`: absmax at least 1e-5, x · (127 / absmax) rounded half to even by adding 1.5 · 2²³, no
fused operation, correctly rounded divisions; a token with an infinity or a NaN gets the scale NaN.
"""

from __future__ import annotations

from triton.experimental import gluon

from kernels.ternary_gemm.decode_ptx import DONE, log2
from kernels.ternary_gemm.decode_sums import SCALES

INVERSES = 256
PIECE = 8
"""Activations that a thread takes at once."""
ROUND = "0f4B400000"
"""1.5 · 2²³: added to a float, it leaves the integer nearest to it in the low bits."""


@gluon.constexpr_function
def turn_columns(unroll, threads, rows):
    """Columns that a block takes of each of `rows` tokens."""
    return PIECE * unroll * threads // rows


@gluon.constexpr_function
def fetch(u, kind):
    """Piece u of activations at [from] into raw registers, zeros where `p{u}` is false."""
    count = 8 if kind == "f32" else 4
    text = "".join(f"\nmov.b32 r{count * u + i}, 0;" for i in range(count))
    for first in range(0, count, 4):
        words = ", ".join(f"r{count * u + first + i}" for i in range(4))
        text += f"\n@p{u} ld.global.v4.b32 {{{words}}}, [from+{4 * first}];"
    return text


@gluon.constexpr_function
def widen(u, i, kind):
    """Activation i of piece u as float32 in `x`, its bits in `t`."""
    if kind == "f32":
        return f"\nmov.b32 t, r{8 * u + i};\nmov.b32 x, t;"
    word = f"r{4 * u + i // 2}"
    if kind == "bf16":
        return (f"\nand.b32 t, {word}, 0xFFFF0000;" if i % 2 else f"\nshl.b32 t, {word}, 16;") + "\nmov.b32 x, t;"
    shifted = f"\nshr.u32 t, {word}, {16 * (i % 2)};"
    return f"{shifted}\ncvt.u16.u32 half, t;\ncvt.f32.f16 x, half;\nmov.b32 t, x;"


@gluon.constexpr_function
def locate(u, unroll, threads, rows, columns):
    """`row`, `column` of piece u, and `p{u}`: whether it lies in the tokens ($3) and before `columns`. $4 which rows, $5 which columns."""
    across = threads // rows
    return f"""
        mov.u32 t, %tid.x;
        shr.u32 row, t, {log2(across)};
        and.b32 column, t, {across - 1};
        mad.lo.u32 row, $4, {rows}, row;
        mad.lo.u32 column, $5, {across * unroll}, column;
        add.u32 column, column, {across * u};
        shl.b32 column, column, {log2(PIECE)};
        setp.lt.u32 p{u}, column, {columns};
        setp.lt.and.u32 p{u}, row, $3, p{u};"""


@gluon.constexpr_function
def source(u, kind):
    """`from`: the address of row `row` ($2 elements apart), column `column` of x ($1)."""
    return f"""
        mad.lo.u32 t, row, $2, column;
        mad.wide.u32 from, t, {4 if kind == "f32" else 2}, $1;"""


@gluon.constexpr_function
def registers(unroll, kind):
    """What the blocks of this page need."""
    return f"""
        .reg .b32 t, row, column, at, low, high, q<8>, r<{unroll * (8 if kind == "f32" else 4)}>;
        .reg .b64 from;
        .reg .f32 x, inverse;
        .reg .b16 half;
        .reg .pred first, p<{unroll}>;"""


@gluon.constexpr_function
def absmax(unroll, threads, rows, kind):
    """The thread's pieces into its running absmax. $1 x, $2 its row stride, $3 tokens, $4 which rows, $5 which columns, $6 in_features."""
    text = "{" + registers(unroll, kind)
    for u in range(unroll):
        text += locate(u, unroll, threads, rows, "$6") + source(u, kind) + fetch(u, kind)
    for u in range(unroll):
        for i in range(PIECE):
            text += widen(u, i, kind) + "\nand.b32 t, t, 0x7FFFFFFF;\nmax.u32 amax, amax, t;"
    return text + f"\n{DONE}\n}}"


@gluon.constexpr_function
def publish(threads, rows):
    """The warp's absmax to the header. $1 tokens, $2 which rows."""
    return f"""{{
        .reg .b32 t, row, at;
        .reg .pred here;
        redux.sync.max.u32 amax, amax, 0xFFFFFFFF;
        mov.u32 t, %tid.x;
        shr.u32 row, t, {log2(threads // rows)};
        mad.lo.u32 row, $2, {rows}, row;
        and.b32 t, t, 31;
        setp.eq.u32 here, t, 0;
        setp.lt.and.u32 here, row, $1, here;
        mov.u32 at, global_smem;
        mad.lo.u32 at, row, 4, at;
        @here red.relaxed.cta.shared.max.u32 [at], amax;
        mov.b32 amax, 0;
        {DONE}
    }}"""


@gluon.constexpr_function
def scales():
    """Per token, a thread each: inverse and scale behind the absmax. $1 tokens."""
    return f"""{{
        .reg .b32 t, at, top;
        .reg .f32 a, value;
        .reg .pred here, finite;
        mov.u32 t, %tid.x;
        setp.lt.u32 here, t, $1;
        mov.u32 at, global_smem;
        mad.lo.u32 at, t, 4, at;
        mov.b32 top, 0;
        @here ld.shared.b32 top, [at];
        setp.lt.u32 finite, top, 0x7F800000;
        selp.b32 top, top, 0, finite;
        max.u32 top, top, 0x3727C5AC;
        mov.b32 a, top;
        div.rn.f32 value, 0f42FE0000, a;
        @here st.shared.f32 [at+{INVERSES}], value;
        div.rn.f32 value, a, 0f42FE0000;
        selp.f32 value, value, 0f7FFFFFFF, finite;
        @here st.shared.f32 [at+{SCALES}], value;
        {DONE}
    }}"""


@gluon.constexpr_function
def quantize(unroll, threads, rows, kind, base):
    """The thread's pieces of a slice as int8 to shared memory; zeros behind the slice.

    $1 … $5 as in `absmax`, $6 bytes of a row in shared memory, $7 first column of the slice, $8 its end, $9 columns of the buffer.
    """
    text = "{" + registers(unroll, kind) + "\n.reg .pred inside;"
    for u in range(unroll):
        text += locate(u, unroll, threads, rows, "$9") + f"""
        add.u32 column, column, $7;
        setp.lt.u32 inside, column, $8;
        and.pred p{u}, p{u}, inside;""" + source(u, kind) + fetch(u, kind)
    for u in range(unroll):
        text += locate(u, unroll, threads, rows, "$9") + f"""
        mov.u32 at, global_smem;
        mad.lo.u32 t, row, 4, at;
        mov.f32 inverse, 0f00000000;
        @p{u} ld.shared.f32 inverse, [t+{INVERSES}];
        mad.lo.u32 at, row, $6, at;
        add.u32 at, at, column;"""
        for i in range(PIECE):
            text += widen(u, i, kind) + f"\nmul.rn.f32 x, x, inverse;\nadd.rn.f32 x, x, {ROUND};\nmov.b32 q{i}, x;"
        for name, i in (("low", 0), ("high", 4)):
            text += f"""
        prmt.b32 t, q{i}, q{i + 1}, 0x0040;
        prmt.b32 {name}, q{i + 2}, q{i + 3}, 0x0040;
        prmt.b32 {name}, t, {name}, 0x5410;"""
        text += f"\n@p{u} st.shared.v2.b32 [at+{base}], {{low, high}};"
    return text + f"\n{DONE}\n}}"
