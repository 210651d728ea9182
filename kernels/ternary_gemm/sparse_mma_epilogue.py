"""The PTX of the `mma.sp` GEMM's epilogue: accumulators scaled in float32, rounded once, stored.

Operands of every block: $1 first row of the tile, $2 its first token, $3 tokens, $4 out_features, $5 x_scale, $6 row_scale (w_scale / 64),
$7 bias, $8 y. Accumulators are 64 times the sums. In row tile m and token tile j a thread holds four values:
its row and the one 8 below (i >> 1), tokens 8j + 2q and the next (i & 1), with q = lane % 4.
"""

from __future__ import annotations

from triton.experimental import gluon

from kernels.ternary_gemm.sparse_mma_ptx import DONE

SCALES_AHEAD = 4
"""Token tiles whose scales are loaded before they are needed."""


@gluon.constexpr_function
def places(tile):
    """Opens the block: warp; first, the warp's first row; row, the thread's; from, the warp's first token; left, the tokens from the
    thread's first one on; x, the scales of its first tokens, `SCALES_AHEAD` token tiles at once for their latency."""
    text = f"""{{
        .reg .b32 t, warp, lane, first, row, from, left, o<4>;
        .reg .b64 px, pr, py, pe;
        .reg .f32 f<4>, x<{2 * min(tile.tiles_t, SCALES_AHEAD)}>, s<{2 * tile.exchange_tiles}>, b<{2 * tile.exchange_tiles}>;
        .reg .pred p, q;
        mov.u32 t, %tid.x;
        and.b32 lane, t, 31;
        shr.u32 warp, t, 5;
        rem.u32 first, warp, {tile.warps_n};
        mad.lo.u32 first, first, {16 * tile.tiles_n}, $1;
        shr.u32 row, lane, 2;
        add.u32 row, row, first;
        div.u32 from, warp, {tile.warps_n};
        mad.lo.u32 from, from, {8 * tile.tiles_t}, $2;
        and.b32 t, lane, 3;
        mad.lo.u32 t, t, 2, from;
        sub.s32 left, $3, t;
        mad.wide.u32 px, t, 4, $5;"""
    return text + "".join(token_scales(tile, place) for place in range(min(tile.tiles_t, SCALES_AHEAD)))


