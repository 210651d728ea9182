"""The PTX of the Hopper GEMMs' epilogue: accumulators scaled in float32, rounded once, stored row by row.

Operands of every epilogue: $1 first row of the tile, $2 its first token, $3 and $4 first and end of the units to store
(`sparse_wgmma_split.units`).
Accumulators are 64 times the sums.
In column group j a thread holds four values: its row and the one 8 below (i >> 1), tokens 8j + 2q and the next (i & 1), with q = lane % 4.
"""

from __future__ import annotations

from triton.experimental import gluon

from kernels.ternary_gemm.sparse_wgmma_ptx import DONE, ROW_BYTES, SLICE, SLICES, Y_DESCRIPTOR, scale_bytes, shared_offsets
from kernels.ternary_gemm.sparse_wgmma_split import apart


@gluon.constexpr_function
def bring_scales(tiles, block_t, stages, of_tokens=True, of_rows=True):
    """$1 first row of the tile, $2 its first token, $3 tokens, $4 x_scale, $5 row_scale (w_scale / 64), $6 bias.

    Each warpgroup copies the scales of its part of the tile to shared memory while the products run; zeros for tokens behind the last.
    of_tokens, of_rows: what it copies.
    """
    scales = shared_offsets(tiles, block_t, stages)[2]
    text = f"""{{
        .reg .b32 t, wg, to, row, token, size;
        .reg .b64 from, rows, biases;
        .reg .pred mine, inside;
        mov.u32 t, %tid.x;
        shr.u32 wg, t, 7;
        and.b32 t, t, 127;
        mad.lo.u32 to, wg, {scale_bytes(tiles, block_t)}, shared;
        mad.lo.u32 to, t, 4, to;
        mad.lo.u32 row, wg, {64 * tiles}, $1;
        add.u32 row, row, t;
        mad.wide.u32 rows, row, 4, $5;
        mad.wide.u32 biases, row, 4, $6;"""
    for first in range(0, block_t if of_tokens else 0, 128):
        text += f"""
        setp.lt.u32 mine, t, {block_t - first};
        add.u32 token, t, $2;
        add.u32 token, token, {first};
        setp.lt.s32 inside, token, $3;
        selp.b32 size, 4, 0, inside;
        selp.b32 token, token, 0, inside;
        mad.wide.u32 from, token, 4, $4;
        @mine cp.async.ca.shared.global [to+{scales + 4 * first}], [from], 4, size;"""
    for first in range(0, 64 * tiles if of_rows else 0, 128):
        place = scales + 4 * block_t + 4 * first
        text += f"""
        setp.lt.u32 mine, t, {64 * tiles - first};
        @mine cp.async.ca.shared.global [to+{place}], [rows+{4 * first}], 4;
        @mine cp.async.ca.shared.global [to+{place + 256 * tiles}], [biases+{4 * first}], 4;"""
    return text + f"\n{DONE}\n}}"


@gluon.constexpr_function
def places(m, tiles, block_t, stages):
    """Opens the block: s0, s1 and b0, b1 scale and bias of the thread's rows; xs where its token scales are.

    row is the first row of row block m of this warpgroup, a the thread's in it, bar the warpgroup's barrier, first its first thread.
    """
    scales = shared_offsets(tiles, block_t, stages)[2]
    text = f"""{{
        .reg .b32 t, wg, lane, warp, row, xs, a, b, bar, token, from_, to, o<4>;
        .reg .b64 py, pr, pe;
        .reg .f32 f<4>, x0, x1, s0, s1, b0, b1;
        .reg .pred p, first, mine0, mine1;
        mov.u32 t, %tid.x;
        shr.u32 wg, t, 7;
        and.b32 lane, t, 31;
        shr.u32 warp, t, 5;
        and.b32 warp, warp, 3;
        and.b32 a, t, 127;
        setp.eq.u32 first, a, 0;
        mad.lo.u32 row, wg, {64 * tiles}, $1;
        add.u32 row, row, {64 * m};
        shr.u32 a, lane, 2;
        mad.lo.u32 a, warp, 16, a;
        mad.lo.u32 xs, wg, {scale_bytes(tiles, block_t)}, shared;
        mad.lo.u32 b, a, 4, xs;
        add.u32 bar, wg, 8;"""
    text += "\ncp.async.wait_all;\nbar.sync bar, 128;" if m == 0 else ""
    return text + f"""
        ld.shared.f32 s0, [b+{scales + 4 * block_t + 256 * m}];
        ld.shared.f32 s1, [b+{scales + 4 * block_t + 256 * m + 32}];
        ld.shared.f32 b0, [b+{scales + 4 * block_t + 256 * m + 256 * tiles}];
        ld.shared.f32 b1, [b+{scales + 4 * block_t + 256 * m + 256 * tiles + 32}];
        and.b32 b, lane, 3;
        mad.lo.u32 xs, b, 8, xs;
        add.u32 xs, xs, {scales};"""


