"""The dense ternary GEMM in plain Triton: int8 activations, 2-bit weights unpacked in registers, int8 tensor cores.

Runs on sm_80 and up and in the interpreter. The tile is computed as W·Xᵀ (`TRANSPOSED`) or X·Wᵀ. With W first, the unpacked weights
are the register operand of the tensor-core instruction and never return to shared memory; see docs/kernels.md.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.ternary_gemm.epilogue import reduce_splits, store_tile


@triton.jit
def unpack_field(stored, FIELD_INDEX: tl.constexpr, ASM: tl.constexpr):
    """int8, 64 times the weight of 2-bit field FIELD_INDEX of every byte; ASM works on 32-bit words, four weights in two instructions."""
    if ASM:
        if FIELD_INDEX == 3:
            return tl.inline_asm_elementwise("and.b32 $0, $1, 0xC0C0C0C0;", "=r,r", [stored], dtype=tl.int8, is_pure=True, pack=4)
        elif FIELD_INDEX == 2:
            return tl.inline_asm_elementwise("{ .reg .b32 t; shl.b32 t, $1, 2; and.b32 $0, t, 0xC0C0C0C0; }", "=r,r", [stored],
                                             dtype=tl.int8, is_pure=True, pack=4)
        elif FIELD_INDEX == 1:
            return tl.inline_asm_elementwise("{ .reg .b32 t; shl.b32 t, $1, 4; and.b32 $0, t, 0xC0C0C0C0; }", "=r,r", [stored],
                                             dtype=tl.int8, is_pure=True, pack=4)
        else:
            return tl.inline_asm_elementwise("{ .reg .b32 t; shl.b32 t, $1, 6; and.b32 $0, t, 0xC0C0C0C0; }", "=r,r", [stored],
                                             dtype=tl.int8, is_pure=True, pack=4)
    else:
        return ((stored << (6 - 2 * FIELD_INDEX)) & 0xC0).to(tl.int8, bitcast=True)


@triton.jit(do_not_specialize=("tokens",))
def dense_gemm(x_ptr, x_scale_ptr, w_ptr, w_scale_ptr, ends_ptr, bias_ptr, y_ptr, partial_ptr, counter_ptr,
               tokens, out_features, x_width, x_stride, w_width,
               SPLITS: tl.constexpr, HAS_BIAS: tl.constexpr, RAW: tl.constexpr, PACKED: tl.constexpr, EVEN_K: tl.constexpr,
               BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT_K: tl.constexpr, GROUP: tl.constexpr,
               ASM: tl.constexpr, TRANSPOSED: tl.constexpr):
    """One output tile (and one share of in_features) per program; `program_id(0)` is the tile, `program_id(1)` the share.

    x: int8 [tokens, x_width] in rows of x_stride bytes, x_width a multiple of 16 (columns behind in_features meet zero weights).
    w: packed uint8 [out_features, w_width] where PACKED, else int8 [out_features, w_width]. Rows behind an edge are clamped to the
    last one and not stored; in tiles of few tokens they are not read at all (on an H200 at T = 1, sixteen reads of one row cost 1.5
    times the sixteen rows of T = 16, 2026-11-22). Offsets inside a tile are 32-bit, tile bases 64-bit.
    """
    n_tiles = tl.cdiv(out_features, BLOCK_N)
    t_tiles = tl.cdiv(tokens, BLOCK_T)
    tile = tl.program_id(0)
    group_start = tile // (GROUP * n_tiles) * GROUP
    height = tl.minimum(t_tiles - group_start, GROUP)
    inside = tile % (GROUP * n_tiles)
    t_base = (group_start + inside % height) * BLOCK_T
    n_base = inside // height * BLOCK_N

    span: tl.constexpr = BLOCK_K // 4 if PACKED else BLOCK_K
    byte = tl.arange(0, span)
    column = byte // 64 * 256 + byte % 64 if PACKED else byte
    token_inside = tl.arange(0, BLOCK_T) < tokens - t_base
    token_local = tl.minimum(tl.arange(0, BLOCK_T), tokens - 1 - t_base)
    row_local = tl.minimum(tl.arange(0, BLOCK_N), out_features - 1 - n_base)
    x_tile = x_ptr + t_base.to(tl.int64) * x_stride
    w_tile = w_ptr + n_base.to(tl.int64) * w_width
    x_offsets = token_local[:, None] * x_stride + column[None, :]
    w_offsets = row_local[:, None] * w_width + byte[None, :]

    acc = tl.zeros((BLOCK_N, BLOCK_T) if TRANSPOSED else (BLOCK_T, BLOCK_N), tl.int32)
    steps = tl.cdiv(x_width, BLOCK_K)
    share = tl.cdiv(steps, SPLIT_K)
    start = tl.program_id(1) * share
    for step in tl.range(start, tl.minimum(start + share, steps)):
        if EVEN_K:
            stored = tl.load(w_tile + step * span + w_offsets)
        else:
            stored = tl.load(w_tile + step * span + w_offsets, mask=(step * span + byte < w_width)[None, :], other=0)
        for field in tl.static_range(4 if PACKED else 1):
            k = step * BLOCK_K + 64 * field
            if BLOCK_T <= 32:
                x = tl.load(x_tile + k + x_offsets, mask=token_inside[:, None] & (k + column < x_width)[None, :], other=0)
            elif EVEN_K:
                x = tl.load(x_tile + k + x_offsets)
            else:
                x = tl.load(x_tile + k + x_offsets, mask=(k + column < x_width)[None, :], other=0)
            w = unpack_field(stored, field, ASM) if PACKED else stored
            first, second = (w, x) if TRANSPOSED else (x, w)
            acc = tl.dot(first, tl.trans(second), acc, out_dtype=tl.int32)

    if SPLIT_K > 1:
        acc, owner = reduce_splits(acc, partial_ptr, counter_ptr, tile, n_tiles * t_tiles, tl.program_id(1), SPLIT_K,
                                   BLOCK_N if TRANSPOSED else BLOCK_T, BLOCK_T if TRANSPOSED else BLOCK_N)
    else:
        owner = True
    if owner:
        if PACKED:
            acc = acc >> 6
        store_tile(acc, t_base + tl.arange(0, BLOCK_T), n_base + tl.arange(0, BLOCK_N), x_scale_ptr, w_scale_ptr, ends_ptr, bias_ptr, y_ptr,
                   tokens, out_features, SPLITS, HAS_BIAS, RAW, TRANSPOSED)
