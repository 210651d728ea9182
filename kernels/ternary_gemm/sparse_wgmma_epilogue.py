"""The PTX of the sparse Hopper GEMM's epilogue: accumulators scaled in float32, rounded once, stored row by row.

Operands of every block: $1 first row of the tile, $2 its first token, $3 tokens, $4 out_features, $5 x_scale, $6 row_scale (w_scale / 64),
$7 bias, $8 y. Accumulators are 64 times the sums. In column group j a thread holds four values: its row and the one 8 below (i >> 1),
tokens 8j + 2q and the next (i & 1), with q = lane % 4.
"""

from __future__ import annotations

from triton.experimental import gluon

from kernels.ternary_gemm.sparse_wgmma_ptx import DONE, ROW_BYTES


@gluon.constexpr_function
def places(m, tiles):
    """Opens the block: s0, s1 and b0, b1 scale and bias of the thread's rows; px its first token's scale; left the tokens from there on.

    row is the first row of row block m of this warpgroup, a the thread's, b the thread's first token.
    """
    return f"""{{
        .reg .b32 t, wg, lane, warp, row, left, base, a, b, o<4>;
        .reg .b64 px, pr, py;
        .reg .f32 f<4>, x0, x1, s0, s1, b0, b1;
        .reg .pred p, q;
        mov.u32 t, %tid.x;
        shr.u32 wg, t, 7;
        and.b32 lane, t, 31;
        shr.u32 warp, t, 5;
        and.b32 warp, warp, 3;
        mad.lo.u32 row, wg, {64 * tiles}, $1;
        add.u32 row, row, {64 * m};
        shr.u32 a, lane, 2;
        mad.lo.u32 a, warp, 16, a;
        add.u32 a, a, row;
        mad.wide.u32 pr, a, 4, $6;
        ld.global.nc.f32 s0, [pr];
        ld.global.nc.f32 s1, [pr+32];
        mad.wide.u32 pr, a, 4, $7;
        ld.global.nc.f32 b0, [pr];
        ld.global.nc.f32 b1, [pr+32];
        and.b32 b, lane, 3;
        mad.lo.u32 b, b, 2, $2;
        mad.wide.u32 px, b, 4, $5;
        sub.s32 left, $3, b;
        mov.u32 base, global_smem;"""


@gluon.constexpr_function
def scaled(m, j, block_t):
    """f0 … f3: the values of column group j, scaled; tokens behind the last read no scale."""
    text = f"""
        mov.f32 x0, 0f00000000;
        mov.f32 x1, 0f00000000;
        setp.gt.s32 p, left, {8 * j};
        setp.gt.s32 q, left, {8 * j + 1};
        @p ld.global.nc.f32 x0, [px+{32 * j}];
        @q ld.global.nc.f32 x1, [px+{32 * j + 4}];"""
    for i in range(4):
        text += f"""
        cvt.rn.f32.s32 f{i}, acc{m * block_t // 2 + 4 * j + i};
        mul.f32 f{i}, f{i}, x{i & 1};
        fma.rn.f32 f{i}, f{i}, s{i >> 1}, b{i >> 1};"""
    return text


