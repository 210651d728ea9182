"""The persistent GEMM for Hopper's tensor cores, sparse and dense, in Gluon: one producer warp, two consumer warpgroups.

Yᵀ tiles of 128 · TILES weight rows × BLOCK_T tokens. The producer brings activations (TMA) and packed weights (bulk copies) into a ring of
stages; consumers unpack the weights into registers and multiply (`sparse_wgmma_ptx`). Tiles run with the weight rows fastest, so that the
programs of a wave share their tokens and the packed weight stays in the L2. The first tiles are whole, one program each; the rest (all of
them where they are few) may be cut along in_features into parts, which meet in device memory.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from kernels.ternary_gemm.sparse_wgmma_epilogue import bring_scales, epilogue, plain_epilogue, settle
from kernels.ternary_gemm.sparse_wgmma_ptx import (
    SLICE,
    bring_weights,
    declare,
    drain,
    enter,
    point,
    prime,
    shared_buffers,
    shared_offsets,
    stage,
)
from kernels.ternary_gemm.sparse_wgmma_split import merge


@gluon.constexpr_function
def _offset(index, tiles, block_t, stages):
    return shared_offsets(tiles, block_t, stages)[index]


@gluon.constexpr_function
def _slices(block_t):
    return block_t // SLICE


@gluon.constexpr_function
def _buffers(tiles, block_t, stages):
    return shared_buffers(tiles, block_t, stages)


@gluon.jit
def _pieces(rounds, tiles, SPLITS: gl.constexpr):
    """How many pieces this program has: whole tiles, and with SPLITS a part of one of the others."""
    if SPLITS == 1:
        count = (tiles - gl.program_id(0) + gl.num_programs(0) - 1) // gl.num_programs(0)
    else:
        count = rounds
        if gl.program_id(0) < (tiles - rounds * gl.num_programs(0)) * SPLITS:
            count += 1
    return count


@gluon.jit
def _piece(index, steps, rounds, SPLITS: gl.constexpr):
    """Piece `index` of this program: its tile, and the steps [begin, until) of it."""
    tile = gl.program_id(0) + index * gl.num_programs(0)
    begin = 0
    until = steps
    if SPLITS > 1:  # noqa: SIM102 - the outer one is decided by the compiler, the inner one by the program
        if index == rounds:
            tile = rounds * gl.num_programs(0) + gl.program_id(0) // SPLITS
            begin = gl.program_id(0) % SPLITS * steps // SPLITS
            until = (gl.program_id(0) % SPLITS + 1) * steps // SPLITS
    return tile, begin, until


@gluon.jit
def _producer(x_desc, w_ptr, ring, barriers, steps, rounds, row_tiles, token_tiles, row_blocks, TILES: gl.constexpr,
              BLOCK_T: gl.constexpr, STAGES: gl.constexpr, SPLITS: gl.constexpr):
    """Fill the ring, stage after stage, for every piece of this program."""
    WEIGHTS: gl.constexpr = _offset(0, TILES, BLOCK_T, STAGES)
    FULL: gl.constexpr = _offset(3, TILES, BLOCK_T, STAGES)
    at = 0
    parity = 1
    w = w_ptr.to(gl.int64, bitcast=True)
    count = _pieces(rounds, row_tiles * token_tiles, SPLITS)
    for index in range(count):
        tile, begin, until = _piece(index, steps, rounds, SPLITS)
        row_tile, token_tile = tile % row_tiles, tile // row_tiles
        gl.inline_asm_elementwise(point(), "=r,l,r,r,r,r", [w, row_tile * (2 * TILES), row_blocks, steps, begin], dtype=gl.int32,
                                  is_pure=False, pack=1)
        for step in range(begin, until):
            mbarrier.wait(barriers.index(STAGES + at), parity)
            mbarrier.expect(barriers.index(at), BLOCK_T * 128 + TILES * 4096)
            tma.async_copy_global_to_shared(x_desc, [token_tile * BLOCK_T, step * 128], barriers.index(at), ring.index(at))
            gl.inline_asm_elementwise(bring_weights(TILES, WEIGHTS, FULL), "=r,r,~{memory}", [at], dtype=gl.int32, is_pure=False, pack=1)
            at += 1
            if at == STAGES:
                at = 0
                parity ^= 1


@gluon.jit
def _consumer(x_scale_ptr, row_scale_ptr, bias_ptr, y_ptr, sums_ptr, counts_ptr, steps, rounds, row_tiles, token_tiles, tokens,
              out_features, TILES: gl.constexpr, BLOCK_T: gl.constexpr, STAGES: gl.constexpr, SPLITS: gl.constexpr, OUT: gl.constexpr,
              WIDE: gl.constexpr, SPARSE: gl.constexpr):
    """Both consumer warpgroups: per piece all stages with one product always in flight, then the epilogue."""
    ALL: gl.constexpr = _slices(BLOCK_T)
    EMPTY: gl.constexpr = _offset(4, TILES, BLOCK_T, STAGES)
    count = _pieces(rounds, row_tiles * token_tiles, SPLITS)
    x_scale, row_scale = x_scale_ptr.to(gl.int64, bitcast=True), row_scale_ptr.to(gl.int64, bitcast=True)
    bias, y = bias_ptr.to(gl.int64, bitcast=True), y_ptr.to(gl.int64, bitcast=True)
    gl.inline_asm_elementwise(prime(TILES, BLOCK_T, STAGES), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
    for index in range(count):
        tile, begin, until = _piece(index, steps, rounds, SPLITS)
        gl.assume(until > begin)
        row_tile, token_tile = tile % row_tiles, tile // row_tiles
        row = row_tile * (128 * TILES)
        token = token_tile * BLOCK_T
        gl.inline_asm_elementwise(bring_scales(TILES, BLOCK_T, STAGES), "=r,r,r,r,l,l,l,~{memory}",
                                  [row, token, tokens, x_scale, row_scale, bias], dtype=gl.int32, is_pure=False, pack=1)
        gl.inline_asm_elementwise(enter(TILES, BLOCK_T, STAGES), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
        for step in range(begin, until):
            gl.inline_asm_elementwise(stage(TILES, BLOCK_T, STAGES, SPARSE), "=r,r,r,~{memory}", [step - begin, until - 1 - step],
                                      dtype=gl.int32, is_pure=False, pack=1)
        gl.inline_asm_elementwise(drain(EMPTY), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
        first = 0
        end = ALL
        if SPLITS > 1:  # noqa: SIM102 - as above
            if index == rounds:
                sums, counts = sums_ptr.to(gl.int64, bitcast=True), counts_ptr.to(gl.int64, bitcast=True)
                part = gl.program_id(0) % SPLITS
                gl.inline_asm_elementwise(merge(TILES, BLOCK_T, SPLITS), "=r,l,l,r,r,~{memory}",
                                          [sums, counts, gl.program_id(0) // SPLITS, part], dtype=gl.int32, is_pure=False, pack=1)
                first = part * ALL // SPLITS
                end = (part + 1) * ALL // SPLITS
        for m in gl.static_range(TILES):
            if WIDE:
                gl.inline_asm_elementwise(epilogue(m, TILES, BLOCK_T, STAGES, SPLITS, OUT), "=r,r,r,r,r,~{memory}",
                                          [row, token, first, end], dtype=gl.int32, is_pure=False, pack=1)
            else:
                gl.inline_asm_elementwise(plain_epilogue(m, TILES, BLOCK_T, STAGES, OUT), "=r,r,r,r,r,r,r,l,~{memory}",
                                          [row, token, first, end, tokens, out_features, y], dtype=gl.int32, is_pure=False, pack=1)
    if WIDE:
        gl.inline_asm_elementwise(settle(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit(do_not_specialize=["steps", "rounds", "row_tiles", "token_tiles", "row_blocks", "tokens", "out_features"])
def sparse_gemm(x_desc, y_desc, w_ptr, x_scale_ptr, row_scale_ptr, bias_ptr, y_ptr, sums_ptr, counts_ptr, steps, rounds, row_tiles,
                token_tiles, row_blocks, tokens, out_features, TILES: gl.constexpr, BLOCK_T: gl.constexpr, STAGES: gl.constexpr,
                SPLITS: gl.constexpr, OUT: gl.constexpr, WIDE: gl.constexpr, SPARSE: gl.constexpr):
    """y[tokens, out_features] from int8 x and weights in fragment order; x_desc, y_desc: TMA descriptors (y_desc unused but with WIDE).

    steps: blocks of 128 in_features. row_tiles, token_tiles: of the output. SPLITS > 1: each program does `rounds` tiles alone, and the
    others are cut in SPLITS parts, which meet in `sums` (int32) and `counts` (int64, zeros at first). row_blocks: blocks of 64 rows packed.
    row_scale, bias: float32 per output row, readable to the end of the last tile; row_scale holds w_scale / 64. OUT: bf16, f16, f32 or
    s32. WIDE: stores by TMA (out_features a multiple of 8, OUT of 16 bits). SPARSE: fragment24 weights, else layout fragment.
    """
    gl.inline_asm_elementwise(declare(TILES, BLOCK_T), "=r,r", [steps], dtype=gl.int32, is_pure=False, pack=1)
    # The stages, and behind them in the same buffer all else that asm addresses. Buffers lie in shared memory by size, so this one comes
    # first and the barriers, more than they need be, before whatever the compiler keeps for itself: a test reads the addresses.
    ring = gl.allocate_shared_memory(gl.int8, [_buffers(TILES, BLOCK_T, STAGES), BLOCK_T, 128], x_desc.layout)
    barriers = gl.allocate_shared_memory(gl.int64, [64, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(barriers.index(i), count=1)
        mbarrier.init(barriers.index(STAGES + i), count=8)
    fence_async_shared()
    gl.warp_specialize([
        (_consumer, (x_scale_ptr, row_scale_ptr, bias_ptr, y_ptr, sums_ptr, counts_ptr, steps, rounds, row_tiles, token_tiles,
                     tokens, out_features, TILES, BLOCK_T, STAGES, SPLITS, OUT, WIDE, SPARSE)),
        (_producer, (x_desc, w_ptr, ring, barriers, steps, rounds, row_tiles, token_tiles, row_blocks, TILES, BLOCK_T, STAGES, SPLITS)),
    ], [1], [24])
