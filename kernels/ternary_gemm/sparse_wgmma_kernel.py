"""The persistent GEMM for Hopper's tensor cores, sparse and dense, in Gluon: four producer warps, two consumer warpgroups.

Yᵀ tiles of 128 · TILES weight rows × BLOCK_T tokens. The producer brings activations (TMA) and packed weights (bulk copies) into a ring of
stages; consumers unpack the weights into registers and multiply (`sparse_wgmma_stage`). Tiles run with the weight rows fastest, so that the
programs of a wave share their tokens and the packed weight stays in the L2. The first tiles are whole, one program each; the rest (all of
them where they are few) may be cut along in_features into parts, one for each program of a cluster, which meet in its shared memory.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from kernels.ternary_gemm.sparse_wgmma_epilogue import bring_scales, epilogue, plain_epilogue, settle
from kernels.ternary_gemm.sparse_wgmma_producer import fill, point, share
from kernels.ternary_gemm.sparse_wgmma_ptx import begin, declare, depend, is_grouped, is_short, rank, shared_offsets
from kernels.ternary_gemm.sparse_wgmma_split import all_ready, expect, meeting_offsets, merge, ready, units
from kernels.ternary_gemm.sparse_wgmma_stage import drain, enter, grouped_stage, odd, one_stage, prime, stage, two_stages

PRODUCER_WARPS = gl.constexpr(4)
"""No warp of the program is idle: a barrier of the cluster waits for all."""


@gluon.constexpr_function
def _offset(index, tiles, block_t, stages):
    return shared_offsets(tiles, block_t, stages)[index]


@gluon.constexpr_function
def _words(tiles, block_t, stages, splits):
    return meeting_offsets(tiles, block_t, stages, splits)[2] // 8


@gluon.constexpr_function
def _layout(cluster):
    """Of shared memory that each of so many programs of a cluster has for itself."""
    return mbarrier.MBarrierLayout([[0] for _ in range(cluster.bit_length() - 1)])


@gluon.jit
def _place(CLUSTER: gl.constexpr):
    """This program, all programs, and which of its cluster it is."""
    if CLUSTER == 1:  # noqa: SIM108 - decided by the compiler
        part = 0
    else:
        part = gl.inline_asm_elementwise(rank(), "=r,r", [CLUSTER], dtype=gl.int32, is_pure=True, pack=1)
    return gl.program_id(0) * CLUSTER + part, gl.num_programs(0) * CLUSTER, part


@gluon.jit
def _pieces(rounds, tiles, SPLITS: gl.constexpr, PAIR: gl.constexpr):
    """How many pieces this program has: whole tiles, and with SPLITS a part of one of the others."""
    program, programs, _ = _place(SPLITS * PAIR)
    if SPLITS == 1:
        count = (tiles - program + programs - 1) // programs
    else:
        count = rounds
        if gl.program_id(0) < tiles - rounds * programs:
            count += 1
    return count


@gluon.jit
def _piece(index, steps, rounds, SPLITS: gl.constexpr, PAIR: gl.constexpr):
    """Piece `index` of this program: its tile, and the steps [begin, until) of it."""
    program, programs, part = _place(SPLITS * PAIR)
    tile = program + index * programs
    begin = 0
    until = steps
    if SPLITS > 1:  # noqa: SIM102 - the outer one is decided by the compiler, the inner one by the program
        if index == rounds:
            tile = rounds * programs + gl.program_id(0)
            begin = part * steps // SPLITS
            until = (part + 1) * steps // SPLITS
    return tile, begin, until


@gluon.jit
def _producer(w_ptr, steps, rounds, row_tiles, token_tiles, row_blocks, TILES: gl.constexpr, BLOCK_T: gl.constexpr, STAGES: gl.constexpr,
              SPLITS: gl.constexpr, PAIR: gl.constexpr, EARLY: gl.constexpr):
    """Fill the ring, stage after stage, for every piece of this program."""
    if SPLITS * PAIR > 1:
        gl.inline_asm_elementwise(ready(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
    if PAIR > 1:
        gl.inline_asm_elementwise(all_ready(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
    gl.inline_asm_elementwise(share(TILES, BLOCK_T, STAGES, PAIR), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
    gl.inline_asm_elementwise(depend(EARLY), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
    at = 0
    parity = 1
    w = w_ptr.to(gl.int64, bitcast=True)
    count = _pieces(rounds, row_tiles * token_tiles, SPLITS, PAIR)
    for index in range(count):
        tile, begin, until = _piece(index, steps, rounds, SPLITS, PAIR)
        row_tile, token_tile = tile % row_tiles, tile // row_tiles
        gl.inline_asm_elementwise(point(TILES), "=r,l,r,r,r,r", [w, row_tile * (2 * TILES), row_blocks, steps, begin], dtype=gl.int32,
                                  is_pure=False, pack=1)
        for step in range(begin, until):
            gl.inline_asm_elementwise(fill(TILES, BLOCK_T, STAGES, PAIR), "=r,r,r,r,r,~{memory}",
                                      [at, parity, token_tile * BLOCK_T, step * 128], dtype=gl.int32, is_pure=False, pack=1)
            at += 1
            if at == STAGES:
                at = 0
                parity ^= 1
    if PAIR > 1:
        gl.inline_asm_elementwise(ready(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
    if SPLITS * PAIR > 1:
        gl.inline_asm_elementwise(all_ready(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def _consumer(x_scale_ptr, row_scale_ptr, bias_ptr, y_ptr, steps, rounds, row_tiles, token_tiles, tokens, out_features,
              TILES: gl.constexpr, BLOCK_T: gl.constexpr, STAGES: gl.constexpr, SPLITS: gl.constexpr, PAIR: gl.constexpr, OUT: gl.constexpr,
              WIDE: gl.constexpr, KIND: gl.constexpr, EARLY: gl.constexpr):
    """Both consumer warpgroups: per piece all stages with one product always in flight, then the epilogue."""
    ALL: gl.constexpr = units(TILES, BLOCK_T)
    EMPTY: gl.constexpr = _offset(4, TILES, BLOCK_T, STAGES)
    count = _pieces(rounds, row_tiles * token_tiles, SPLITS, PAIR)
    x_scale, row_scale = x_scale_ptr.to(gl.int64, bitcast=True), row_scale_ptr.to(gl.int64, bitcast=True)
    bias, y = bias_ptr.to(gl.int64, bitcast=True), y_ptr.to(gl.int64, bitcast=True)
    if SPLITS * PAIR > 1:
        gl.inline_asm_elementwise(ready(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
    if PAIR > 1:
        gl.inline_asm_elementwise(all_ready(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
    gl.inline_asm_elementwise(prime(TILES, BLOCK_T, STAGES), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
    if EARLY:
        # Of the first tile: from memory they take as long as a short launch multiplies.
        tile, _, _ = _piece(0, steps, rounds, SPLITS, PAIR)
        gl.inline_asm_elementwise(bring_scales(TILES, BLOCK_T, STAGES, of_tokens=False), "=r,r,r,r,l,l,l,~{memory}",
                                  [tile % row_tiles * (128 * TILES), 0, tokens, x_scale, row_scale, bias], dtype=gl.int32, is_pure=False,
                                  pack=1)
    gl.inline_asm_elementwise(depend(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
    for index in range(count):
        tile, begin, until = _piece(index, steps, rounds, SPLITS, PAIR)
        gl.assume(until > begin)
        row_tile, token_tile = tile % row_tiles, tile // row_tiles
        row = row_tile * (128 * TILES)
        token = token_tile * BLOCK_T
        scales = [row, token, tokens, x_scale, row_scale, bias]
        gl.inline_asm_elementwise(bring_scales(TILES, BLOCK_T, STAGES, of_rows=not EARLY), "=r,r,r,r,l,l,l,~{memory}", scales,
                                  dtype=gl.int32, is_pure=False, pack=1)
        if EARLY:  # noqa: SIM102 - the outer one is decided by the compiler, the inner one by the program
            if index > 0:
                gl.inline_asm_elementwise(bring_scales(TILES, BLOCK_T, STAGES, of_tokens=False), "=r,r,r,r,l,l,l,~{memory}", scales,
                                          dtype=gl.int32, is_pure=False, pack=1)
        gl.inline_asm_elementwise(enter(TILES, BLOCK_T, STAGES), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
        if is_short(TILES, BLOCK_T):
            alone = gl.inline_asm_elementwise(odd(), "=r,r", [until - begin], dtype=gl.int32, is_pure=True, pack=1)
            if alone == 1:
                gl.inline_asm_elementwise(one_stage(BLOCK_T, STAGES, PAIR, KIND), "=r,r,~{memory}", [until - 1 - begin], dtype=gl.int32,
                                          is_pure=False, pack=1)
            for step in range(begin + alone, until, 2):
                gl.inline_asm_elementwise(two_stages(BLOCK_T, STAGES, PAIR, KIND), "=r,r,r,~{memory}", [step - begin, until - 2 - step],
                                          dtype=gl.int32, is_pure=False, pack=1)
        elif is_grouped(TILES, BLOCK_T):
            for step in range(begin, until):
                gl.inline_asm_elementwise(grouped_stage(TILES, BLOCK_T, STAGES, PAIR, KIND), "=r,r,r,~{memory}",
                                          [step - begin, until - 1 - step], dtype=gl.int32, is_pure=False, pack=1)
        else:
            for step in range(begin, until):
                gl.inline_asm_elementwise(stage(TILES, BLOCK_T, STAGES, PAIR, KIND), "=r,r,r,~{memory}", [step - begin, until - 1 - step],
                                          dtype=gl.int32, is_pure=False, pack=1)
        gl.inline_asm_elementwise(drain(EMPTY, PAIR), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
        first = 0
        end = ALL
        if SPLITS > 1:  # noqa: SIM102 - as above
            if index == rounds:
                _, _, part = _place(SPLITS * PAIR)
                gl.inline_asm_elementwise(all_ready(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
                gl.inline_asm_elementwise(merge(TILES, BLOCK_T, STAGES, SPLITS), "=r,r,~{memory}", [part], dtype=gl.int32, is_pure=False,
                                          pack=1)
                first = part * ALL // SPLITS
                end = (part + 1) * ALL // SPLITS
        for m in gl.static_range(TILES):
            if WIDE:
                gl.inline_asm_elementwise(epilogue(m, TILES, BLOCK_T, STAGES, SPLITS, KIND, OUT), "=r,r,r,r,r,~{memory}",
                                          [row, token, first, end], dtype=gl.int32, is_pure=False, pack=1)
            else:
                gl.inline_asm_elementwise(plain_epilogue(m, TILES, BLOCK_T, STAGES, OUT), "=r,r,r,r,r,r,r,l,~{memory}",
                                          [row, token, first, end, tokens, out_features, y], dtype=gl.int32, is_pure=False, pack=1)
    if SPLITS > 1:  # noqa: SIM102 - as above
        if count == rounds:
            gl.inline_asm_elementwise(all_ready(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
    if PAIR > 1:
        gl.inline_asm_elementwise(ready(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
        gl.inline_asm_elementwise(all_ready(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
    if WIDE:
        gl.inline_asm_elementwise(settle(), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit(do_not_specialize=["steps", "rounds", "row_tiles", "token_tiles", "row_blocks", "tokens", "out_features"])
def sparse_gemm(x_desc, y_desc, w_ptr, x_scale_ptr, row_scale_ptr, bias_ptr, y_ptr, steps, rounds, row_tiles, token_tiles, row_blocks,
                tokens, out_features, TILES: gl.constexpr, BLOCK_T: gl.constexpr, STAGES: gl.constexpr, SPLITS: gl.constexpr,
                PAIR: gl.constexpr, OUT: gl.constexpr, WIDE: gl.constexpr, KIND: gl.constexpr, EARLY: gl.constexpr):
    """y[tokens, out_features] from int8 x and weights in fragment order; x_desc, y_desc: TMA descriptors (y_desc unused but with WIDE).

    steps: blocks of 128 in_features. row_tiles, token_tiles: of the output. PAIR = 2: launched in clusters of two programs, which bring
    half of the activations each; row_tiles is even. SPLITS > 1: in clusters of so many; each does `rounds` whole tiles alone, and the
    others are cut in SPLITS parts, a cluster each. row_blocks: blocks of 64 rows packed.
    row_scale, bias: float32 per output row, readable to the end of the last tile; row_scale holds w_scale / 64. OUT: bf16, f16, f32 or
    s32. WIDE: stores by TMA (out_features a multiple of 8, OUT of 16 bits). KIND: "sparse" (layout fragment24), "dense" (fragment), or
    "wide": bf16 x, described as int8 rows of twice the columns, and layout fragment24-bf16; whole tiles, stores by TMA. EARLY:
    weights, row_scale and bias are asked for before the launches before this one have ended, which must not write them.
    """
    gl.inline_asm_elementwise(declare(TILES, BLOCK_T), "=r,r", [steps], dtype=gl.int32, is_pure=False, pack=1)
    # All shared memory is addressed by asm: one allocation, counted in the 8 bytes of a barrier. The compiler keeps it
    # for the first barrier's sake (and on Triton 3.6.0 puts a barrier of all threads behind each that it sets up).
    FULL: gl.constexpr = _offset(3, TILES, BLOCK_T, STAGES) // 8
    memory = gl.allocate_shared_memory(gl.int64, [_words(TILES, BLOCK_T, STAGES, SPLITS), 1], _layout(SPLITS * PAIR))
    mbarrier.init(memory.index(FULL), count=1)
    if SPLITS > 1:
        _, _, part = _place(SPLITS * PAIR)
        gl.inline_asm_elementwise(expect(TILES, BLOCK_T, STAGES, SPLITS), "=r,r,~{memory}", [part], dtype=gl.int32, is_pure=False, pack=1)
    gl.inline_asm_elementwise(begin(TILES, BLOCK_T, STAGES, PAIR, WIDE), "=r,r,~{memory}", [steps], dtype=gl.int32, is_pure=False, pack=1)
    gl.warp_specialize([
        (_consumer, (x_scale_ptr, row_scale_ptr, bias_ptr, y_ptr, steps, rounds, row_tiles, token_tiles, tokens, out_features, TILES,
                     BLOCK_T, STAGES, SPLITS, PAIR, OUT, WIDE, KIND, EARLY)),
        (_producer, (w_ptr, steps, rounds, row_tiles, token_tiles, row_blocks, TILES, BLOCK_T, STAGES, SPLITS, PAIR, EARLY)),
    ], [PRODUCER_WARPS], [24])
