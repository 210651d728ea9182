"""The PTX of the int8 × int8 Hopper GEMM's epilogue: sums scaled per row in float32, rounded once, stored.

Operands of every epilogue: $1 first column of the tile, $2 its first row, $3 and $4 first and end of the slices of 32 rows to store.
In column group j a thread holds four sums: its column and the one 8 further (i >> 1), rows 8j + 2q and the next (i & 1), with q = lane % 4.
"""

from __future__ import annotations

from triton.experimental import gluon

from kernels.ternary_gemm.int8_wgmma_ptx import OUT_DESCRIPTOR, ring_offsets
from kernels.ternary_gemm.sparse_wgmma_ptx import DONE, ROW_BYTES, SLICE, SLICES


@gluon.constexpr_function
def bring_scales(tiles, block_n, stages):
    """$1 first row of the tile, $2 rows, $3 scales: each warpgroup copies the tile's to shared memory while the products run; zeros for
    rows behind the last."""
    scales = ring_offsets(tiles, block_n, stages)[1]
    text = f"""{{
        .reg .b32 t, wg, to, row, size;
        .reg .b64 from;
        .reg .pred mine_, inside;
        mov.u32 t, %tid.x;
        shr.u32 wg, t, 7;
        and.b32 t, t, 127;
        mad.lo.u32 to, wg, {4 * block_n}, shared;
        mad.lo.u32 to, t, 4, to;"""
    for first in range(0, block_n, 128):
        text += f"""
        setp.lt.u32 mine_, t, {block_n - first};
        add.u32 row, t, $1;
        add.u32 row, row, {first};
        setp.lt.s32 inside, row, $2;
        selp.b32 size, 4, 0, inside;
        selp.b32 row, row, 0, inside;
        mad.wide.u32 from, row, 4, $3;
        @mine_ cp.async.ca.shared.global [to+{scales + 4 * first}], [from], 4, size;"""
    return text + f"\n{DONE}\n}}"


@gluon.constexpr_function
def places(m, tiles, block_n, stages):
    """Opens the block: xs is where the thread's row scales are, column the first one of block m of this warpgroup, a the thread's in it,
    bar the warpgroup's barrier, first its first thread."""
    text = f"""{{
        .reg .b32 t, wg, lane, warp, column, xs, a, b, bar, row, from_, to, o<4>;
        .reg .b64 py, pr, pe;
        .reg .f32 f<4>, x0, x1;
        .reg .pred p, first, own;
        mov.u32 t, %tid.x;
        shr.u32 wg, t, 7;
        and.b32 lane, t, 31;
        shr.u32 warp, t, 5;
        and.b32 warp, warp, 3;
        and.b32 a, t, 127;
        setp.eq.u32 first, a, 0;
        mad.lo.u32 column, wg, {64 * tiles}, $1;
        add.u32 column, column, {64 * m};
        shr.u32 a, lane, 2;
        mad.lo.u32 a, warp, 16, a;
        mad.lo.u32 xs, wg, {4 * block_n}, shared;
        and.b32 b, lane, 3;
        mad.lo.u32 xs, b, 8, xs;
        add.u32 xs, xs, {ring_offsets(tiles, block_n, stages)[1]};
        add.u32 bar, wg, 8;"""
    return text + ("\ncp.async.wait_all;\nbar.sync bar, 128;" if m == 0 else "")


@gluon.constexpr_function
def scaled(m, j, block_n):
    """f0 … f3: the values of column group j."""
    text = f"\nld.shared.v2.f32 {{x0, x1}}, [xs+{32 * j}];"
    for i in range(4):
        text += f"\ncvt.rn.f32.s32 f{i}, acc{m * block_n // 2 + 4 * j + i};\nmul.f32 f{i}, f{i}, x{i & 1};"
    return text


