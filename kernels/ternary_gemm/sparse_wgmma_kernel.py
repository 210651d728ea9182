"""The persistent GEMM for Hopper's tensor cores, sparse and dense, in Gluon: one producer warp, two consumer warpgroups.

Yᵀ tiles of 128 · TILES weight rows × BLOCK_T tokens. The producer brings activations by TMA into a ring of stages; consumers load packed
weights themselves, straight into registers, and multiply (`sparse_wgmma_ptx`). Tiles run with the weight rows fastest, so that the
programs of a wave share their tokens and the packed weight stays in the L2.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from kernels.ternary_gemm.sparse_wgmma_epilogue import epilogue, plain_epilogue
from kernels.ternary_gemm.sparse_wgmma_ptx import declare, delay, drain, point, prime, shared_offsets, stage


@gluon.constexpr_function
def _offset(index, block_t, stages):
    return shared_offsets(block_t, stages)[index]


@gluon.jit
def _producer(x_desc, ring, barriers, steps, tiles, row_tiles, BLOCK_T: gl.constexpr, STAGES: gl.constexpr):
    """Fill the ring, stage after stage, for every tile of this program."""
    at = 0
    parity = 1
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        token = tile // row_tiles * BLOCK_T
        for step in range(steps):
            mbarrier.wait(barriers.index(STAGES + at), parity)
            mbarrier.expect(barriers.index(at), BLOCK_T * 128)
            tma.async_copy_global_to_shared(x_desc, [token, step * 128], barriers.index(at), ring.index(at))
            at += 1
            if at == STAGES:
                at = 0
                parity ^= 1


@gluon.jit
def _consumer(w_ptr, x_scale_ptr, row_scale_ptr, bias_ptr, y_ptr, steps, tiles, row_tiles, row_blocks, tokens, out_features,
              TILES: gl.constexpr, BLOCK_T: gl.constexpr, STAGES: gl.constexpr, SKEW: gl.constexpr, OUT: gl.constexpr, WIDE: gl.constexpr,
              SPARSE: gl.constexpr):
    """Both consumer warpgroups: per tile all stages with one product always in flight, then the epilogue."""
    FULL: gl.constexpr = _offset(1, BLOCK_T, STAGES)
    EMPTY: gl.constexpr = _offset(2, BLOCK_T, STAGES)
    at = 0
    parity = 0
    before = -1
    first = gl.program_id(0)
    w = w_ptr.to(gl.int64, bitcast=True)
    if SKEW > 0:
        gl.inline_asm_elementwise(delay(SKEW), "=r,r", [steps], dtype=gl.int32, is_pure=False, pack=1)
    gl.inline_asm_elementwise(point(TILES), "=r,l,r,r,r", [w, first % row_tiles * (2 * TILES), row_blocks, steps], dtype=gl.int32,
                              is_pure=False, pack=1)
    gl.inline_asm_elementwise(prime(TILES, BLOCK_T), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
    for tile in range(first, tiles, gl.num_programs(0)):
        row_tile = tile % row_tiles
        token = tile // row_tiles * BLOCK_T
        for step in range(steps):
            if step == steps - 1:
                # The words that this stage loads are the next tile's first (the last tile loads its own first ones again, unused).
                following = gl.minimum(tile + gl.num_programs(0), tiles - 1) % row_tiles
                gl.inline_asm_elementwise(point(TILES), "=r,l,r,r,r", [w, following * (2 * TILES), row_blocks, steps], dtype=gl.int32,
                                          is_pure=False, pack=1)
            gl.inline_asm_elementwise(stage(TILES, BLOCK_T, FULL, EMPTY, SPARSE), "=r,r,r,r,r,~{memory}", [at, parity, before, step],
                                      dtype=gl.int32, is_pure=False, pack=1)
            before = at
            at += 1
            if at == STAGES:
                at = 0
                parity ^= 1
        gl.inline_asm_elementwise(drain(EMPTY), "=r,r,~{memory}", [before], dtype=gl.int32, is_pure=False, pack=1)
        before = -1
        for m in gl.static_range(TILES):
            operands = [row_tile * (128 * TILES), token, tokens, out_features, x_scale_ptr.to(gl.int64, bitcast=True),
                        row_scale_ptr.to(gl.int64, bitcast=True), bias_ptr.to(gl.int64, bitcast=True), y_ptr.to(gl.int64, bitcast=True)]
            if WIDE:
                gl.inline_asm_elementwise(epilogue(m, TILES, BLOCK_T, _offset(0, BLOCK_T, STAGES), OUT), "=r,r,r,r,r,l,l,l,l,~{memory}",
                                          operands, dtype=gl.int32, is_pure=False, pack=1)
            else:
                gl.inline_asm_elementwise(plain_epilogue(m, TILES, BLOCK_T, OUT), "=r,r,r,r,r,l,l,l,l,~{memory}", operands,
                                          dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def sparse_gemm(x_desc, w_ptr, x_scale_ptr, row_scale_ptr, bias_ptr, y_ptr, steps, tiles, row_tiles, row_blocks, tokens, out_features,
                TILES: gl.constexpr, BLOCK_T: gl.constexpr, STAGES: gl.constexpr, SKEW: gl.constexpr, OUT: gl.constexpr,
                WIDE: gl.constexpr, SPARSE: gl.constexpr):
    """y[tokens, out_features] from int8 x (a TMA descriptor) and weights in fragment order.

    steps: blocks of 128 in_features. tiles, row_tiles: of the output in all, and along out_features. row_blocks: blocks of 64 rows packed.
    row_scale, bias: float32 per output row, readable to the end of the last tile; row_scale holds w_scale / 64. OUT: bf16, f16, f32 or
    s32. WIDE: 16-byte stores (out_features a multiple of 8, OUT of 16 bits). SPARSE: fragment24 weights, else layout fragment.
    """
    gl.inline_asm_elementwise(declare(TILES, BLOCK_T), "=r,r", [steps], dtype=gl.int32, is_pure=False, pack=1)
    # The stages, and two more of the same size in which the consumers stage their output. Buffers lie in shared memory by size, so this
    # one comes first and the barriers, more than they need be, before whatever the compiler keeps for itself: a test reads the addresses.
    ring = gl.allocate_shared_memory(gl.int8, [STAGES + 2, BLOCK_T, 128], x_desc.layout)
    barriers = gl.allocate_shared_memory(gl.int64, [64, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(barriers.index(i), count=1)
        mbarrier.init(barriers.index(STAGES + i), count=8)
    fence_async_shared()
    gl.warp_specialize([
        (_consumer, (w_ptr, x_scale_ptr, row_scale_ptr, bias_ptr, y_ptr, steps, tiles, row_tiles, row_blocks, tokens, out_features,
                     TILES, BLOCK_T, STAGES, SKEW, OUT, WIDE, SPARSE)),
        (_producer, (x_desc, ring, barriers, steps, tiles, row_tiles, BLOCK_T, STAGES)),
    ], [1], [24])
