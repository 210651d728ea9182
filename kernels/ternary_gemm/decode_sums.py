"""The PTX of the decode GEMM behind its main loop: the sum over warps and over programs, scales, bias, one rounding.

Sums are int32, so their order does not change a bit. Between programs they meet by `red.add` in a workspace that is zero before and
after every launch: the last program to arrive at a row tile takes the sums, stores the output and puts the zeros back.
"""

from __future__ import annotations

from triton.experimental import gluon

from kernels.ternary_gemm.decode_ptx import DONE, log2

FLAG = 768
SCALES = 512
SUM_PADDING = 4
"""Words behind a token's partial sums: fragments of eight rows of four tokens then lie in different banks."""
SIZES = {"bf16": 2, "f16": 2, "f32": 4, "s32": 4}


@gluon.constexpr_function
def sum_bytes(tiles, warps_m, warps_k, tokens8):
    """Shared memory for the exchange of partial sums: eight tokens of all rows for every warp along in_features, twice where more come."""
    return min(2, tokens8) * warps_k * 8 * (16 * tiles * warps_m + SUM_PADDING) * 4


@gluon.constexpr_function
def spill(j, tiles, tokens8, warps_m, warps_k, base, wgmma):
    """Every warp's accumulators of tokens 8j … 8j + 7 to shared memory from `base` on, rows side by side.

    A warp's tiles of 16 rows are neighbours, or (wgmma) 64 rows apart, beside those of the other warps of its warpgroup.
    """
    stride = 16 * tiles * warps_m + SUM_PADDING
    text = f"""{{
        .reg .b32 warp, lane, t, at;
        mov.u32 lane, %tid.x;
        shr.u32 warp, lane, 5;
        and.b32 t, warp, {warps_m - 1};
        shr.u32 warp, warp, {log2(warps_m)};
        mul.lo.u32 at, warp, {8 * stride * 4};
        shr.u32 warp, t, 2;
        mad.lo.u32 at, warp, {256 * (tiles - 1) if wgmma else 0}, at;
        mad.lo.u32 at, t, {64 if wgmma else 64 * tiles}, at;
        and.b32 t, lane, 3;
        mad.lo.u32 at, t, {2 * stride * 4}, at;
        and.b32 t, lane, 31;
        shr.u32 t, t, 2;
        mad.lo.u32 at, t, 4, at;
        mov.u32 t, global_smem;
        add.u32 at, at, t;"""
    for m in range(tiles):
        for i in range(4):
            offset = base + (j % 2) * warps_k * 8 * stride * 4 + (i & 1) * stride * 4
            offset += ((64 if wgmma else 16) * m + 8 * (i >> 1)) * 4
            text += f"\nst.shared.b32 [at+{offset}], acc{4 * (m * tokens8 + j) + i};"
    return text + f"\n{DONE}\n}}"