@gluon.constexpr_function
def epilogue(m, tiles, block_t, staging, half):
    """Row block m of both warpgroups, 16 bits a value (`half`: bf16 or f16): transposed through shared memory, stored 16 bytes a thread.

    out_features is a multiple of 8. A staged row is a token's 64 values, its eight chunks swizzled by the token's lowest three bits.
    """
    # stmatrix takes row i % 8 of matrix i / 8 from lane i: the matrices are token groups (bit 4 of the lane) by row groups (bit 3).
    text = places(m, tiles) + f"""
        mad.lo.u32 base, wg, {block_t * ROW_BYTES}, base;
        add.u32 base, base, {staging};
        and.b32 a, lane, 7;
        shr.u32 b, lane, 3;
        and.b32 b, b, 1;
        mad.lo.u32 b, warp, 2, b;
        xor.b32 b, b, a;
        shl.b32 b, b, 4;
        shr.u32 t, lane, 4;
        mad.lo.u32 a, t, 8, a;
        mad.lo.u32 b, a, {ROW_BYTES}, b;
        add.u32 b, b, base;
        add.u32 a, wg, 8;
        bar.sync a, 128;"""
    for j in range(0, block_t // 8, 2):
        for h in range(2):
            text += scaled(m, j + h, block_t)
            text += f"""
        cvt.rn.{half}x2.f32 o{2 * h}, f1, f0;
        cvt.rn.{half}x2.f32 o{2 * h + 1}, f3, f2;"""
        text += f"\nstmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [b+{8 * ROW_BYTES * j}], {{o0, o1, o2, o3}};"
    # Thread t stores chunk t % 8 of tokens t / 8 + 16 i.
    text += f"""
        add.u32 a, wg, 8;
        bar.sync a, 128;
        mov.u32 t, %tid.x;
        and.b32 t, t, 127;
        and.b32 a, t, 7;
        shr.u32 t, t, 3;
        and.b32 b, t, 7;
        xor.b32 b, b, a;
        shl.b32 b, b, 4;
        mad.lo.u32 b, t, {ROW_BYTES}, b;
        add.u32 b, b, base;
        mad.lo.u32 row, a, 8, row;
        add.u32 a, t, $2;
        sub.s32 left, $3, a;
        setp.lt.u32 q, row, $4;
        mul.wide.u32 py, a, $4;
        cvt.u64.u32 px, row;
        add.u64 py, py, px;
        shl.b64 py, py, 1;
        add.u64 py, py, $8;
        mul.wide.u32 px, $4, 32;"""
    for i in range(block_t // 16):
        text += f"""
        ld.shared.v4.b32 {{o0, o1, o2, o3}}, [b+{16 * ROW_BYTES * i}];
        setp.gt.and.s32 p, left, {16 * i}, q;
        @p st.global.v4.b32 [py], {{o0, o1, o2, o3}};
        add.u64 py, py, px;"""
    return text + f"\n{DONE}\n}}"


@gluon.constexpr_function
def plain_epilogue(m, tiles, block_t, kind):
    """Row block m value by value, for any out_features: kind "s32" (raw accumulators), "f32", "bf16" or "f16"."""
    size = 4 if kind in ("s32", "f32") else 2
    text = places(m, tiles) + f"""
        .reg .b16 v;
        .reg .b32 below;
        .reg .pred inside<2>;
        .reg .b64 pe;
        setp.lt.u32 inside0, a, $4;
        add.u32 below, a, 8;
        setp.lt.u32 inside1, below, $4;
        mul.wide.u32 py, b, $4;
        cvt.u64.u32 pr, a;
        add.u64 py, py, pr;
        mad.lo.u64 py, py, {size}, $8;
        mul.wide.u32 pr, $4, {size};"""
    for j in range(block_t // 8):
        text += scaled(m, j, block_t)
        for i in range(4):
            target = f"[pe+{8 * size * (i >> 1)}]"
            text += "\nadd.u64 pe, py, pr;" if i & 1 else "\nmov.b64 pe, py;"
            text += f"\nsetp.gt.and.s32 p, left, {8 * j + (i & 1)}, inside{i >> 1};"
            if kind == "s32":
                text += f"\nshr.s32 o0, acc{m * block_t // 2 + 4 * j + i}, 6;\n@p st.global.b32 {target}, o0;"
            elif kind == "f32":
                text += f"\n@p st.global.f32 {target}, f{i};"
            else:
                text += f"\ncvt.rn.{kind}.f32 v, f{i};\n@p st.global.b16 {target}, v;"
        text += f"\nmul.wide.u32 pe, $4, {8 * size};\nadd.u64 py, py, pe;"
    return text + f"\n{DONE}\n}}"
