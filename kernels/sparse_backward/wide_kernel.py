"""The Hopper GEMM of `kernels.ternary_gemm.sparse_wgmma_kernel` for activations of 16 bits: bf16 times a 2:4 ternary weight, float32 sums.

Its producer, its ring and its schedule are the 8-bit GEMM's; a stage covers 64 columns of bf16 where it covers 128 of int8, and both have
128 bytes. What differs is here: products, unpacking, and an epilogue that reads float32. Weights carry their scale (layout fragment24-bf16,
see `wide_fragments`), so that it may change along the columns, which are summed over.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from kernels.ternary_gemm.sparse_wgmma_epilogue import Y_DESCRIPTOR, bring_scales, epilogue, settle
from kernels.ternary_gemm.sparse_wgmma_kernel import _buffers, _offset, _pieces, _producer
from kernels.ternary_gemm.sparse_wgmma_ptx import (
    DONE,
    declare,
    drain,
    enter,
    load_words,
    look_ahead,
    prime,
    release,
    shared_offsets,
)

OUT_DESCRIPTOR = "wide_gemm_param_5"
"""The output's TMA descriptor among this kernel's parameters."""


@gluon.constexpr_function
def product(index, block_t):
    """One of a stage's products, two a row block of 32 columns each: as the 8-bit one, and weights that become ± their scale.

    A values word holds 16 codes in the upper bytes of its halves, and in the lower ones the bf16 scale.
    """
    accumulators, side = block_t // 2, index % 2
    m, step = index // 2, index % 2
    word = 4 * m + 2 * step
    text = f"\nprmt.b32 scale, word{word}, 0, 0x4420;"
    for j in range(4):
        text += f"""
        shl.b32 t, word{word}, {2 * j};
        and.b32 sign, t, 0x80008000;
        shr.u32 t, t, 14;
        and.b32 t, t, 0x00010001;
        mad.lo.u32 frag{4 * side + j}, t, scale, sign;"""
    # As in the 8-bit product: behind a plain mov, ptxas serializes.
    text += f"\nprmt.b32 meta{side}, word{word + 1}, word{word + 1}, 0x3210;"
    text += load_words(m) if step else ""
    registers = ", ".join(f"acc{m * accumulators + i}" for i in range(accumulators))
    fragments = ", ".join(f"frag{4 * side + j}" for j in range(4))
    return text + f"""
        add.u64 to, desc, {4 * step};
        wgmma.fence.sync.aligned;
        wgmma.mma_async.sp.sync.aligned.m64n{block_t}k32.f32.bf16.bf16
            {{{registers}}},
            {{{fragments}}}, to, meta{side}, 0, {"always" if step else "more"}, 1, 1, 0;
        wgmma.commit_group.sync.aligned;"""


@gluon.constexpr_function
def stage(tiles, block_t, stages):
    """$1 zero in a tile's first stage, $2 zero in its last. One product in flight at every point; as the 8-bit GEMM's."""
    _, _, _, full, empty, _ = shared_offsets(tiles, block_t, stages)
    text = """{
        .reg .b32 t, place, scale, sign;
        .reg .b64 to;
        .reg .pred more, always, wrap, next, full;
        setp.ne.b32 more, $1, 0;
        setp.ne.b32 next, $2, 0;
        setp.eq.b32 always, 0, 0;
        selp.b32 place, later, words, next;
        not.pred full, next;
        or.pred full, full, ready;"""
    for index in range(2 * tiles):
        if index == (0 if tiles > 1 else 1):
            text += f"""
        @full bra GO_${{:uid}};
        mad.lo.u32 t, ahead, 8, shared;
    WAIT_${{:uid}}:
        mbarrier.try_wait.parity.shared::cta.b64 ready, [t+{full}], parity;
        @!ready bra WAIT_${{:uid}};
    GO_${{:uid}}:"""
        text += product(index, block_t)
        if index == 2 * tiles - 1:
            text += f"""
        mov.b32 left, slot;
        mov.b32 slot, ahead;
        mov.b32 phase, parity;
        mov.b32 words, later;
        {look_ahead(tiles, block_t, stages)}"""
        text += "\nwgmma.wait_group.sync.aligned 1;"
        text += release(empty) if index == 0 else ""
    return text + f"\n{DONE}\n}}"


@gluon.constexpr_function
def wide_epilogue(m, tiles, block_t, stages, half):
    """The 8-bit GEMM's, of sums that are float32 already."""
    return epilogue(m, tiles, block_t, stages, 1, half).replace("cvt.rn.f32.s32", "mov.b32").replace(Y_DESCRIPTOR, OUT_DESCRIPTOR)


@gluon.constexpr_function
def slices(block_t):
    """Slices of 32 tokens in a tile."""
    return block_t // 32


@gluon.jit
def _consumer(x_scale_ptr, row_scale_ptr, bias_ptr, steps, row_tiles, token_tiles, tokens, TILES: gl.constexpr, BLOCK_T: gl.constexpr,
              STAGES: gl.constexpr, OUT: gl.constexpr):
    """Both consumer warpgroups: per tile all stages with one product always in flight, then the epilogue."""
    EMPTY: gl.constexpr = _offset(4, TILES, BLOCK_T, STAGES)
    ALL: gl.constexpr = slices(BLOCK_T)
    count = _pieces(0, row_tiles * token_tiles, 1)
    x_scale, row_scale = x_scale_ptr.to(gl.int64, bitcast=True), row_scale_ptr.to(gl.int64, bitcast=True)
    bias = bias_ptr.to(gl.int64, bitcast=True)
    gl.inline_asm_elementwise(prime(TILES, BLOCK_T, STAGES), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
    for index in range(count):
        tile = gl.program_id(0) + index * gl.num_programs(0)
        gl.assume(steps > 0)
        row = tile % row_tiles * (128 * TILES)
        token = tile // row_tiles * BLOCK_T
        gl.inline_asm_elementwise(bring_scales(TILES, BLOCK_T, STAGES), "=r,r,r,r,l,l,l,~{memory}",
                                  [row, token, tokens, x_scale, row_scale, bias], dtype=gl.int32, is_pure=False, pack=1)
        gl.inline_asm_elementwise(enter(TILES, BLOCK_T, STAGES), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
        for step in range(0, steps):
            gl.inline_asm_elementwise(stage(TILES, BLOCK_T, STAGES), "=r,r,r,~{memory}", [step, steps - 1 - step], dtype=gl.int32,
                                      is_pure=False, pack=1)
        gl.inline_asm_elementwise(drain(EMPTY), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
        first = 0
        end = ALL
        for m in gl.static_range(TILES):
            gl.inline_asm_elementwise(wide_epilogue(m, TILES, BLOCK_T, STAGES, OUT), "=r,r,r,r,r,~{memory}", [row, token, first, end],
                                      dtype=gl.int32, is_pure=False, pack=1)
    gl.inline_asm_elementwise(settle(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit(do_not_specialize=["steps", "row_tiles", "token_tiles", "row_blocks", "tokens"])
def wide_gemm(x_desc, y_desc, w_ptr, x_scale_ptr, row_scale_ptr, bias_ptr, steps, row_tiles, token_tiles, row_blocks, tokens,
              TILES: gl.constexpr, BLOCK_T: gl.constexpr, STAGES: gl.constexpr, OUT: gl.constexpr):
    """y[tokens, out_features] from bf16 x, described as int8 rows of twice the columns, and weights in layout fragment24-bf16.

    steps: blocks of 64 columns. row_tiles, token_tiles: of the output, whole tiles only. row_blocks: blocks of 64 rows packed. row_scale,
    bias: float32 per output row, readable to the end of the last tile. OUT: bf16 or f16; out_features is a multiple of 8.
    """
    gl.inline_asm_elementwise(declare(TILES, BLOCK_T), "=r,r", [steps], dtype=gl.int32, is_pure=False, pack=1)
    ring = gl.allocate_shared_memory(gl.int8, [_buffers(TILES, BLOCK_T, STAGES), BLOCK_T, 128], x_desc.layout)
    barriers = gl.allocate_shared_memory(gl.int64, [64, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(barriers.index(i), count=1)
        mbarrier.init(barriers.index(STAGES + i), count=8)
    fence_async_shared()
    gl.warp_specialize([
        (_consumer, (x_scale_ptr, row_scale_ptr, bias_ptr, steps, row_tiles, token_tiles, tokens, TILES, BLOCK_T, STAGES, OUT)),
        (_producer, (x_desc, w_ptr, ring, barriers, steps, 0, row_tiles, token_tiles, row_blocks, TILES, BLOCK_T, STAGES, 1)),
    ], [1], [24])