@gluon.constexpr_function
def scaled(m, j, block_t, floats):
    """f0 … f3: the values of column group j, scaled; floats: the sums are float32 already."""
    number = "mov.b32" if floats else "cvt.rn.f32.s32"
    text = f"\nld.shared.v2.f32 {{x0, x1}}, [xs+{32 * j}];"
    for i in range(4):
        text += f"""
        {number} f{i}, acc{m * block_t // 2 + 4 * j + i};
        mul.f32 f{i}, f{i}, x{i & 1};
        fma.rn.f32 f{i}, f{i}, s{i >> 1}, b{i >> 1};"""
    return text


@gluon.constexpr_function
def epilogue(m, tiles, block_t, stages, splits, kind, half):
    """Row block m of both warpgroups, 16 bits a value (`half`: bf16 or f16): transposed through shared memory, stored by TMA.

    A slice of 32 tokens is a box of the output in the 128-byte swizzle: a token's 64 values are a row, its eight chunks swizzled by the
    token's lowest three bits. Pairs of slices take turns in the buffers; stores drain while the next pair is scaled and the next tile
    multiplied.
    """
    staging = shared_offsets(tiles, block_t, stages)[1]
    # stmatrix takes row i % 8 of matrix i / 8 from lane i: the matrices are token groups (bit 4 of the lane) by row groups (bit 3).
    text = places(m, tiles, block_t, stages) + f"""
        mad.lo.u32 t, wg, {SLICES * SLICE * ROW_BYTES}, shared;
        add.u32 t, t, {staging};
        and.b32 a, lane, 7;
        shr.u32 b, lane, 3;
        and.b32 b, b, 1;
        mad.lo.u32 b, warp, 2, b;
        xor.b32 b, b, a;
        shl.b32 b, b, 4;
        shr.u32 token, lane, 4;
        mad.lo.u32 a, token, 8, a;
        mad.lo.u32 b, a, {ROW_BYTES}, b;
        add.u32 b, b, t;
        mov.b64 py, {Y_DESCRIPTOR};
        cvta.param.u64 py, py;"""
    for pair in range(0, block_t // SLICE, 2):
        text += own_slices(pair, m, tiles, block_t) if splits > 1 else ""
        text += f"""
        and.b32 a, turn, {2 * (SLICES // 2 - 1)};
        mad.lo.u32 from_, a, {SLICE * ROW_BYTES}, t;
        mad.lo.u32 to, a, {SLICE * ROW_BYTES}, b;
        add.u32 turn, turn, 2;"""
        for s in (pair, pair + 1):
            text += f"\n@!mine{s - pair} bra SKIP{s}_${{:uid}};" if splits > 1 else ""
            text += stage_slice(m, s, pair, block_t, kind, half)
            text += f"\nSKIP{s}_${{:uid}}:" if splits > 1 else ""
        # Behind the barrier the next pair's buffers are free: all stores before this pair's have been read.
        text += """
        fence.proxy.async.shared::cta;
        @first cp.async.bulk.wait_group.read 0;
        bar.sync bar, 128;"""
        for s in (pair, pair + 1):
            text += f"\nand.pred p, first, mine{s - pair};" if splits > 1 else ""
            text += f"""
        add.u32 token, $2, {SLICE * s};
        add.u32 to, from_, {SLICE * ROW_BYTES * (s - pair)};
        @{"p" if splits > 1 else "first"} cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [py, {{row, token}}], [to];"""
        text += "\n@first cp.async.bulk.commit_group;"
        text += f"\nPAST{pair}_${{:uid}}:" if splits > 1 else ""
    return text + f"\n{DONE}\n}}"


@gluon.constexpr_function
def own_slices(pair, m, tiles, block_t):
    """mine0, mine1: which slices of the pair to store of row block m; past it where there is none."""
    text, count = "", apart(tiles, block_t)
    for i in range(2):
        unit = (pair + i) * count + m % count
        text += f"\nsetp.le.s32 mine{i}, $3, {unit};\nsetp.gt.and.s32 mine{i}, $4, {unit}, mine{i};"
    return text + f"\nor.pred p, mine0, mine1;\n@!p bra PAST{pair}_${{:uid}};"


@gluon.constexpr_function
def stage_slice(m, s, pair, block_t, kind, half):
    """Scale, round and stage slice s of row block m."""
    text = ""
    for j in range(s * SLICE // 8, (s + 1) * SLICE // 8, 2):
        for h in range(2):
            text += scaled(m, j + h, block_t, kind == "wide")
            text += f"\ncvt.rn.{half}x2.f32 o{2 * h}, f1, f0;\ncvt.rn.{half}x2.f32 o{2 * h + 1}, f3, f2;"
        place = (8 * j - SLICE * pair) * ROW_BYTES
        text += f"\nstmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [to+{place}], {{o0, o1, o2, o3}};"
    return text


@gluon.constexpr_function
def settle():
    """At the kernel's end: every store has left shared memory (that it arrives, the end of the launch waits for)."""
    return "cp.async.bulk.wait_group.read 0;\n" + DONE


@gluon.constexpr_function
def plain_epilogue(m, tiles, block_t, stages, kind):
    """Row block m value by value, for any out_features: kind "s32" (raw accumulators), "f32", "bf16" or "f16".

    $5 tokens, $6 out_features, $7 y.
    """
    size, count = 4 if kind in ("s32", "f32") else 2, apart(tiles, block_t)
    text = places(m, tiles, block_t, stages) + f"""
        .reg .b16 v;
        .reg .b32 left, early, below;
        .reg .pred inside<2>;
        add.u32 a, a, row;
        mad.lo.u32 token, b, 2, $2;
        add.u32 left, $4, {count - 1 - m % count};
        div.u32 left, left, {count};
        mad.lo.u32 left, left, {SLICE}, $2;
        min.s32 left, left, $5;
        sub.s32 left, left, token;
        add.u32 early, $3, {count - 1 - m % count};
        div.u32 early, early, {count};
        mad.lo.u32 early, early, {SLICE}, $2;
        sub.s32 early, early, token;
        setp.lt.u32 inside0, a, $6;
        add.u32 below, a, 8;
        setp.lt.u32 inside1, below, $6;
        mul.wide.u32 py, token, $6;
        cvt.u64.u32 pr, a;
        add.u64 py, py, pr;
        mad.lo.u64 py, py, {size}, $7;
        mul.wide.u32 pr, $6, {size};"""
    for j in range(block_t // 8):
        text += scaled(m, j, block_t, False)
        for i in range(4):
            target = f"[pe+{8 * size * (i >> 1)}]"
            text += "\nadd.u64 pe, py, pr;" if i & 1 else "\nmov.b64 pe, py;"
            text += f"\nsetp.gt.and.s32 p, left, {8 * j + (i & 1)}, inside{i >> 1};\nsetp.le.and.s32 p, early, {8 * j + (i & 1)}, p;"
            if kind == "s32":
                text += f"\nshr.s32 o0, acc{m * block_t // 2 + 4 * j + i}, 6;\n@p st.global.b32 {target}, o0;"
            elif kind == "f32":
                text += f"\n@p st.global.f32 {target}, f{i};"
            else:
                text += f"\ncvt.rn.{kind}.f32 v, f{i};\n@p st.global.b16 {target}, v;"
        text += f"\nmul.wide.u32 pe, $6, {8 * size};\nadd.u64 py, py, pe;"
    # The next tile's scales may not come before everyone has read these.
    text += "\nbar.sync bar, 128;" if m == tiles - 1 else ""
    return text + f"\n{DONE}\n}}"