@gluon.constexpr_function
def classes(tiles, warps_m, warps_k):
    """Different rows of a tile that a thread finishes: element i of a thread lies in its row i modulo this."""
    return max(1, 16 * tiles * warps_m // (32 * warps_m * warps_k))


@gluon.constexpr_function
def row_constants(tiles, warps_m, warps_k, bias, clustered):
    """Asks for scale and bias of the rows that this thread will finish. $1 row tile, $2 out_features, $3 row_scale, $4 bias, $5 rank.

    They come from device memory, and cold: asked for at the end, they would be waited for. In a cluster a thread finishes elements of one
    row only, which its program's rank decides.
    """
    rows, count = 16 * tiles * warps_m, 1 if clustered else classes(tiles, warps_m, warps_k)
    text = """{
        .reg .b32 t, row;
        .reg .b64 from;
        .reg .pred here;"""
    for c in range(count):
        text += f"""
        mov.u32 t, %tid.x;
        {f"mad.lo.u32 t, $5, {32 * warps_m * warps_k}, t" if clustered else f"add.u32 t, t, {32 * warps_m * warps_k * c}"};
        and.b32 row, t, {rows - 1};
        mad.lo.u32 row, $1, {rows}, row;
        setp.lt.u32 here, row, $2;
        mov.f32 rscale{c}, 0f00000000;
        mad.wide.u32 from, row, 4, $3;
        @here ld.global.nc.f32 rscale{c}, [from];"""
        if bias:
            text += f"""
        mov.f32 rbias{c}, 0f00000000;
        mad.wide.u32 from, row, 4, $4;
        @here ld.global.nc.f32 rbias{c}, [from];"""
    return text + f"\n{DONE}\n}}"


@gluon.constexpr_function
def bring_scales():
    """x_scale ($1) of $2 tokens to the header, where a layer's own quantization leaves them."""
    return f"""{{
        .reg .b32 t, at;
        .reg .b64 from;
        .reg .f32 value;
        .reg .pred here;
        mov.u32 t, %tid.x;
        setp.lt.u32 here, t, $2;
        mad.wide.u32 from, t, 4, $1;
        mov.u32 at, global_smem;
        mad.lo.u32 at, t, 4, at;
        mov.f32 value, 0f00000000;
        @here ld.global.f32 value, [from];
        @here st.shared.f32 [at+{SCALES}], value;
        {DONE}
    }}"""


@gluon.constexpr_function
def finish(kind, bias, row_class):
    """`sum` of `token` and `row` (where `here`) to y ($4) at `at` elements. kind: bf16, f16, f32, or s32 for the raw sum."""
    size = SIZES[kind]
    address = f"\nmad.wide.u32 to, at, {size}, $4;"
    if kind == "s32":
        return f"\nshr.s32 sum, sum, 6;{address}\n@here st.global.b32 [to], sum;"
    text = f"""
        mov.u32 place, global_smem;
        mad.lo.u32 place, token, 4, place;
        @here ld.shared.f32 other, [place+{SCALES}];
        cvt.rn.f32.s32 value, sum;
        mul.f32 value, value, other;"""
    if bias:
        text += f"\nfma.rn.f32 value, value, rscale{row_class}, rbias{row_class};"
    else:
        text += f"\nmul.f32 value, value, rscale{row_class};"
    if kind == "f32":
        return text + address + "\n@here st.global.f32 [to], value;"
    return text + f"{address}\ncvt.rn.{kind}.f32 half, value;\n@here st.global.b16 [to], half;"


@gluon.constexpr_function
def place(index, rows, first="0"):
    """`row` and `token` of this thread's element `index` behind `first` of a tile, rows side by side."""
    return f"""
        mov.u32 t, %tid.x;
        add.u32 t, t, {index};
        add.u32 t, t, {first};
        and.b32 row, t, {rows - 1};
        shr.u32 token, t, {log2(rows)};"""


REGISTERS = """
        .reg .b32 t, row, token, at, sum, place, v;
        .reg .b64 to;
        .reg .f32 value, other;
        .reg .b16 half;
        .reg .pred here;"""


@gluon.constexpr_function
def warp_sum(j, e, tiles, warps_m, warps_k, base):
    """`sum` of `token` (of these eight) and `row` (of the tile) over the warps: the thread's element e, `here` where there is one."""
    rows = 16 * tiles * warps_m
    stride = rows + SUM_PADDING
    text = f"""{REGISTERS}{place(e * 32 * warps_m * warps_k, rows)}
        setp.lt.u32 here, token, 8;
        mad.lo.u32 v, token, {stride}, row;
        shl.b32 v, v, 2;
        mov.u32 t, global_smem;
        add.u32 v, v, t;
        mov.b32 sum, 0;"""
    for k in range(warps_k):
        offset = base + ((j % 2) * warps_k + k) * 8 * stride * 4
        text += f"\nmov.b32 t, 0;\n@here ld.shared.b32 t, [v+{offset}];\nadd.u32 sum, sum, t;"
    return text


@gluon.constexpr_function
def combine(j, e, tiles, warps_m, warps_k, kind, bias, split, base):
    """Adds the warps' sums of the thread's element e, and finishes it, or adds it to the workspace (split).

    $1 row tile, $2 tokens, $3 out_features, $4 y, $5 workspace.
    """
    text = "{" + warp_sum(j, e, tiles, warps_m, warps_k, base) + f"""
        add.u32 token, token, {8 * j};
        mad.lo.u32 row, $1, {16 * tiles * warps_m}, row;
        setp.lt.and.u32 here, token, $2, here;
        setp.lt.and.u32 here, row, $3, here;
        mad.lo.u32 at, token, $3, row;"""
    if split:
        text += "\nmad.wide.u32 to, at, 4, $5;\n@here red.relaxed.gpu.global.add.s32 [to], sum;"
    else:
        text += finish(kind, bias, e % classes(tiles, warps_m, warps_k))
    return text + f"\n{DONE}\n}}"


@gluon.constexpr_function
def arrive(splits):
    """This program's sums are in the workspace. Returns $3 to the last of a row tile's `splits`, 0 to the others.

    $1 counters, $2 row tile, $3 any number. The counter is zero again behind the last. One thread releases what all have added before the
    barrier, and acquires for all behind the next one; a fence of every thread would be one more wait for memory each.
    """
    return f"""{{
        .reg .b32 t, old, zero;
        .reg .b64 at;
        .reg .pred first, last;
        bar.sync 0;
        mov.u32 t, %tid.x;
        setp.eq.u32 first, t, 0;
        mad.wide.u32 at, $2, 4, $1;
        mov.u32 t, global_smem;
        mov.b32 zero, 0;
        mov.b32 old, 0;
        @first atom.acq_rel.gpu.global.add.u32 old, [at], 1;
        @first st.shared.b32 [t+{FLAG}], old;
        setp.eq.and.u32 last, old, {splits - 1}, first;
        @last st.relaxed.gpu.global.b32 [at], zero;
        bar.sync 0;
        ld.shared.b32 old, [t+{FLAG}];
        setp.eq.u32 last, old, {splits - 1};
        selp.b32 $0, $3, 0, last;
    }}"""


@gluon.constexpr_function
def elements(rows, tokens, threads):
    """Elements of a tile that a thread collects at once: all of them up to 16, since each turn waits for memory once."""
    return min(16, (rows * tokens + threads - 1) // threads)


@gluon.constexpr_function
def taken(ahead, rows):
    """`row`, `token`, `at` and `here` of the thread's element $6 + `ahead` of a row tile."""
    return place(ahead, rows, "$6") + f"""
        mad.lo.u32 row, $1, {rows}, row;
        setp.lt.u32 here, token, $2;
        setp.lt.and.u32 here, row, $3, here;
        mad.lo.u32 at, token, $3, row;"""


@gluon.constexpr_function
def collect(count, tiles, warps_m, warps_k, kind, bias):
    """`count` elements a thread from the workspace, which is zero again behind them, to the output.

    $1 … $5 as in `combine`, $6 the first element of this turn.
    """
    threads, rows = 32 * warps_m * warps_k, 16 * tiles * warps_m
    text = "{" + REGISTERS + f"\n.reg .b32 s<{count}>, zero;\nmov.b32 zero, 0;"
    for u in range(count):
        text += taken(u * threads, rows) + f"""
        mad.wide.u32 to, at, 4, $5;
        mov.b32 s{u}, 0;
        @here ld.relaxed.gpu.global.b32 s{u}, [to];
        @here st.relaxed.gpu.global.b32 [to], zero;"""
    for u in range(count):
        text += taken(u * threads, rows) + f"\nmov.b32 sum, s{u};" + finish(kind, bias, u % classes(tiles, warps_m, warps_k))
    return text + f"\n{DONE}\n}}"