@gluon.constexpr_function
def token_scales(tile, place):
    """x: scales of the thread's tokens in the token tile that comes at that place, counted over all passes; those behind the last are not
    read. Nothing behind the last place, nor where all fit the registers and are there."""
    if place >= max(SCALES_AHEAD, tile.tiles_t * (tile.tiles_n // tile.exchange_tiles)) or place >= tile.tiles_t <= SCALES_AHEAD:
        return ""
    text = ""
    for i in range(2):
        text += f"""
        setp.gt.s32 p, left, {8 * (place % tile.tiles_t) + i};
        mov.f32 {scale_of(tile, place, i)}, 0f00000000;
        @p ld.global.nc.f32 {scale_of(tile, place, i)}, [px+{32 * (place % tile.tiles_t) + 4 * i}];"""
    return text


@gluon.constexpr_function
def scale_of(tile, place, i):
    """The register of a token's scale in the token tile at that place."""
    return f"x{2 * (place % min(tile.tiles_t, SCALES_AHEAD)) + i}"


@gluon.constexpr_function
def row_scales(start, count):
    """s, b: scales and biases of the thread's rows in row tiles start … start + count."""
    text = ""
    for name, operand in (("s", "$6"), ("b", "$7")):
        text += f"\nmad.wide.u32 pr, row, 4, {operand};"
        for i in range(2 * count):
            text += f"\nld.global.nc.f32 {name}{i}, [pr+{64 * start + 32 * i}];"
    return text


@gluon.constexpr_function
def scaled(tile, start, m, j):
    """f0 … f3: the values of row tile start + m, of a pass that begins with row tile `start`, and token tile j."""
    text, place = "", start // tile.exchange_tiles * tile.tiles_t + j
    for i in range(4):
        text += f"""
        cvt.rn.f32.s32 f{i}, acc{4 * ((start + m) * tile.tiles_t + j) + i};
        mul.f32 f{i}, f{i}, {scale_of(tile, place, i & 1)};
        fma.rn.f32 f{i}, f{i}, s{2 * m + (i >> 1)}, b{2 * m + (i >> 1)};"""
    return text


@gluon.constexpr_function
def epilogue(tile, half, stages):
    """16 bits a value (`half`: bf16 or f16), out_features a multiple of 8: exchanged within the warp, stored 16 bytes a thread.

    Eight tokens at a time: each 8 × 8 piece is transposed in registers, written to the warp's part of the exchange and read back in rows.
    A token's rows take `chunks` lanes of `span`.
    """
    count, pitch = tile.exchange_tiles, tile.exchange_pitch
    chunks = 2 * count
    span = 1 << (chunks - 1).bit_length()
    rows = min(8, 32 // span)
    text = places(tile) + f"""
        .reg .b32 write, read, chunk;
        .reg .pred real;
        mov.u32 write, global_smem;
        add.u32 write, write, {tile.stage_bytes * stages};
        mad.lo.u32 write, warp, {8 * pitch}, write;
        and.b32 chunk, lane, {span - 1};
        setp.lt.u32 real, chunk, {chunks};
        shr.u32 t, lane, {span.bit_length() - 1};
        and.b32 t, t, 7;
        mad.lo.u32 read, t, {pitch}, write;
        mad.lo.u32 read, chunk, 16, read;
        add.u32 from, from, t;
        shr.u32 t, lane, 2;
        mad.lo.u32 write, t, {pitch}, write;
        and.b32 t, lane, 3;
        mad.lo.u32 write, t, 4, write;
        mad.lo.u32 first, chunk, 8, first;
        mul.wide.u32 py, from, $4;
        cvt.u64.u32 pr, first;
        add.u64 py, py, pr;
        shl.b64 py, py, 1;
        add.u64 py, py, $8;
        mul.wide.u32 pe, $4, {2 * rows};
        sub.s32 from, $3, from;"""
    for start in range(0, tile.tiles_n, count):
        text += row_scales(start, count) + f"""
        add.u32 t, first, {16 * start};
        setp.lt.and.u32 q, t, $4, real;
        add.u64 pr, py, {32 * start};"""
        for j in range(tile.tiles_t):
            for m in range(count):
                text += scaled(tile, start, m, j)
                for h in range(2):
                    text += f"""
        cvt.rn.{half}x2.f32 o{h}, f{2 * h + 1}, f{2 * h};
        movmatrix.sync.aligned.m8n8.trans.b16 o{h}, o{h};
        st.shared.b32 [write+{32 * m + 16 * h}], o{h};"""
            text += token_scales(tile, start // count * tile.tiles_t + j + SCALES_AHEAD) + "\nbar.warp.sync 0xFFFFFFFF;"
            for i in range(8 // rows):
                text += f"""
        @real ld.shared.v4.b32 {{o0, o1, o2, o3}}, [read+{pitch * rows * i}];
        setp.gt.and.s32 p, from, {8 * j + rows * i}, q;
        @p st.global.v4.b32 [pr], {{o0, o1, o2, o3}};
        add.u64 pr, pr, pe;"""
            text += "\nbar.warp.sync 0xFFFFFFFF;"
    return text + f"\n{DONE}\n}}"


@gluon.constexpr_function
def plain_epilogue(tile, kind):
    """Value by value, for any out_features: kind "s32" (raw accumulators), "f32", "bf16" or "f16"."""
    size = 4 if kind in ("s32", "f32") else 2
    text = places(tile) + f"""
        .reg .b16 v;
        .reg .b32 inner;
        .reg .b64 pt;
        and.b32 t, lane, 3;
        mad.lo.u32 from, t, 2, from;
        mul.wide.u32 py, from, $4;
        cvt.u64.u32 pr, row;
        add.u64 py, py, pr;
        mad.lo.u64 py, py, {size}, $8;
        sub.s32 inner, $4, row;"""
    for start in range(0, tile.tiles_n, tile.exchange_tiles):
        text += row_scales(start, tile.exchange_tiles) + "\nmov.b64 pt, py;"
        for j in range(tile.tiles_t):
            text += f"\nmul.wide.u32 pe, $4, {size};\nadd.u64 pe, pe, pt;"
            for m in range(tile.exchange_tiles):
                text += scaled(tile, start, m, j)
                for i in range(4):
                    below = 16 * (start + m) + 8 * (i >> 1)
                    target = f"[{'pe' if i & 1 else 'pt'}+{below * size}]"
                    text += f"\nsetp.gt.s32 q, inner, {below};\nsetp.gt.and.s32 p, left, {8 * j + (i & 1)}, q;"
                    if kind == "s32":
                        text += f"\nshr.s32 o0, acc{4 * ((start + m) * tile.tiles_t + j) + i}, 6;\n@p st.global.b32 {target}, o0;"
                    elif kind == "f32":
                        text += f"\n@p st.global.f32 {target}, f{i};"
                    else:
                        text += f"\ncvt.rn.{kind}.f32 v, f{i};\n@p st.global.b16 {target}, v;"
            text += f"\nmul.wide.u32 pe, $4, {8 * size};\nadd.u64 pt, pt, pe;"
            text += token_scales(tile, start // tile.exchange_tiles * tile.tiles_t + j + SCALES_AHEAD)
    return text + f"\n{DONE}\n}}"