@gluon.constexpr_function
def epilogue(m, tiles, block_n, stages, splits, half):
    """Block m of both warpgroups, 16 bits a value (`half`: bf16 or f16): transposed through shared memory, stored by TMA.

    A slice of 32 rows is a box of the output in the 128-byte swizzle: 64 values of a row, their eight chunks swizzled by the row's lowest
    three bits. Slices take turns in the buffers; stores drain while later ones are scaled and the next tile is multiplied.
    """
    # stmatrix takes row i % 8 of matrix i / 8 from lane i: the matrices are row groups (bit 4 of the lane) by column groups (bit 3).
    text = places(m, tiles, block_n, stages) + f"""
        mad.lo.u32 t, wg, {SLICES * SLICE * ROW_BYTES}, shared;
        add.u32 t, t, {ring_offsets(tiles, block_n, stages)[0]};
        and.b32 a, lane, 7;
        shr.u32 b, lane, 3;
        and.b32 b, b, 1;
        mad.lo.u32 b, warp, 2, b;
        xor.b32 b, b, a;
        shl.b32 b, b, 4;
        shr.u32 row, lane, 4;
        mad.lo.u32 a, row, 8, a;
        mad.lo.u32 b, a, {ROW_BYTES}, b;
        add.u32 b, b, t;
        mov.b64 py, {OUT_DESCRIPTOR};
        cvta.param.u64 py, py;"""
    for s in range(block_n // SLICE):
        if splits > 1:
            text += f"\nsetp.le.s32 own, $3, {s};\nsetp.gt.and.s32 own, $4, {s}, own;\n@!own bra SKIP{s}_${{:uid}};"
        text += f"""
        and.b32 a, turn, {SLICES - 1};
        mad.lo.u32 from_, a, {SLICE * ROW_BYTES}, t;
        mad.lo.u32 to, a, {SLICE * ROW_BYTES}, b;
        add.u32 turn, turn, 1;
        {stage_slice(m, s, block_n, half)}
        fence.proxy.async.shared::cta;
        @first cp.async.bulk.wait_group.read {SLICES - 2};
        bar.sync bar, 128;
        add.u32 row, $2, {SLICE * s};
        @first cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [py, {{column, row}}], [from_];
        @first cp.async.bulk.commit_group;"""
        # Behind the barrier the next slice's buffer is free: all stores but the two newest have been read.
        text += f"\nSKIP{s}_${{:uid}}:" if splits > 1 else ""
    return text + f"\n{DONE}\n}}"


@gluon.constexpr_function
def stage_slice(m, s, block_n, half):
    """Scale, round and stage slice s of block m."""
    text = ""
    for j in range(s * SLICE // 8, (s + 1) * SLICE // 8, 2):
        for h in range(2):
            text += scaled(m, j + h, block_n)
            text += f"\ncvt.rn.{half}x2.f32 o{2 * h}, f1, f0;\ncvt.rn.{half}x2.f32 o{2 * h + 1}, f3, f2;"
        text += f"\nstmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [to+{(8 * j - SLICE * s) * ROW_BYTES}], {{o0, o1, o2, o3}};"
    return text


@gluon.constexpr_function
def plain_epilogue(m, tiles, block_n, stages, kind):
    """Block m value by value, for any number of columns: kind "f32", "bf16" or "f16".

    $5 rows, $6 columns, $7 the output.
    """
    size = 4 if kind == "f32" else 2
    text = places(m, tiles, block_n, stages) + f"""
        .reg .b16 v;
        .reg .b32 end, early, further;
        .reg .pred inside<2>;
        add.u32 a, a, column;
        mad.lo.u32 row, b, 2, $2;
        mad.lo.u32 end, $4, {SLICE}, $2;
        min.s32 end, end, $5;
        sub.s32 end, end, row;
        mul.lo.u32 early, $3, {SLICE};
        add.u32 early, early, $2;
        sub.s32 early, early, row;
        setp.lt.u32 inside0, a, $6;
        add.u32 further, a, 8;
        setp.lt.u32 inside1, further, $6;
        mul.wide.u32 py, row, $6;
        cvt.u64.u32 pr, a;
        add.u64 py, py, pr;
        mad.lo.u64 py, py, {size}, $7;
        mul.wide.u32 pr, $6, {size};"""
    for j in range(block_n // 8):
        text += scaled(m, j, block_n)
        for i in range(4):
            target = f"[pe+{8 * size * (i >> 1)}]"
            text += "\nadd.u64 pe, py, pr;" if i & 1 else "\nmov.b64 pe, py;"
            text += f"\nsetp.gt.and.s32 p, end, {8 * j + (i & 1)}, inside{i >> 1};\nsetp.le.and.s32 p, early, {8 * j + (i & 1)}, p;"
            if kind == "f32":
                text += f"\n@p st.global.f32 {target}, f{i};"
            else:
                text += f"\ncvt.rn.{kind}.f32 v, f{i};\n@p st.global.b16 {target}, v;"
        text += f"\nmul.wide.u32 pe, $6, {8 * size};\nadd.u64 py, py, pe;"
    # The next tile's scales may not come before everyone has read these.
    text += "\nbar.sync bar, 128;" if m == tiles - 1 else ""
    return text + f"\n{DONE}\n}}"
